"""Probabilities that can be believed: reliability, calibration error, temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from course_utils.evaluation.errors import Labels, MetricError


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
