"""Many methods beside each other: which differences are real, and which method no other beats.

Everything here works on plain numbers, one for each method or for each seed, and knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from course_utils.evaluation.errors import MetricError
from course_utils.evaluation.intervals import mean_and_spread


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a row (value, price, ...) beats another: no lower value, no higher price, and one of them better."""
    no_dearer = all(price <= limit for price, limit in zip(one[1:], other[1:], strict=True))
    return one[0] >= other[0] and no_dearer and tuple(one) != tuple(other)


def front(rows: Mapping[str, Sequence[float]]) -> list[str]:
    """The rows that no other row beats (the Pareto front), those with the lowest first price first.

    Args:
        rows: name → (value, price, ...) with one price or more, such as (accuracy, trained parameters).

    Raises:
        MetricError: a row has no price, another number of them, or one that is no finite number.
    """
    _check_prices(rows)
    unbeaten = [name for name, row in rows.items() if not any(beats(other, row) for other in rows.values())]
    return sorted(unbeaten, key=lambda name: rows[name][1])


def _check_prices(rows: Mapping[str, Sequence[float]]) -> None:
    lengths = sorted({len(row) for row in rows.values()})
    if len(lengths) > 1 or (lengths and lengths[0] < 2):
        raise MetricError(
            "each row must hold a value and the same number of prices, at least one; the rows have "
            f"{', '.join(map(str, lengths))} numbers"
        )
    for name, row in rows.items():
        if not all(math.isfinite(number) for number in row):
            raise MetricError(f"{name!r} has a value or a price that is no finite number: {tuple(row)}. Leave it out")


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of which a few values are a sample (Student 1908).

    With n values, their mean m and their sample standard deviation s (divided by n − 1)::

        m ± t · s / √n,   t the quantile of Student's distribution with n − 1 degrees of freedom

    Args:
        values: such as the accuracies of several seeds; at least two.
        confidence: share of such intervals that hold the true mean.
    """
    from scipy.stats import t as student

    if len(values) < 2:
        raise MetricError(f"one value has no spread: an interval needs at least two seeds, got {len(values)}")
    if not 0 < confidence < 1:
        raise MetricError(f"confidence is a share between 0 and 1, such as 0.95; got {confidence}")
    mean, spread = mean_and_spread(values)
    half = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return mean - half, mean + half


@dataclass(frozen=True)
class PairedDifference:
    """One method minus another, seed by seed.

    Args:
        mean: of the differences.
        low, high: 95% interval of that mean, see `mean_interval`.
        p: of the paired t-test: how often differences as far from zero come from two methods that are equal on average.
    """

    mean: float
    low: float
    high: float
    p: float


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare two methods over the same seeds; `first` minus `second`.

    The test texts are the same in all runs. So this speaks about the luck of the training, and not of the texts.

    Args:
        first, second: one accuracy for each seed, the seeds in the same order.
    """
    from scipy.stats import ttest_rel

    if len(first) != len(second):
        raise MetricError(f"a pair needs the same seeds on both sides, got {len(first)} and {len(second)} values")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    low, high = mean_interval(differences)
    mean = sum(differences) / len(differences)
    if np.ptp(differences) < 1e-12:  # no spread: the test would divide by zero
        return PairedDifference(mean, low, high, 1.0 if abs(mean) < 1e-12 else 0.0)
    return PairedDifference(mean, low, high, float(ttest_rel(first, second).pvalue))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of m tests, made larger so that all may be compared with one bar (Holm 1979).

    Sorted, p₁ ≤ p₂ ≤ … ≤ p_m, the k-th becomes the largest of m·p₁, (m − 1)·p₂, …, (m − k + 1)·p_k, at most 1. With
    the bar 0.05 the chance of *one or more* false findings among all m is at most 5%.

    Args:
        p_values: name of the test → p.

    Returns:
        The same names in the same order.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise MetricError(f"a p-value lies between 0 and 1, and that of {name!r} is {p}")
    adjusted, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
