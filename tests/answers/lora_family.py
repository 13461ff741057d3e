"""Answers to the exercises of chapter 10: wrong ones with words of the message, and right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Function = Callable[..., Any]


def _split(
    W: Any, rank: int, s: float, *, power: float = 0.5, first: bool = True, divide: bool = True, rest: Any = None
) -> Any:
    """PiSSA's split, with one thing wrong."""
    u, values, vt = torch.linalg.svd(W, full_matrices=False)
    part = slice(None, rank) if first else slice(-rank, None)
    root = (values[part] / (s if divide else 1.0)) ** power
    A, B = root[:, None] * vt[part], u[:, part] * root
    return A, B, W - s * B @ A if rest is None else rest(W, A, B, s)


def _all_in_b(W: Any, rank: int, s: float) -> Any:
    u, values, vt = torch.linalg.svd(W, full_matrices=False)
    A, B = vt[:rank], u[:, :rank] * (values[:rank] / s)
    return A, B, W - s * B @ A


def _turned_v(W: Any, rank: int, s: float) -> Any:
    u, values, vt = torch.linalg.svd(W, full_matrices=False)
    root = torch.sqrt(values[:rank] / s)
    A, B = (vt[:, :rank] * root).T, u[:, :rank] * root
    return A, B, W - s * B @ A


def _by_eigenvectors(W: Any, rank: int, s: float) -> Any:
    squares, vectors = torch.linalg.eigh(W.T @ W)  # smallest first
    v, values = vectors.flip(1)[:, :rank], squares.flip(0)[:rank].sqrt()
    A, B = (v * (values / s).sqrt()).T, W @ v / (values * s).sqrt()
    return [A, B, W - s * B @ A]


def _inplace_pissa(W: Any, rank: int, s: float) -> Any:
    A, B, R = _split(W, rank, s)
    return A, B, W.copy_(R)


def _inplace_dora(W: Any, A: Any, B: Any, s: float, m: Any) -> Any:
    W += s * B @ A
    return m[:, None] * functional.normalize(W, dim=1)


def _groups(trained: Any, low: float, high: float, *, marked: Callable[[str], bool] = lambda n: "lora_B" in n) -> Any:
    fast = [p for name, p in trained.items() if marked(name)]
    return [
        {"params": fast, "lr": high},
        {"params": [p for name, p in trained.items() if not marked(name)], "lr": low},
    ]


def _no_head(trained: Any, rate: float, ratio: float) -> Any:
    return _groups({name: p for name, p in trained.items() if "lora" in name}, rate, ratio * rate)


def _no_a(trained: Any, rate: float, ratio: float) -> Any:
    return _groups({name: p for name, p in trained.items() if "lora_A" not in name}, rate, ratio * rate)


WRONG: dict[str, list[tuple[Function, str]]] = {
    "lora_family.scaling": [
        (lambda alpha, rank, stabilized: alpha / rank, "still divides by the rank"),
        (lambda alpha, rank, stabilized: alpha / math.sqrt(rank), "swapped"),
        (lambda alpha, rank, stabilized: alpha / rank if stabilized else alpha / math.sqrt(rank), "swapped"),
        (lambda alpha, rank, stabilized: math.sqrt(alpha / rank) if stabilized else alpha / rank, "root of all"),
        (lambda alpha, rank, stabilized: alpha * rank**0.5 if stabilized else alpha / rank, "multiplied by √rank"),
        (lambda alpha, rank, stabilized: alpha / rank**2 if stabilized else alpha / rank, "rank²"),
        (lambda alpha, rank, stabilized: alpha, "rank is missing"),
        (lambda alpha, rank, stabilized: rank / alpha, "Turned round"),
        (lambda alpha, rank, stabilized: 5 / 3 if stabilized else 5 / 9, "use the arguments"),
        (lambda alpha, rank, stabilized: "0.5", "got a text"),
    ],
    "lora_family.groups": [
        (lambda trained, rate, ratio: _groups(trained, rate, rate), "plain LoRA"),
        (lambda trained, rate, ratio: _groups(trained, rate, ratio * rate, marked=lambda n: "B" in n), "“Bert”"),
        (lambda trained, rate, ratio: _groups(trained, rate, ratio * rate, marked=lambda n: "lora_A" in n), "swapped"),
        (lambda trained, rate, ratio: _groups(trained, rate / ratio, rate), "lowered A's rate"),
        (lambda trained, rate, ratio: _groups(trained, rate, rate + ratio), "added the ratio"),
        (lambda trained, rate, ratio: _groups(trained, rate, ratio), "B has the rate 8"),
        (
            lambda trained, rate, ratio: _groups(trained, rate, ratio * rate, marked=lambda n: "lora_A" not in n),
            "head is no B",
        ),
        (
            lambda trained, rate, ratio: _groups(
                trained, rate, ratio * rate, marked=lambda n: "lora_B" in n or "bias" in n
            ),
            "head's bias got B's rate",
        ),
        (
            lambda trained, rate, ratio: _groups(trained, rate, ratio * rate, marked=lambda n: "0.query.lora_B" in n),
            "Look at every name",
        ),
        (_no_head, "The head, classifier, is in no group"),
        (_no_a, "is in no group"),
        (
            lambda trained, rate, ratio: [
                {"params": list(trained.values()), "lr": rate},
                {"params": [p for n, p in trained.items() if "lora_B" in n], "lr": ratio * rate},
            ],
            "twice",
        ),
        (lambda trained, rate, ratio: [{"params": list(trained), "lr": rate}], "holds names"),
        (lambda trained, rate, ratio: [{"params": list(trained.values())}], "needs the keys"),
        (lambda trained, rate, ratio: {"lora_B": ratio * rate}, "Expected a list of groups"),
        (lambda trained, rate, ratio: _groups(trained, 3e-4, 2.4e-3), "one rate and one ratio"),
    ],
    "lora_family.dora": [
        (lambda W, A, B, s, m: W + s * B @ A, "plain LoRA"),
        (lambda W, A, B, s, m: m[:, None] * (W + s * B @ A), "not divided by their own lengths"),
        (lambda W, A, B, s, m: functional.normalize(W + s * B @ A, dim=1), "lengths m are missing"),
        (lambda W, A, B, s, m: m[:, None] / W.norm(dim=1, keepdim=True) * (W + s * B @ A), "lengths of W."),
        (lambda W, A, B, s, m: m * functional.normalize(W + s * B @ A, dim=0), "lengths of the columns"),
        (lambda W, A, B, s, m: m * functional.normalize(W + s * B @ A, dim=1), "m multiplies the columns"),
        (lambda W, A, B, s, m: m / (W + s * B @ A).norm(dim=1) * (W + s * B @ A), "they multiply the columns"),
        (lambda W, A, B, s, m: m[:, None] / (W + s * B @ A).norm() * (W + s * B @ A), "whole matrix"),
        (lambda W, A, B, s, m: m[:, None] * functional.normalize(W + B @ A, dim=1), "factor s is missing"),
        (lambda W, A, B, s, m: m[:, None] * functional.normalize(s * B @ A, dim=1), "W is missing"),
        (lambda W, A, B, s, m: W + m[:, None] * functional.normalize(s * B @ A, dim=1), "is not m / ‖W"),
        (_inplace_dora, "in place"),
        (lambda W, A, B, s, m: m[:, None] * functional.normalize(W + 1.5 * B @ A, dim=1), "square layers only"),
        (lambda W, A, B, s, m: m, "should have the shape"),
    ],
    "lora_family.pissa": [
        (lambda W, rank, s: _split(W, rank, s, divide=False), "the layer multiplies by s"),
        (lambda W, rank, s: _split(W, rank, s, first=False), "smallest"),
        (lambda W, rank, s: _split(W, rank, s, power=1.0), "Each factor holds S / s"),
        (lambda W, rank, s: _split(W, rank, s, power=0.0), "singular values are missing"),
        (_all_in_b, "one factor is larger"),
        (_turned_v, "returns Vᵀ"),
        (lambda W, rank, s: _split(W, rank, s, rest=lambda W, A, B, s: W), "R is still W"),
        (lambda W, rank, s: _split(W, rank, s, rest=lambda W, A, B, s: W - B @ A), "factor s is missing"),
        (lambda W, rank, s: _split(W, rank, s, rest=lambda W, A, B, s: W + s * B @ A), "You added"),
        (lambda W, rank, s: _split(W, rank, s, rest=lambda W, A, B, s: s * B @ A), "trained part"),
        (lambda W, rank, s: [_split(W, rank, s)[i] for i in (1, 0, 2)], "Return A first"),
        (lambda W, rank, s: _split(W, rank, s)[:2], "three tensors"),
        (lambda W, rank, s: _split(W, 2, s), "should have the shape"),
        (lambda W, rank, s: _split(W, rank, 2.5), "one rank, one s"),
        (_inplace_pissa, "in place"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "lora_family.scaling": [
        lambda alpha, rank, stabilized: alpha * rank ** (-0.5 if stabilized else -1),
        lambda alpha, rank, stabilized: torch.tensor(alpha / (rank**0.5 if stabilized else rank), dtype=torch.float64),
    ],
    "lora_family.groups": [
        lambda trained, rate, ratio: _groups(trained, rate, ratio * rate),
        lambda trained, rate, ratio: [
            {"params": [p], "lr": rate * (ratio if "lora_B" in n else 1)} for n, p in trained.items()
        ],
        lambda trained, rate, ratio: tuple(
            {"params": p, "lr": rate * ratio if n.endswith("lora_B.weight") else rate, "weight_decay": 0.0}
            for n, p in trained.items()
        ),
    ],
    "lora_family.dora": [
        lambda W, A, B, s, m: m[:, None] * functional.normalize(W + s * B @ A, dim=1),
        lambda W, A, B, s, m: torch.diag(m / ((W + s * B @ A) ** 2).sum(1).sqrt()) @ (W + s * B @ A),
    ],
    "lora_family.pissa": [_split, _by_eigenvectors],
}
