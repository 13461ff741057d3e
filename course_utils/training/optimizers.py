"""A loss and four optimisers, written out to be read; `torch.nn` and `torch.optim` compute the same, faster.

An optimiser here is an object with one method, `step(weight, gradient)`, which returns the new weight. It keeps what it
must remember of one weight tensor, so every tensor needs its own::

    optimizer = AdamW(lr=0.1)
    for _ in range(100):
        weight = optimizer.step(weight, gradient(weight))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


def log_sum_exp(logits: Tensor) -> Tensor:
    """log Σⱼ exp(zⱼ) over the last dimension; the largest logit is taken out first, so that exp cannot overflow."""
    largest = logits.max(dim=-1, keepdim=True).values
    return (logits - largest).exp().sum(dim=-1).log() + largest.squeeze(-1)


def softmax(logits: Tensor) -> Tensor:
    """p = exp(z) / Σⱼ exp(zⱼ) over the last dimension."""
    return (logits - log_sum_exp(logits).unsqueeze(-1)).exp()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of −log p[right class] = log Σⱼ exp(zⱼ) − z[right class]; logits (n, classes), labels (n,)."""
    right = logits[torch.arange(len(labels)), labels]
    return (log_sum_exp(logits) - right).mean()


def cross_entropy_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean loss by the logits, (p − y) / n, where y is 1 at the right class and 0 elsewhere."""
    y = torch.nn.functional.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    return (softmax(logits) - y) / len(labels)


class Optimizer(Protocol):
    """What all of them can do."""

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The weight after one step."""
        ...


class SGD:
    """Gradient descent, with or without momentum (Polyak 1964), as `torch.optim.SGD` computes it::

        v ← μ v + g        (v = g in the first step)
        w ← w − η v

    Args:
        lr: η, the learning rate.
        momentum: μ; 0 is plain gradient descent.
    """

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        self.lr, self.momentum = lr, momentum
        self.v: Tensor | float = 0.0

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The weight after one step."""
        self.v = self.momentum * self.v + gradient
        return weight - self.lr * self.v


class Adam:
    """Adam (Kingma and Ba 2014), as `torch.optim.Adam` computes it::

        g ← g + λ w                      (weight decay as part of the gradient)
        m ← β₁ m + (1 − β₁) g            (average of the gradient)
        v ← β₂ v + (1 − β₂) g²           (average of its square)
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
        w ← w − η m̂ / (√v̂ + ε)

    Both averages begin at 0 and are too small at first; the division by 1 − βᵗ in step t mends that.

    Args:
        lr: η, the learning rate.
        betas: β₁ and β₂.
        eps: ε, against division by zero.
        weight_decay: λ.
    """

    def __init__(
        self, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m: Tensor | float = 0.0
        self.v: Tensor | float = 0.0
        self.t = 0

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The weight after one step."""
        return weight - self.lr * self.direction(gradient + self.weight_decay * weight)

    def direction(self, gradient: Tensor) -> Tensor:
        """Update both averages and return m̂ / (√v̂ + ε)."""
        beta1, beta2 = self.betas
        self.t += 1
        self.m = beta1 * self.m + (1 - beta1) * gradient
        self.v = beta2 * self.v + (1 - beta2) * gradient**2
        m_hat = self.m / (1 - beta1**self.t)
        v_hat = self.v / (1 - beta2**self.t)
        return m_hat / (v_hat.sqrt() + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW` computes it::

        w ← (1 − η λ) w − η m̂ / (√v̂ + ε)

    The averages see the gradient alone, so every weight shrinks by the same share.

    Args:
        lr: η, the learning rate.
        betas: β₁ and β₂.
        eps: ε, against division by zero.
        weight_decay: λ.
    """

    def __init__(
        self, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The weight after one step."""
        return (1 - self.lr * self.weight_decay) * weight - self.lr * self.direction(gradient)


def descend(optimizer: Optimizer, gradient: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Take so many steps; the path from `start` to the end, (steps + 1, *shape of start).

    A path that has left the numbers behind (overflow) stays where it was.
    """
    path = [start]
    for _ in range(steps):
        weight = optimizer.step(path[-1], gradient(path[-1]))
        path.append(weight if math.isfinite(weight.abs().max()) else path[-1])
    return torch.stack(path)
