"""Answers to the exercises of chapter 7: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]


def _inplace_gradient(g: Any) -> Any:
    total = g.sum((0, 1))
    g.zero_()
    return total


def _biases(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".bias")]


WRONG: dict[str, list[tuple[Function, str]]] = {
    "bitfit.names": [
        (lambda names, head: [n for n in names if "bias" in n or n.startswith(head)], "*last* part"),
        (lambda names, head: [n for n in _biases(names) if not n.startswith(head)], "head is missing"),
        (lambda names, head: _biases(names), "head's bias"),
        (lambda names, head: [n for n in _biases(names) if head not in n] + [f"{head}.weight"], "the whole head"),
        (lambda names, head: [n for n in names if n.startswith(head)], "feature extraction"),
        (
            lambda names, head: [n for n in names if (n.endswith("bias") and "LayerNorm" not in n) or head in n],
            "normalisations are missing",
        ),
        (lambda names, head: [n for n in names if n.endswith("bias") or head in n or "pooler" in n], "is a weight"),
        (
            lambda names, head: [n for n in names if (n.endswith("bias") and "key" not in n) or head in n],
            "key.bias is missing",
        ),
        (
            lambda names, head: [
                n for n in names if (not n.endswith("bias") and "relative" not in n) or n.startswith(head)
            ],
            "is a weight",
        ),
        (lambda names, head: [n for n in names if n.endswith("bias") or "classifier" in n], "head's bias"),
        (lambda names, head: [n.split(".")[-1] for n in names], "whole names"),
        (lambda names, head: ".bias", "Expected a list"),
        (lambda names, head: [], "No name"),
        (lambda names, head: None, "return"),
    ],
    "bitfit.gradient": [
        (lambda g: g.mean((0, 1)), "the mean over the tokens"),
        (lambda g: g.sum(1), "texts share one bias"),
        (lambda g: g.sum(0), "All tokens share"),
        (lambda g: g.sum(-1), "Each output has its own bias"),
        (lambda g: g.sum(), "summed over everything"),
        (lambda g: g.sum(1).mean(0), "mean over the texts"),
        (lambda g: g.sum(0).mean(0), "mean over the tokens of a text"),
        (lambda g: g[:, 0].sum(0), "first token alone"),
        (lambda g: g[0].sum(0), "first text alone"),
        (lambda g: -g.sum((0, 1)), "sign is turned"),
        (lambda g: g.sum((0, 1)).abs(), "keeps its sign"),
        (lambda g: g.abs().sum((0, 1)), "absolute values"),
        (lambda g: g.sum((1, 2)), "should have the shape"),
        (lambda g: g.sum((0, 1)) if g.shape[0] != g.shape[2] else g.sum((1, 2)), "kept the axis of the texts"),
        (lambda g: g.sum((0, 1)) if g.shape[1] != g.shape[2] else g.sum((0, 2)), "kept the axis of the tokens"),
        (_inplace_gradient, "in place"),
        (lambda g: g.numpy().sum(axis=(0, 1)), "Use torch"),
        (lambda g: None, "return"),
    ],
    "bitfit.count": [
        (lambda w, i, b, c: b * (7 * w + i) + 2 * w, "head's own bias"),
        (lambda w, i, b, c: b * (7 * w + i) + w + c, "One vector of the width"),
        (lambda w, i, b, c: b * (7 * w + i) + c, "one vector each"),
        (lambda w, i, b, c: b * (7 * w + i), "blocks alone"),
        (lambda w, i, b, c: b * (5 * w + i) + w + c, "Each has a bias as well"),
        (lambda w, i, b, c: b * (5 * w + i) + 2 * w + c, "two in each block"),
        (lambda w, i, b, c: b * (6 * w + i) + 2 * w + c, "missing in each block"),
        (lambda w, i, b, c: b * (6 * w + 2 * i) + 2 * w + c, "second feed-forward layer's bias"),
        (lambda w, i, b, c: b * 8 * w + 2 * w + c, "first feed-forward layer's bias"),
        (lambda w, i, b, c: b * (9 * w + i) + 3 * w + c, "normalisations' weights"),
        (lambda w, i, b, c: b * (7 * w + i) + 2 * w + c + c * w, "head's weight as well"),
        (lambda w, i, b, c: b * (7 * w + i) + 2 * w + c * w, "not labels · width"),
        (lambda w, i, b, c: 7 * w + i + 2 * w + c, "one block"),
        (lambda w, i, b, c: b * (w + i), "variant with two biases"),
        (lambda w, i, b, c: 346, "102,914"),
    ],
    "bitfit.two": [
        (_biases, "not one of the two"),
        (lambda names: [n for n in names if n.endswith(("query.bias", ".3.output.dense.bias"))], "m3"),
        (lambda names: [n for n in names if n.endswith(("query.bias", "attention.output.dense.bias"))], "m1"),
        (lambda names: [n for n in names if n.endswith("query.bias")], "bias of the feed-forward part is missing"),
        (lambda names: [n for n in names if n.endswith("intermediate.dense.bias")], "query's bias is missing"),
        (lambda names: [n for n in names if "query" in n or "intermediate" in n], "is no bias"),
        (
            lambda names: [n for n in names if n.endswith("bias") and (".self." in n or "intermediate" in n)],
            "only the query's",
        ),
        (
            lambda names: [
                n for n in names if n.endswith(("query.bias", "intermediate.dense.bias", "pooler.dense.bias"))
            ],
            "pooler.dense.bias is not one",
        ),
        (lambda names: None, "return"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "bitfit.names": [
        lambda names, head: {n for n in names if n.rpartition(".")[2] == "bias"} | {f"{head}.weight", f"{head}.bias"},
        lambda names, head: tuple(n for n in reversed(names) if n.endswith(".bias") or n.split(".")[0] == head),
    ],
    "bitfit.gradient": [
        lambda g: g.flatten(0, 1).sum(0),
        lambda g: torch.einsum("bto->o", g),
    ],
    "bitfit.count": [
        lambda w, i, b, c: float(sum([w] + b * [w, w, w, w, w, i, w, w] + [w, c])),
    ],
    "bitfit.two": [lambda names: (n for n in names if n.endswith(("self.query.bias", "intermediate.dense.bias")))],
}
