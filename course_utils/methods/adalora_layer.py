"""AdaLoRA's layer, and which of its triplets are important (Zhang et al. 2023, arXiv:2303.10512, section 3.2).

The importance of triplet i of a matrix is that of its numbers, the singular value λ_i, the column P_i and the row Q_i::

    S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)        s(w) = Ī(w) · Ū(w)        I(w) = |w · ∂L/∂w|
    Ī ← β1 Ī + (1 - β1) I    (smoothed)        Ū ← β2 Ū + (1 - β2) |I - Ī|    (how much it varies)

Smoothing helps because one step sees one batch: I alone jumps up and down.
"""

from __future__ import annotations

import torch
from torch import nn

from course_utils.methods.base import trainable_dtype
from course_utils.methods.errors import MethodError
from course_utils.methods.targets import Matrix, layer_shape
from course_utils.methods.wrapping import AdditiveLayer


class AdaLoRALinear(AdditiveLayer):
    """A frozen linear layer with a sum of triplets beside it: ``h = base(x) + s · P (Λ ⊙ Q x)``.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)).
        rank: how many triplets; 0 is allowed, after an allocation.
        alpha: sets the strength of the update.
        init_rank: by which alpha is divided, also when fewer triplets are left.
        dropout: share of the inputs of Q that are set to zero while training.
    """

    base: Matrix
    kept: torch.Tensor  # (rank,), which triplets the last ranking kept

    def __init__(self, base: Matrix, rank: int, alpha: float, init_rank: int, dropout: float) -> None:
        super().__init__(base)
        inputs, outputs = layer_shape(base)
        device, dtype = base.weight.device, trainable_dtype(base.weight)
        self.lora_A = nn.Parameter(0.02 * torch.randn(rank, inputs, device=device, dtype=dtype))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(0.02 * torch.randn(outputs, rank, device=device, dtype=dtype))
        self.dropout = nn.Dropout(dropout)
        self.alpha, self.divisor = alpha, init_rank + 1e-5
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool, device=device), persistent=False)
        self.importance_A = Importance(self.lora_A)
        self.importance_E = Importance(self.lora_E)
        self.importance_B = Importance(self.lora_B)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``base(x) + s · P (Λ ⊙ Q x)``."""
        h = self.base(x)
        x = self.dropout(x.to(self.lora_A.dtype))
        update = x @ (self.lora_A * self.lora_E).T @ self.lora_B.T
        return (h + update * self.alpha / self.divisor).to(h.dtype)

    def delta(self) -> torch.Tensor:
        """The learnt change of the weight, ``ΔW = s · P Λ Q``, of shape (out, in)."""
        return self.lora_B @ (self.lora_A * self.lora_E) * self.alpha / self.divisor

    def observe(self, beta1: float, beta2: float) -> None:
        """Update the importance of all numbers from the gradients of this step."""
        for weight, importance in (
            (self.lora_A, self.importance_A),
            (self.lora_E, self.importance_E),
            (self.lora_B, self.importance_B),
        ):
            if weight.grad is None:
                raise MethodError(
                    "AdaLoRA found a weight without a gradient. Call after_step after optimizer.step() and before "
                    "zero_grad(), and adapt only layers that the model uses."
                )
            importance.update((weight * weight.grad).abs(), beta1, beta2)

    def scores(self) -> torch.Tensor:  # (rank,)
        """The importance S of each triplet."""
        of_vectors = self.importance_A.score().mean(dim=1) + self.importance_B.score().mean(dim=0)
        return self.importance_E.score().view(-1) + of_vectors

    def cut(self) -> None:
        """Set the singular values of the triplets that are not kept to zero."""
        self.lora_E.masked_fill_(~self.kept[:, None], 0.0)

    def alive(self) -> torch.Tensor:  # (rank,)
        """Which triplets count: those kept, and any other whose singular value is not zero."""
        return self.kept | (self.lora_E.detach() != 0).view(-1)


class Importance(nn.Module):
    """The notes of the allocator on one parameter: the importance of its numbers, smoothed over the steps.

    Args:
        weight: the parameter.
    """

    sensitivity: torch.Tensor  # Ī
    uncertainty: torch.Tensor  # Ū

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        # Buffers, so that a copy of the model has its own; not in the state dict, because only training needs them.
        self.register_buffer("sensitivity", torch.zeros_like(weight), persistent=False)
        self.register_buffer("uncertainty", torch.zeros_like(weight), persistent=False)

    def update(self, now: torch.Tensor, beta1: float, beta2: float) -> None:
        """Smooth in this step's ``I = |w · ∂L/∂w|``, about how much the loss would change if w were zero."""
        self.sensitivity = beta1 * self.sensitivity + (1 - beta1) * now
        self.uncertainty = beta2 * self.uncertainty + (1 - beta2) * (now - self.sensitivity).abs()

    def score(self) -> torch.Tensor:
        """``s(w) = Ī(w) · Ū(w)``, of the parameter's shape."""
        return self.sensitivity * self.uncertainty


def cut_to_budget(layers: list[AdaLoRALinear], budget: int) -> None:
    """Keep the `budget` most important triplets of all layers together, and cut the others.

    Triplets whose score equals that of the best one outside the budget are cut too, as in peft.
    """
    scores = [layer.scores() for layer in layers]
    ranked = torch.cat(scores)
    threshold = ranked.kthvalue(len(ranked) - budget).values  # the best score that is outside the budget
    for layer, score in zip(layers, scores, strict=True):
        layer.kept = score > threshold
        layer.cut()


def allocated_ranks(model: nn.Module) -> dict[str, int]:
    """Name of each adapted matrix → how many triplets it has now."""
    return {name: int(m.alive().sum()) for name, m in model.named_modules() if isinstance(m, AdaLoRALinear)}
