"""Bottleneck adapters: small networks between the frozen layers, each with a shortcut around it.

An adapter squeezes a vector of `d` numbers through a bottleneck of `m` and widens it again::

    A(z) = s · (U σ(D z + b) + c)        D: (m, d)    U: (d, m)    b, c: biases, zero at the start

A sublayer of a transformer (attention, or the feed-forward network) takes `x`, computes `h`, and then adds the two. In
BERT a normalisation follows: LN(h + x). The three methods differ in where the adapter sits and what it reads::

    Houlsby     h ← h + A(h)            after attention and after the feed-forward; trains the normalisations too
    Pfeiffer    h ← h + A(LN(h + x))    after the feed-forward; the LN is the model's own, which is thus used twice
    parallel    h ← h + A(x)            beside the feed-forward

    Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247; He et al. 2022, arXiv:2110.04366

GPT-2 and Llama normalise x before the sublayer and not the sum after it. There we follow the library `adapters`:
Pfeiffer reads the plain sum h + x, and parallel reads x before its normalisation.

An adapter has ``2 · m · d + m + d`` parameters. Because of σ no weight of the model can take it in: no merge.
"""

from __future__ import annotations

import math
import re
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import nn

from course_utils.methods.base import (
    AdaptedLayer,
    MethodConfig,
    MethodError,
    find_head,
    is_number,
    positive_integer,
    replace_module,
    trainable_dtype,
)

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

    def wrappers(self, model: nn.Module, places: Places) -> dict[str, AdaptedLayer]:
        """Dotted name → what shall stand there. Here: one adapter in each block, which reads x or the sum."""
        feed_forwards = in_blocks(model, places.feed_forward)
        if places.norm_before is None:
            return {name: AdaptedOutput(module, model, self) for name, module in feed_forwards.items()}
        norms = in_blocks(model, places.norm_before)
        return {name: NormAndInput(module) for name, module in norms.items()} | {
            name: AdaptedFeedForward(module, model, self) for name, module in feed_forwards.items()
        }


@dataclass(frozen=True)
class HoulsbyConfig(BottleneckConfig):
    """Two adapters in each block; all normalisations are trained too, as copies, so that `eject` restores the old.

    The defaults are those of the authors' code. Its 0.001 starts the model almost where it was, not exactly there.
    (The preset of `adapters` has swish and 0.02, and leaves the normalisations frozen.)
    """

    name: ClassVar[str] = "Houlsby adapters"
    activation: str = "gelu"
    initial_std: float | None = 0.001

    def wrappers(self, model: nn.Module, places: Places) -> dict[str, AdaptedLayer]:
        """An adapter at the end of each sublayer, and a trained copy of each normalisation."""
        ends = in_blocks(model, places.attention_end) | in_blocks(model, places.feed_forward_end)
        head = tuple(name + "." for name in find_head(model, self.head))  # is trained as it is
        return {name: AdapterAfter(module, model, self) for name, module in ends.items()} | {
            name: TrainedNorm(module)
            for name, module in model.named_modules()
            if is_norm(module) and not f"{name}.".startswith(head)
        }


@dataclass(frozen=True)
class PfeifferConfig(BottleneckConfig):
    """One adapter in each block, after the feed-forward network: half of Houlsby's parameters.

    The defaults are those of the library `adapters`, which does not cut the normal distribution off.
    """

    name: ClassVar[str] = "Pfeiffer adapters"


@dataclass(frozen=True)
class ParallelAdapterConfig(BottleneckConfig):
    """One adapter in each block, beside the feed-forward network. Wide, and with s = 4, as in the paper."""

    name: ClassVar[str] = "parallel adapters"
    reduction: ClassVar[int] = 2
    parallel: ClassVar[bool] = True
    scaling: float = 4.0
    initial_std: float | None = None


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


class _Unmergeable(AdaptedLayer):
    base: Any  # a module of the model, whose parts are called by their names

    def merged(self) -> NoReturn:
        raise MethodError(
            "bottleneck adapters cannot be merged: an adapter bends its input with a non-linear function between its "
            "two matrices, and no change of the weights does that. Keep it in the model, or take it out with eject"
        )


class _Adapted(_Unmergeable):
    def __init__(self, base: nn.Module, model: nn.Module, config: BottleneckConfig) -> None:
        super().__init__(base)
        self.adapter = Bottleneck(model, config)
        self.parallel = config.parallel


class AdapterAfter(_Adapted):
    """The last step of a sublayer, with an adapter after it (Houlsby)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Compute ``h + A(h)``."""
        h = self.base(z)
        return (h + self.adapter(h)).to(h.dtype)


class AdaptedOutput(_Adapted):
    """The last step of BERT's block, which holds the sum and its normalisation too (Pfeiffer, parallel)."""

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # (…, hidden layer), (…, d) → (…, d)
        """Compute ``LN(h + A(LN(h + x)) + x)``, or ``LN(h + A(x) + x)``."""
        h = self.base.dropout(self.base.dense(hidden))
        z = x if self.parallel else self.base.LayerNorm(h + x)
        return self.base.LayerNorm((h + self.adapter(z)).to(h.dtype) + x)


class AdaptedFeedForward(_Adapted):
    """The feed-forward network of GPT-2 and Llama (Pfeiffer, parallel). The block adds x to the result."""

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Compute ``h + A(h + x)``, or ``h + A(x)``. The inputs come from `NormAndInput`."""
        normalised, x = inputs
        h = self.base(normalised)
        return (h + self.adapter(x if self.parallel else h + x)).to(h.dtype)


class NormAndInput(_Unmergeable):
    """The normalisation before the feed-forward network; it hands on x as well, because the adapter reads it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised x, and x."""
        return self.base(x), x


class TrainedNorm(_Unmergeable):
    """A trained copy of a normalisation (Houlsby). The model's own waits in `base`, unused."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.trained: Any = deepcopy(base).requires_grad_(True)
        self.trained.to(trainable_dtype(next(base.parameters())))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Normalise with the trained scale and shift."""
        return self.trained(z.to(self.trained.weight.dtype)).to(z.dtype)


def in_blocks(model: nn.Module, place: str) -> dict[str, nn.Module]:
    """Dotted name → the module with this name in each block; the number of the block stands right before it."""
    pattern = re.compile(rf".*\.\d+\.{re.escape(place)}")
    return {name: module for name, module in model.named_modules() if pattern.fullmatch(name)}


def is_norm(module: nn.Module) -> bool:
    """Whether this is a layer normalisation; Llama's and its relatives' are called LlamaRMSNorm, Qwen2RMSNorm ..."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
