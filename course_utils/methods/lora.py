"""LoRA: learn the change of a weight matrix as a product of two thin ones (Hu et al. 2021, arXiv:2106.09685).

A linear layer computes ``h = W x + b``. LoRA freezes `W` and `b` and adds a second path::

    h = W x + b + s · B (A x)        ΔW = s · B A

    A: (rank, in)    drawn at random          s = alpha / rank        LoRA
    B: (out, rank)   zero                     s = alpha / √rank       rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)

Because B starts at zero, the model computes exactly what it did before until the first step. A layer trains
``rank · (in + out)`` numbers instead of ``in · out``.

LoRA+ (Hayou et al. 2024, arXiv:2402.12354) computes the same and only lets B learn faster than A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from course_utils.methods.base import trainable_dtype
from course_utils.methods.errors import MethodError, check_share, check_strength, check_whole_number, is_number
from course_utils.methods.targets import Matrix, layer_shape
from course_utils.methods.wrapping import AdditiveLayer, TargetsConfig


@dataclass(frozen=True)
class LoRAConfig(TargetsConfig):
    """The settings of LoRA.

    Args:
        rank: columns of B and rows of A, often written r; at least 1.
        alpha: sets the strength of the update; above 0. The update is multiplied by `scaling`, so a learning rate
            that works at one rank stays about right at another.
        dropout: share of the inputs of A that are set to zero while training, from 0 to below 1.
        targets: the matrices to adapt, see `find_targets`; None means query and value, as in the paper.
        rank_stabilized: divide alpha by √rank instead of rank (rsLoRA).
    """

    name: ClassVar[str] = "LoRA"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        check_whole_number(self.rank, "rank")
        check_strength(self.alpha, "alpha")
        check_share(self.dropout, "dropout")

    @property
    def scaling(self) -> float:
        """The factor s of the update."""
        return self.alpha / math.sqrt(self.rank) if self.rank_stabilized else self.alpha / self.rank

    def make_layer(self, base: Matrix) -> LoRALinear:
        """The wrapper of one target, `base`, which stays as it is; the relatives of LoRA make another one here."""
        return LoRALinear(base, self)


@dataclass(frozen=True)
class LoRAPlusConfig(LoRAConfig):
    """LoRA+: the same model, but B learns with a higher rate than A.

    B starts at zero and has to grow, while A is already as large as it should be; with one rate for both, either B is
    too slow or A too restless, the more so the wider the model. The loop's `learning_rate` is A's and the head's: take
    about half of what is right for LoRA. peft's `create_loraplus_optimizer` gives B's rate to every trained vector
    too, such as the head's bias; the paper speaks of B alone, and so do we.

    Args:
        ratio: learning rate of B / learning rate of A, written λ; at least 1, which is plain LoRA.
    """

    name: ClassVar[str] = "LoRA+"
    ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.ratio) and self.ratio >= 1):
            raise MethodError(f"ratio must be a number of at least 1, got {self.ratio!r}: B is to learn faster than A")

    def rate_factor(self, parameter: str) -> float:
        """`ratio` for every B, 1 for all else."""
        return self.ratio if parameter.endswith("lora_B.weight") else 1.0


class LoRALinear(AdditiveLayer):
    """A frozen linear layer with a low-rank path beside it: ``h = base(x) + s · B (A x)``.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)).
        config: the settings.
    """

    base: Matrix

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base)
        inputs, outputs = layer_shape(base)
        device, dtype = base.weight.device, trainable_dtype(base.weight)
        self.lora_A = nn.Linear(inputs, config.rank, bias=False, device=device, dtype=dtype)
        self.lora_B = nn.Linear(config.rank, outputs, bias=False, device=device, dtype=dtype)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))  # uniform in ± 1/√in
        nn.init.zeros_(self.lora_B.weight)
        self.dropout = nn.Dropout(config.dropout)
        self.scaling = config.scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``base(x) + s · B (A x)``."""
        h = self.base(x)
        x = self.dropout(x.to(self.lora_A.weight.dtype))
        return (h + self.lora_B(self.lora_A(x)) * self.scaling).to(h.dtype)

    def delta(self) -> torch.Tensor:
        """The learnt change of the weight, ``ΔW = s · B A``, of shape (out, in)."""
        return self.lora_B.weight @ self.lora_A.weight * self.scaling
