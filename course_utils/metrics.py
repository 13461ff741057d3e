"""How good is a classifier, and how sure can we be?

scikit-learn and scipy cost a second of import, and most labs call one function of each. So they are imported where they
are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Labels = Sequence[int] | np.ndarray


class MetricError(ValueError):
    """The predictions cannot be judged as they are."""


@dataclass(frozen=True)
class Scores:
    """The metrics of one classifier on one split, all between 0 and 1.

    Args:
        accuracy: share of right answers.
        f1_macro: F1 of each class, averaged with equal weight, so that the rare class counts as much.
        roc_auc: chance that a random positive is scored above a random negative; None when there are more than two
            classes, or only one in the labels.
        n: texts judged.
    """

    accuracy: float
    f1_macro: float
    roc_auc: float | None
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The same as a dictionary."""
        return asdict(self)


def score(labels: Sequence[int] | np.ndarray, logits: np.ndarray) -> Scores:
    """Judge predictions.

    Args:
        labels: the right classes, (n,).
        logits: the model's outputs before the softmax, (n, classes).
    """
    labels, logits = np.asarray(labels), np.asarray(logits)
    if len(labels) == 0 or logits.ndim != 2 or len(labels) != len(logits):
        raise MetricError(f"expected n labels and (n, classes) logits, got {labels.shape} and {logits.shape}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise MetricError(f"labels must lie between 0 and {logits.shape[1] - 1}, got {labels.min()} to {labels.max()}")
    if np.isnan(logits).any():
        raise MetricError("the logits hold NaN: the model's weights must be broken, train it again")
    from sklearn.metrics import f1_score, roc_auc_score

    predicted = logits.argmax(axis=1)
    binary = logits.shape[1] == 2 and len(np.unique(labels)) == 2
    return Scores(
        accuracy=float((predicted == labels).mean()),
        f1_macro=float(f1_score(labels, predicted, average="macro", zero_division=0)),
        roc_auc=float(roc_auc_score(labels, logits[:, 1] - logits[:, 0])) if binary else None,
        n=len(labels),
    )


def confusion(labels: Labels, predicted: Labels) -> np.ndarray:
    """The table of outcomes, (classes, classes): row i, column j counts the texts of class i that were called j."""
    truth, answers = (column.astype(int) for column in _columns(labels, predicted))
    if min(truth.min(), answers.min()) < 0:
        raise MetricError("classes are numbered from 0 on, and there is a negative one")
    classes = int(max(truth.max(), answers.max())) + 1
    table = np.zeros((classes, classes), dtype=int)
    np.add.at(table, (truth, answers), 1)
    return table


@dataclass(frozen=True)
class ClassScores:
    """How well one class is found; a share of nothing counts as 0.

    Args:
        precision: of the texts that were called this class, the share that belong to it.
        recall: of the texts that belong to this class, the share that were called it.
        f1: harmonic mean of the two, 2 P R / (P + R).
        n: texts that belong to it.
    """

    precision: float
    recall: float
    f1: float
    n: int


def class_scores(labels: Labels, predicted: Labels) -> list[ClassScores]:
    """Precision, recall and F1 of each class (van Rijsbergen 1979), class 0 first."""
    table = confusion(labels, predicted)
    hits, called, present = table.diagonal(), table.sum(axis=0), table.sum(axis=1)
    return [
        ClassScores(_share(hit, c), _share(hit, p), _share(2 * hit, c + p), int(p))
        for hit, c, p in zip(hits, called, present, strict=True)
    ]


def f1_average(labels: Labels, predicted: Labels, average: str) -> float:
    """One F1 for all classes.

    Args:
        labels: the right classes.
        predicted: the answers.
        average: "macro", the plain mean over the classes; "weighted", the mean weighted by each class's number of
            texts; or "micro", from the hits of all classes together. With one label a text, micro F1 is the accuracy.
    """
    rows, table = class_scores(labels, predicted), confusion(labels, predicted)
    match average:
        case "macro":  # a class that neither occurs nor was answered has no F1
            used = table.sum(axis=0) + table.sum(axis=1) > 0
            return sum(row.f1 for row in rows) / int(used.sum())
        case "weighted":
            return sum(row.f1 * row.n for row in rows) / int(table.sum())
        case "micro":
            return float(table.trace() / table.sum())
    raise MetricError(f"average is 'macro', 'weighted' or 'micro', got {average!r}")


def majority_accuracy(train_labels: Sequence[int], labels: Sequence[int]) -> float:
    """Accuracy of always answering the most common class of the training labels: the bar that means nothing."""
    if len(train_labels) == 0 or len(labels) == 0:
        raise MetricError("there are no labels to count")
    values, counts = np.unique(np.asarray(train_labels), return_counts=True)
    return float((np.asarray(labels) == values[counts.argmax()]).mean())


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


@dataclass(frozen=True)
class Bin:
    """The texts whose confidence lies in one range.

    Args:
        low, high: the range, low excluded, high included.
        n: texts in it.
        confidence: their mean confidence.
        accuracy: the share of right answers among them.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The softmax of logits (n, classes), each divided by the temperature."""
    if not temperature > 0:
        raise MetricError(f"the temperature must be above 0, got {temperature}")
    from scipy.special import softmax

    return np.asarray(softmax(np.asarray(logits, dtype=float) / temperature, axis=1))


def reliability(labels: Labels, probability: np.ndarray, bins: int = 10) -> list[Bin]:
    """Sort the texts by confidence into bins of equal width; empty bins are left out (Guo et al. 2017).

    Args:
        labels: the right classes, (n,).
        probability: (n, classes). A text's answer is its likeliest class, its confidence that class's probability.
        bins: number of ranges between 0 and 1.
    """
    truth, probability = np.asarray(labels), np.asarray(probability)
    if probability.ndim != 2 or len(truth) != len(probability) or len(truth) == 0:
        raise MetricError(f"expected n labels and (n, classes), got {truth.shape} and {probability.shape}")
    if probability.min() < 0 or not np.allclose(probability.sum(axis=1), 1):
        raise MetricError("each row must hold probabilities with the sum 1; for logits call probabilities() first")
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == truth
    position = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for k in np.unique(position):
        inside = position == k
        found.append(
            Bin(
                low=float(k / bins),
                high=float((k + 1) / bins),
                n=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(right[inside].mean()),
            )
        )
    return found


def calibration_error(labels: Labels, probability: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): Σ over bins of n_k / n · |accuracy_k − confidence_k|."""
    return sum(row.n * abs(row.accuracy - row.confidence) for row in reliability(labels, probability, bins)) / len(
        labels
    )


def fit_temperature(labels: Labels, logits: np.ndarray) -> float:
    """Temperature scaling (Guo et al. 2017): the T > 0 with the lowest cross-entropy of softmax(logits / T).

    Give it the **validation** split. Dividing by T changes no answer, only how sure the model says it is: T > 1 makes
    it less sure, T < 1 surer. T is sought between 0.05 and 20.
    """
    truth, logits = np.asarray(labels), np.asarray(logits, dtype=float)
    if logits.ndim != 2 or len(truth) != len(logits) or len(truth) == 0:
        raise MetricError(f"expected n labels and (n, classes) logits, got {truth.shape} and {logits.shape}")
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: cross_entropy(truth, logits / math.exp(log_t)),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def cross_entropy(labels: Labels, logits: np.ndarray) -> float:
    """Mean of −log of the probability that each text's right class was given."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), np.asarray(labels)].mean())


def best_threshold(labels: Labels, scores: Sequence[float] | np.ndarray) -> float:
    """The threshold with the highest macro F1 for the rule "positive where the score is above it".

    Tries the middle between each two neighbouring scores; among equals the one nearest 0.5 wins. Give it the
    **validation** split.

    Args:
        labels: 0 or 1, (n,).
        scores: the probability of class 1, (n,).
    """
    truth, scores = _columns(labels, scores)
    levels = np.unique(scores)
    if len(levels) < 2:
        raise MetricError("all scores are equal, so no threshold tells them apart")
    middles = (levels[:-1] + levels[1:]) / 2
    quality = [f1_average(truth, (scores > middle).astype(int), "macro") for middle in middles]
    best = np.flatnonzero(np.isclose(quality, max(quality), rtol=0, atol=1e-12))
    return float(min(middles[best], key=lambda middle: abs(middle - 0.5)))


def _columns(*columns: Sequence[float] | np.ndarray) -> tuple[np.ndarray, ...]:
    arrays = tuple(np.asarray(column) for column in columns)
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1 or len(arrays[0]) == 0:
        raise MetricError(f"expected lists of one length above 0, got the shapes {[array.shape for array in arrays]}")
    return arrays


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN for a single value."""
    if len(values) == 0:
        raise MetricError("there are no values to average")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
