"""Answers to the exercises of chapter 16: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Function = Callable[..., Any]


def _inplace_labels(prompt: Any, answer: Any, eos: int) -> Any:
    labels = [-100] * len(prompt)
    prompt += [*answer, eos]
    return prompt, [*labels, *answer, eos]


def _masked_by_id(prompt: Any, answer: Any, eos: int) -> Any:
    ids = [*prompt, *answer, eos]
    return ids, [-100] * len(prompt) + [-100 if each == eos else each for each in [*answer, eos]]


def _tensor_labels(prompt: Any, answer: Any, eos: int) -> Any:
    ids = torch.tensor([*prompt, *answer, eos])
    labels = ids.clone()
    labels[: len(prompt)] = -100
    return ids, labels


def _loss(logits: Any, labels: Any) -> Any:
    return functional.cross_entropy(logits[:-1], labels[1:])


def _picked(logits: Any, labels: Any) -> Any:
    real = labels[1:] != -100
    chosen = labels[1:][real]
    return torch.log_softmax(logits[:-1][real], -1)[torch.arange(len(chosen)), chosen]


def _loop(logits: Any, labels: Any) -> Any:
    losses = [
        torch.logsumexp(logits[t - 1], 0) - logits[t - 1, labels[t]] for t in range(1, len(labels)) if labels[t] >= 0
    ]
    return sum(losses) / len(losses)


def _padded(ids: Any, labels: Any, pad: int, ignore: int = -100, right: bool = False) -> Any:
    longest = max(map(len, ids))

    def fill(row: Any, value: int) -> Any:
        free = [value] * (longest - len(row))
        return [*row, *free] if right else [*free, *row]

    mask = torch.tensor([fill([1] * len(row), 0) for row in ids])
    return torch.tensor([fill(row, pad) for row in ids]), mask, torch.tensor([fill(row, ignore) for row in labels])


def _mask_from_ids(ids: Any, labels: Any, pad: int) -> Any:
    filled, _, kept = _padded(ids, labels, pad)
    return filled, (filled != pad).long(), kept


def _labels_from_ids(ids: Any, labels: Any, pad: int) -> Any:
    filled, mask, kept = _padded(ids, labels, pad)
    return filled, mask, kept.masked_fill(filled == pad, -100)


def _no_mask(ids: Any, labels: Any, pad: int) -> Any:
    filled, mask, kept = _padded(ids, labels, pad)
    return filled, torch.ones_like(mask), kept


def _turned_mask(ids: Any, labels: Any, pad: int) -> Any:
    filled, mask, kept = _padded(ids, labels, pad)
    return filled, 1 - mask, kept


def _as_lists(ids: Any, labels: Any, pad: int) -> Any:
    return [each.tolist() for each in _padded(ids, labels, pad)]


def _by_flipping(ids: Any, labels: Any, pad: int) -> Any:
    from torch.nn.utils.rnn import pad_sequence

    def fill(rows: Any, value: int) -> Any:
        turned = [torch.tensor(row).flip(0) for row in rows]
        return pad_sequence(turned, batch_first=True, padding_value=value).flip(1)

    return fill(ids, pad), fill([[1] * len(row) for row in ids], 0).bool(), fill(labels, -100)


def _until_end(output: Any, length: int, eos: int, decode: Any) -> Any:
    new = output[length:]
    return decode(new[: new.index(eos)] if eos in new else new)


def _until_end_in_a_loop(output: Any, length: int, eos: int, decode: Any) -> Any:
    kept: list[int] = []
    for each in output[length:]:
        if each == eos:
            break
        kept.append(each)
    return decode(kept)


WRONG: dict[str, list[tuple[Function, str]]] = {
    "llama.labels": [
        (lambda p, a, e: ([*p, *a, e], [*p, *a, e]), "not masked"),
        (lambda p, a, e: ([*p, *a], [-100] * len(p) + a), "never learn to stop"),
        (_masked_by_id, "end token is masked"),
        (lambda p, a, e: ([*p, *a, e], [0] * len(p) + [*a, e]), "a token like any other"),
        (lambda p, a, e: ([*p, *a, e], [-100] * (len(p) - 1) + [*a, e, -100]), "shifted the labels"),
        (lambda p, a, e: ([*p, *a, e], [*p] + [-100] * (len(a) + 1)), "wrong way round"),
        (lambda p, a, e: ([*p, *a, e], [*a, e]), "as long as input_ids"),
        (lambda p, a, e: ([*a, e], [*a, e]), "must read the question"),
        (lambda p, a, e: ([*p, *a, e], [-100] * (len(p) + 1) + [*a[1:], e]), "first token of the answer"),
        (lambda p, a, e: ([*p, *a, e], [-100] * (len(p) - 1) + [p[-1], *a, e]), "last token of the prompt"),
        (lambda p, a, e: [-100] * len(p) + [*a, e], "2 values"),
        (_inplace_labels, "changes one of its inputs"),
    ],
    "llama.loss": [
        (lambda logits, labels: functional.cross_entropy(logits, labels), "shift is missing"),
        (lambda logits, labels: functional.cross_entropy(logits[1:], labels[:-1]), "wrong way"),
        (lambda logits, labels: functional.cross_entropy(logits[:-1], labels[1:], reduction="sum"), "the sum"),
        (lambda logits, labels: -_picked(logits, labels).sum() / len(labels), "divided by all tokens"),
        (lambda logits, labels: -_picked(logits, labels).sum() / (len(labels) - 1), "divided by all positions"),
        (lambda logits, labels: _picked(logits, labels).mean(), "sign"),
        (lambda logits, labels: _loss(logits, labels) / torch.log(torch.tensor(2.0)), "in bits"),
    ],
    "llama.padding": [
        (lambda ids, labels, pad: _padded(ids, labels, pad, right=True), "filled up on the right"),
        (_mask_from_ids, "Go by position"),
        (_turned_mask, "wrong way round"),
        (_no_mask, "1 everywhere"),
        (_labels_from_ids, "end of each answer"),
        (lambda ids, labels, pad: _padded(ids, labels, pad, ignore=pad), "labels of the padding are learnt"),
        (lambda ids, labels, pad: _padded(ids, labels, pad, ignore=0), "token like any other"),
        (lambda ids, labels, pad: _padded(ids, labels, pad)[0], "3 values"),
        (lambda ids, labels, pad: tuple(each[:, 1:] for each in _padded(ids, labels, pad)), "the longest row"),
    ],
    "llama.count": [
        (lambda w, h, s, n, r: n * r * 4 * w, "as wide as the queries"),
        (lambda w, h, s, n, r: r * (3 * w + w // h * s), "one layer"),
        (lambda w, h, s, n, r: n * (3 * w + w // h * s), "rank is missing"),
        (lambda w, h, s, n, r: n * r * 2 * w, "query alone"),
        (lambda w, h, s, n, r: n * r * (w + w // h * s), "A is missing"),
        (lambda w, h, s, n, r: n * r * (3 * w + s), "counts heads"),
        (lambda w, h, s, n, r: n * (w * w + w * (w // h * s)), "frozen weights"),
        (lambda w, h, s, n, r: n * r * (2 * w + 2 * (w // h * s)), "only values are narrower"),
    ],
    "llama.read": [
        (lambda out, n, eos, decode: decode(out), "prompt and answer together"),
        (lambda out, n, eos, decode: decode(out[n:]), "end tokens are still there"),
        (lambda out, n, eos, decode: decode(out[: out.index(eos)]), "that one stands in the prompt"),
        (lambda out, n, eos, decode: decode(out[n : n + out[n:].index(eos) + 1]), "end token itself"),
        (lambda out, n, eos, decode: decode(out[n:-1]), "cut the last token off"),
        (lambda out, n, eos, decode: _until_end(out, n, eos, decode) if eos in out[n:] else "", "an answer too"),
        (lambda out, n, eos, decode: out[n:], "Expected a text"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "llama.labels": [_tensor_labels],
    "llama.loss": [lambda logits, labels: -_picked(logits, labels).mean(), _loop],
    "llama.padding": [_as_lists, _by_flipping],
    "llama.count": [lambda w, h, s, n, r: sum(r * (w + out) for out in (w, w * s // h)) * n],
    "llama.read": [_until_end_in_a_loop],
}
