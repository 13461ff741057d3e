"""Answers to the exercises of chapter 11: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Function = Callable[..., Any]


def _attend(q: Any, k: Any, v: Any, divisor: float = 0.0, dim: int = -1) -> Any:
    return torch.softmax(q @ k.T / (divisor or q.shape[1] ** 0.5), dim=dim) @ v


def _attend_in_place(q: Any, k: Any, v: Any, l_k: Any, l_v: Any) -> Any:
    k *= l_k
    return _attend(q, k, v * l_v)


def _inner(x: Any, W1: Any, b1: Any) -> Any:
    return functional.gelu(x @ W1.T + b1)


def _feedforward_in_place(x: Any, W1: Any, b1: Any, W2: Any, b2: Any, factors: Any) -> Any:
    W2 *= factors
    return _inner(x, W1, b1) @ W2.T + b2


def _merge(W: Any, b: Any, factors: Any, side: str) -> tuple[Any, Any]:
    return (W * factors[:, None], b * factors) if side == "output" else (W * factors, b)


def _merge_in_place(W: Any, b: Any, factors: Any, side: str) -> tuple[Any, Any]:
    W *= factors[:, None] if side == "output" else factors
    return W, b * factors if side == "output" else b


def _with_diagonal(W: Any, b: Any, factors: Any, side: str) -> list[Any]:
    return [torch.diag(factors) @ W, torch.diag(factors) @ b] if side == "output" else [W @ torch.diag(factors), b]


def _sum(layers: dict[str, tuple[int, int]], outputs: tuple[str, ...], inputs: tuple[str, ...]) -> int:
    """Count the outputs of the layers with these endings, and the inputs of those with the others."""
    return sum(out for name, (out, _) in layers.items() if name.endswith(outputs)) + sum(
        into for name, (_, into) in layers.items() if name.endswith(inputs)
    )


_FF = tuple(f"{block}.output.dense" for block in range(12))
_KV = ("key", "value")

WRONG: dict[str, list[tuple[Function, str]]] = {
    "ia3.attention": [
        (lambda q, k, v, l_k, l_v: _attend(q, k, v), "Neither vector is used"),
        (lambda q, k, v, l_k, l_v: _attend(q, k, v * l_v), "l_k is missing"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_k, v), "l_v is missing"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_v, v * l_k), "swapped"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_k, v * l_v, 1.0), "not divided by √d"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_k, v * l_v, q.shape[1]), "divided by d. It is √d"),
        (lambda q, k, v, l_k, l_v: _attend(q * l_k, k * l_k, v * l_v), "query is scaled too"),
        (lambda q, k, v, l_k, l_v: _attend(q, k + l_k, v + l_v), "are added"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * (1 + l_k), v * (1 + l_v)), "1 + l"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_k[:, None], v * l_v), "not to one token"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_k, v * l_v[:, None]), "not to one token"),
        (lambda q, k, v, l_k, l_v: q @ (k * l_k).T / q.shape[1] ** 0.5 @ (v * l_v), "softmax is missing"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_k, v * l_v, dim=0), "along the queries"),
        (lambda q, k, v, l_k, l_v: _attend(q, k * l_k, v * l_v, 5**0.5), "one size only"),
        (lambda q, k, v, l_k, l_v: _attend(q, k.T * l_k, v * l_v), "is not softmax"),
        (_attend_in_place, "in place"),
        (lambda q, k, v, l_k, l_v: None, "return"),
    ],
    "ia3.feedforward": [
        (lambda x, W1, b1, W2, b2, f: _inner(x, W1, b1) @ W2.T + b2, "factors l are missing"),
        (lambda x, W1, b1, W2, b2, f: functional.gelu((x @ W1.T + b1) * f) @ W2.T + b2, "before GELU"),
        (lambda x, W1, b1, W2, b2, f: (_inner(x, W1, b1) @ W2.T + b2) * f, "after W2"),
        (lambda x, W1, b1, W2, b2, f: (_inner(x, W1, b1) @ W2.T) * f + b2, "after W2"),
        (lambda x, W1, b1, W2, b2, f: _inner(x * f, W1, b1) @ W2.T + b2, "input of the first layer"),
        (lambda x, W1, b1, W2, b2, f: (_inner(x, W1, b1) * f) @ W2.T + b2 * f, "b2 is scaled too"),
        (lambda x, W1, b1, W2, b2, f: (_inner(x, W1, b1) * f) @ W2.T, "b2 is missing"),
        (lambda x, W1, b1, W2, b2, f: (_inner(x, W1, b1) * (1 + f)) @ W2.T + b2, "1 + l"),
        (lambda x, W1, b1, W2, b2, f: (_inner(x, W1, b1) + f) @ W2.T + b2, "is added"),
        (lambda x, W1, b1, W2, b2, f: (torch.relu(x @ W1.T + b1) * f) @ W2.T + b2, "That is ReLU"),
        (lambda x, W1, b1, W2, b2, f: ((x @ W1.T + b1) * f) @ W2.T + b2, "GELU is missing"),
        (lambda x, W1, b1, W2, b2, f: (_inner(x, W1.T, b1) * f) @ W2.T + b2, "is not W2"),
        (_feedforward_in_place, "in place"),
        (lambda x, W1, b1, W2, b2, f: None, "return"),
    ],
    "ia3.merge": [
        (lambda W, b, f, side: (W * f, b * f) if side == "output" else (W * f, b), "scaled the columns"),
        (lambda W, b, f, side: (W * f[:, None], b * f if side == "output" else b), "scaled the rows"),
        (lambda W, b, f, side: (_merge(W, b, f, side)[0], b), "bias must be scaled too"),
        (lambda W, b, f, side: (_merge(W, b, f, side)[0], b * f), "bias must stay"),
        (lambda W, b, f, side: (W, _merge(W, b, f, side)[1]), "leaves W as it was"),
        (lambda W, b, f, side: _merge(W, b, 1 / f, side), "you divide"),
        (lambda W, b, f, side: (W * f[:, None] * f, _merge(W, b, f, side)[1]), "rows and columns"),
        (lambda W, b, f, side: _merge(W, b, f, "input" if side == "output" else "output"), "scaled the columns"),
        (lambda W, b, f, side: _merge(W, b, f, side)[0], "Return both"),
        (_merge_in_place, "in place"),
        (lambda W, b, f, side: None, "return"),
    ],
    "ia3.count": [
        (lambda layers: _sum(layers, _KV, ("output.dense",)), "attention.output.dense"),
        (lambda layers: _sum(layers, (*_KV, *_FF), ()), "outputs of the feed-forward layer"),
        (lambda layers: _sum(layers, (*_KV, "output.dense"), ()), "counted outputs where inputs are scaled"),
        (lambda layers: _sum(layers, (), (*_KV, *_FF)), "inputs of key and value"),
        (lambda layers: _sum(layers, ("query", *_KV), _FF), "query"),
        (lambda layers: _sum(layers, (*_KV, "intermediate.dense"), _FF), "inner layer twice"),
        (lambda layers: _sum(layers, _KV, ()), "feed-forward vectors are missing"),
        (lambda layers: _sum(layers, (), _FF), "keys and values are missing"),
        (lambda layers: _sum(layers, _KV, _FF) // 2, "one block only"),
        (lambda layers: _sum(layers, (*_KV, *_FF), (*_KV, *_FF)), "both sides"),
        (lambda layers: 106, "one model only"),
        (lambda layers: sum(out * into for n, (out, into) in layers.items() if n.endswith((*_KV, *_FF))), "multiplied"),
    ],
}


def _attend_by_loop(q: Any, k: Any, v: Any, l_k: Any, l_v: Any) -> Any:
    rows = []
    for query in q:
        weights = torch.stack([(query * l_k) @ key for key in k]).div(len(query) ** 0.5).softmax(0)
        rows.append(l_v * (weights @ v))  # the values may as well be scaled after the sum
    return torch.stack(rows)


RIGHT: dict[str, list[Function]] = {
    "ia3.attention": [
        _attend_by_loop,
        lambda q, k, v, l_k, l_v: _attend(q * l_k, k, v) * l_v,  # the scores see only the product of query and key
        lambda q, k, v, l_k, l_v: functional.scaled_dot_product_attention(q, k * l_k, v * l_v),
    ],
    "ia3.feedforward": [
        lambda x, W1, b1, W2, b2, f: functional.linear(_inner(x, W1, b1) * f, W2, b2),
        lambda x, W1, b1, W2, b2, f: functional.linear(_inner(x, W1, b1), W2 * f, b2),
    ],
    "ia3.merge": [_with_diagonal, _merge],
    "ia3.count": [
        lambda layers: sum(
            out if name.endswith(_KV) else into
            for name, (out, into) in layers.items()
            if name.endswith(_KV) or (name.endswith("output.dense") and "attention" not in name)
        ),
        lambda layers: float(_sum(layers, _KV, _FF)),
    ],
}
