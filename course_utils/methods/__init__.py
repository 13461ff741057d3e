"""Every tuning method behind one interface: `inject`, `trainable_parameters`, `merge`."""

from course_utils.methods.base import (
    MethodConfig,
    MethodError,
    TargetError,
    count_parameters,
    find_targets,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.methods.lora import LoRAConfig, LoRALinear
from course_utils.methods.selective import BitFitConfig, FullConfig, HeadOnlyConfig, LastLayersConfig

__all__ = [
    "BitFitConfig",
    "FullConfig",
    "HeadOnlyConfig",
    "LastLayersConfig",
    "LoRAConfig",
    "LoRALinear",
    "MethodConfig",
    "MethodError",
    "TargetError",
    "count_parameters",
    "find_targets",
    "inject",
    "merge",
    "trainable_parameters",
]
