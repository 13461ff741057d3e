"""Answers to the exercises of chapter 9: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Function = Callable[..., Any]


def _inplace_forward(x: Any, W: Any, b: Any, A: Any, B: Any, alpha: float) -> Any:
    W += alpha / A.shape[0] * B @ A
    return x @ W.T + b


def _inplace_merge(W: Any, A: Any, B: Any, alpha: float) -> Any:
    W += alpha / A.shape[0] * B @ A
    return W


WRONG: dict[str, list[tuple[Function, str]]] = {
    "lora.forward": [
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha * (x @ A.T @ B.T), "alpha alone"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + x @ A.T @ B.T, "alpha / rank is missing"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / A.shape[1] * (x @ A.T @ B.T), "width of the layer"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / math.sqrt(A.shape[0]) * (x @ A.T @ B.T), "rsLoRA"),
        (lambda x, W, b, A, B, alpha: x @ W.T + alpha / A.shape[0] * (x @ A.T @ B.T), "bias b is missing"),
        (lambda x, W, b, A, B, alpha: x @ (W @ (alpha / A.shape[0] * B @ A)).T + b, "multiplied with W"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / A.shape[0] * (x @ (B @ A)), "transposed"),
        (lambda x, W, b, A, B, alpha: alpha / A.shape[0] * (x @ A.T @ B.T), "frozen path is missing"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / 2 * (x @ A.T @ B.T), "rank 2 only"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / A.shape[0] * (x @ B.T @ A.T), "stopped with RuntimeError"),
        (_inplace_forward, "in place"),
        (lambda x, W, b, A, B, alpha: W @ x + b + alpha / len(A) * (B @ A @ x), "the columns of P must be as many"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / len(A) * (x @ A @ B), "It was given x: (3, 7) float32"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha // len(A) * (x @ A.T @ B.T), "cuts the fraction off"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + len(A) / alpha * (x @ A.T @ B.T), "upside down"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / 8 * (x @ A.T @ B.T), "You took 8 for the rank"),
        (lambda x, W, b, A, B, alpha: (h := x @ W.T + b) + alpha / len(A) * (h @ A.T @ B.T), "the layer's output"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / len(A) * (x @ A.T @ B.T) + b, "added twice"),
        (lambda x, W, b, A, B, alpha: (x @ W.T + b + alpha / len(A) * (x @ A.T @ B.T)).detach(), "No gradient comes"),
        (lambda x, W, b, A, B, alpha: x.detach().numpy() @ W.detach().numpy().T, "Use torch"),
        (lambda x, W, b, A, B, alpha: x.numpy() @ W.numpy().T, "NumPy knows no gradients"),
        (lambda x, W, b, A, B, alpha: None, "return"),
    ],
    "lora.initialise": [
        (lambda i, o, r: (torch.zeros(r, i), torch.zeros(o, r)), "Both are zero"),
        (lambda i, o, r: (torch.randn(r, i), torch.randn(o, r)), "Neither is zero"),
        (lambda i, o, r: (torch.zeros(o, r), torch.randn(r, i)), "Return A first"),
        (lambda i, o, r: (torch.randn(i, r), torch.zeros(r, o)), "should have the shape"),
        (lambda i, o, r: (torch.ones(r, i), torch.zeros(o, r)), "All entries"),
        (lambda i, o, r: (torch.empty(r, i), torch.zeros(o, r)), "stood in the memory"),
        (lambda i, o, r: (100 * torch.rand(r, i), torch.zeros(o, r)), "do not lie around zero"),
        (lambda i, o, r: (100 * torch.randn(r, i), torch.zeros(o, r)), "far off"),
        (lambda i, o, r: (torch.randn(2, 11), torch.zeros(6, 2)), "should have the shape (7, 200)"),
        (lambda i, o, r: (torch.randn(1, i).repeat(r, 1), torch.zeros(o, r)), "multiples of each other"),
    ],
    "lora.merge": [
        (lambda W, A, B, alpha: W + B @ A, "alpha / rank is missing"),
        (lambda W, A, B, alpha: W + alpha * B @ A, "alpha alone"),
        (lambda W, A, B, alpha: W + (alpha / A.shape[0] * B @ A).T, "transposed"),
        (lambda W, A, B, alpha: alpha / A.shape[0] * B @ A, "W is missing"),
        (lambda W, A, B, alpha: W @ (alpha / A.shape[0] * B @ A), "multiplied with W"),
        (_inplace_merge, "in place"),
        (lambda W, A, B, alpha: W + alpha / 2 * B @ A, "rank 2 only"),
    ],
    "lora.count": [
        (lambda shapes, rank: sum(rank * o * i for o, i in shapes), "multiplied the sides"),
        (lambda shapes, rank: sum(o * i for o, i in shapes), "frozen matrices"),
        (lambda shapes, rank: sum(rank * i for o, i in shapes), "A alone"),
        (lambda shapes, rank: sum(2 * rank * i for o, i in shapes), "square"),
        (lambda shapes, rank: sum(rank * (o + i) + o for o, i in shapes), "bias"),
        (lambda shapes, rank: sum(o + i for o, i in shapes), "rank is missing"),
        (lambda shapes, rank: sum(rank * o + i for o, i in shapes), "Multiply both sides"),
        (lambda shapes, rank: rank * sum(shapes[-1]), "last matrix only"),
        (lambda shapes, rank: 784, "one rank only"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "lora.forward": [
        lambda x, W, b, A, B, alpha: nn.functional.linear(x, W + alpha / len(A) * B @ A, b),
        lambda x, W, b, A, B, alpha: (W @ x.T + b[:, None] + (alpha / B.shape[1]) * B @ (A @ x.T)).T,
    ],
    "lora.initialise": [
        lambda i, o, r: (torch.randn(r, i), torch.zeros(o, r)),
        lambda i, o, r: [torch.zeros(r, i), torch.randn(o, r)],
        lambda i, o, r: (nn.Linear(i, r).weight, nn.Parameter(torch.zeros(o, r))),
    ],
    "lora.merge": [lambda W, A, B, alpha: torch.addmm(W, B, A, alpha=alpha / B.shape[1])],
    "lora.count": [lambda shapes, rank: float(rank * sum(sum(shape) for shape in shapes))],
}
