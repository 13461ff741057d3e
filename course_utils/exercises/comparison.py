"""The checks of chapter 22, All methods compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn

from course_utils.evaluation.many_methods import front, holm, mean_interval, paired_difference
from course_utils.exercises.checking import Wrong, call, compare, exercise, number, random_tensors
from course_utils.exercises.outcomes import listed, names, same

_FORMULA = "The formula, beside the code"
_PAIRED = "Pairs, seed by seed"
_HOLM = "Many comparisons at once"
_FRONT = "Four prices"
_NEW = "Add a method in ten lines"

Rows = dict[str, tuple[float, ...]]


def _accuracies(*sizes: int) -> list[list[float]]:
    """Accuracies of that many seeds, one list a size."""
    drawn = random_tensors(*((size,) for size in sizes))
    return [(0.95 + 0.01 * values).tolist() for values in drawn]


# --- the interval of a mean ------------------------------------------------------------------------------------------


def _ends(answer: Any, *arguments: list[float]) -> tuple[float, float]:
    result = call(answer, *(list(values) for values in arguments))
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong("Expected two numbers: the lower and the upper end of the interval.")
    low, high = (number(end) for end in result)
    return low, high


def _half(values: Sequence[float], factor: float, ddof: int = 1, root: bool = True) -> float:
    return factor * float(np.std(values, ddof=ddof)) / (math.sqrt(len(values)) if root else 1)


@exercise(
    "comparison.interval",
    points=3,
    passes="With few seeds the interval is wide, because the spread itself is only guessed.",
    section=_FORMULA,
)
def _interval(answer: Any) -> None:
    for values in _accuracies(3, 5):
        n, mean = len(values), sum(values) / len(values)
        t = float(student.ppf(0.975, n - 1))
        low, high = _ends(answer, values)
        if low > high:
            raise Wrong("The first number is the larger one. Return the lower end first.")

        def around(*how: Any, mean: float = mean, values: list[float] = values, **more: Any) -> torch.Tensor:
            half = _half(values, *how, **more)
            return torch.tensor([mean - half, mean + half], dtype=torch.float64)

        compare(
            torch.tensor([low, high], dtype=torch.float64),
            torch.tensor(mean_interval(values), dtype=torch.float64),
            [
                (
                    around(1.96),
                    "You took 1.96, which is for a spread that is known. It is guessed from a few seeds: take Student's t.",
                ),
                (around(t, root=False), "That is where single *seeds* lie. For their mean divide the spread by √n."),
                (around(t, ddof=0), "Your standard deviation divides by n. With few seeds it is too small: by n − 1."),
                (
                    around(float(student.ppf(0.95, n - 1))),
                    "You took the quantile at 0.95, which leaves 5% at *each* side. Leave 2.5%: take it at 0.975.",
                ),
                (around(float(student.ppf(0.975, n))), "The degrees of freedom are n − 1, not n."),
                (around(1.0), "That is one standard error at each side. Multiply it by Student's t."),
                (
                    torch.tensor([min(values), max(values)], dtype=torch.float64),
                    "That is the lowest and the highest seed. With more seeds it only grows; the interval must shrink.",
                ),
            ],
            f"For {[round(value, 4) for value in values]} it is {mean_interval(values)[0]:.4f} to "
            f"{mean_interval(values)[1]:.4f}; your function returns {low:.4f} to {high:.4f}.",
        )


# --- pairs -----------------------------------------------------------------------------------------------------------


def _unpaired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The interval of two samples that have nothing to do with each other."""
    n, mean = len(first), float(np.mean(first) - np.mean(second))
    error = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / n)
    half = float(student.ppf(0.975, 2 * n - 2)) * error
    return mean - half, mean + half


@exercise(
    "comparison.paired",
    points=3,
    passes="What both runs of a seed share, such as a bad order of the texts, is gone from the difference.",
    section=_PAIRED,
)
def _paired(answer: Any) -> None:
    for seeds in (5, 7):
        _paired_seeds(answer, seeds)


def _paired_seeds(answer: Any, seeds: int) -> None:
    shared, noise, other = _accuracies(seeds, seeds, seeds)
    first = [a + 0.3 * (b - 0.95) for a, b in zip(shared, noise, strict=True)]
    second = [a - 0.004 + 0.3 * (b - 0.95) for a, b in zip(shared, other, strict=True)]
    low, high = _ends(answer, first, second)
    right = paired_difference(first, second)
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    each = (mean_interval(first), mean_interval(second))

    def pair(ends: Sequence[float]) -> torch.Tensor:
        return torch.tensor(list(ends), dtype=torch.float64)

    compare(
        pair((low, high)),
        pair((right.low, right.high)),
        [
            (pair((-right.high, -right.low)), "The sign is turned: it is the first minus the second."),
            (pair((right.high, right.low)), "The first number is the larger one. Return the lower end first."),
            (
                pair(_unpaired(first, second)),
                "You treated them as two samples that have nothing in common. Form the difference of each seed first.",
            ),
            (pair(mean_interval([abs(gap) for gap in gaps])), "Keep the sign: seeds for and against cancel out."),
            (
                pair(mean_interval([a - b for a, b in zip(sorted(first), sorted(second), strict=True)])),
                "You sorted the values. The pairs are the seeds: keep their order.",
            ),
            (
                pair([a - b for a, b in zip(*each, strict=True)]),
                "You subtracted the ends of two intervals. Subtract seed by seed, then make one interval.",
            ),
            (
                pair((min(gaps), max(gaps))),
                "That is the smallest and the largest difference. Make the interval of their mean.",
            ),
        ],
        f"It is {right.low:.4f} to {right.high:.4f}; your function returns {low:.4f} to {high:.4f}. "
        "It is the interval of exercise 1, for the differences.",
    )


# --- many tests ------------------------------------------------------------------------------------------------------

_FAMILIES: list[tuple[dict[str, float]]] = [
    ({"BitFit": 0.045, "prompt": 0.001, "LoRA": 0.6, "prefix": 0.018, "last layer": 0.012},),
    ({"a": 0.7, "b": 0.016, "c": 0.014, "d": 0.3, "e": 0.001},),
    ({"one": 0.03, "two": 0.026, "three": 0.04},),
    ({"w": 0.0002, "x": 0.2, "y": 0.0126, "z": 0.0249},),
]


def _stepping(p_values: dict[str, float], bars: Callable[[int, int], float], stop: bool = True) -> frozenset[str]:
    """From the smallest p on; `bars(k, m)` is the bar of the k-th of m."""
    passed = set()
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__), start=1):
        if p_values[name] <= bars(place, len(p_values)):
            passed.add(name)
        elif stop:
            break
    return frozenset(passed)


def _step_up(p_values: dict[str, float], bars: Callable[[int, int], float]) -> frozenset[str]:
    """From the largest p down: the first that passes takes all smaller ones with it."""
    ordered = sorted(p_values, key=p_values.__getitem__)
    for place in range(len(ordered), 0, -1):
        if p_values[ordered[place - 1]] <= bars(place, len(ordered)):
            return frozenset(ordered[:place])
    return frozenset()


def _holm_bar(place: int, number_of_tests: int) -> float:
    return 0.05 / (number_of_tests - place + 1)


def _unsorted(p_values: dict[str, float]) -> frozenset[str]:
    passed = set()
    for place, (name, p) in enumerate(p_values.items(), start=1):
        if p > _holm_bar(place, len(p_values)):
            break
        passed.add(name)
    return frozenset(passed)


def _passing(p_values: dict[str, float]) -> frozenset[str]:
    return frozenset(name for name, p in holm(p_values).items() if p <= 0.05)


@exercise(
    "comparison.holm",
    points=3,
    passes="Each finding makes the next bar a little lower, and the first failure ends the list.",
    section=_HOLM,
)
def _several(answer: Any) -> None:
    outcomes = [names(call(answer, dict(family)), family) for (family,) in _FAMILIES]
    same(
        outcomes,
        _FAMILIES,
        _passing,
        [
            (
                lambda family: frozenset(name for name, p in family.items() if p <= 0.05),
                "You compared every p with 0.05. With many tests some pass by chance: the smallest must pass 0.05 / m.",
            ),
            (
                lambda family: frozenset(name for name, p in family.items() if p <= 0.05 / len(family)),
                "That is Bonferroni: every p against 0.05 / m. Holm's bar rises by the steps 0.05 / (m − 1), … to 0.05.",
            ),
            (
                lambda family: _stepping(family, _holm_bar, stop=False),
                "You went on after the first p that failed. There Holm stops, and all larger ones fail, too.",
            ),
            (
                lambda family: _step_up(family, lambda place, m: 0.05 * place / m),
                "That is Benjamini and Hochberg's rule. It bounds the *share* of false findings; Holm's bounds the chance "
                "of any.",
            ),
            (
                lambda family: _step_up(family, _holm_bar),
                "You began with the largest p, as Hochberg does. Begin with the smallest, and stop at the first failure.",
            ),
            (
                lambda family: _stepping(family, lambda place, m: 0.05 / place),
                "Your bar becomes stricter: 0.05, 0.05 / 2, … It is the other way round: 0.05 / m for the smallest p.",
            ),
            (_unsorted, "You took the tests in the order in which they came. Sort them, the smallest p first."),
            (
                lambda family: frozenset(family) - _passing(family),
                "These are the tests that do *not* pass. A small p is a finding.",
            ),
        ],
        lambda case, wanted, outcome: f"For {case[0]} it is {listed(wanted)}; your function says {listed(outcome)}.",
    )


# --- several prices --------------------------------------------------------------------------------------------------

_TABLES: list[tuple[Rows]] = [
    ({"a": (0.96, 100, 50), "b": (0.96, 200, 40), "c": (0.95, 150, 60), "d": (0.97, 900, 900), "e": (0.90, 100, 30)},),
    ({"f": (0.9, 10, 5), "twin": (0.9, 10, 5), "g": (0.9, 10, 6), "h": (0.8, 30, 1), "i": (0.7, 40, 1)},),
    ({"j": (0.95, 5), "k": (0.94, 5), "l": (0.97, 9), "m": (0.93, 2)},),
    ({"n": (0.95, 4, 7, 1), "o": (0.95, 4, 7, 2), "p": (0.96, 5, 8, 3), "q": (0.94, 9, 1, 9), "r": (0.94, 9, 2, 9)},),
]


def _kept(beats: Callable[[Any, Any], bool]) -> Callable[[Rows], frozenset[str]]:
    """The rows that no other row beats, in this sense of beating."""

    def unbeaten(rows: Rows) -> frozenset[str]:
        return frozenset(
            name
            for name, row in rows.items()
            if not any(beats(other, row) for key, other in rows.items() if key != name)
        )

    return unbeaten


def _pairs(one: Any, other: Any) -> list[tuple[float, float]]:
    return list(zip(one[1:], other[1:], strict=True))


@exercise(
    "comparison.front",
    points=3,
    passes="The more prices count, the fewer methods are beaten: each has something that speaks for it.",
    section=_FRONT,
)
def _unbeaten(answer: Any) -> None:
    outcomes = [names(call(answer, copy.deepcopy(rows)), rows) for (rows,) in _TABLES]
    same(
        outcomes,
        _TABLES,
        lambda rows: frozenset(front(rows)),
        [
            (
                _kept(lambda a, b: a[0] >= b[0] and a[1] <= b[1] and a[:2] != b[:2]),
                "You look at the first price only. A row may have two prices or more, and all of them count.",
            ),
            (
                _kept(lambda a, b: a[0] >= b[0] and a[-1] <= b[-1] and (a[0], a[-1]) != (b[0], b[-1])),
                "You look at the last price only. A row may have two prices or more, and all of them count.",
            ),
            (
                _kept(lambda a, b: a[0] >= b[0] and sum(a[1:]) <= sum(b[1:]) and a != b),
                "You added the prices up: kilobytes and milliseconds have no sum. Compare each price by itself.",
            ),
            (
                _kept(lambda a, b: a[0] > b[0] and all(p < q for p, q in _pairs(a, b))),
                "You take a row as beaten only if another is better in *everything*. No worse in all and better in one "
                "is enough.",
            ),
            (
                _kept(lambda a, b: a[0] >= b[0] and any(p <= q for p, q in _pairs(a, b)) and a != b),
                "You take a row as beaten if *one* price of another is lower. No price of the other may be higher.",
            ),
            (
                _kept(lambda a, b: a[0] >= b[0] and all(p <= q for p, q in _pairs(a, b))),
                "Two equal rows do not beat each other: to beat, a row must be better in at least one number.",
            ),
            (
                _kept(lambda a, b: all(p <= q for p, q in zip(a, b, strict=True)) and a != b),
                "You take a lower accuracy as better. Only of the prices less is better.",
            ),
            (
                _kept(lambda a, b: all(p >= q for p, q in zip(a, b, strict=True)) and a != b),
                "You take higher prices as better. Only of the accuracy more is better.",
            ),
            (lambda rows: frozenset(rows) - frozenset(front(rows)), "These are the beaten ones. Return the others."),
        ],
        lambda case, wanted, outcome: f"For {case[0]} it is {listed(wanted)}; your function says {listed(outcome)}.",
    )


# --- the choice ------------------------------------------------------------------------------------------------------

_CHOICES: list[tuple[Rows, float]] = [
    ({"e": (0.960, 900), "a": (0.962, 300), "b": (0.958, 80), "c": (0.955, 40), "d": (0.82, 1)}, 0.005),
    ({"f": (0.90, 10), "g": (0.95, 60), "h": (0.935, 20), "i": (0.949, 70)}, 0.02),
    ({"j": (0.80, 5), "k": (0.702, 3), "l": (0.72, 4), "m": (0.79, 9), "n": (0.30, 2)}, 0.09),
]


def _cheapest(rows: Rows, allowed: Callable[[float], bool]) -> str:
    left = [name for name, row in rows.items() if allowed(row[0])] or list(rows)
    return min(left, key=lambda name: rows[name][1])


def _best(rows: Rows) -> float:
    return max(row[0] for row in rows.values())


@exercise(
    "comparison.cheapest",
    points=2,
    passes="The margin is written down before anybody looks, and then the price decides.",
    section=_FRONT,
)
def _choice(answer: Any) -> None:
    outcomes = []
    for rows, margin in _CHOICES:
        outcome = call(answer, copy.deepcopy(rows), margin)
        if outcome not in rows:
            raise Wrong(f"Expected one of the names {', '.join(rows)}, got {outcome!r}.")
        outcomes.append(outcome)
    same(
        outcomes,
        _CHOICES,
        lambda rows, margin: _cheapest(rows, lambda accuracy: accuracy >= _best(rows) - margin),
        [
            (
                lambda rows, _: min(rows, key=lambda name: rows[name][1]),
                "That is the cheapest of all, however bad it is.",
            ),
            (
                lambda rows, _: max(rows, key=lambda name: rows[name][0]),
                "That is the most accurate, whatever it costs. Take the cheapest of those within the margin.",
            ),
            (
                lambda rows, margin: max(
                    (name for name, row in rows.items() if row[0] >= _best(rows) - margin), key=lambda n: rows[n][1]
                ),
                "That is the *dearest* within the margin.",
            ),
            (
                lambda rows, margin: _cheapest(rows, lambda accuracy: accuracy >= _best(rows) * (1 - margin)),
                "You took a share of the best accuracy. The margin is in points: the best minus the margin.",
            ),
            (
                lambda rows, margin: _cheapest(
                    rows, lambda accuracy: accuracy >= sum(row[0] for row in rows.values()) / len(rows) - margin
                ),
                "You measured from the mean of all methods. Measure from the best one.",
            ),
            (
                lambda rows, margin: max(rows, key=lambda name: rows[name][0] / rows[name][1]),
                "Accuracy divided by price prefers what costs nothing and knows nothing. First the margin, then the price.",
            ),
        ],
        lambda case, wanted, outcome: (
            f"For {case[0]} with a margin of {case[1]:g} it is {wanted}; your function says {outcome}."
        ),
    )


# --- a new method ----------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """A block whose names are traps: a normalisation that is not called so, and a matrix that is called bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width)
        self.before = nn.LayerNorm(width)
        self.position_bias = nn.Embedding(3, width)


_BIASES = {"dense.bias", "LayerNorm.bias", "before.bias"}
_GAINS = {"LayerNorm.weight", "before.weight"}


@exercise(
    "comparison.vectors",
    points=2,
    passes="Chosen by what a parameter is, and not by its name: so it works in other models, too.",
    section=_NEW,
)
def _vectors(answer: Any) -> None:
    for width in (4, 7):
        _unfreeze(
            answer, nn.ModuleDict({"body": _Block(width), "classifier": nn.Linear(width, 2)}).requires_grad_(False)
        )


def _unfreeze(answer: Any, model: nn.ModuleDict) -> None:
    before = copy.deepcopy(model.state_dict())
    returned = call(answer, model, returns=False)
    if isinstance(returned, nn.Module) and returned is not model:
        raise Wrong("You returned a copy. The model that was handed over is still frozen: change its own parameters.")
    if any(not torch.equal(before[name], value) for name, value in model.state_dict().items()):
        raise Wrong("The weights have changed. Training will change them later; here set `requires_grad`.")
    trained = {name for name, parameter in model["body"].named_parameters() if parameter.requires_grad}
    if trained == _BIASES | _GAINS:
        return
    if not trained:
        raise Wrong("Everything is still frozen. A parameter has `requires_grad_(True)`.")
    if trained == _BIASES:
        raise Wrong("That is BitFit. The gains of the normalisations are vectors, too; their name is `weight`.")
    if trained == _GAINS | (_BIASES - {"dense.bias"}):
        raise Wrong("That is LayerNorm tuning. The biases of the linear layers are vectors, too.")
    if trained == _GAINS:
        raise Wrong("These are the gains alone. The biases are vectors, too.")
    if len(trained) == len(list(model["body"].parameters())):
        raise Wrong("Everything is trained: that is full fine-tuning. Only parameters with one axis.")
    if not trained & (_BIASES | _GAINS):
        raise Wrong("It is the other way round: you train the matrices. A vector has one axis.")
    if "position_bias.weight" in trained:
        raise Wrong("`position_bias.weight` is a matrix, whatever it is called. Ask for `parameter.ndim`.")
    if trained == _BIASES | {"LayerNorm.weight"}:
        raise Wrong("You went by the name “LayerNorm”. Here one is called `before`: ask for `parameter.ndim`.")
    raise Wrong(f"Trained are {listed(trained)}; it should be {listed(_BIASES | _GAINS)}.")
