"""Answers to the exercises of chapter 13: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

Function = Callable[..., Any]


def _layers(f: Function, g: Function, h: Function = lambda x: x) -> Function:
    """Three layers with these functions behind them."""
    return lambda T, W1, b1, W2, b2, W3, b3: h(linear(g(linear(f(linear(T, W1, b1)), W2, b2)), W3, b3))


def _same(x: Any) -> Any:
    return x


def _columns(T: Any, W1: Any, b1: Any, W2: Any, b2: Any, W3: Any, b3: Any) -> Any:
    inner = (W1 @ T.T + b1[:, None]).clamp(min=0)
    return (W3 @ (W2 @ inner + b2[:, None]).clamp(min=0) + b3[:, None]).T


def _with(change: Function) -> Function:
    """Put rows into the marked places; `change` makes them of P and the number of texts."""

    def answer(E: Any, ids: Any, marker: int, P: Any) -> Any:
        x = E.clone()
        x[ids == marker] = change(P, len(ids))
        return x

    return answer


def _in_place(E: Any, ids: Any, marker: int, P: Any) -> Any:
    E[ids == marker] = P.detach().repeat(len(ids), 1)
    return E


def _words_replaced(E: Any, ids: Any, marker: int, P: Any) -> Any:
    x = E.clone()
    x[ids != marker] = P.repeat(len(ids), 1)
    return x


def _added(E: Any, ids: Any, marker: int, P: Any) -> Any:
    x = E.clone()
    x[ids == marker] = x[ids == marker] + P.repeat(len(ids), 1)
    return x


def _by_loop(E: Any, ids: Any, marker: int, P: Any) -> Any:
    texts = []
    for embedded, tokens in zip(E, ids.tolist(), strict=True):
        rows = iter(P)
        texts.append(torch.stack([next(rows) if t == marker else e for t, e in zip(tokens, embedded, strict=True)]))
    return torch.stack(texts)


def _by_index(E: Any, ids: Any, marker: int, P: Any) -> Any:
    marked = ids == marker
    rows = P[(marked.cumsum(1) - 1).clamp(min=0)]
    return torch.where(marked[..., None], rows, E)


def _eval_only(encoder: Any) -> Any:
    encoder.eval()
    return encoder()


@torch.no_grad()
def _no_eval(encoder: Any) -> Any:
    return encoder()


@torch.no_grad()
def _finished(encoder: Any) -> Any:
    return encoder.eval()()


def _restores(encoder: Any) -> Any:
    mode = encoder.training
    encoder.eval()
    table = encoder().detach().clone()
    encoder.train(mode)
    return table


def _mlp(hidden: int) -> int:
    return 3 * (hidden * hidden + hidden)


def _head(hidden: int, classes: int) -> int:
    return (hidden + 1) * classes


def _built(k: int, hidden: int, classes: int) -> Any:
    """Count in a real network."""
    layers = [nn.Linear(hidden, hidden) for _ in range(3)]
    head, table = nn.Linear(hidden, classes), nn.Embedding(k, hidden)

    def size(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    return [size(table, head, *layers), size(table, head)]


_relu = torch.relu

WRONG: dict[str, list[tuple[Function, str]]] = {
    "p_tuning.encoder": [
        (_layers(_relu, _relu, _relu), "behind the third layer"),
        (_layers(_same, _same), "Both ReLUs are missing"),
        (_layers(_same, _relu), "behind the first layer is missing"),
        (_layers(_relu, _same), "behind the second layer is missing"),
        (_layers(torch.tanh, torch.tanh), "That is tanh"),
        (
            lambda T, W1, b1, W2, b2, W3, b3: _layers(_relu, _relu)(T, W1.T, b1, W2.T, b2, W3.T, b3),
            "weights are transposed",
        ),
        (lambda T, W1, b1, W2, b2, W3, b3: _relu(_relu(T @ W1.T) @ W2.T) @ W3.T, "biases are missing"),
        (
            lambda T, W1, b1, W2, b2, W3, b3: _layers(_relu, _relu)(T, W1, b1, W2, b2, W3, None),
            "bias of the third layer",
        ),
        (lambda T, W1, b1, W2, b2, W3, b3: _relu(T @ W1.T + b1) @ W3.T + b3, "second layer is missing"),
        (lambda T, *rest: _layers(_relu, _relu)(T, *rest) + T, "T is added"),
        (lambda T, *rest: _layers(_relu, _relu)(T, *rest).mean(0).expand(len(T), -1), "All rows are the mean"),
        (lambda T, *rest: T, "That is T itself"),
        (lambda T, *rest: _layers(_relu, _relu)(T.detach(), *rest), "No gradient comes back"),
        (_layers(torch.sigmoid, torch.sigmoid), "is not W3 ReLU"),
        (lambda T, *rest: _layers(_relu, _relu)(T, *rest)[:3], "for layers 3"),
        (lambda T, *rest: None, "return"),
    ],
    "p_tuning.insert": [
        (lambda E, ids, marker, P: E.clone(), "Nothing was replaced"),
        (_with(lambda P, n: P.flip(0).repeat(n, 1)), "reverse order"),
        (_with(lambda P, n: P.repeat_interleave(n, dim=0)), "one row of P, three times"),
        (_with(lambda P, n: P[0]), "first row of P"),
        (_with(lambda P, n: P.mean(0)), "mean of P"),
        (_with(lambda P, n: 0 * P.repeat(n, 1)), "are zeros"),
        (_with(lambda P, n: P.detach().repeat(n, 1)), "No gradient comes back"),
        (_in_place, "in place"),
        (_words_replaced, "differ in number"),
        (_added, "P is added"),
        (lambda E, ids, marker, P: torch.cat((P.expand(len(E), -1, -1), E[:, len(P) :]), 1), "the first k places"),
        (lambda E, ids, marker, P: torch.cat((P.expand(len(E), -1, -1), E), 1), "k rows more"),
        (lambda E, ids, marker, P: _by_loop(E, ids, 9, P), "one case only"),
        (lambda E, ids, marker, P: _by_loop(E, ids, marker, torch.cat((P, P))[1:]), "not rows 0 to k"),
        (lambda E, ids, marker, P: _with(lambda P, n: P)(E, ids, marker, P), "stopped with"),
    ],
    "p_tuning.finish": [
        (_eval_only, "still hang on the encoder"),
        (lambda encoder: encoder(), "switch the encoder to evaluation"),
        (_no_eval, "Dropout was on"),
        (lambda encoder: encoder.embedding.weight.detach().clone(), "That is T"),
        (lambda encoder: encoder.embedding.weight, "still hangs on a gradient"),
        (lambda encoder: encoder.weight.detach()[:4], "not what the encoder computes"),
        (lambda encoder: encoder.eval(), "as a tensor, got"),
        (lambda encoder: _finished(encoder).mean(0), "should have the shape"),
        (lambda encoder: None, "return"),
    ],
    "p_tuning.count": [
        (lambda k, h, c: (k * h + _head(h, c), k * h + _mlp(h) + _head(h, c)), "wrong order"),
        (lambda k, h, c: (k * h + _head(h, c), k * h + _head(h, c)), "Trained: the encoder is missing"),
        (lambda k, h, c: (_mlp(h) + _head(h, c), k * h + _head(h, c)), "Trained: the table T is missing"),
        (lambda k, h, c: (k * h + _mlp(h), k * h), "Trained: the head is missing"),
        (lambda k, h, c: (k * h + 3 * h * h + _head(h, c), k * h + _head(h, c)), "biases of the three layers"),
        (lambda k, h, c: (k * h + h * h + h + _head(h, c), k * h + _head(h, c)), "that is one layer"),
        (lambda k, h, c: (k * h + 2 * (h * h + h) + _head(h, c), k * h + _head(h, c)), "that is two layers"),
        (lambda k, h, c: (k * h + k * _mlp(h) + _head(h, c), k * h + _head(h, c)), "Count it once"),
        (lambda k, h, c: (2 * k * h + _mlp(h) + _head(h, c), k * h + _head(h, c)), "P is computed, not trained"),
        (lambda k, h, c: (k * h + _mlp(h) + h * c, k * h + h * c), "bias of the head"),
        (lambda k, h, c: (k * h + _mlp(h) + _head(h, c), k * h + _mlp(h) + _head(h, c)), "Stored: the encoder is not"),
        (lambda k, h, c: (k * h + _mlp(h) + _head(h, c), k * h), "Stored: the head is missing"),
        (lambda k, h, c: (k * h + _mlp(h) + _head(h, c), 2 * k * h + _head(h, c)), "Stored: T is not needed"),
        (lambda k, h, c: (k * h + _mlp(h) + _head(h, c), _mlp(h) + _head(h, c)), "the encoder and the head"),
        (lambda k, h, c: (k * h + _mlp(h) + _head(h, c), _head(h, c)), "Stored: P is missing"),
        (lambda k, h, c: k * h + _mlp(h) + _head(h, c), "Return two numbers"),
        (lambda k, h, c: (433, 103), "one case only"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "p_tuning.encoder": [_layers(_relu, _relu), _columns],
    "p_tuning.insert": [_by_loop, _by_index, _with(lambda P, n: P.repeat(n, 1))],
    "p_tuning.finish": [_finished, _restores, lambda encoder: copy.deepcopy(encoder).eval()().detach()],
    "p_tuning.count": [_built, lambda k, h, c: (float(k * h + _mlp(h) + _head(h, c)), k * h + _head(h, c))],
}
