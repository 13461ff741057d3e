"""What a method says when it cannot be applied, and the checks of settings that all methods need."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


class MethodError(ValueError):
    """The method cannot be applied to this model with these settings."""


class TargetError(MethodError):
    """The names of the modules to change match nothing."""


def refuse_packed_weights(module: nn.Module, method: str) -> None:
    """Raise `MethodError` if a weight is stored in 4 bits, for a method that has to change the weight itself."""
    if any(hasattr(part, "packed_parameters") for part in module.modules()):
        raise MethodError(
            f"{method} changes the weights themselves, and those of this model are stored in 4 bits. Call "
            "dequantize(model) first, or use a method that adds its own weights, such as LoRA"
        )


def positive_integer(value: Any, name: str) -> None:
    """Raise `MethodError` unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MethodError(f"{name} must be a whole number of at least 1, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
