"""How good is a classifier, and how sure can we be?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import f1_score, roc_auc_score


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
    predicted = logits.argmax(axis=1)
    binary = logits.shape[1] == 2 and len(np.unique(labels)) == 2
    return Scores(
        accuracy=float((predicted == labels).mean()),
        f1_macro=float(f1_score(labels, predicted, average="macro", zero_division=0)),
        roc_auc=float(roc_auc_score(labels, logits[:, 1] - logits[:, 0])) if binary else None,
        n=len(labels),
    )


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
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(labels: Sequence[int], first: Sequence[int], second: Sequence[int]) -> float:
    """McNemar's exact test: could two classifiers that differ like this on the same texts be equally good?

    Only the texts that exactly one of them gets right count. If they are equally good, each such text is a fair coin.

    Returns:
        The two-sided p-value; 1.0 when they never differ.
    """
    truth, a, b = (np.asarray(values) for values in (labels, first, second))
    if not len(truth) == len(a) == len(b):
        raise MetricError(f"expected three lists of one length, got {len(truth)}, {len(a)} and {len(b)}")
    only_first = int(((a == truth) & (b != truth)).sum())
    only_second = int(((a != truth) & (b == truth)).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN for a single value."""
    if len(values) == 0:
        raise MetricError("there are no values to average")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
