"""Answers to the exercises of chapter 8: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear, relu

Function = Callable[..., Any]


def _in_place(h: Any, D: Any, b: Any, U: Any, c: Any) -> Any:
    h += relu(h @ D.T + b) @ U.T + c
    return h


def _reads(houlsby: Any = None, pfeiffer: Any = None, parallel: Any = None) -> Function:
    """A right answer but for the kinds that are given."""
    other = {"houlsby": houlsby, "pfeiffer": pfeiffer, "parallel": parallel}

    def answer(h: Any, x: Any, A: Any, LN: Any, kind: str) -> Any:
        if other[kind] is not None:
            return other[kind](h, x, A, LN)
        z = {"houlsby": h, "pfeiffer": LN(h + x), "parallel": x}[kind]
        return LN(h + A(z) + x)

    return answer


def _start(D: Any, U: Any, c: Any = 0.0) -> Function:
    """D and U by functions of (rows, columns)."""
    return lambda d, m: (D(m, d), torch.zeros(m), U(d, m), torch.zeros(d) + c)


def _of_linear(d: int, m: int) -> Any:
    down, up = nn.Linear(d, m), nn.Linear(m, d)
    nn.init.zeros_(up.bias)
    return down.weight, down.bias, up.weight, up.bias


def _exact(d: int, m: int) -> Any:
    down, up = nn.Linear(d, m), nn.Linear(m, d)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return down.weight, down.bias, up.weight, up.bias


def _branches(h: Any, x: Any, A: Any, LN: Any, kind: str) -> Any:
    if kind == "houlsby":
        return LN(x + (h + A(h)))
    if kind == "pfeiffer":
        return LN(h + x + A(LN(x + h)))
    return LN(A(x) + h + x)


WRONG: dict[str, list[tuple[Function, str]]] = {
    "adapters.bottleneck": [
        (lambda h, D, b, U, c: h + (h @ D.T + b) @ U.T + c, "ReLU is missing"),
        (lambda h, D, b, U, c: relu(h @ D.T + b) @ U.T + c, "shortcut is missing"),
        (lambda h, D, b, U, c: h + relu((h @ D.T + b) @ U.T + c), "at the end"),
        (lambda h, D, b, U, c: relu(h + relu(h @ D.T + b) @ U.T + c), "around everything"),
        (lambda h, D, b, U, c: h + gelu(h @ D.T + b) @ U.T + c, "GELU"),
        (lambda h, D, b, U, c: h + relu(h @ D.T) @ U.T + c, "bias b is missing"),
        (lambda h, D, b, U, c: h + (relu(h @ D.T) + b) @ U.T + c, "after the ReLU"),
        (lambda h, D, b, U, c: h + relu(h @ D.T + b) @ U.T, "bias c is missing"),
        (lambda h, D, b, U, c: h + relu(h @ U.T + b) @ D.T + c, "exchanged"),
        (lambda h, D, b, U, c: h + relu(h @ D + b) @ U + c, "transposed"),
        (lambda h, D, b, U, c: h + relu(D @ h + b) @ U.T + c, "stopped with RuntimeError"),
        (
            lambda h, D, b, U, c: h + relu(h @ D.T + b) @ U.T + c if D.shape == U.shape else h + c,
            "square matrices only",
        ),
        (_in_place, "in place"),
        (lambda h, D, b, U, c: None, "return"),
    ],
    "adapters.places": [
        (lambda h, x, A, LN, kind: LN(h + A(h) + x), "pfeiffer: your adapter reads h itself, as in houlsby"),
        (_reads(houlsby=lambda h, x, A, LN: LN(h + A(x) + x)), "reads x, as in parallel"),
        (_reads(houlsby=lambda h, x, A, LN: LN(A(h) + x)), "shortcut around the adapter"),
        (_reads(houlsby=lambda h, x, A, LN: LN(h + A(h))), "x is missing"),
        (_reads(houlsby=lambda h, x, A, LN: LN(h + x)), "adapter is missing"),
        (_reads(houlsby=lambda h, x, A, LN: LN(h + x) + A(LN(h + x))), "after the normalisation"),
        (_reads(houlsby=lambda h, x, A, LN: h + A(h) + x), "normalisation at the end"),
        (_reads(pfeiffer=lambda h, x, A, LN: LN(h + x + A(h + x))), "reads the sum h + x"),
        (_reads(pfeiffer=lambda h, x, A, LN: LN(LN(h + x) + A(LN(h + x)))), "add to the normalised sum"),
        (_reads(pfeiffer=lambda h, x, A, LN: LN(h + x) + A(LN(h + x))), "after the normalisation"),
        (_reads(parallel=lambda h, x, A, LN: LN(h + A(h) + x)), "parallel: your adapter reads h itself"),
        (_reads(parallel=lambda h, x, A, LN: LN(h + x) + A(x)), "after the normalisation"),
        (_reads(parallel=lambda h, x, A, LN: LN(2 * h + A(x) + x)), "the result is not LN"),
    ],
    "adapters.initialise": [
        (_start(torch.zeros, torch.zeros), "both zero"),
        (_start(torch.zeros, lambda *s: 0.02 * torch.randn(*s)), "D is zero and U is random"),
        (_start(torch.randn, torch.randn), "not near the identity"),
        (_of_linear, "not near the identity"),
        (_start(torch.randn, torch.zeros, 1.0), "c is not zero"),
        (_start(torch.ones, torch.zeros), "All units of the bottleneck are equal"),
        (lambda d, m: (torch.randn(d, m), torch.zeros(m), torch.zeros(m, d), torch.zeros(d)), "shape of U"),
        (lambda d, m: (torch.randn(m, d), torch.zeros(d, m)), "four tensors"),
        (lambda d, m: (torch.randn(m, d), torch.zeros(d), torch.zeros(d, m), torch.zeros(m)), "should have the shape"),
    ],
    "adapters.count": [
        (lambda d, m, blocks, each: blocks * each * 2 * m * d, "biases are missing"),
        (lambda d, m, blocks, each: blocks * each * (2 * m * d + m), "bias of U is missing"),
        (lambda d, m, blocks, each: blocks * each * (2 * m * d + d), "bias of D is missing"),
        (lambda d, m, blocks, each: blocks * each * (2 * m * d + 2 * d), "not d both"),
        (lambda d, m, blocks, each: blocks * each * (m * d + m + d), "two matrices"),
        (lambda d, m, blocks, each: blocks * (2 * m * d + m + d), "several adapters"),
        (lambda d, m, blocks, each: 2 * m * d + m + d, "one adapter"),
        (lambda d, m, blocks, each: blocks * each * 2 * (m + d), "matrices"),
        (lambda d, m, blocks, each: 4_542, "these numbers only"),
        (lambda d, m, blocks, each: 5, "your function returns 5"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "adapters.bottleneck": [
        lambda h, D, b, U, c: h + linear(linear(h, D, b).clamp(min=0), U, c),
        lambda h, D, b, U, c: (h.T + U @ relu(D @ h.T + b[:, None]) + c[:, None]).T,
    ],
    "adapters.places": [_branches],
    "adapters.initialise": [
        _start(torch.randn, torch.zeros),
        _start(lambda *s: 0.02 * torch.randn(*s), lambda *s: 0.02 * torch.randn(*s)),
        _start(lambda *s: 0.001 * torch.randn(*s), lambda *s: 0.001 * torch.randn(*s)),
        lambda d, m: list(_start(lambda *s: torch.rand(*s) / math.sqrt(d), torch.zeros)(d, m)),
        _exact,
    ],
    "adapters.count": [lambda d, m, blocks, each: float(each * blocks * (m * (d + 1) + d * (m + 1)))],
}
