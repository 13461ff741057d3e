"""Answers to the exercises of chapter 12: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

Function = Callable[..., Any]


def _before(E: Any, P: Any) -> Any:
    return torch.cat((P.expand(len(E), -1, -1), E), dim=1)


def _mask(mask: Any, P: Any) -> Any:
    return nn.functional.pad(mask, (len(P), 0), value=1)


def _overwrite(E: Any, mask: Any, P: Any) -> Any:
    x = E.clone()
    x[:, : len(P)] = P
    return x, mask


def _into_new(E: Any, mask: Any, P: Any) -> Any:
    k = len(P)
    x = E.new_empty(len(E), k + E.shape[1], E.shape[2])
    x[:, :k], x[:, k:] = P, E
    longer = mask.new_ones(len(mask), k + mask.shape[1])
    longer[:, k:] = mask
    return [x, longer]


def _changes_the_table(words: Any, ids: Any, k: int) -> Any:
    rows = words[(ids * k)[:k]].clone()
    words[ids[0]] = 0
    return rows


WRONG: dict[str, list[tuple[Function, str]]] = {
    "prompt_tuning.prepend": [
        (lambda E, mask, P: (torch.cat((E, P.expand(len(E), -1, -1)), 1), _mask(mask, P)), "P stands behind the text"),
        (lambda E, mask, P: (_before(E, P.flip(0)), _mask(mask, P)), "reverse order"),
        (lambda E, mask, P: (_before(E, 0 * P), _mask(mask, P)), "rows are zeros"),
        (lambda E, mask, P: (_before(E, P), mask), "still the length of the text"),
        (lambda E, mask, P: (_before(E, P), nn.functional.pad(mask, (len(P), 0))), "entries of the mask are 0"),
        (lambda E, mask, P: (_before(E, P), nn.functional.pad(mask, (0, len(P)), value=1)), "behind the mask"),
        (lambda E, mask, P: (_before(E, P), torch.ones(len(E), len(P) + E.shape[1])), "whole mask is 1"),
        (lambda E, mask, P: (_before(E, P.detach()), _mask(mask, P)), "No gradient comes back"),
        (lambda E, mask, P: (_mask(mask, P), _before(E, P)), "Return the embeddings first"),
        (lambda E, mask, P: _before(E, P), "Return two tensors"),
        (lambda E, mask, P: (E + P.mean(0), mask), "old number of rows"),
        (_overwrite, "[CLS] is lost"),
        (lambda E, mask, P: (torch.cat((P, E), 1), _mask(mask, P)), "stopped with RuntimeError"),
        (
            lambda E, mask, P: (_before(E, P), torch.cat((torch.ones(len(mask), 3), mask), 1)),
            "for k = 2 and four texts of five tokens, the mask",
        ),
        (lambda E, mask, P: None, "return"),
    ],
    "prompt_tuning.initialise": [
        (lambda words, ids, k: words[torch.tensor(ids).repeat_interleave(k)[: k * len(ids) : len(ids)]], "on the spot"),
        (lambda words, ids, k: words[(ids + ids[-1:] * k)[:k]], "the last token only"),
        (lambda words, ids, k: words[(ids * k)[-k:]], "keep the last k"),
        (lambda words, ids, k: words[(ids * 5)[:k] if k > len(ids) else ids[-k:]], "You kept the last k ids"),
        (lambda words, ids, k: nn.functional.pad(words[ids], (0, 0, 0, k - len(ids))), "filled with zeros"),
        (lambda words, ids, k: words[:k], "first k rows of the table"),
        (lambda words, ids, k: words[ids].mean(0).expand(k, -1), "mean of the words"),
        (lambda words, ids, k: torch.tensor((ids * k)[:k]), "These are token ids"),
        (lambda words, ids, k: words[ids], "there should be 5 rows, yours are 3"),
        (lambda words, ids, k: words[ids * 2][: max(k, 3)], "there should be 2 rows, yours are 3"),
        (lambda words, ids, k: torch.randn(k, words.shape[1]), "not the embeddings of"),
        (_changes_the_table, "in place"),
    ],
    "prompt_tuning.pool": [
        (lambda states, k: states[:, 0], "first virtual token"),
        (lambda states, k: states[:, k - 1], "last virtual token"),
        (lambda states, k: states[:, k + 1], "the token after [CLS]"),
        (lambda states, k: states[:, -1], "last position"),
        (lambda states, k: states.mean(1), "mean of all positions"),
        (lambda states, k: states[:, k:].mean(1), "mean of the text"),
        (lambda states, k: states[:, :k].mean(1), "mean of the virtual tokens"),
        (lambda states, k: states[k], "one whole text"),
        (lambda states, k: states[:, k:], "whole stretch"),
        (lambda states, k: states[:, 3], "one k only"),
    ],
    "prompt_tuning.count": [
        (lambda k, hidden, classes: k * hidden, "The head is missing"),
        (lambda k, hidden, classes: k * hidden + hidden * classes, "bias of the head"),
        (lambda k, hidden, classes: k + hidden * classes + classes, "a vector of `hidden` numbers"),
        (lambda k, hidden, classes: hidden * classes + classes, "the head alone"),
        (lambda k, hidden, classes: 2 * k * hidden + (hidden + 1) * classes, "prefix tuning"),
        (lambda k, hidden, classes: k * hidden * classes + (hidden + 1) * classes, "not one for each class"),
        (lambda k, hidden, classes: k * hidden**2 + (hidden + 1) * classes, "not a matrix"),
        (lambda k, hidden, classes: k * hidden + classes, "weight of the head"),
        (lambda k, hidden, classes: 103, "one case only"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "prompt_tuning.prepend": [
        _into_new,
        lambda E, mask, P: (torch.cat((P[None].repeat(E.shape[0], 1, 1), E), 1), _mask(mask, P)),
        lambda E, mask, P: (torch.stack([torch.cat((P, e)) for e in E]), _mask(mask.float(), P)),
    ],
    "prompt_tuning.initialise": [
        lambda words, ids, k: torch.stack([words[ids[i % len(ids)]] for i in range(k)]),
        lambda words, ids, k: nn.Parameter(words[list(islice(cycle(ids), k))]),
    ],
    "prompt_tuning.pool": [
        lambda states, k: states[:, k:][:, 0],
        lambda states, k: torch.stack([text[k] for text in states]),
    ],
    "prompt_tuning.count": [lambda k, hidden, classes: float((k + classes) * hidden + classes)],
}
