"""AdaLoRA: give each matrix the rank it deserves, out of one budget for all (Zhang et al. 2023, arXiv:2303.10512).

The update has the form of a singular value decomposition, so that one number switches one direction on or off::

    h = W x + b + s · P (Λ ⊙ Q x)        ΔW = s · P Λ Q        s = alpha / (init_rank + 1e-5), as in peft

    Q: (rank, in)    lora_A    normal, deviation 0.02    right singular vectors, as rows
    Λ: (rank, 1)     lora_E    zero                      singular values, the diagonal of a matrix
    P: (out, rank)   lora_B    normal, deviation 0.02    left singular vectors, as columns

A penalty keeps the rows of Q and the columns of P nearly orthonormal, as singular vectors are. Direction i of a matrix,
its "triplet", is one column of P, one singular value and one row of Q. After every `interval` steps the triplets of all
matrices are ranked together by their importance (see `adalora_layer`), and the singular values of those outside the
budget are set to zero. The budget, counted in triplets::

    the first initial_steps     init_rank · matrices                     everything learns
    then                        falls along a cubic curve                a triplet may still come back
    the last final_steps        target_rank · matrices                   the ranks stay, the rest goes on learning

Λ starts at zero, so the model computes exactly what it did before until the first step. While training, a layer holds
``init_rank · (in + out + 1)`` numbers; a checkpoint holds only the triplets that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from course_utils.methods.adalora_layer import AdaLoRALinear, cut_to_budget
from course_utils.methods.errors import MethodError, check_share, check_strength, check_whole_number, is_number
from course_utils.methods.targets import Matrix
from course_utils.methods.wrapping import TargetsConfig


@dataclass(frozen=True)
class AdaLoRAConfig(TargetsConfig):
    """The settings of AdaLoRA.

    Args:
        init_rank: triplets of each matrix at the start.
        target_rank: triplets of a matrix at the end, on average; below `init_rank`.
        total_steps: steps of the optimiser in the whole training, ``epochs · ⌈len(loader) / accumulate⌉``, or
            `max_steps` where that is less. Must be given: the budget is planned over it. A model from before step
            ``total_steps - final_steps`` still has more than the target budget, so `fit` refuses a run that ends there.
        initial_steps: at the start, with the whole budget.
        final_steps: at the end, with the target budget.
        interval: steps from one ranking to the next.
        beta1: how slowly the importance forgets, above 0 and below 1.
        beta2: how slowly its variation forgets, above 0 and below 1.
        orthogonality: weight of the penalty, 0 or more.
        alpha: sets the strength of the update, as in LoRA; above 0.
        dropout: share of the inputs of Q that are set to zero while training, from 0 to below 1.
        targets: the matrices to adapt, see `find_targets`; None means query and value.
        ranks: name of a matrix → its rank, for a model whose ranks were allocated before. A checkpoint sets it when it
            is loaded; the ranks then stay as they are.
    """

    name: ClassVar[str] = "AdaLoRA"
    init_rank: int = 12
    target_rank: int = 8
    total_steps: int = field(default=0, kw_only=True)
    initial_steps: int = 0
    final_steps: int = 0
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5
    alpha: float = 16.0
    dropout: float = 0.0
    ranks: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name in ("init_rank", "target_rank", "interval"):
            check_whole_number(getattr(self, name), name)
        for name in ("total_steps", "initial_steps", "final_steps"):
            check_whole_number(getattr(self, name), name, least=0)
        if self.total_steps == 0:
            raise MethodError(
                "AdaLoRA plans its budget over the whole training: give total_steps, the steps of the optimiser, which "
                "are epochs · ⌈len(loader) / accumulate⌉"
            )
        if self.target_rank >= self.init_rank:
            raise MethodError(
                f"target_rank must be below init_rank, got {self.target_rank} and {self.init_rank}: AdaLoRA starts "
                "with more than it keeps. Without that, use LoRA."
            )
        if max(self.initial_steps, 1) >= self.last_allocation:  # the first ranking needs a step to look at
            raise MethodError(
                f"total_steps={self.total_steps} leaves no steps to lower the ranks in, after initial_steps="
                f"{self.initial_steps} and before final_steps={self.final_steps}: lower these two"
            )
        for name in ("beta1", "beta2"):
            if not (is_number(getattr(self, name)) and 0 < getattr(self, name) < 1):
                raise MethodError(f"{name} must be above 0 and below 1, got {getattr(self, name)!r}")
        if not (is_number(self.orthogonality) and self.orthogonality >= 0):
            raise MethodError(
                f"orthogonality must be a number of at least 0, got {self.orthogonality!r}; 0 turns it off"
            )
        check_strength(self.alpha, "alpha")
        check_share(self.dropout, "dropout")

    @property
    def last_allocation(self) -> int:
        """The step after which the ranks stay."""
        return self.total_steps - self.final_steps

    def check_steps(self, total: int) -> None:
        """Refuse a run that ends before the last allocation: its model would hold more than the budget."""
        if not self.finished(total):
            raise MethodError(
                f"AdaLoRA lowers its ranks until step {self.last_allocation} of total_steps={self.total_steps}, but "
                f"this run has {total} steps of the optimiser: epochs · ⌈len(loader) / accumulate⌉, or max_steps where "
                f"that is less. Inject AdaLoRAConfig(total_steps={total}, ...)"
            )

    def wrap(self, layers: Mapping[str, Matrix]) -> dict[str, AdaLoRALinear]:
        """Wrap each target in an `AdaLoRALinear`."""
        ranks = dict.fromkeys(layers, self.init_rank) | dict(self.ranks or {})
        if unknown := sorted(ranks.keys() - layers.keys()):
            raise MethodError(f"ranks names {unknown[0]!r}, which is not among the targets")
        return {
            name: AdaLoRALinear(layer, ranks[name], self.alpha, self.init_rank, self.dropout)
            for name, layer in layers.items()
        }

    def budget(self, step: int, matrices: int) -> int:
        """How many triplets all matrices together may have after this step, counted from 1."""
        if step <= self.initial_steps:
            return self.init_rank * matrices
        if step >= self.last_allocation:
            return self.target_rank * matrices
        left = 1 - (step - self.initial_steps) / (self.last_allocation - self.initial_steps)  # of the way, from 1 to 0
        return int((self.init_rank - self.target_rank) * matrices * left**3 + self.target_rank * matrices)

    def penalty(self, model: nn.Module) -> torch.Tensor:
        """How far P and Q are from orthonormal: ``orthogonality · mean ‖Q Qᵀ - I‖`` over all Q, and all P as ``PᵀP``.

        The length ‖·‖ of a matrix is the root of the sum of its squares. The paper sums the squares themselves; peft
        takes the mean of the lengths, and so do we.
        """
        distances = []
        for layer in _layers(model):
            for products in (layer.lora_A @ layer.lora_A.T, layer.lora_B.T @ layer.lora_B):  # (rank, rank)
                identity = torch.eye(len(products), dtype=products.dtype, device=products.device)
                distances.append((products - identity).norm())
        return self.orthogonality * (sum(distances, distances[0].new_zeros(())) / len(distances))

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """Watch the importance of all triplets, and cut to the budget when it is time."""
        if self.ranks is not None:
            return  # allocated before
        layers = _layers(model)
        if step < self.last_allocation:
            for layer in layers:
                layer.observe(self.beta1, self.beta2)
        if step > self.last_allocation:  # the optimiser has moved the cut singular values away from zero again
            for layer in layers:
                layer.cut()
        elif step == self.last_allocation or (step > self.initial_steps and step % self.interval == 0):
            cut_to_budget(layers, self.budget(step, len(layers)))

    def finished(self, step: int) -> bool:
        """Before the last allocation a model holds more than its budget."""
        return self.ranks is not None or step >= self.last_allocation


def _layers(model: nn.Module) -> list[AdaLoRALinear]:
    return [module for module in model.modules() if isinstance(module, AdaLoRALinear)]
