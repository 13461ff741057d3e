"""How good is a classifier, and how sure can we be?

scikit-learn and scipy cost a second of import, and most labs call one function of each. So they are imported where they
are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from course_utils.evaluation.errors import Labels, MetricError, as_columns, quotient


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
    truth, answers = (column.astype(int) for column in as_columns(labels, predicted))
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
        ClassScores(quotient(hit, c), quotient(hit, p), quotient(2 * hit, c + p), int(p))
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


def best_threshold(labels: Labels, scores: Sequence[float] | np.ndarray) -> float:
    """The threshold with the highest macro F1 for the rule "positive where the score is above it".

    Tries the middle between each two neighbouring scores; among equals the one nearest 0.5 wins. Give it the
    **validation** split.

    Args:
        labels: 0 or 1, (n,).
        scores: the probability of class 1, (n,).
    """
    truth, scores = as_columns(labels, scores)
    levels = np.unique(scores)
    if len(levels) < 2:
        raise MetricError("all scores are equal, so no threshold tells them apart")
    middles = (levels[:-1] + levels[1:]) / 2
    quality = [f1_average(truth, (scores > middle).astype(int), "macro") for middle in middles]
    best = np.flatnonzero(np.isclose(quality, max(quality), rtol=0, atol=1e-12))
    return float(min(middles[best], key=lambda middle: abs(middle - 0.5)))
