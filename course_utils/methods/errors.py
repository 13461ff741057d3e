"""What a method says when it cannot be applied, and the checks of settings that all methods need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from course_utils.errors import CourseError


class MethodError(CourseError, ValueError):
    """The method cannot be applied to this model with these settings."""


class TargetError(MethodError):
    """The names of the modules to change match nothing."""


def refuse_packed_weights(module: nn.Module, method: str) -> None:
    """Raise `MethodError` if a weight is stored in 4 bits, for a method that has to change the weight itself."""
    for parameter in module.parameters():
        refuse_foreign_weights(parameter)
    if any(hasattr(part, "packed_parameters") for part in module.modules()):
        raise MethodError(
            f"{method} changes the weights themselves, and those of this model are stored in 4 bits. Call "
            "dequantize(model) first, or use a method that adds its own weights, such as LoRA"
        )


def refuse_foreign_weights(weight: torch.Tensor) -> None:
    """Raise `MethodError` if a weight is stored in whole numbers, as bitsandbytes stores 4 and 8 bits."""
    if not (weight.is_floating_point() or weight.is_complex()):
        raise MethodError(
            f"a weight is stored as {weight.dtype}, so another library (such as bitsandbytes) has quantised it, and "
            "its layers are not known here. Load the model without quantization_config and call quantize(model), or "
            "use QLoRAConfig"
        )


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_whole_number(value: Any, name: str, least: int = 1) -> None:
    """Raise `MethodError` unless `value` is a whole number of at least `least`: a rank, a count, a seed."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise MethodError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_strength(value: Any, name: str) -> None:
    """Raise `MethodError` unless `value` is a number above 0: an alpha, or another factor of what is learnt."""
    if not (is_number(value) and value > 0):
        raise MethodError(
            f"{name} must be a number above 0, got {value!r}: at 0 the method is off, and below 0 it works backwards"
        )


def check_share(value: Any, name: str) -> None:
    """Raise `MethodError` unless `value` is from 0 to below 1: a dropout."""
    if not (is_number(value) and 0 <= value < 1):
        raise MethodError(f"{name} is a share from 0 to below 1, got {value!r}")


def check_switch(value: Any, name: str) -> None:
    """Raise `MethodError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise MethodError(f"{name} must be True or False, got {value!r}")


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise `MethodError` unless `value` is one of the choices."""
    if value not in choices:
        raise MethodError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
