"""Answers to the exercises of chapter 3: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import train_test_split

from course_utils.data.cleaning import clean_text
from course_utils.evaluation.agreement import cohen_kappa

Function = Callable[..., Any]


def _key(text: str) -> str:
    return clean_text(text).casefold()


def _first(texts: list[str], key: Callable[[str], str]) -> list[int]:
    keys = [key(text) for text in texts]
    return [row for row, one in enumerate(keys) if one not in keys[:row]]


def _last(texts: list[str]) -> list[int]:
    keys = [_key(text) for text in texts]
    return [row for row, one in enumerate(keys) if one not in keys[row + 1 :]]


def _chance(first: list[Any], second: list[Any]) -> float:
    return sum(first.count(c) * second.count(c) for c in set(first) | set(second)) / len(first) ** 2


def _agree(first: list[Any], second: list[Any]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def _pooled(first: list[Any], second: list[Any]) -> float:
    both = first + second
    chance = sum((both.count(c) / len(both)) ** 2 for c in set(both))
    return (_agree(first, second) - chance) / (1 - chance)


def _binary(first: list[Any], second: list[Any]) -> float:
    chance = sum(first.count(c) * second.count(c) for c in (0, 1)) / len(first) ** 2
    return (_agree(first, second) - chance) / (1 - chance)


def _splitter(
    test: float = 0.25,
    validation: float = 0.1 / 0.75,
    stratify: tuple[bool, bool] = (True, True),
    seeded: tuple[bool, bool] = (True, True),
) -> Function:
    def split(labels: list[int], seed: int) -> tuple[Any, Any, Any]:
        truth = np.array(labels)
        rest, last = train_test_split(
            np.arange(len(truth)),
            test_size=test,
            stratify=truth if stratify[0] else None,
            random_state=seed if seeded[0] else None,
        )
        train, middle = train_test_split(
            rest,
            test_size=validation,
            stratify=truth[rest] if stratify[1] else None,
            random_state=seed if seeded[1] else None,
        )
        return train, middle, last

    return split


def _two_parts(labels: list[int], seed: int) -> Any:
    return train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=seed)


def _whole_twice(labels: list[int], seed: int) -> Any:
    rows = range(len(labels))
    train, test = train_test_split(rows, test_size=0.25, stratify=labels, random_state=seed)
    _, validation = train_test_split(rows, test_size=0.1, stratify=labels, random_state=seed)
    return train, validation, test


def _labels_instead(labels: list[int], seed: int) -> Any:
    rest, test = train_test_split(labels, test_size=0.25, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.1 / 0.75, stratify=rest, random_state=seed)
    return train, validation, test


def _wrong_order(labels: list[int], seed: int) -> Any:
    train, validation, test = _splitter()(labels, seed)
    return train, test, validation


def _in_file_order(labels: list[int], seed: int) -> Any:
    return list(range(650)), list(range(650, 750)), list(range(750, 1000))


def _by_class(labels: list[int], seed: int) -> Any:
    """Right without scikit-learn: cut each class by itself."""
    chance = np.random.default_rng(seed)
    parts: list[list[int]] = [[], [], []]
    for one in sorted(set(labels)):
        rows = chance.permutation([row for row, label in enumerate(labels) if label == one]).tolist()
        test, validation = round(0.25 * len(rows)), round(0.1 * len(rows))
        parts[2] += rows[:test]
        parts[1] += rows[test : test + validation]
        parts[0] += rows[test + validation :]
    return parts


def _leaked(train: list[str], test: list[str], key: Callable[[str], str]) -> int:
    known = {key(text) for text in train}
    return sum(key(text) in known for text in test)


WRONG: dict[str, list[tuple[Function, str]]] = {
    "data.deduplicate": [
        (lambda texts: _first(texts, str), "as they stand"),
        (lambda texts: _first(texts, clean_text), "without regard to the case"),
        (lambda texts: _first(texts, str.casefold), "do not clean"),
        (_last, "Keep the first"),
        (lambda texts: _first(texts, lambda t: re.sub(r"\W+", " ", _key(t)).strip()), "Leave the punctuation"),
        (lambda texts: [texts[row] for row in _first(texts, _key)], "Return the positions"),
        (
            lambda texts: [r for r in range(len(texts)) if [_key(t) for t in texts].count(_key(texts[r])) == 1],
            "One of them",
        ),
        (lambda texts: [r for r in range(len(texts)) if r not in _first(texts, _key)], "These are the copies"),
        (lambda texts: _first(texts, _key)[::-1], "not in order"),
        (lambda texts: len(_first(texts, _key)), "Expected a list of positions"),
    ],
    "data.kappa": [
        (_agree, "plain agreement"),
        (_chance, "what chance gives"),
        (lambda a, b: _agree(a, b) - _chance(a, b), "Divide by 1"),
        (lambda a, b: (_agree(a, b) - _chance(a, b)) / _chance(a, b), "divided by the chance agreement"),
        (lambda a, b: (_agree(a, b) - 0.5) / 0.5, "1 / classes"),
        (_pooled, "Scott's"),
        (_binary, "classes 0 and 1 only"),
    ],
    "data.split": [
        (_splitter(validation=0.1), "10% of the rest"),
        (_splitter(stratify=(False, False)), "first call"),
        (_splitter(stratify=(True, False)), "second call"),
        (_splitter(seeded=(False, True)), "another split each time"),
        (_splitter(seeded=(True, False)), "another split each time"),
        (lambda labels, seed: _splitter()(labels, 42), "Another seed gives the same test"),
        (_two_parts, "three lists"),
        (_whole_twice, "two parts"),
        (_labels_instead, "not the labels"),
        (_wrong_order, "validation is the small one"),
        (_in_file_order, "Pass `stratify`"),
    ],
    "data.leak": [
        (lambda train, test: _leaked(train, test, str) / len(test), "exact copies only"),
        (lambda train, test: _leaked(train, test, str.casefold) / len(test), "do not clean"),
        (lambda train, test: len({_key(t) for t in train} & {_key(t) for t in test}) / len(test), "once"),
        (
            lambda train, test: _leaked(train, list({_key(t) for t in test}), _key) / len({_key(t) for t in test}),
            "a set",
        ),
        (lambda train, test: _leaked(test, train, _key) / len(train), "share of the training texts"),
        (lambda train, test: _leaked(train, test, _key) / len(train), "divided by the number of training"),
        (lambda train, test: _leaked(train, test, _key), "how many there are"),
        (lambda train, test: 0.5, "the share is 0"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "data.deduplicate": [
        lambda texts: sorted({_key(text): row for row, text in reversed(list(enumerate(texts)))}.values()),
        lambda texts: np.sort(np.unique([_key(text) for text in texts], return_index=True)[1]),
    ],
    "data.kappa": [cohen_kappa, cohen_kappa_score],
    "data.split": [_by_class, lambda labels, seed: [part.tolist() for part in _splitter()(labels, seed)]],
    "data.leak": [lambda train, test: np.isin([_key(t) for t in test], [_key(t) for t in train]).mean()],
}
