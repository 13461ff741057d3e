"""The checks of chapter 17, Choosing a method.

An answer is tried on several cases at once. A mistake is a function too: an answer that agrees with it in all cases
has made that mistake.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from course_utils.exercises.checking import Wrong, call, compare, exercise, number
from course_utils.exercises.outcomes import listed, names, same
from course_utils.training.memory import MEMORY_METHODS, SHAPES, Memory, Shape, training_memory

_FITS = "What it costs"
_FRONT = "Two measures at once: the Pareto front"
_TEXTS = "The formula, beside the code"
_RATE = "How many runs"

Rows = dict[str, tuple[float, int]]
Runs = list[dict[str, float]]


# --- memory ---------------------------------------------------------------------------------------------------------

_LLAMA = SHAPES["llama-2-7b"]
_BUDGETS: list[tuple[Any, ...]] = [
    (_LLAMA, 16.1, "mixed", 1, 512),
    (_LLAMA, 15.0, "mixed", 1, 512),
    (_LLAMA, 10.0, "mixed", 1, 512),
    (_LLAMA, 6.5, "nf4", 1, 512),
    (SHAPES["minilm"], 0.45, "float32", 8, 64),
    (SHAPES["minilm"], 0.45, "float32", 32, 64),
]


def _which(need: Callable[[Memory], float], unit: float = 1e9) -> Callable[..., frozenset[str]]:
    """A function that lists the methods which fit, if this is what they need."""

    def fitting(shape: Shape, budget: float, *setting: Any) -> frozenset[str]:
        possible = [method for method in MEMORY_METHODS if (method, *setting[:1]) != ("full", "nf4")]
        return frozenset(m for m in possible if need(training_memory(shape, m, *setting)) <= budget * unit)

    return fitting


_fitting = _which(lambda memory: memory.total)


def _too_large(shape: Shape, budget: float, *setting: Any) -> frozenset[str]:
    possible = {method for method in MEMORY_METHODS if (method, *setting[:1]) != ("full", "nf4")}
    return frozenset(possible - _fitting(shape, budget, *setting))


@exercise(
    "choosing.fits",
    points=3,
    passes="Weights, gradients, optimiser state and activations all count, and 4 bits rule full fine-tuning out.",
    section=_FITS,
)
def _fits(answer: Any) -> None:
    outcomes = []
    for case in _BUDGETS:
        try:
            outcomes.append(names(call(answer, *case), MEMORY_METHODS))
        except ValueError as error:
            if case[2] != "nf4":
                raise
            raise Wrong(
                f"With nf4 your function stops: {error}. Leave full fine-tuning out where the precision is nf4."
            ) from None
    mistakes = [
        (
            _which(lambda memory: memory.gradients + memory.optimizer),
            "You counted what belongs to the trained weights only. The frozen weights and the activations are in "
            "memory, too: take `total`.",
        ),
        (_which(lambda memory: memory.trained), "`trained` is a number of weights, not of bytes. Take `total`."),
        (
            _which(lambda memory: memory.total - memory.activations),
            "The activations are missing. They wait for the backward pass, whatever the method is: take `total`.",
        ),
        (_which(lambda memory: memory.weights), "That is the weights alone. Training needs more: take `total`."),
        (
            _which(lambda memory: memory.total, 2**30),
            "You took a GB for 2³⁰ bytes, which is a GiB. Here a GB is 10⁹ bytes.",
        ),
        (
            lambda shape, budget, *_: _fitting(shape, budget),
            "Precision, batch and length have no effect in your function. Hand them on to `training_memory`.",
        ),
        (
            lambda shape, budget, precision, *_: _fitting(shape, budget, precision),
            "Batch and length have no effect in your function. Hand them on to `training_memory`.",
        ),
        (_too_large, "These are the methods that do *not* fit. Keep those whose total is at most the budget."),
    ]

    def say(case: tuple[Any, ...], wanted: Any, outcome: Any) -> str:
        shape, budget, *setting = case
        return (
            f"For {shape.title} with {budget:g} GB and {', '.join(map(str, setting))}: {listed(wanted)}. "
            f"Your function says: {listed(outcome)}."
        )

    same(outcomes, _BUDGETS, _fitting, mistakes, say)


# --- the front ------------------------------------------------------------------------------------------------------

_TABLES: list[tuple[Rows]] = [
    (
        {
            "f": (0.95, 400),
            "a": (0.95, 100),
            "g": (0.97, 2000),
            "i": (0.80, 5000),
            "b": (0.96, 500),
            "c": (0.94, 300),
            "d": (0.96, 900),
            "e": (0.90, 50),
            "h": (0.89, 60),
        },
    ),
    ({"z": (0.8, 20), "a": (0.9, 10), "twin": (0.9, 10)},),
]


def _kept(beats: Callable[[Any, Any], bool], itself: bool = False) -> Callable[[Rows], frozenset[str]]:
    """A function that lists the rows which no (other) row beats, in this sense of beating."""

    def front(rows: Rows) -> frozenset[str]:
        return frozenset(
            name
            for name, row in rows.items()
            if not any(beats(other, row) for key, other in rows.items() if itself or key != name)
        )

    return front


def _no_worse(one: Any, other: Any) -> bool:
    return bool(one[0] >= other[0] and one[1] <= other[1])


_front = _kept(lambda one, other: _no_worse(one, other) and one != other)


def _one_of_twins(rows: Rows) -> frozenset[str]:
    found: list[str] = []
    best = -math.inf
    for name, (accuracy, _) in sorted(rows.items(), key=lambda item: (item[1][1], -item[1][0])):
        if accuracy > best:
            found, best = [*found, name], accuracy
    return frozenset(found)


@exercise(
    "choosing.pareto",
    points=3,
    passes="What is left has its price: to be more accurate it must train more.",
    section=_FRONT,
)
def _pareto(answer: Any) -> None:
    outcomes = [names(call(answer, copy.deepcopy(rows)), rows) for (rows,) in _TABLES]
    twins = "Two rows that are equal do not beat each other: to beat, a row must be better in at least one of the two."
    mistakes = [
        (
            _kept(lambda one, other: one[0] > other[0] and one[1] < other[1]),
            "You take a row as beaten only if another is better in *both*. As accurate with fewer numbers beats, too.",
        ),
        (_kept(_no_worse, itself=True), "Your list is empty: each row is compared with itself. " + twins),
        (_kept(_no_worse), twins),
        (_one_of_twins, "One of two equal rows is missing. Nothing beats either of them, so both stay."),
        (
            _kept(lambda one, other: one[0] >= other[0] and one[1] >= other[1] and one != other),
            "You take more trained parameters as better. The second number is a price: less is better.",
        ),
        (
            _kept(lambda one, other: one[0] <= other[0] and one[1] <= other[1] and one != other),
            "You take the lower accuracy as better. Only of the second number less is better.",
        ),
        (
            _kept(lambda one, other: one[0] > other[0]),
            "That is the most accurate. Cheaper ones may be unbeaten as well.",
        ),
        (
            _kept(lambda one, other: one[1] < other[1]),
            "That is the cheapest. Dearer, better ones may be unbeaten as well.",
        ),
        (
            _kept(lambda one, other: one[0] > other[0] or one[1] < other[1]),
            "A row is beaten if another is no worse in *both* numbers. You take it as beaten if it loses in one of them.",
        ),
        (
            lambda rows: frozenset(rows) - _front(rows),
            "These are the beaten ones. Return those that no other row beats.",
        ),
    ]
    same(
        outcomes,
        _TABLES,
        _front,
        mistakes,
        lambda case, wanted, outcome: f"For {case[0]} it is {listed(wanted)}; your function says {listed(outcome)}.",
    )


# --- the size of a test ---------------------------------------------------------------------------------------------


def _needed(factor: float, variance: float, difference: float) -> int:
    return math.ceil(factor * variance / difference**2)


@exercise(
    "choosing.texts",
    points=2,
    passes="Half the difference needs four times as many texts.",
    section=_TEXTS,
)
def _texts(answer: Any) -> None:
    p, q = 0.90, 0.95
    vp, vq, d, squared = p * (1 - p), q * (1 - q), q - p, 2.8**2
    right = _needed(squared, vp + vq, d)
    value = number(call(answer, p, q))
    compare(
        value,
        right,
        [
            (squared * (vp + vq) / d**2, "There is no part of a text. Round up to a whole number."),
            (right - 1, "Round *up*: with one text less the test would be a little too small."),
            (
                _needed(1.96**2, vp + vq, d),
                "With 1.96 alone you miss the difference every second time. Add 0.84, so that you see it in 80% of cases.",
            ),
            (_needed(0.84**2, vp + vq, d), "You took 0.84 alone. The factor is (1.96 + 0.84)²."),
            (_needed(1.96**2 + 0.84**2, vp + vq, d), "First add, then square: (1.96 + 0.84)²."),
            (_needed(2.8, vp + vq, d), "The factor 1.96 + 0.84 must be squared."),
            (math.ceil(squared * (vp + vq) / d), "The difference must be squared."),
            (
                _needed(squared, vp, d),
                "That is the variance of the first accuracy only. Both vary: add p (1 − p) of each.",
            ),
            (
                _needed(squared, vq, d),
                "That is the variance of the second accuracy only. Both vary: add p (1 − p) of each.",
            ),
            (_needed(squared, (vp + vq) / 2, d), "You took the mean of the two variances. A difference has their sum."),
            (_needed(squared, vp - vq, d), "Variances of a difference are added, not subtracted."),
            (
                _needed(squared, 2 * (p + q) / 2 * (1 - (p + q) / 2), d),
                "You took the variance at the mean of the two. Here each accuracy has its own: p (1 − p) + q (1 − q).",
            ),
            (_needed(squared, p + q, d), "The variance of a share p is p (1 − p), not p."),
            (_needed(squared, math.sqrt(vp) + math.sqrt(vq), d), "Take the variances p (1 − p), without a root."),
        ],
        f"For 90% and 95% it is {right}, your function returns {value:g}.",
    )
    for one, other in ((0.96, 0.94), (0.7, 0.8)):
        wanted = _needed(squared, one * (1 - one) + other * (1 - other), one - other)
        got = number(call(answer, one, other))
        if got != wanted:
            raise Wrong(f"For {one:.0%} and {other:.0%}, in this order, it is {wanted}, your function returns {got:g}.")


# --- the learning rate ----------------------------------------------------------------------------------------------


def _runs(*rows: tuple[float, list[float], list[float]]) -> Runs:
    """Runs from (rate, validation loss by seed, test accuracy by seed)."""
    return [
        {"learning_rate": rate, "seed": seed, "validation_loss": loss, "test_accuracy": accuracy}
        for seed in (2, 0, 1)  # no seed stands where one would expect it
        for rate, losses, accuracies in rows
        if seed < len(losses)
        for loss, accuracy in [(losses[seed], accuracies[seed])]
    ]


_SEARCHES: list[tuple[Runs]] = [
    (
        _runs(
            (1e-2, [0.30], [0.98]),
            (2e-2, [0.60], [0.80]),
            (1e-3, [0.13], [0.93]),
            (2e-3, [0.10, 0.20, 0.18], [0.94, 0.95, 0.96]),
            (5e-3, [0.11, 0.15, 0.145], [0.95, 0.95, 0.94]),
        ),
    ),
    (
        _runs(
            (1e-4, [0.40], [0.89]),
            (1e-3, [0.25, 0.22, 0.24], [0.91, 0.92, 0.90]),
            (3e-4, [0.20, 0.21, 0.23], [0.90, 0.90, 0.90]),
        ),
    ),
    (
        _runs(
            (2e-4, [0.35], [0.90]),
            (8e-4, [0.28, 0.25, 0.27], [0.91, 0.91, 0.92]),
            (4e-4, [0.30, 0.20, 0.21], [0.93, 0.92, 0.93]),
        ),
    ),
]


def _rates(runs: Runs, key: str, seed: int | None = None) -> dict[float, float]:
    """Learning rate → mean of a measure over its runs, or the measure of one seed."""
    found: dict[float, list[float]] = {}
    for run in runs:
        if seed in (None, run["seed"]):
            found.setdefault(run["learning_rate"], []).append(run[key])
    return {rate: sum(values) / len(values) for rate, values in found.items()}


def _lowest(values: dict[float, float]) -> float:
    return min(values, key=values.__getitem__)


def _rule(runs: Runs, key: str = "validation_loss", sign: int = 1) -> float:
    first = _rates(runs, "validation_loss", seed=0)
    finalists = sorted(first, key=first.__getitem__)[:2]
    means = _rates(runs, key)
    return _lowest({rate: sign * means[rate] for rate in finalists})


@exercise(
    "choosing.rate",
    points=3,
    passes="Seed 0 chose who may go on, all seeds chose the winner, and the test split chose nothing.",
    section=_RATE,
)
def _rate(answer: Any) -> None:
    outcomes = [number(call(answer, copy.deepcopy(runs))) for (runs,) in _SEARCHES]
    test = "The test split has chosen here. Choose by `validation_loss`; the test is only reported."
    mistakes: list[tuple[Callable[..., Any], str]] = [
        (
            lambda runs: _lowest(_rates(runs, "validation_loss", seed=0)),
            "That is the best rate with seed 0. One seed decides little: let the mean over all seeds decide between the two.",
        ),
        (
            lambda runs: _lowest(_rates(runs, "validation_loss")),
            "You took the mean of whatever runs there are. A rate with one run may win by luck: choose two with seed 0 "
            "first.",
        ),
        (
            lambda runs: min(runs, key=lambda run: run["validation_loss"])["learning_rate"],
            "That is the rate of the best single run. Compare the means over the seeds.",
        ),
        (lambda runs: _rule(runs, "test_accuracy", -1), test),
        (lambda runs: max(runs, key=lambda run: run["test_accuracy"])["learning_rate"], test),
        (lambda runs: _lowest({r: -a for r, a in _rates(runs, "test_accuracy").items()}), test),
        (lambda runs: _lowest({r: -a for r, a in _rates(runs, "test_accuracy", seed=0).items()}), test),
        (lambda runs: _rule(runs, sign=-1), "Of the two finalists you took the one with the *higher* mean loss."),
        (
            lambda runs: _lowest({r: -loss for r, loss in _rates(runs, "validation_loss").items()}),
            "That is the highest loss. A loss should be low.",
        ),
        (
            lambda runs: min(_rates(runs, "validation_loss")),
            "That is the lowest *rate*. Choose by the loss, and return its rate.",
        ),
    ]
    rates = [sorted({run["learning_rate"] for run in runs}) for (runs,) in _SEARCHES]
    for outcome, allowed in zip(outcomes, rates, strict=True):
        if outcome not in allowed:
            raise Wrong(
                f"{outcome:g} is none of the learning rates {', '.join(f'{r:g}' for r in allowed)}. Return one."
            )
    same(
        outcomes,
        _SEARCHES,
        _rule,
        mistakes,
        lambda case, wanted, outcome: (
            f"With seed 0 the rates have the losses {_rates(case[0], 'validation_loss', seed=0)}, and the means are "
            f"{_rates(case[0], 'validation_loss')}. The winner is {wanted:g}; your function says {outcome:g}."
        ),
    )
