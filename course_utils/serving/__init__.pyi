from .base_fingerprint import SEAL as SEAL, check_seal as check_seal, fingerprint as fingerprint, seal as seal
from .cards import (
    SECTIONS as SECTIONS,
    ModelCardError as ModelCardError,
    missing_sections as missing_sections,
    model_card as model_card,
)
from .exporting import TOLERANCE as TOLERANCE, ExportError as ExportError, export as export, to_int8 as to_int8
from .mixed_batches import MixedLoRA as MixedLoRA, ServingError as ServingError
from .runtime import (
    MODELS as MODELS,
    SETTINGS as SETTINGS,
    Answer as Answer,
    Classifier as Classifier,
    ServeError as ServeError,
)
from .switching import Adapters as Adapters, Parts as Parts
