"""Every tuning method behind one interface: `inject`, `trainable_parameters`, `merge`, `eject`."""

from course_utils.methods.adalora import AdaLoRAConfig
from course_utils.methods.adalora_layer import AdaLoRALinear, allocated_ranks
from course_utils.methods.adapters import HoulsbyConfig, ParallelAdapterConfig, PfeifferConfig
from course_utils.methods.base import MethodConfig, inject
from course_utils.methods.counting import count_parameters, trainable_parameters
from course_utils.methods.dora import DoRAConfig, DoRALinear
from course_utils.methods.double_quantization import bits_per_parameter
from course_utils.methods.errors import MethodError, TargetError
from course_utils.methods.ia3 import IA3Config, IA3Linear
from course_utils.methods.lora import LoRAConfig, LoRALinear, LoRAPlusConfig
from course_utils.methods.merging import eject, merge
from course_utils.methods.nf4_layer import NF4Linear
from course_utils.methods.p_tuning import PTuningConfig
from course_utils.methods.pissa import PiSSAConfig, PiSSALinear, principal_factors
from course_utils.methods.prefix import PrefixTuningConfig, PTuningV2Config
from course_utils.methods.prefix_body import PrefixBody
from course_utils.methods.prompts import PromptTuningConfig
from course_utils.methods.qlora import QLoRAConfig, dequantize, quantize
from course_utils.methods.quantization import (
    NF4_LEVELS,
    dequantize_blocks,
    dequantize_int8_absmax,
    dequantize_nf4,
    quantize_blocks,
    quantize_int8_absmax,
    quantize_nf4,
)
from course_utils.methods.registry import METHODS, Method, studied
from course_utils.methods.selective import BitFitConfig, FullConfig, HeadOnlyConfig, LastLayersConfig
from course_utils.methods.targets import find_targets
from course_utils.methods.vera import VeRAConfig, VeRALinear

__all__ = [
    "METHODS",
    "NF4_LEVELS",
    "AdaLoRAConfig",
    "AdaLoRALinear",
    "BitFitConfig",
    "DoRAConfig",
    "DoRALinear",
    "FullConfig",
    "HeadOnlyConfig",
    "HoulsbyConfig",
    "IA3Config",
    "IA3Linear",
    "LastLayersConfig",
    "LoRAConfig",
    "LoRALinear",
    "LoRAPlusConfig",
    "Method",
    "MethodConfig",
    "MethodError",
    "NF4Linear",
    "PTuningConfig",
    "PTuningV2Config",
    "ParallelAdapterConfig",
    "PfeifferConfig",
    "PiSSAConfig",
    "PiSSALinear",
    "PrefixBody",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "QLoRAConfig",
    "TargetError",
    "VeRAConfig",
    "VeRALinear",
    "allocated_ranks",
    "bits_per_parameter",
    "count_parameters",
    "dequantize",
    "dequantize_blocks",
    "dequantize_int8_absmax",
    "dequantize_nf4",
    "eject",
    "find_targets",
    "inject",
    "merge",
    "principal_factors",
    "quantize",
    "quantize_blocks",
    "quantize_int8_absmax",
    "quantize_nf4",
    "studied",
    "trainable_parameters",
]
