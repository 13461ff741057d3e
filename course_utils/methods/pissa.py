"""PiSSA: LoRA that starts from the largest part of the weight itself (Meng et al. 2024, arXiv:2404.02948).

LoRA freezes all of W and starts with an update of zero. PiSSA splits W into its largest singular directions, which
are trained, and the rest R, which is frozen::

    W = U S Vᵀ  (singular value decomposition, largest first)
    A = √(S_r / s) V_rᵀ: (rank, in)        B = U_r √(S_r / s): (out, rank)        R = W - s · B A

    h = R x + b + s · B (A x)

At the start the sum is W again, up to rounding. As many numbers are trained as in LoRA, ``rank · (in + out)``, but
none starts at zero, so all of them learn from the first step on.

W itself stays in the wrapped layer, so that `eject` gives it back bit for bit: each target takes the memory of one
more matrix, R. The decomposition takes time once, when the method is inserted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.methods.errors import MethodError, refuse_packed_weights
from course_utils.methods.lora import LoRAConfig, LoRALinear
from course_utils.methods.targets import Matrix, layer_shape, turned


@dataclass(frozen=True)
class PiSSAConfig(LoRAConfig):
    """The settings of PiSSA: those of LoRA. At the start, alpha changes nothing; later it scales the steps, as in LoRA.

    The paper takes alpha = rank and no dropout: dropout would disturb what the model already knows.
    """

    name: ClassVar[str] = "PiSSA"

    def make_layer(self, base: Matrix) -> PiSSALinear:
        """The wrapper of one target."""
        return PiSSALinear(base, self)


class PiSSALinear(LoRALinear):
    """A linear layer, split into a frozen rest and its trained largest part: ``h = R x + b + s · B (A x)``.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)); it is left as it is.
        config: the settings.

    Raises:
        MethodError: the rank is larger than that of the weight, or the weight holds numbers that are not finite.
    """

    residual: torch.Tensor  # R, stored the way round that the base stores W
    initial_a: torch.Tensor  # A and B at the start: a checkpoint holds what was learnt since
    initial_b: torch.Tensor

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        refuse_packed_weights(base, "PiSSA")
        if config.rank > min(layer_shape(base)):
            raise MethodError(
                f"PiSSA's rank is {config.rank}, but a weight with {layer_shape(base)[0]} inputs and "
                f"{layer_shape(base)[1]} outputs has only {min(layer_shape(base))} singular values"
            )
        super().__init__(base, config)
        weight = turned(base, base.weight.detach()).to(self.lora_A.weight.dtype)  # (out, in)
        a, b = principal_factors(weight, config.rank, config.scaling)
        self.lora_A.weight.data.copy_(a)
        self.lora_B.weight.data.copy_(b)
        residual = turned(base, weight - self.scaling * b @ a).to(base.weight.dtype)
        for name, tensor in (("residual", residual), ("initial_a", a), ("initial_b", b)):
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``R x + b + s · B (A x)``."""
        h = F.linear(x, turned(self.base, self.residual), self.base.bias)  # the base layer, with R in the place of W
        x = self.dropout(x.to(self.lora_A.weight.dtype))
        return (h + self.lora_B(self.lora_A(x)) * self.scaling).to(h.dtype)

    def merged(self) -> nn.Module:
        """The base layer with ``R + s · B A`` as its weight."""
        self.base.weight.data = self.residual
        return super().merged()


def principal_factors(weight: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A: (rank, in) and B: (out, rank), so that ``scaling · B A`` is the best approximation of `weight` of that rank.

    Args:
        weight: (out, in), float32 or float64.
        rank: how many singular values are taken, the largest first.
        scaling: the factor s of the update.

    Raises:
        MethodError: the weight holds numbers that are not finite.
    """
    try:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise MethodError(f"the singular values of a weight cannot be computed, is it finite? {error}") from error
    root = torch.sqrt(s[:rank] / scaling)
    return root[:, None] * vt[:rank], u[:, :rank] * root
