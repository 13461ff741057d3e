"""Answers to the exercises of chapter 21: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from course_utils.evaluation.calibration import probabilities
from course_utils.evaluation.intervals import accuracy_interval

Function = Callable[..., Any]


def _count(words: Any, positive: Any, negative: Any, negations: Any) -> int:
    total, sign = 0, 1
    for word in words:
        total += sign * ((word in positive) - (word in negative))
        sign = -1 if word in negations else 1
    return total


def _count_pairs(words: Any, positive: Any, negative: Any, negations: Any) -> int:
    before = ["", *words[:-1]]
    return sum(
        (1 if word in positive else -1 if word in negative else 0) * (-1 if last in negations else 1)
        for last, word in zip(before, words, strict=True)
    )


def _turns_all(words: Any, positive: Any, negative: Any, negations: Any) -> int:
    total, sign = 0, 1
    for word in words:
        sign = -1 if word in negations else sign
        total += sign * ((word in positive) - (word in negative))
    return total


def _turns_before(words: Any, positive: Any, negative: Any, negations: Any) -> int:
    return _count(list(words)[::-1], positive, negative, negations)


def _plain(words: Any, positive: Any, negative: Any, negations: Any) -> int:
    return sum((word in positive) - (word in negative) for word in words)


def _negation_is_bad(words: Any, positive: Any, negative: Any, negations: Any) -> int:
    return _plain(words, positive, negative | negations, negations)


def _below(rows: Any, whole: float, end: int) -> list[str]:
    return [name for name, n, right in rows if accuracy_interval(right, n)[end] < whole]


def _sentence(right: int, n: int, floor: float) -> str:
    low, high = accuracy_interval(right, n)
    return f"Accuracy {right / n:.1%} (95% interval {low:.1%} to {high:.1%}, n = {n}); majority class {floor:.1%}."


def _table(right: int, n: int, floor: float) -> str:
    low, high = accuracy_interval(right, n)
    return f"| {100 * right / n:.2f} | {100 * low:.2f} | {100 * high:.2f} | {n} | {100 * floor:.2f} |"


def _with_simple_interval(right: int, n: int, floor: float) -> str:
    p = right / n
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    return f"{p:.1%} ({p - half:.1%} to {p + half:.1%}), n = {n}, majority {floor:.1%}"


def _bound_by_sorting(logits: Any, kept: float) -> float:
    confidence = np.sort(probabilities(logits).max(axis=1))[::-1]
    return float(confidence[round(kept * len(confidence)) - 1])


WRONG: dict[str, list[tuple[Function, str]]] = {
    "case_study.lexicon": [
        (_plain, "Negations are ignored"),
        (_turns_all, "not all the rest"),
        (_turns_before, "*before* the negation"),
        (_negation_is_bad, "negative word itself"),
        (lambda *given: -_count(*given), "sign is wrong"),
        (lambda words, positive, *rest: sum(word in positive for word in words), "negative words are missing"),
        (lambda *given: float(np.sign(_count(*given))), "not only its sign"),
        (lambda *given: _count(*given) / len(given[0]), "Do not divide"),
        (lambda *given: 7, "Add 1 for each"),
        (lambda *given: None, "return"),
    ],
    "case_study.slices": [
        (lambda rows, whole: [name for name, n, right in rows if right / n < whole], "handful of texts"),
        (lambda rows, whole: _below(rows, whole, 0), "lower end"),
        (lambda rows, whole: [min(rows, key=lambda row: row[2] / row[1])[0]], "lowest accuracy"),
        (lambda rows, whole: [max(rows, key=lambda row: row[1] - row[2])[0]], "most errors"),
        (
            lambda rows, whole: [row[0] for row in rows if row[0] not in _below(rows, whole, 1)],
            "the other slices",
        ),
        (lambda rows, whole: [], "your function returns []"),
        (lambda rows, whole: "negation", "list of names"),
    ],
    "case_study.tests": [
        (lambda values: [name for name, p in values.items() if p <= 0.05], "divide 0.05"),
        (lambda values: [name for name, p in values.items() if p > 0.05 / len(values)], "other way round"),
        (lambda values: [name for name, p in values.items() if p * len(values) > 1], "large ones"),
        (lambda values: [name for name, p in values.items() if p <= 0.05**2], "squared"),
        (lambda values: [], "your function returns []"),
        (lambda values: "words", "Expected a list"),
    ],
    "case_study.review": [
        (lambda logits, kept: np.quantile(probabilities(logits).max(axis=1), kept), "at 1 − kept"),
        (lambda logits, kept: np.quantile(probabilities(logits)[:, 1], 1 - kept), "larger of the two"),
        (lambda logits, kept: np.quantile(logits.max(axis=1), 1 - kept), "Take the softmax"),
        (lambda logits, kept: np.quantile(np.abs(logits[:, 1] - logits[:, 0]), 1 - kept), "margin of logits"),
        (lambda logits, kept: np.quantile(np.exp(logits).max(axis=1), 1 - kept), "Divide by the sum"),
        (lambda logits, kept: kept, "share itself"),
        (lambda logits, kept: 1 - kept, "1 − kept itself"),
        (lambda logits, kept: probabilities(logits).max(axis=1).mean(), "mean confidence"),
        (lambda logits, kept: 0.0, "answer 100%"),
    ],
    "case_study.logits": [
        (lambda a, b: abs(a - b).max(), "Expected two numbers"),
        (lambda a, b: (abs(a - b).mean(), 0), "mean difference"),
        (lambda a, b: ((b - a).max(), 1), "far too low"),
        (lambda a, b: ((a - b).max(), 1), "far too high"),
        (lambda a, b: (abs((b - a).mean()), 0), "mean first"),
        (lambda a, b: (abs((b - a).sum()), 0), "added the differences"),
        (lambda a, b: (abs(b - a).sum(), 0), "sum over all texts"),
        (lambda a, b: (((a - b) ** 2).mean(), 0), "squared difference"),
        (lambda a, b: (abs(probabilities(a) - probabilities(b)).max(), 0), "compared probabilities"),
        (lambda a, b: (abs(a.max(axis=1) - b.max(axis=1)).max(), 0), "only the larger logit"),
        (lambda a, b: (0.0, 0), "largest absolute difference"),
        (lambda a, b: (abs(a - b).max(), (a.argmax(1) != b.argmax(1)).mean()), "share of changed"),
        (lambda a, b: (abs(a - b).max(), (a.argmax(1) == b.argmax(1)).sum()), "stayed the same"),
        (lambda a, b: (abs(a - b).max(), (abs(a - b).max(axis=1) > 1e-4).sum()), "is the argmax"),
        (lambda a, b: (abs(a - b).max(), (a != b).sum()), "argmax of a row"),
        (lambda a, b: (abs(a - b).max(), -1), "second number"),
    ],
    "case_study.card": [
        (lambda right, n, floor: right / n, "Expected a sentence"),
        (lambda right, n, floor: f"Accuracy {right / n:.1%}, majority {floor:.1%}", "number of texts"),
        (lambda right, n, floor: f"Accuracy {right / n:.1%} of {n}, majority {floor:.1%}", "lower end"),
        (lambda *given: _sentence(*given).replace("majority class", "").rsplit(";", 1)[0], "majority baseline"),
        (_with_simple_interval, "the simple one"),
        (
            lambda right, n, floor: "accuracy {:.3f}, {:.3f} to {:.3f}, n = {}, floor {:.3f}".format(
                right / n, *accuracy_interval(right, n), n, floor
            ),
            "in percent",
        ),
        (
            lambda right, n, floor: "accuracy {:.0%}, {:.0%} to {:.0%}, n = {}, floor {:.0%}".format(
                right / n, *accuracy_interval(right, n), n, floor
            ),
            "needs one decimal",
        ),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "case_study.lexicon": [_count, _count_pairs],
    "case_study.slices": [
        lambda rows, whole: _below(rows, whole, 1),
        lambda rows, whole: {name for name, n, right in rows if accuracy_interval(right, n)[1] < whole},
    ],
    "case_study.tests": [
        lambda values: [name for name, p in values.items() if p <= 0.05 / len(values)],
        lambda values: {name for name, p in values.items() if len(values) * p <= 0.05},
    ],
    "case_study.review": [
        lambda logits, kept: np.quantile(probabilities(logits).max(axis=1), 1 - kept),
        _bound_by_sorting,
        lambda logits, kept: float(
            np.percentile(1 / (1 + np.exp(-np.abs(logits[:, 1] - logits[:, 0]))), 100 * (1 - kept))
        ),
    ],
    "case_study.logits": [
        lambda a, b: (np.abs(a - b).max(), int((a.argmax(1) != b.argmax(1)).sum())),
        lambda a, b: [
            max(abs(float(x) - float(y)) for x, y in zip(a.ravel(), b.ravel(), strict=True)),
            sum((x[0] > x[1]) != (y[0] > y[1]) for x, y in zip(a, b, strict=True)),
        ],
    ],
    "case_study.card": [_sentence, _table],
}
