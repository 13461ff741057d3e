"""The metrics, against values computed by hand and from their definitions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from course_utils.metrics import (
    MetricError,
    accuracy_interval,
    majority_accuracy,
    mcnemar,
    mean_and_spread,
    score,
)


def test_scores_by_hand() -> None:
    labels = [0, 0, 0, 1, 1]
    logits = np.array([[2.0, 0], [1, 0], [0, 1], [0, 3], [1, 0.5]])  # predicted 0 0 1 1 0
    scores = score(labels, logits)
    assert scores.accuracy == 3 / 5
    # class 0: precision 2/3, recall 2/3, F1 2/3; class 1: precision 1/2, recall 1/2, F1 1/2
    assert scores.f1_macro == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.n == 5
    assert scores.as_dict() == {
        "accuracy": scores.accuracy,
        "f1_macro": scores.f1_macro,
        "roc_auc": scores.roc_auc,
        "n": 5,
    }


def test_roc_auc_is_the_chance_that_a_positive_wins() -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 2, 60)
    logits = chance.normal(size=(60, 2)).round(1)  # rounded, so that there are ties
    margin = logits[:, 1] - logits[:, 0]
    pairs = list(product(margin[labels == 1], margin[labels == 0]))
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs)
    assert score(labels, logits).roc_auc == pytest.approx(wins / len(pairs))


def test_roc_auc_is_none_where_it_has_no_meaning() -> None:
    assert score([0, 0], np.zeros((2, 2))).roc_auc is None
    assert score([0, 1, 2], np.eye(3)).roc_auc is None


@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        ([], np.zeros((0, 2)), "expected n labels"),
        ([0, 1], np.zeros((3, 2)), r"\(2,\) and \(3, 2\)"),
        ([0, 1], np.zeros(2), "expected n labels"),
        ([0, 2], np.zeros((2, 2)), "between 0 and 1, got 0 to 2"),
        ([-1, 1], np.zeros((2, 2)), "between 0 and 1, got -1 to 1"),
        ([0, 1], np.array([[0.0, math.nan], [0, 1]]), "NaN"),
    ],
)
def test_bad_predictions_are_refused(labels: list[int], logits: np.ndarray, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        score(labels, logits)


def test_majority_uses_the_training_labels() -> None:
    assert majority_accuracy([1, 1, 0], [0, 0, 0, 1]) == 1 / 4
    with pytest.raises(MetricError, match="no labels"):
        majority_accuracy([], [1])
    with pytest.raises(MetricError, match="no labels"):
        majority_accuracy([1], [])


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (7, 10), (828, 872)])
def test_interval_is_wilsons_formula(correct: int, n: int) -> None:
    p, z = correct / n, 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = accuracy_interval(correct, n)
    assert low == pytest.approx(max(centre - half, 0), abs=1e-12)
    assert high == pytest.approx(min(centre + half, 1), abs=1e-12)


def test_interval_of_a_test_split_of_872_texts_is_one_and_a_half_points() -> None:
    low, high = accuracy_interval(828, 872)
    assert (high - low) / 2 == pytest.approx(0.0145, abs=0.0005)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    intervals = [accuracy_interval(int(c), 200) for c in chance.binomial(200, 0.9, size=2000)]
    covered = np.mean([low <= 0.9 <= high for low, high in intervals])
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("correct", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_bad_counts_are_refused(correct: int, n: int) -> None:
    with pytest.raises(MetricError, match="got"):
        accuracy_interval(correct, n)


def test_bad_confidence_is_refused() -> None:
    with pytest.raises(MetricError, match="confidence"):
        accuracy_interval(5, 10, confidence=95)


def test_mcnemar_is_a_fair_coin_on_the_texts_where_they_differ() -> None:
    labels = [1] * 20
    first = [1] * 19 + [0]  # right on 19
    second = [1] * 10 + [0] * 9 + [1]  # right on 11; only the first: 9 texts, only the second: 1
    tosses = 10
    tail = sum(math.comb(tosses, k) for k in (0, 1)) / 2**tosses
    assert mcnemar(labels, first, second) == pytest.approx(2 * tail)
    assert mcnemar(labels, second, first) == pytest.approx(2 * tail)


def test_mcnemar_of_equals_is_one() -> None:
    assert mcnemar([1, 0, 1], [1, 1, 1], [1, 1, 1]) == 1.0


def test_mcnemar_refuses_lists_of_unequal_length() -> None:
    with pytest.raises(MetricError, match="got 2, 2 and 1"):
        mcnemar([1, 0], [1, 0], [1])


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, spread = mean_and_spread([0.5])
    assert mean == 0.5
    assert math.isnan(spread)
    with pytest.raises(MetricError, match="no values"):
        mean_and_spread([])
