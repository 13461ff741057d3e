"""(IA)³: learn which activations to turn up or down, one factor each (Liu et al. 2022, arXiv:2205.05638).

"Infused Adapter by Inhibiting and Amplifying Inner Activations". No matrix is added, only three vectors a block; ⊙
multiplies number by number::

    attention      softmax(q (l_k ⊙ k)ᵀ / √d) (l_v ⊙ v)      l_k, l_v: as wide as keys and values
    feed-forward   W₂ (l_ff ⊙ f(W₁ x)) + b₂                  l_ff: as wide as the inner layer

So a layer that makes keys or values is scaled on its output (its bias too), and the second layer of the feed-forward
block on its input. All factors start at one: the model computes exactly what it did before. A block trains
``keys + values + inner width`` numbers, on BERT-base 12 · (768 + 768 + 3072) = 55,296.

Two architectures need a word:

* GPT-2 makes query, key and value in one layer, `c_attn`. We scale the key and value parts of its output and leave the
  query alone, as in the paper. peft scales all three; that gives no new freedom, because the scores only see the
  product of the query's and the key's factor. ``queries=True`` does as peft does.
* Llama's feed-forward block is gated, ``W_down (silu(W_gate x) ⊙ W_up x)``: l_ff scales what `down_proj` receives, as
  in the paper's gated T5. Its keys are scaled before their rotation by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from course_utils.methods.architectures import ARCHITECTURES, architecture_of, model_type
from course_utils.methods.base import AdaptedLayer, trainable_dtype
from course_utils.methods.errors import MethodError, TargetError, check_switch
from course_utils.methods.targets import Matrix, Targets, find_targets, layer_shape
from course_utils.methods.wrapping import WrappingConfig


@dataclass(frozen=True)
class IA3Config(WrappingConfig):
    """The settings of (IA)³. All defaults together are the places of the paper.

    Args:
        keys_and_values: the layers to scale on the output, see `find_targets`; () for none, None for those of a known
            architecture.
        feedforward: the layers to scale on the input, in the same way.
        queries: where one layer makes query, key and value (GPT-2), scale the query too, as peft does.
    """

    name: ClassVar[str] = "IA3"
    keys_and_values: Targets | None = None
    feedforward: Targets | None = None
    queries: bool = False

    def __post_init__(self) -> None:
        if self.keys_and_values == () and self.feedforward == ():
            raise MethodError("keys_and_values and feedforward are both empty, so nothing would be scaled")
        check_switch(self.queries, "queries")

    def find_layers(self, model: nn.Module) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
        """The layers to scale on the output and those to scale on the input, each by dotted name."""
        architecture = architecture_of(model)
        places = None if architecture is None else architecture.ia3_places
        chosen: list[Targets] = []
        for given, place in zip((self.keys_and_values, self.feedforward), places or (None, None), strict=True):
            targets = place if given is None else given
            if targets is None:
                raise TargetError(
                    f"no default places for a model of type {model_type(model)!r}: set both keys_and_values and "
                    "feedforward"
                )
            chosen.append(targets)
        outputs, inputs = ({} if targets == () else find_targets(model, targets, self.head) for targets in chosen)
        for name in outputs.keys() & inputs.keys():
            raise TargetError(
                f"{name} is in keys_and_values and in feedforward; a layer is scaled on one side. "
                "Set the other to () or to names that leave this layer out."
            )
        if self.queries and not any(query_width(name, layer) for name, layer in outputs.items()):
            raise MethodError("queries=True is for GPT-2, where one layer makes query, key and value; none does here")
        return outputs, inputs

    def wrappers(self, model: nn.Module) -> dict[str, IA3Linear]:
        """An `IA3Linear` for each layer."""
        outputs, inputs = self.find_layers(model)
        scaled_outputs = {
            name: IA3Linear(layer, skip=0 if self.queries else query_width(name, layer))
            for name, layer in outputs.items()
        }
        return scaled_outputs | {name: IA3Linear(layer, feedforward=True) for name, layer in inputs.items()}


class IA3Linear(AdaptedLayer):
    """A frozen linear layer with a learnt factor for each number that leaves it, or that enters it.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)).
        feedforward: scale the input, ``W (l ⊙ x) + b``, instead of the output, ``l ⊙ (W x + b)``.
        skip: so many of the first outputs are not scaled: the query in GPT-2's `c_attn`.
    """

    base: Matrix

    def __init__(self, base: Matrix, *, feedforward: bool = False, skip: int = 0) -> None:
        super().__init__(base)
        self.feedforward, self.skip = feedforward, skip
        inputs, outputs = layer_shape(base)
        shape = (1, inputs) if feedforward else (outputs - skip, 1)  # a row, a column of the weight: peft's shapes
        self.ia3_l = nn.Parameter(torch.ones(shape, device=base.weight.device, dtype=trainable_dtype(base.weight)))

    def factors(self) -> torch.Tensor:
        """One factor for each input or output; 1 for the outputs that are skipped."""
        return functional.pad(self.ia3_l.flatten(), (self.skip, 0), value=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``W (l ⊙ x) + b`` or ``l ⊙ (W x + b)``."""
        if self.feedforward:
            return self.base((x * self.factors()).to(x.dtype))
        h = self.base(x)
        return (h * self.factors()).to(h.dtype)

    def merged(self) -> nn.Module:
        """The base layer with the factors in the columns of W, or in its rows and the bias."""
        weight, bias, factors = self.base.weight, self.base.bias, self.factors()
        # Factors of the inputs go along the last dimension of nn.Linear's (out, in), the first of Conv1D's (in, out).
        along_last = self.feedforward != isinstance(self.base, Conv1D)
        weight.data = (weight * (factors if along_last else factors[:, None])).to(weight.dtype)
        if bias is not None and not self.feedforward:
            bias.data = (bias * factors).to(bias.dtype)
        return self.base


def query_width(name: str, layer: Matrix) -> int:
    """How many of the first outputs are the query: a third in GPT-2's `c_attn`, else none."""
    inputs, outputs = layer_shape(layer)
    fused = {row.attention.query.split(".")[-1] for row in ARCHITECTURES.values() if row.thirds}
    return inputs if name.split(".")[-1] in fused and outputs == 3 * inputs else 0
