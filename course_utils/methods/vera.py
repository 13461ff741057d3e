"""VeRA: one random pair of matrices for all layers, two learnt vectors each (Kopiczko et al. 2024, arXiv:2310.11454).

LoRA learns a pair of matrices for each layer. VeRA draws one pair at random, never trains it, shares it between all
layers, and learns only how strongly each of its rows counts::

    h = W x + bias + b ⊙ B (d ⊙ A x)        ΔW = diag(b) B diag(d) A

    A: (rank, largest in)     drawn once, frozen, shared; a layer takes its first `in` columns
    B: (largest out, rank)    drawn once, frozen, shared; a layer takes its first `out` rows
    d: (rank,)    vera_lambda_d, learnt, starts at 0.1
    b: (out,)     vera_lambda_b, learnt, starts at zero

Because b starts at zero, the model computes exactly what it did before until the first step. A layer trains
``rank + out`` numbers, so a large rank is cheap: the default is 256.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import linear

from course_utils.methods.base import trainable_dtype
from course_utils.methods.errors import MethodError, check_share, check_switch, check_whole_number, is_number
from course_utils.methods.targets import Matrix, layer_shape
from course_utils.methods.wrapping import AdditiveLayer, TargetsConfig


@dataclass(frozen=True)
class VeRAConfig(TargetsConfig):
    """The settings of VeRA.

    Args:
        rank: rows of A and columns of B; at least 1, and far larger than LoRA's.
        initial_d: where every number of d starts; not 0. The paper finds 0.1 and below good.
        dropout: share of the inputs of A that are set to zero while training, from 0 to below 1.
        targets: the matrices to adapt, see `find_targets`; None means query and value, as in the paper.
        projection_seed: of A and B. The seed of `inject` does not count here: the same two matrices must come back
            whenever the model is built again.
        save_projection: whether a checkpoint holds A and B; False saves space and draws them from the seed again.
    """

    name: ClassVar[str] = "VeRA"
    rank: int = 256
    initial_d: float = 0.1
    dropout: float = 0.0
    projection_seed: int = 0
    save_projection: bool = True

    def __post_init__(self) -> None:
        check_whole_number(self.rank, "rank")
        if not (is_number(self.initial_d) and self.initial_d != 0):
            raise MethodError(
                f"initial_d must be a number other than 0, got {self.initial_d!r}: at 0 nothing is learnt"
            )
        check_share(self.dropout, "dropout")
        check_whole_number(self.projection_seed, "projection_seed", least=0)
        if self.projection_seed >= 2**63:
            raise MethodError(f"projection_seed must be below 2⁶³, got {self.projection_seed!r}")
        check_switch(self.save_projection, "save_projection")

    def wrap(self, layers: Mapping[str, Matrix]) -> dict[str, VeRALinear]:
        """Draw A and B, and wrap each target in a `VeRALinear` that shares them."""
        projections = Projections(layers.values(), self.rank, self.projection_seed)
        return {name: VeRALinear(layer, projections, self) for name, layer in layers.items()}


class Projections(nn.Module):
    """The frozen matrices A and B. One object is in all the layers, so a copy or a move takes them along once.

    They are buffers, which no optimiser and no parameter count sees. They are not in the state dict, where they would
    stand once for each layer: the seed gives them back.

    Args:
        layers: that share them; the largest sets the size.
        rank: rows of A and columns of B.
        seed: of the draw. It is made on the CPU, so that every device gets the same numbers, and peft the same as we.
    """

    A: torch.Tensor  # (rank, largest in)
    B: torch.Tensor  # (largest out, rank)

    def __init__(self, layers: Iterable[Matrix], rank: int, seed: int) -> None:
        super().__init__()
        bases = list(layers)
        inputs, outputs = (max(sizes) for sizes in zip(*map(layer_shape, bases), strict=True))
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            # Uniform in ± √(6 / columns), the paper's "Kaiming" initialisation.
            drawn = nn.init.kaiming_uniform_(torch.empty(shape, device="cpu", dtype=torch.float32), generator=generator)
            self.register_buffer(name, like_new_weight(drawn, bases[0].weight), persistent=False)


class VeRALinear(AdditiveLayer):
    """A frozen linear layer with a scaled random path beside it: ``h = base(x) + b ⊙ B (d ⊙ A x)``.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)).
        projections: A and B, shared.
        config: the settings.
    """

    base: Matrix

    def __init__(self, base: Matrix, projections: Projections, config: VeRAConfig) -> None:
        super().__init__(base)
        self.inputs, self.outputs = layer_shape(base)
        self.projections = projections
        device, dtype = projections.A.device, projections.A.dtype
        self.vera_lambda_d = nn.Parameter(torch.full((config.rank,), config.initial_d, device=device, dtype=dtype))
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.outputs, device=device, dtype=dtype))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``base(x) + b ⊙ B (d ⊙ A x)``."""
        h = self.base(x)
        A, B = self.shared_part()
        x = self.dropout(x.to(self.vera_lambda_d.dtype))
        update = self.vera_lambda_b * linear(self.vera_lambda_d * linear(x, A), B)
        return (h + update).to(h.dtype)

    def shared_part(self) -> tuple[torch.Tensor, torch.Tensor]:  # (rank, in), (out, rank)
        """As much of A and B as this layer needs."""
        return self.projections.A[:, : self.inputs], self.projections.B[: self.outputs]

    def delta(self) -> torch.Tensor:
        """The learnt change of the weight, ``ΔW = diag(b) B diag(d) A``, of shape (out, in)."""
        A, B = self.shared_part()
        return (self.vera_lambda_b[:, None] * B) @ (self.vera_lambda_d[:, None] * A)


def like_new_weight(drawn: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`drawn` on the weight's device, rounded to the weight's type and, if that is half precision, held in float32.

    peft rounds in the same way, so that its checkpoints without A and B mean the same here.
    """
    return drawn.to(weight.device, weight.dtype).to(trainable_dtype(weight))
