"""The bottleneck adapter itself: a small network with a shortcut around it, for the places see `adapters`.

It squeezes a vector of `d` numbers through a bottleneck of `m` and widens it again::

    A(z) = s · (U σ(D z + b) + c)        D: (m, d)    U: (d, m)    b, c: biases, zero at the start

An adapter has ``2 · m · d + m + d`` parameters. Because of σ no weight of the model can take it in: no merge.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from course_utils.methods.architecture_row import AdapterPlaces
from course_utils.methods.architectures import ARCHITECTURES, architecture_of, model_type
from course_utils.methods.base import AdaptedLayer, trainable_dtype
from course_utils.methods.errors import MethodError, check_strength, check_whole_number, is_number
from course_utils.methods.wrapping import WrappingConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "swish": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class BottleneckConfig(WrappingConfig):
    """What the three methods share; use one of the subclasses.

    Args:
        size: m, the width of the bottleneck; None means d divided by `reduction`, as in `adapters`.
        activation: σ, one of `ACTIVATIONS`.
        scaling: s, above 0.
        initial_std: D and U are drawn from a normal distribution with this standard deviation, cut off at twice of it,
            so that the model starts close to the pretrained one. None starts exactly there: U is zero, and D uniform
            in ± 1/√d, as B and A of LoRA. (Were D and U both zero, neither would ever get a gradient.)
    """

    reduction: ClassVar[int] = 16
    parallel: ClassVar[bool] = False
    size: int | None = None
    activation: str = "relu"
    scaling: float = 1.0
    initial_std: float | None = 0.02

    def __post_init__(self) -> None:
        if self.size is not None:
            check_whole_number(self.size, "size")
        if self.activation not in ACTIVATIONS:
            raise MethodError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        check_strength(self.scaling, "scaling")
        if self.initial_std is not None and not (is_number(self.initial_std) and self.initial_std > 0):
            raise MethodError(
                f"initial_std must be a number above 0, got {self.initial_std!r}. To start exactly from the "
                "pretrained model, write None: it sets U to zero and leaves D at random"
            )

    def wrappers(self, model: nn.Module) -> Mapping[str, AdaptedLayer]:
        """The adapters in the places of this architecture."""
        architecture = architecture_of(model)
        if architecture is None or architecture.adapters is None:
            known = ", ".join(name for name, row in ARCHITECTURES.items() if row.adapters is not None)
            raise MethodError(
                f"{self.name} must know how a block is built, and {model_type(model) or type(model).__name__!r} is "
                f"unknown to them; known are {known}. LoRA works on every model"
            )
        return self.in_places(model, architecture.adapters)

    @abstractmethod
    def in_places(self, model: nn.Module, places: AdapterPlaces) -> Mapping[str, AdaptedLayer]:
        """Dotted name → what shall stand there."""


class Bottleneck(nn.Module):
    """The adapter itself: ``A(z) = s · (U σ(D z + b) + c)``.

    Args:
        model: gives the width d, the device and the precision, which is never half.
        config: the settings.
    """

    def __init__(self, model: Any, config: BottleneckConfig) -> None:
        super().__init__()
        width = model.config.hidden_size
        size = config.size if config.size is not None else max(1, width // config.reduction)
        like = next(p for p in model.parameters() if p.is_floating_point())
        dtype = trainable_dtype(like)
        self.down = nn.Linear(width, size, device=like.device, dtype=dtype)
        self.activation = ACTIVATIONS[config.activation]()
        self.up = nn.Linear(size, width, device=like.device, dtype=dtype)
        self.scaling = config.scaling
        std = config.initial_std
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)
            if std is not None:
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        if std is None:
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))  # uniform in ± 1/√d
            nn.init.zeros_(self.up.weight)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # (batch, tokens, d) → (batch, tokens, d)
        """Compute ``s · (U σ(D z + b) + c)``."""
        return self.up(self.activation(self.down(z.to(self.down.weight.dtype)))) * self.scaling
