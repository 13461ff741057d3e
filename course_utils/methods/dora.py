"""DoRA: LoRA turns the weight's rows, a vector of its own sets their lengths (Liu et al. 2024, arXiv:2402.09353).

A row of a weight matrix has a length and a direction. LoRA changes both at once; DoRA learns them apart::

    h = g ⊙ (W + ΔW) x + b        g = m / ‖W + ΔW‖        ΔW = s · B A, as in LoRA

    m: (out,)      the length ("magnitude") of each output's row, at first ‖W‖
    ‖·‖: (out,)    the Euclidean length of each row of an (out, in) matrix

B starts at zero and m at ‖W‖, so g is 1 and the model computes what it did before until the first step. The bias is
not scaled. A layer trains ``rank · (in + out) + out`` numbers.

The length ‖W + ΔW‖ changes with A and B, but no gradient flows through it (section 4.3 of the paper): it counts as a
constant, which saves memory and, in the paper's experiments, costs next to no quality. Forget that, and every output
stays right while the gradients of A and B are wrong.

ΔW itself is never formed. For a row w of W and the row b of B beside it, the square of the length is a sum of products
that are all thin::

    ‖w + s · b A‖² = ‖w‖² + 2 s · (w Aᵀ) · b + s² · b (A Aᵀ) · b        w Aᵀ: (rank,)    A Aᵀ: (rank, rank)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from course_utils.methods.errors import MethodError
from course_utils.methods.lora import LoRAConfig, LoRALinear
from course_utils.methods.targets import Matrix, turned


@dataclass(frozen=True)
class DoRAConfig(LoRAConfig):
    """The settings of DoRA: those of LoRA."""

    name: ClassVar[str] = "DoRA"

    def make_layer(self, base: Matrix) -> DoRALinear:
        """The wrapper of one target."""
        return DoRALinear(base, self)


class DoRALinear(LoRALinear):
    """A frozen linear layer whose rows get a learnt direction and a learnt length: ``h = g ⊙ (W + s · B A) x + b``.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)).
        config: the settings.

    Raises:
        MethodError: a row of the weight is zero and has no direction.
    """

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        lengths = self.row_lengths()
        if not lengths.is_meta and not lengths.all():
            raise MethodError(
                f"DoRA divides by the length of each row of a weight, and {int((lengths == 0).sum())} of the "
                f"{len(lengths)} rows of a target are zero. Leave that layer out of the targets, or use LoRA."
            )
        self.lora_magnitude_vector = nn.Parameter(lengths)  # m, under peft's name

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``base(x) + (g - 1) ⊙ W x + g ⊙ s · B (A x)``, which is the formula above."""
        h = self.base(x)
        x = x.to(self.lora_A.weight.dtype)
        g = self.lora_magnitude_vector / self.row_lengths()  # (out,)
        if self.training and self.dropout.p > 0:
            x = self.dropout(x)  # as in peft: W x of the second term sees the dropout too
            wx = nn.functional.linear(x, turned(self.base, self.base.weight).to(x.dtype))
        else:
            wx = h if self.base.bias is None else h - self.base.bias
        return (h + ((g - 1) * wx + g * self.lora_B(self.lora_A(x)) * self.scaling)).to(h.dtype)

    @torch.no_grad()  # the paper's section 4.3: the length is a constant for the gradient
    def row_lengths(self) -> torch.Tensor:
        """The length of each row of ``W + ΔW``, of shape (out,), without forming ΔW."""
        A, B, s = self.lora_A.weight, self.lora_B.weight, self.scaling
        W = turned(self.base, self.base.weight).to(A.dtype)
        crossed = 2 * s * (W @ A.T) + s**2 * (B @ (A @ A.T))  # (out, rank)
        squares = torch.linalg.vector_norm(W, dim=1).square() + (crossed * B).sum(1)
        return squares.clamp(min=0).sqrt()  # rounding may lead a row that ΔW undoes below zero

    def merged(self) -> nn.Module:
        """The base layer with ``g ⊙ (W + ΔW)`` as its weight."""
        weight = self.base.weight
        g = (self.lora_magnitude_vector / self.row_lengths()).view(-1, 1)
        weight.data = (turned(self.base, g) * (weight + turned(self.base, self.delta()))).to(weight.dtype)
        return self.base
