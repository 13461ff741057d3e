"""Answers to the exercises of chapter 15: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]


def _absmax(W: Any) -> Any:
    return W.abs().amax(dim=1, keepdim=True)


def _codes(W: Any) -> Any:
    return torch.round(W / _absmax(W) * 127).to(torch.int8)


def _int8(codes: Any, absmax: Any) -> Any:
    """Codes, and what they read back as."""
    whole = codes.to(torch.int64).to(torch.int8)
    return whole, whole * absmax / 127


def _inplace_int8(W: Any) -> Any:
    absmax = _absmax(W)
    W /= absmax
    codes = torch.round(W * 127).to(torch.int8)
    return codes, codes * absmax / 127


def _nearest(block: Any, levels: Any) -> Any:
    return (block[:, None] / block.abs().max() - levels).abs().argmin(1)


def _bytes(codes: Any, block: Any) -> Any:
    return (codes[::2] << 4 | codes[1::2]).to(torch.uint8), block.abs().max()


def _below(block: Any, levels: Any) -> Any:
    return (block[:, None] / block.abs().max() >= levels).sum(1) - 1


def _swapped(block: Any, levels: Any) -> Any:
    codes = _nearest(block, levels)
    return (codes[1::2] << 4 | codes[::2]).to(torch.uint8), block.abs().max()


def _halves(block: Any, levels: Any) -> Any:
    codes = _nearest(block, levels)
    half = len(codes) // 2
    return (codes[:half] << 4 | codes[half:]).to(torch.uint8), block.abs().max()


def _not_shifted(block: Any, levels: Any) -> Any:
    codes = _nearest(block, levels)
    return (codes[::2] | codes[1::2]).to(torch.uint8), block.abs().max()


def _search(block: Any, levels: Any) -> Any:
    return _bytes(torch.searchsorted(levels, block / block.abs().max()).clamp(max=15), block)


def _by_middles(block: Any, levels: Any) -> Any:
    absmax = block.abs().max()
    codes = torch.bucketize(block / absmax, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return 16 * codes[0::2] + codes[1::2], absmax.item()


def _in_a_loop(block: Any, levels: Any) -> Any:
    absmax = max(abs(w) for w in block.tolist())
    table = levels.tolist()
    distances = [[abs(w / absmax - level) for level in table] for w in block.tolist()]
    codes = [row.index(min(row)) for row in distances]
    pairs = zip(codes[::2], codes[1::2], strict=True)
    return torch.tensor([16 * first + second for first, second in pairs], dtype=torch.uint8), absmax


def _weight(codes: Any, absmax: Any, levels: Any) -> Any:
    return levels[codes] * absmax[:, None]


def _layer(x: Any, g: Any, W: Any, A: Any, B: Any, s: float) -> Any:
    return x @ W.T + s * (x @ A.T @ B.T), g @ W + s * (g @ B @ A)


def _by_autograd(x: Any, g: Any, codes: Any, absmax: Any, levels: Any, A: Any, B: Any, s: float) -> Any:
    leaf = x.clone().requires_grad_()
    h = leaf @ (_weight(codes, absmax, levels) + s * B @ A).T
    h.backward(g)
    return h, leaf.grad


def _frozen_is_closed(x: Any, g: Any, codes: Any, absmax: Any, levels: Any, A: Any, B: Any, s: float) -> Any:
    W = _weight(codes, absmax, levels)
    return x @ W.T + s * (x @ A.T @ B.T), s * g @ B @ A


def _no_update_below(x: Any, g: Any, codes: Any, absmax: Any, levels: Any, A: Any, B: Any, s: float) -> Any:
    W = _weight(codes, absmax, levels)
    return x @ W.T + s * (x @ A.T @ B.T), g @ W


def _forward_twice(x: Any, g: Any, codes: Any, absmax: Any, levels: Any, A: Any, B: Any, s: float) -> Any:
    W = _weight(codes, absmax, levels)
    return x @ W.T + s * (x @ A.T @ B.T), g @ W.T + s * (g @ A.T @ B.T)


def _no_update(x: Any, g: Any, codes: Any, absmax: Any, levels: Any, A: Any, B: Any, s: float) -> Any:
    W = _weight(codes, absmax, levels)
    return x @ W.T, g @ W


def _of_each_level(block: Any, levels: Any) -> Any:
    return (block[:, None] / block.abs().max() - levels).abs().argmin(0)


WRONG: dict[str, list[tuple[Function, str]]] = {
    "qlora.int8": [
        (lambda W: _int8(torch.trunc(W / _absmax(W) * 127), _absmax(W)), "cut off"),
        (lambda W: _int8(torch.floor(W / _absmax(W) * 127), _absmax(W)), "rounded down"),
        (lambda W: _int8(torch.round(W / _absmax(W) * 128), _absmax(W)), "multiply by 128"),
        (lambda W: _int8(torch.round(W / W.abs().max() * 127), W.abs().max()), "one absmax for the whole matrix"),
        (lambda W: _int8(torch.round(W / W.abs().amax(0) * 127), W.abs().amax(0)), "absmax of each column"),
        (lambda W: _int8(torch.round(W / _absmax(W).T * 127), _absmax(W).T), "keepdim=True"),
        (lambda W: _int8(torch.round(W / W.amax(1, keepdim=True) * 127), W.amax(1, keepdim=True)), "overflows"),
        (lambda W: _int8(torch.round(W / _absmax(W)), _absmax(W)), "factor 127 is missing"),
        (lambda W: (torch.round(W / _absmax(W) * 127), W), "torch.float32"),
        (lambda W: (_codes(W), _codes(W) * _absmax(W)), "divide by 127"),
        (lambda W: (_codes(W), _codes(W) / 127), "forgot the absmax"),
        (lambda W: (_codes(W), W), "weights themselves"),
        (lambda W: _codes(W) * _absmax(W) / 127, "two values"),
        (_inplace_int8, "in place"),
        (lambda W: (_codes(W), _absmax(W)), "absmax of each row"),
        (lambda W: (_codes(W), _absmax(W)[:, 0]), "absmax of each row"),
    ],
    "qlora.nf4": [
        (_swapped, "swapped"),
        (lambda block, levels: _bytes(_of_each_level(block, levels), block), "the wrong axis"),
        (lambda block, levels: (_of_each_level(block, levels).to(torch.uint8), block.abs().max()), "the wrong axis"),
        (_halves, "two halves"),
        (_not_shifted, "four bits to the left"),
        (_search, "the level above"),
        (lambda block, levels: _bytes(_below(block, levels), block), "level below"),
        (lambda block, levels: _bytes((block[:, None] - levels).abs().argmin(1), block), "not divided"),
        (lambda block, levels: (_nearest(block, levels).to(torch.uint8), block.abs().max()), "two codes into one byte"),
        (lambda block, levels: (_bytes(_nearest(block, levels), block)[0].long(), block.abs().max()), "torch.uint8"),
        (lambda block, levels: (_bytes(_nearest(block, levels), block)[0], block.max()), "*absolute*"),
        (
            lambda block, levels: _bytes(torch.round((block / block.abs().max() + 1) * 7.5).long(), block),
            "equal distances",
        ),
        (lambda block, levels: _bytes(_nearest(block, levels), block)[0], "two values"),
    ],
    "qlora.bits": [
        (lambda block, second: 4.0, "scales are missing"),
        (lambda block, second: 4 + 32 / block, "Use the second argument"),
        (lambda block, second: 4 + 4 / block, "four bytes"),
        (lambda block, second: (4 + 32) / block, "four bits by the block as well"),
        (lambda block, second: 4 + 32 // block, "cuts the fraction off"),
        (lambda block, second: (4 + 32 / block) / 8, "counted bytes"),
        (lambda block, second: 4 + 8 / block, "32 bits, not 8"),
        (lambda block, second: 4 + 32, "divide its bits"),
        (lambda block, second: 4 + (8 / block if second else 32 / block), "second scales are missing"),
        (lambda block, second: 4 + (8 / block + 32 / second if second else 32 / block), "25 *blocks*"),
        (lambda block, second: 4 + 32 / block + (32 / block / second if second else 0), "8 bits now"),
        (lambda block, second: 4 + (8 / block + 8 / block / second if second else 32 / block), "is a float32: 32 bits"),
        (lambda block, second: 4 + 8 / 12 + 32 / (12 * 25) if second else 4 + 32 / 12, "Use the arguments"),
    ],
    "qlora.layer": [
        (_frozen_is_closed, "Frozen means"),
        (_no_update_below, "frozen path only"),
        (_forward_twice, "applied to g"),
        (_no_update, "The update is missing"),
        (lambda x, g, c, m, t, A, B, s: _layer(x, g, c * m[:, None], A, B, s), "computed with the codes"),
        (lambda x, g, c, m, t, A, B, s: _layer(x, g, t[c], A, B, s), "absmax is missing"),
        (lambda x, g, c, m, t, A, B, s: _layer(x, g, t[c] * m, A, B, s), "absmax[:, None]"),
        (lambda x, g, c, m, t, A, B, s: _layer(x, g, _weight(c, m, t), A, B, 1.0), "factor s is missing"),
        (lambda x, g, c, m, t, A, B, s: _layer(x, g, _weight(c, m, t).T, A, B, s), "transposed"),
        (lambda x, g, c, m, t, A, B, s: _layer(x, g, _weight(c, 1 / m, t), A, B, s), "divide by the absmax"),
        (lambda x, g, c, m, t, A, B, s: _layer(x, g, _weight(c, m, t), A, B, s)[0], "two values"),
        (lambda x, g, c, m, t, A, B, s: (_layer(x, g, _weight(c, m, t), A, B, s)[0], 0 * x), "no layer below"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "qlora.int8": [
        lambda W: (_codes(W), _codes(W) / (127 / _absmax(W))),
        lambda W: [_codes(W), torch.stack([_codes(W)[i] * W[i].abs().max() / 127 for i in range(len(W))])],
    ],
    "qlora.nf4": [_by_middles, _in_a_loop],
    "qlora.bits": [
        lambda block, second: 4 + 32 / block if second is None else 4 + (8 + 32 / second) / block,
        lambda block, second: (4 * block + (8 + 32 / second if second else 32)) / block,
    ],
    "qlora.layer": [_by_autograd, lambda x, g, c, m, t, A, B, s: _layer(x, g, (t[c].T * m).T, A, B, s)],
}
