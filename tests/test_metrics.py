"""The metrics, against values computed by hand and from their definitions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from course_utils.evaluation.calibration import (
    calibration_error,
    cross_entropy,
    fit_temperature,
    probabilities,
    reliability,
)
from course_utils.evaluation.errors import MetricError
from course_utils.evaluation.intervals import (
    accuracy_interval,
    bootstrap_interval,
    disagreements,
    mcnemar,
    mean_and_spread,
)
from course_utils.evaluation.metrics import (
    ClassScores,
    best_threshold,
    class_scores,
    confusion,
    f1_average,
    majority_accuracy,
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


THREE = ([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 0, 0])  # labels, answers


def test_confusion_precision_recall_and_f1_by_hand() -> None:
    assert confusion(*THREE).tolist() == [[3, 1, 0], [0, 2, 1], [2, 0, 1]]
    first, second, third = class_scores(*THREE)
    assert (first.precision, first.recall, first.n) == (3 / 5, 3 / 4, 4)
    assert first.f1 == pytest.approx(2 / 3)
    assert (second.precision, second.recall, third.precision, third.recall) == (2 / 3, 2 / 3, 1 / 2, 1 / 3)
    assert f1_average(*THREE, "micro") == 6 / 10
    assert f1_average(*THREE, "macro") == pytest.approx((2 / 3 + 2 / 3 + 2 / 5) / 3)
    assert f1_average(*THREE, "weighted") == pytest.approx((4 * 2 / 3 + 3 * 2 / 3 + 3 * 2 / 5) / 10)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_scores_and_averages_are_scikit_learns(classes: int) -> None:
    chance = np.random.default_rng(classes)
    labels, predicted = chance.integers(0, classes, (2, 40))
    theirs = np.array(metrics.precision_recall_fscore_support(labels, predicted, zero_division=0))
    ours = np.array([[row.precision, row.recall, row.f1, row.n] for row in class_scores(labels, predicted)]).T
    assert ours == pytest.approx(theirs)
    for average in ("micro", "macro", "weighted"):
        assert f1_average(labels, predicted, average) == pytest.approx(
            metrics.f1_score(labels, predicted, average=average)
        )


def test_a_class_that_is_never_answered_has_f1_zero_and_one_that_is_absent_has_none() -> None:
    labels, predicted = [1, 1, 1, 0], [1, 1, 1, 1]
    assert class_scores(labels, predicted)[0] == ClassScores(0.0, 0.0, 0.0, 1)
    assert f1_average(labels, predicted, "macro") == pytest.approx((6 / 7) / 2)
    assert f1_average([0, 2], [0, 2], "macro") == 1.0  # there is no class 1
    assert confusion([0, 1], np.array([False, True])).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(MetricError, match="a negative one"):
        confusion([0, -1], [0, 1])
    with pytest.raises(MetricError, match="'macro', 'weighted' or 'micro', got 'mean'"):
        f1_average(labels, predicted, "mean")
    for broken in ([], [1, 1]):
        with pytest.raises(MetricError, match="one length above 0"):
            confusion(broken, [])


def test_disagreements_count_the_texts_that_one_alone_gets_right() -> None:
    assert disagreements([1, 1, 1, 0, 0], [1, 1, 0, 0, 1], [1, 0, 1, 1, 1]) == (2, 1)


def test_bootstrap_is_scipys_percentile_bootstrap() -> None:
    right = np.random.default_rng(1).random(400) < 0.9
    low, high = bootstrap_interval(lambda r: float(r.mean()), right, repeats=4000)
    theirs = stats.bootstrap((right,), np.mean, method="percentile", n_resamples=4000, rng=2).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert (low, high) == pytest.approx(accuracy_interval(int(right.sum()), 400), abs=0.008)


def test_bootstrap_takes_the_same_texts_from_every_column() -> None:
    column = np.arange(50.0)
    assert bootstrap_interval(lambda a, b: float(np.abs(a - b).max()), column, column, repeats=20) == (0.0, 0.0)
    assert bootstrap_interval(lambda a: float(a.mean()), column, seed=3) == bootstrap_interval(
        lambda a: float(a.mean()), column, seed=3
    )
    broken: list[list[list[float]]] = [[], [[]], [[1], [1, 2]]]
    for columns in broken:
        with pytest.raises(MetricError, match="one length above 0"):
            bootstrap_interval(lambda *a: 0.0, *columns)
    with pytest.raises(MetricError, match="confidence"):
        bootstrap_interval(lambda a: 0.0, [1.0], confidence=95)


def test_calibration_error_by_hand() -> None:
    probability = np.array([[0.05, 0.95], [0.1, 0.9], [0.3, 0.7], [0.65, 0.35]])
    labels = [1, 0, 1, 1]
    # the bin (0.9, 1]: 0.95, right; the bin (0.8, 0.9]: 0.9, wrong; the bin (0.6, 0.7]: 0.7 right and 0.65 wrong
    bins = reliability(labels, probability)
    assert [(row.n, row.accuracy) for row in bins] == [(2, 0.5), (1, 0.0), (1, 1.0)]
    assert [(row.low, row.high) for row in bins] == [(0.6, 0.7), (0.8, 0.9), (0.9, 1.0)]
    assert calibration_error(labels, probability) == pytest.approx((2 * 0.175 + 0.9 + 0.05) / 4)
    assert calibration_error(labels, probability, bins=1) == pytest.approx(abs(0.8 - 0.5))


def test_a_model_that_knows_its_chances_has_almost_no_calibration_error() -> None:
    chance = np.random.default_rng(0)
    positive = chance.random(40_000)
    labels = (chance.random(40_000) < positive).astype(int)
    assert calibration_error(labels, np.stack([1 - positive, positive], axis=1)) < 0.01


@pytest.mark.parametrize(
    ("labels", "probability", "message"),
    [
        ([0], [[2.0, -1.0]], "sum 1"),
        ([0], [[0.5, 0.6]], "sum 1"),
        ([0, 1], [[0.5, 0.5]], "expected n labels"),
        ([], [], "expected n labels"),
    ],
)
def test_what_is_no_probability_is_refused(labels: list[int], probability: list[list[float]], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        reliability(labels, np.array(probability))


def test_probabilities_are_the_softmax() -> None:
    logits = np.array([[1.0, 3.0], [0.0, 0.0]])
    assert probabilities(logits)[0, 1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert probabilities(logits, 2.0)[0, 1] == pytest.approx(1 / (1 + math.exp(-1)))
    with pytest.raises(MetricError, match="above 0, got 0"):
        probabilities(logits, 0)


def test_the_temperature_has_the_lowest_cross_entropy_and_changes_no_answer() -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, 500)
    logits = 4 * (np.eye(3)[labels] + chance.normal(size=(500, 3)))  # far too sure
    temperature = fit_temperature(labels, logits)
    inverse = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)  # 1 / T: the loss is convex in it
    solver = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(inverse * torch.from_numpy(logits), torch.from_numpy(labels))
        loss.backward()
        return loss

    solver.step(closure)
    assert temperature == pytest.approx(1 / inverse.item(), rel=1e-3)
    assert temperature > 2
    assert (probabilities(logits, temperature).argmax(axis=1) == logits.argmax(axis=1)).all()
    assert calibration_error(labels, probabilities(logits, temperature)) < calibration_error(
        labels, probabilities(logits)
    )
    with pytest.raises(MetricError, match="expected n labels"):
        fit_temperature([0, 1], logits)


def test_cross_entropy_is_torchs() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 3))
    labels = [0, 1, 2, 2, 1, 0]
    theirs = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(labels)).item()
    assert cross_entropy(labels, logits) == pytest.approx(theirs)


def test_the_best_threshold_separates_what_can_be_separated() -> None:
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9]) == pytest.approx(0.3)
    # both thresholds leave one mistake; the one nearer to 0.5 is taken
    labels, scores = [0, 1, 0, 1], [0.1, 0.3, 0.6, 0.9]
    tried = {t: metrics.f1_score(labels, np.array(scores) > t, average="macro") for t in (0.2, 0.45, 0.75)}
    assert tried[0.2] == tried[0.75] > tried[0.45]
    assert best_threshold(labels, scores) == pytest.approx(0.75)
    with pytest.raises(MetricError, match="all scores are equal"):
        best_threshold([0, 1], [0.5, 0.5])
