from .anatomy import FORMULAS as FORMULAS, count_by_formula as count_by_formula, count_by_kind as count_by_kind
from .assets import (
    ASSETS as ASSETS,
    CACHE_VARIABLE as CACHE_VARIABLE,
    RELEASE as RELEASE,
    Asset as Asset,
    AssetError as AssetError,
    asset_folder as asset_folder,
    cache_folder as cache_folder,
    cache_remedy as cache_remedy,
    fetch as fetch,
    pack as pack,
    problems as problems,
)
from .backbones import (
    DEFAULT_BACKBONE as DEFAULT_BACKBONE,
    DEFAULT_LANGUAGE_MODEL as DEFAULT_LANGUAGE_MODEL,
    LABELS as LABELS,
    BackboneError as BackboneError,
    load_causal_lm as load_causal_lm,
    load_classifier as load_classifier,
    prepare as prepare,
)
from .chat import (
    IGNORE as IGNORE,
    ChatError as ChatError,
    encode_chat as encode_chat,
    encode_prompt as encode_prompt,
    pad_left as pad_left,
    padding_token as padding_token,
)
