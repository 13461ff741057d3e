"""Answers to the exercises of chapter 14: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Function = Callable[..., Any]


def _attend(q: Any, keys: Any, values: Any) -> Any:
    return (q @ keys.T / q.shape[1] ** 0.5).softmax(dim=1) @ values


def _detached(q: Any, K: Any, V: Any, P_K: Any, P_V: Any) -> Any:
    return _attend(q, torch.cat((P_K.detach(), K)), torch.cat((P_V.detach(), V)))


def _weights(q: Any, K: Any, P_K: Any) -> Any:
    return (q @ torch.cat((P_K, K)).T / q.shape[1] ** 0.5).softmax(dim=1)


def _exponentials(q: Any, keys: Any) -> Any:
    return (q @ keys.T / q.shape[1] ** 0.5).exp().sum(dim=1)


def _block(table: Any, layers: int, heads: int, number: int) -> Any:
    width = table.shape[1] // (2 * layers)
    return table[:, number * width : (number + 1) * width].view(len(table), heads, -1).transpose(0, 1)


def _unturned(table: Any, layer: int, layers: int, heads: int) -> Any:
    keys, values = (table.chunk(2 * layers, dim=1)[2 * layer + place] for place in (0, 1))
    return keys.reshape(heads, len(table), -1), values.reshape(heads, len(table), -1)


def _flat(table: Any, layer: int, layers: int, heads: int) -> Any:
    blocks = table.chunk(2 * layers, dim=1)
    return blocks[2 * layer], blocks[2 * layer + 1]


def _one_step(table: Any, layer: int, layers: int, heads: int) -> Any:
    """Right: everything in one view, as the library does it."""
    turned = table.view(len(table), 2 * layers, heads, -1).permute(1, 2, 0, 3)
    return turned[2 * layer], turned[2 * layer + 1]


def _network(k: int, layers: int, width: int, mid: int) -> int:
    return k * width + width * mid + mid + mid * 2 * layers * width + 2 * layers * width


WRONG: dict[str, list[tuple[Function, str]]] = {
    "prefix_tuning.attention": [
        (lambda q, K, V, P_K, P_V: _attend(q, K, V), "The prefix is missing"),
        (lambda q, K, V, P_K, P_V: _attend(q, P_K, P_V), "The text is missing"),
        (
            lambda q, K, V, P_K, P_V: (q @ torch.cat((P_K, K)).T).softmax(dim=1) @ torch.cat((P_V, V)),
            "not divided by √d",
        ),
        (
            lambda q, K, V, P_K, P_V: (q @ torch.cat((P_K, K)).T / q.shape[1]).softmax(dim=1) @ torch.cat((P_V, V)),
            "divided by d",
        ),
        (lambda q, K, V, P_K, P_V: _attend(q, torch.cat((P_V, K)), torch.cat((P_K, V))), "are swapped"),
        (
            lambda q, K, V, P_K, P_V: _attend(q, torch.cat((P_K, K)), torch.cat((V, P_V))),
            "before the keys and behind the values",
        ),
        (
            lambda q, K, V, P_K, P_V: (
                (q @ torch.cat((P_K, K)).T / q.shape[1] ** 0.5).softmax(dim=0) @ torch.cat((P_V, V))
            ),
            "over the queries",
        ),
        (lambda q, K, V, P_K, P_V: _attend(q, P_K, P_V) + _attend(q, K, V), "added two attentions"),
        (lambda q, K, V, P_K, P_V: (_attend(q, P_K, P_V) + _attend(q, K, V)) / 2, "a softmax of its own"),
        (
            lambda q, K, V, P_K, P_V: (q @ torch.cat((P_K, K)).T / 11**0.5).softmax(dim=1) @ torch.cat((P_V, V)),
            "d = 11 only",
        ),
        (_detached, "No gradient comes back"),
        (lambda q, K, V, P_K, P_V: torch.cat((P_V, V)), "should have the shape"),
        (lambda q, K, V, P_K, P_V: None, "return"),
    ],
    "prefix_tuning.gate": [
        (lambda q, K, P_K: 1 - _weights(q, K, P_K)[:, : len(P_K)].sum(dim=1), "share of the text"),
        (lambda q, K, P_K: _exponentials(q, P_K) / _exponentials(q, K), "divided the prefix by the text"),
        (lambda q, K, P_K: _weights(q, K, P_K)[:, : len(P_K)].mean(dim=1), "mean over the virtual tokens"),
        (lambda q, K, P_K: _weights(q, K, P_K)[:, : len(P_K)], "Add them up"),
        (lambda q, K, P_K: _weights(q, K, P_K)[:, : len(P_K)].sum(dim=1).mean(), "Each query has its own gate"),
        (lambda q, K, P_K: _weights(q, K, P_K)[:, -len(P_K) :].sum(dim=1), "last tokens of the text"),
        (lambda q, K, P_K: torch.full((len(q),), len(P_K) / (len(P_K) + len(K))), "as if all scores were equal"),
        (lambda q, K, P_K: (q @ P_K.T).softmax(dim=1).sum(dim=1), "over the prefix alone"),
        (
            lambda q, K, P_K: (q @ torch.cat((P_K, K)).T).softmax(dim=1)[:, : len(P_K)].sum(dim=1),
            "not divided by √d",
        ),
        (lambda q, K, P_K: _weights(q, K, P_K)[:, :2].sum(dim=1), "k = 2 and d = 11 only"),
    ],
    "prefix_tuning.split": [
        (
            lambda table, layer, layers, heads: (
                _block(table, layers, heads, 2 * layer + 1),
                _block(table, layers, heads, 2 * layer),
            ),
            "swapped",
        ),
        (_unturned, "mixed up"),
        (
            lambda table, layer, layers, heads: (
                _block(table, layers, heads, layer),
                _block(table, layers, heads, layers + layer),
            ),
            "all keys and then all values",
        ),
        (
            lambda table, layer, layers, heads: (
                _block(table, layers, heads, 2 * layer - 2),
                _block(table, layers, heads, 2 * layer - 1),
            ),
            "the layer before it",
        ),
        (
            lambda table, layer, layers, heads: (
                _block(table, layers, heads, layer),
                _block(table, layers, heads, layer + 1),
            ),
            "two blocks",
        ),
        (_flat, "not apart yet"),
        (
            lambda table, layer, layers, heads: tuple(
                _block(table, layers, heads, 2 * layer + place).transpose(0, 1) for place in (0, 1)
            ),
            "the heads come first",
        ),
        (lambda table, layer, layers, heads: _block(table, layers, heads, 2 * layer), "Expected two tensors"),
        (
            lambda table, layer, layers, heads: tuple(
                table[:, start : start + 10].view(len(table), heads, -1).transpose(0, 1) for start in (20, 30)
            ),
            "one size only",
        ),
    ],
    "prefix_tuning.count": [
        (lambda k, layers, width, mid: k * layers * width, "keys alone"),
        (lambda k, layers, width, mid: 2 * k * width, "one layer"),
        (lambda k, layers, width, mid: k * width, "prompt tuning"),
        (lambda k, layers, width, mid: 2 * k * layers * width, "computed and not trained"),
        (
            lambda k, layers, width, mid: (
                2 * k * layers * width if mid is None else _network(k, layers, width, mid) - mid - 2 * layers * width
            ),
            "The biases are missing",
        ),
        (
            lambda k, layers, width, mid: (
                2 * k * layers * width if mid is None else _network(k, layers, width, mid) - k * width
            ),
            "The embedding is missing",
        ),
        (
            lambda k, layers, width, mid: (
                2 * k * layers * width + (0 if mid is None else _network(k, layers, width, mid))
            ),
            "not trained besides it",
        ),
        (lambda k, layers, width, mid: 336 if mid is None else 332, "one size only"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "prefix_tuning.attention": [
        lambda q, K, V, P_K, P_V: nn.functional.scaled_dot_product_attention(
            q[None], torch.cat((P_K, K))[None], torch.cat((P_V, V))[None]
        )[0],
        lambda q, K, V, P_K, P_V: _attend(q, torch.cat((K, P_K)), torch.cat((V, P_V))),  # the order does not matter
    ],
    "prefix_tuning.gate": [
        lambda q, K, P_K: _exponentials(q, P_K) / (_exponentials(q, P_K) + _exponentials(q, K)),
        lambda q, K, P_K: _weights(q, K, P_K)[:, : len(P_K)].sum(dim=1, keepdim=True),
    ],
    "prefix_tuning.split": [_one_step],
    "prefix_tuning.count": [
        lambda k, layers, width, mid: (
            2.0 * k * layers * width if mid is None else k * width + (width + 1) * mid + (mid + 1) * 2 * layers * width
        )
    ],
}
