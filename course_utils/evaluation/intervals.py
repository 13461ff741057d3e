"""How sure a number is: intervals of one accuracy, tests for the difference of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from course_utils.evaluation.errors import MetricError


def accuracy_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for an accuracy (Wilson 1927): where the true one plausibly lies.

    With p = correct / n and z = 1.96 for 95%::

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)
    """
    if not 0 <= correct <= n or n < 1:
        raise MetricError(f"expected 0 ≤ correct ≤ n and n ≥ 1, got {correct} of {n}")
    if not 0 < confidence < 1:
        raise MetricError(f"confidence is a share between 0 and 1, such as 0.95; got {confidence}")
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(labels: Sequence[int], first: Sequence[int], second: Sequence[int]) -> float:
    """McNemar's exact test: could two classifiers that differ like this on the same texts be equally good?

    Only the texts that exactly one of them gets right count. If they are equally good, each such text is a fair coin.

    Returns:
        The two-sided p-value; 1.0 when they never differ.
    """
    from scipy.stats import binomtest

    only_first, only_second = disagreements(labels, first, second)
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def disagreements(labels: Sequence[int], first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """How many texts only the first classifier gets right, and how many only the second."""
    truth, a, b = (np.asarray(values) for values in (labels, first, second))
    if not len(truth) == len(a) == len(b):
        raise MetricError(f"expected three lists of one length, got {len(truth)}, {len(a)} and {len(b)}")
    return int(((a == truth) & (b != truth)).sum()), int(((a != truth) & (b == truth)).sum())


def compare(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Two classifiers on the same texts, as a row of a result file.

    Args:
        labels: (n,).
        first, second: their answers, (n,) each.

    Returns:
        `only_first`, `only_second` (see `disagreements`), `p` (see `mcnemar`), and `difference`, the first accuracy
        minus the second: its `value`, and `low` and `high` of a 95% bootstrap interval.
    """
    columns = [values.tolist() for values in (labels, first, second)]
    only_first, only_second = disagreements(*columns)
    low, high = bootstrap_interval(lambda y, a, b: float((a == y).mean() - (b == y).mean()), labels, first, second)
    return {
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(*columns),
        "difference": {"value": (only_first - only_second) / len(labels), "low": low, "high": high},
    }


def bootstrap_interval(
    statistic: Callable[..., float],
    *columns: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    repeats: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979): an interval for any number that is computed from a test split.

    Draw n texts from the n texts, with replacement; compute the number; do it `repeats` times. The interval holds
    the middle share `confidence` of the results.

    Args:
        statistic: takes the columns and returns the number.
        columns: (n, ...) each, such as labels and answers. A draw takes the same texts from all of them, so the
            difference of two classifiers on the same texts has an interval too.
        confidence: share of the results inside.
        repeats: draws.
        seed: of the draws.
    """
    arrays = [np.asarray(column) for column in columns]
    if not arrays or len({len(array) for array in arrays}) != 1 or len(arrays[0]) == 0:
        raise MetricError(f"expected columns of one length above 0, got {[len(array) for array in arrays]}")
    if not 0 < confidence < 1:
        raise MetricError(f"confidence is a share between 0 and 1, such as 0.95; got {confidence}")
    chance, n = np.random.default_rng(seed), len(arrays[0])
    values = []
    for _ in range(repeats):
        rows = chance.integers(0, n, n)
        values.append(statistic(*(array[rows] for array in arrays)))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN for a single value."""
    if len(values) == 0:
        raise MetricError("there are no values to average")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
