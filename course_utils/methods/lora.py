"""LoRA: learn the change of a weight matrix as a product of two thin ones (Hu et al. 2021, arXiv:2106.09685).

A linear layer computes ``h = W x + b``. LoRA freezes `W` and `b` and adds a second path::

    h = W x + b + s · B (A x)        ΔW = s · B A

    A: (rank, in)    drawn at random          s = alpha / rank        LoRA
    B: (out, rank)   zero                     s = alpha / √rank       rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)

Because B starts at zero, the model computes exactly what it did before until the first step. A layer trains
``rank · (in + out)`` numbers instead of ``in · out``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.methods.base import (
    AdaptedLayer,
    Matrix,
    MethodConfig,
    MethodError,
    Targets,
    find_targets,
    is_number,
    positive_integer,
    replace_module,
)


@dataclass(frozen=True)
class LoRAConfig(MethodConfig):
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
    targets: Targets | None = None
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        positive_integer(self.rank, "rank")
        if not (is_number(self.alpha) and self.alpha > 0):
            raise MethodError(f"alpha must be a number above 0, got {self.alpha!r}: 0 or less turns LoRA off or around")
        if not (is_number(self.dropout) and 0 <= self.dropout < 1):
            raise MethodError(f"dropout is a share from 0 to below 1, got {self.dropout!r}")

    @property
    def scaling(self) -> float:
        """The factor s of the update."""
        return self.alpha / math.sqrt(self.rank) if self.rank_stabilized else self.alpha / self.rank

    def apply(self, model: nn.Module) -> None:
        """Wrap each target in a `LoRALinear`."""
        layers = find_targets(model, self.targets, self.head)
        adapted = {name: LoRALinear(layer, self) for name, layer in layers.items()}
        for name, layer in adapted.items():
            replace_module(model, name, layer)


class LoRALinear(AdaptedLayer):
    """A frozen linear layer with a low-rank path beside it: ``h = base(x) + s · B (A x)``.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)).
        config: the settings.
    """

    base: Matrix

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base)
        inputs, outputs = layer_shape(base)
        device, dtype = base.weight.device, base.weight.dtype
        if dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32  # half precision is too coarse to learn in; peft does the same
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

    def merged(self) -> nn.Module:
        """The base layer with ``W + ΔW`` as its weight."""
        weight = self.base.weight
        delta = self.delta().T if isinstance(self.base, Conv1D) else self.delta()
        weight.data = (weight + delta).to(weight.dtype)  # adds in the wider of the two types
        return self.base


def layer_shape(layer: Matrix) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, whichever way round it stores its weight."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features
