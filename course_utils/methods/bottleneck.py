"""The bottleneck adapter itself: a small network with a shortcut around it, for the places see `adapters`.

It squeezes a vector of `d` numbers through a bottleneck of `m` and widens it again::

    A(z) = s · (U σ(D z + b) + c)        D: (m, d)    U: (d, m)    b, c: biases, zero at the start

An adapter has ``2 · m · d + m + d`` parameters. Because of σ no weight of the model can take it in: no merge.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from course_utils.methods.base import AdaptedLayer, MethodConfig, trainable_dtype
from course_utils.methods.errors import MethodError, is_number, positive_integer
from course_utils.methods.targets import replace_module

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "swish": nn.SiLU, "tanh": nn.Tanh}


class Places(NamedTuple):
    """What a family of models calls the parts of its blocks."""

    attention_end: str  # the last step of attention: its output is h
    feed_forward_end: str
    feed_forward: str  # takes x and gives h; in BERT it takes the hidden layer and x, and gives LN(h + x)
    norm_before: str | None  # the normalisation of x, where there is one


_BERT = Places("attention.output.dropout", "output.dropout", "output", None)
_LLAMA = Places("self_attn.o_proj", "mlp.down_proj", "mlp", "post_attention_layernorm")
PLACES: dict[str, Places] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), _BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA),
    "gpt2": Places("attn.resid_dropout", "mlp.dropout", "mlp", "ln_2"),
}


@dataclass(frozen=True)
class BottleneckConfig(MethodConfig):
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
            positive_integer(self.size, "size")
        if self.activation not in ACTIVATIONS:
            raise MethodError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if not (is_number(self.scaling) and self.scaling > 0):
            raise MethodError(f"scaling must be a number above 0, got {self.scaling!r}: at 0 nothing would be learnt")
        if self.initial_std is not None and not (is_number(self.initial_std) and self.initial_std > 0):
            raise MethodError(
                f"initial_std must be a number above 0, got {self.initial_std!r}. To start exactly from the "
                "pretrained model, write None: it sets U to zero and leaves D at random"
            )

    def apply(self, model: nn.Module) -> None:
        """Put the adapters in place."""
        model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if model_type not in PLACES:
            raise MethodError(
                f"{self.name} must know how a block is built, and {model_type!r} is unknown to them; "
                f"known are {', '.join(PLACES)}. LoRA works on every model"
            )
        for name, layer in self.wrappers(model, PLACES[model_type]).items():
            replace_module(model, name, layer)

    @abstractmethod
    def wrappers(self, model: nn.Module, places: Places) -> dict[str, AdaptedLayer]:
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
