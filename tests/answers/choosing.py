"""Answers to the exercises of chapter 17: wrong ones with words of the message, and right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from course_utils.evaluation.rates import finalists
from course_utils.training.memory import MEMORY_METHODS, training_memory

Function = Callable[..., Any]


def _fits(need: Callable[[Any], float], unit: float = 1e9, keep: Callable[[bool], bool] = bool) -> Function:
    def fits(shape: Any, gigabytes: float, precision: str, batch: int, length: int) -> list[str]:
        return [
            method
            for method in MEMORY_METHODS
            if not (method == "full" and precision == "nf4")
            and keep(need(training_memory(shape, method, precision, batch, length)) <= gigabytes * unit)
        ]

    return fits


def _total(memory: Any) -> float:
    return float(memory.total)


def _with_full(shape: Any, gigabytes: float, precision: str, batch: int, length: int) -> list[str]:
    return [m for m in MEMORY_METHODS if training_memory(shape, m, precision, batch, length).total <= gigabytes * 1e9]


def _with_defaults(shape: Any, gigabytes: float, precision: str, batch: int, length: int) -> list[str]:
    return [m for m in MEMORY_METHODS if training_memory(shape, m).total <= gigabytes * 1e9]


def _front(beats: Function, others_only: bool = True) -> Function:
    def front(rows: dict[str, Any]) -> list[str]:
        return [
            name
            for name, row in rows.items()
            if not any(beats(other, row) for key, other in rows.items() if key != name or not others_only)
        ]

    return front


def _no_worse(one: Any, other: Any) -> bool:
    return bool(one[0] >= other[0] and one[1] <= other[1])


def _scan(rows: dict[str, Any]) -> list[str]:
    kept: list[str] = []
    best = 0.0
    for name, (accuracy, _) in sorted(rows.items(), key=lambda item: (item[1][1], -item[1][0])):
        if accuracy > best:
            kept.append(name)
            best = accuracy
    return kept


def _needed(p: float, q: float, factor: float = 2.8**2) -> float:
    return factor * (p * (1 - p) + q * (1 - q)) / (p - q) ** 2


def _means(runs: list[dict[str, Any]], key: str, rates: Any = None) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for run in runs:
        if rates is None or run["learning_rate"] in rates:
            found.setdefault(run["learning_rate"], []).append(run[key])
    return {rate: sum(values) / len(values) for rate, values in found.items()}


def _two(runs: list[dict[str, Any]]) -> list[float]:
    first = sorted((run for run in runs if run["seed"] == 0), key=lambda run: float(run["validation_loss"]))
    return [run["learning_rate"] for run in first[:2]]


def _rate(runs: list[dict[str, Any]], key: str = "validation_loss", best: Function = min, among: Any = _two) -> float:
    means = _means(runs, key, among(runs) if among else None)
    return float(best(means, key=means.__getitem__))


def _through_the_study(runs: list[dict[str, Any]]) -> float:
    chosen = finalists([{**run, "method": "any"} for run in runs], "any")
    return min(chosen, key=lambda rate: sum(r["validation_loss"] for r in runs if r["learning_rate"] == rate))


WRONG: dict[str, list[tuple[Function, str]]] = {
    "choosing.fits": [
        (_fits(lambda memory: memory.gradients + memory.optimizer), "trained weights only"),
        (_fits(lambda memory: memory.trained), "not of bytes"),
        (_fits(lambda memory: memory.weights + memory.gradients + memory.optimizer), "activations are missing"),
        (_fits(lambda memory: memory.weights), "weights alone"),
        (_fits(_total, 2**30), "GiB"),
        (_fits(_total, 1e9, lambda fits: not fits), "do *not* fit"),
        (_with_full, "Leave full fine-tuning out"),
        (_with_defaults, "have no effect"),
        (lambda shape, gigabytes, *rest: "lora-qv", "list of names"),
        (lambda shape, gigabytes, *rest: list(MEMORY_METHODS.values()), "none of the names"),
        (lambda shape, gigabytes, *rest: ["ia3"], "Your function says"),
        (lambda shape, gigabytes, *rest: None, "return"),
    ],
    "choosing.pareto": [
        (_front(lambda one, other: one[0] > other[0] and one[1] < other[1]), "better in *both*"),
        (_front(_no_worse, others_only=False), "with itself"),
        (_front(_no_worse), "do not beat each other"),
        (_scan, "One of two equal rows is missing"),
        (_front(lambda one, other: one != other and one[0] >= other[0] and one[1] >= other[1]), "a price"),
        (_front(lambda one, other: one != other and one[0] <= other[0] and one[1] <= other[1]), "lower accuracy"),
        (lambda rows: [name for name in rows if rows[name][0] == max(a for a, _ in rows.values())], "most accurate"),
        (lambda rows: [name for name in rows if rows[name][1] == min(n for _, n in rows.values())], "cheapest"),
        (_front(lambda one, other: one[0] > other[0] or one[1] < other[1]), "loses in one"),
        (lambda rows: [name for name in rows if rows[name][0] > 0.9], "your function says"),
        (lambda rows: list(rows.values()), "none of the names"),
        (lambda rows: [*rows, *rows], "twice"),
    ],
    "choosing.texts": [
        (_needed, "Round up to a whole number"),
        (lambda p, q: math.floor(_needed(p, q)), "Round *up*"),
        (lambda p, q: math.ceil(_needed(p, q, 1.96**2)), "every second time"),
        (lambda p, q: math.ceil(_needed(p, q, 1.96**2 + 0.84**2)), "First add"),
        (lambda p, q: math.ceil(_needed(p, q, 2.8)), "must be squared"),
        (lambda p, q: math.ceil(_needed(p, q) * abs(p - q)), "The difference must be squared"),
        (lambda p, q: math.ceil(2.8**2 * p * (1 - p) / (p - q) ** 2), "first accuracy only"),
        (lambda p, q: math.ceil(_needed(p, q) / 2), "mean of the two variances"),
        (lambda p, q: math.ceil(2.8**2 * (p + q) * (1 - (p + q) / 2) / (p - q) ** 2), "at the mean of the two"),
        (lambda p, q: math.ceil(2.8**2 * (p + q) / (p - q) ** 2), "not p"),
        (lambda p, q: 432, "in this order"),
        (lambda p, q: 843, "it is 432"),
    ],
    "choosing.rate": [
        (lambda runs: _two(runs)[0], "best rate with seed 0"),
        (lambda runs: _rate(runs, among=None), "whatever runs there are"),
        (lambda runs: min(runs, key=lambda run: run["validation_loss"])["learning_rate"], "best single run"),
        (lambda runs: _rate(runs, "test_accuracy", max), "test split has chosen"),
        (lambda runs: _rate(runs, "test_accuracy", max, among=None), "test split has chosen"),
        (lambda runs: _rate(runs, best=max), "*higher* mean loss"),
        (lambda runs: _rate(runs, best=max, among=None), "highest loss"),
        (lambda runs: min(run["learning_rate"] for run in runs), "lowest *rate*"),
        (lambda runs: min(run["validation_loss"] for run in runs), "none of the learning rates"),
        (lambda runs: max(run["learning_rate"] for run in runs), "The winner is"),
        (lambda runs: (_rate(runs), 0.1), "Expected a number"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "choosing.fits": [lambda *case: set(_fits(_total)(*case)), lambda *case: tuple(reversed(_fits(_total)(*case)))],
    "choosing.pareto": [
        _front(lambda one, other: _no_worse(one, other) and one != other),
        lambda rows: {
            name for name, (a, n) in rows.items() if all(b < a or m > n or (b, m) == (a, n) for b, m in rows.values())
        },
    ],
    "choosing.texts": [
        lambda p, q: math.ceil(_needed(p, q)),
        lambda p, q: float(-((-_needed(q, p)) // 1)),
    ],
    "choosing.rate": [_rate, _through_the_study],
}
