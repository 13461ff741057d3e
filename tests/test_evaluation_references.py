"""What the course teaches of evaluation by hand equals the well-kept libraries: random cases, and the edges.

The numbers are computed in float64 on both sides, by other formulas; `EXACT` is a few thousand roundings of it.
"""

from __future__ import annotations

import math
from typing import Any

import krippendorff
import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn import calibration, metrics
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from course_utils.evaluation.agreement import AgreementError, cohen_kappa, krippendorff_alpha
from course_utils.evaluation.calibration import (
    calibration_error,
    cross_entropy,
    fit_temperature,
    probabilities,
    reliability,
)
from course_utils.evaluation.intervals import accuracy_interval, bootstrap_interval, disagreements, mcnemar
from course_utils.evaluation.many_methods import holm, mean_interval, paired_difference
from course_utils.evaluation.metrics import class_scores, confusion, f1_average, score

EXACT: dict[str, Any] = {"rel": 1e-12, "abs": 1e-12}
SEEDS = range(20)


def labels_and_logits(seed: int, classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and logits (n, classes): 1 to 60 texts, sometimes of one class only, often with ties."""
    chance = np.random.default_rng(seed)
    n, classes = int(chance.integers(1, 61)), classes or int(chance.integers(2, 6))
    labels = chance.integers(0, chance.integers(1, classes + 1), n)
    logits = 3 * chance.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]
    return labels, logits.round(int(chance.integers(0, 3)))


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_are_scikit_learns(seed: int) -> None:
    labels, logits = labels_and_logits(seed)
    predicted = logits.argmax(axis=1)
    found = score(labels, logits)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted), **EXACT)
    assert found.f1_macro == pytest.approx(metrics.f1_score(labels, predicted, average="macro"), **EXACT)
    table = metrics.confusion_matrix(labels, predicted)
    # scikit-learn leaves out a class that occurs nowhere; ours counts from class 0 on.
    used = np.union1d(labels, predicted)
    assert (confusion(labels, predicted)[np.ix_(used, used)] == table).all() and confusion(
        labels, predicted
    ).sum() == table.sum()
    theirs = np.array(metrics.precision_recall_fscore_support(labels, predicted, zero_division=0))
    ours = np.array([[row.precision, row.recall, row.f1, row.n] for row in class_scores(labels, predicted)]).T
    assert ours[:, used] == pytest.approx(theirs, **EXACT)
    for average in ("micro", "macro", "weighted"):
        expected = metrics.f1_score(labels, predicted, average=average, zero_division=0)
        assert f1_average(labels, predicted, average) == pytest.approx(expected, **EXACT), average


@pytest.mark.parametrize("seed", SEEDS)
def test_roc_auc_is_the_mann_whitney_statistic(seed: int) -> None:
    """scikit-learn computes it inside of `score`; scipy counts the pairs that the positive wins, ties as halves."""
    labels, logits = labels_and_logits(seed, classes=2)
    margin = logits[:, 1] - logits[:, 0]
    found = score(labels, logits).roc_auc
    if len(np.unique(labels)) < 2:
        assert found is None
        return
    wins = stats.mannwhitneyu(margin[labels == 1], margin[labels == 0]).statistic
    assert found == pytest.approx(wins / ((labels == 1).sum() * (labels == 0).sum()), **EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_log_loss_and_softmax_are_scikit_learns_and_scipys(seed: int) -> None:
    labels, logits = labels_and_logits(seed)
    classes = np.arange(logits.shape[1])
    probability = special.softmax(logits, axis=1)
    assert probabilities(logits) == pytest.approx(probability, **EXACT)
    # scikit-learn clips at 2.2e-16, which these logits do not reach.
    assert probability.min() > 1e-15
    assert cross_entropy(labels, logits) == pytest.approx(
        metrics.log_loss(labels, probability, labels=classes), rel=1e-9, abs=1e-12
    )


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bins_are_scikit_learns_and_the_error_is_their_weighted_distance(seed: int) -> None:
    labels, logits = labels_and_logits(seed)
    probability = probabilities(logits + np.random.default_rng(seed).normal(size=logits.shape))  # none on a border
    right = (probability.argmax(axis=1) == labels).astype(int)
    confidence = probability.max(axis=1)
    bins = reliability(labels, probability)
    shares, means = calibration.calibration_curve(right, confidence, n_bins=10, pos_label=1)
    assert [row.accuracy for row in bins] == pytest.approx(shares.tolist(), **EXACT)
    assert [row.confidence for row in bins] == pytest.approx(means.tolist(), **EXACT)
    counts, _ = np.histogram(confidence, np.linspace(0, 1, 11))
    assert [row.n for row in bins] == counts[counts > 0].tolist()
    weights = counts[counts > 0] / len(labels)
    assert calibration_error(labels, probability) == pytest.approx((weights * np.abs(shares - means)).sum(), **EXACT)


@pytest.mark.parametrize("seed", range(8))
def test_the_temperature_is_where_scipy_finds_the_lowest_loss(seed: int) -> None:
    chance = np.random.default_rng(seed)
    classes = int(chance.integers(2, 5))
    labels = chance.integers(0, classes, 300)
    logits = chance.uniform(0.5, 6) * (np.eye(classes)[labels] + chance.normal(size=(300, classes)))

    def loss(inverse: np.ndarray) -> float:  # convex in 1 / T
        return float(metrics.log_loss(labels, special.softmax(inverse[0] * logits, axis=1)))

    found = optimize.minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14})
    assert fit_temperature(labels, logits) == pytest.approx(1 / found.x[0], rel=1e-4)


def test_a_temperature_without_a_lowest_loss_ends_at_the_border() -> None:
    separated = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert fit_temperature([0, 1], separated) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature([1, 0], separated) == pytest.approx(20, rel=1e-3)  # always wrong: as unsure as can be


# --- intervals and tests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 10, 872, 100_000])
def test_the_interval_of_an_accuracy_is_statsmodels_wilson(n: int, confidence: float) -> None:
    for correct in sorted({0, 1, n // 2, n - 1, n}):
        theirs = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
        assert accuracy_interval(correct, n, confidence) == pytest.approx(theirs, rel=1e-9, abs=1e-12), correct


@pytest.mark.parametrize("seed", SEEDS)
def test_mcnemar_is_statsmodels_exact_test(seed: int) -> None:
    chance = np.random.default_rng(seed)
    n = int(chance.integers(1, 80))
    labels = chance.integers(0, 3, n)
    first, second = (np.where(chance.random(n) < chance.random(), labels, chance.integers(0, 3, n)) for _ in range(2))
    right = [first == labels, second == labels]
    table = np.array([[(a & b).sum() for b in (right[1], ~right[1])] for a in (right[0], ~right[0])])
    assert disagreements(labels.tolist(), first.tolist(), second.tolist()) == (table[0, 1], table[1, 0])
    expected = float(statsmodels_mcnemar(table, exact=True).pvalue) if table[0, 1] + table[1, 0] else 1.0
    found = mcnemar(labels.tolist(), first.tolist(), second.tolist())
    assert found == pytest.approx(min(expected, 1.0), rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_holm_is_statsmodels(seed: int) -> None:
    chance = np.random.default_rng(seed)
    p = (chance.random(int(chance.integers(1, 13))) ** 3).round(2)  # rounded: ties, zeros and ones
    _, theirs, _, _ = multipletests(p, method="holm")
    ours = holm({str(k): float(value) for k, value in enumerate(p)})
    assert list(ours.values()) == pytest.approx(theirs.tolist(), **EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_interval_of_a_mean_is_statsmodels(seed: int) -> None:
    chance = np.random.default_rng(seed)
    values = chance.normal(0.9, 0.01, int(chance.integers(2, 9)))
    for confidence in (0.8, 0.95):
        theirs = DescrStatsW(values).tconfint_mean(alpha=1 - confidence)
        assert mean_interval(values.tolist(), confidence) == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_difference_of_pairs_is_statsmodels(seed: int) -> None:
    chance = np.random.default_rng(seed)
    first, second = chance.normal(0.9, 0.01, (2, int(chance.integers(2, 9))))
    found, theirs = paired_difference(first.tolist(), second.tolist()), DescrStatsW(first - second)
    assert found.mean == pytest.approx(theirs.mean, rel=1e-10)
    assert (found.low, found.high) == pytest.approx(theirs.tconfint_mean(), rel=1e-10)
    assert found.p == pytest.approx(theirs.ttest_mean(0)[1], rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_bootstrap_has_scipys_distribution(seed: int) -> None:
    """Other draws, so the ends agree as far as draws let them: each within five standard errors of a quantile.

    The standard error of the q-quantile of B draws is √(q (1 − q) / B) / f, with f the density there: here that of a
    normal distribution as wide as scipy reports.
    """
    chance, repeats, share = np.random.default_rng(seed), 2000, 0.025
    columns = chance.normal(size=(2, 80)) + np.array([[0.0], [0.5]])

    def statistic(a: Any, b: Any, axis: int = -1) -> Any:
        return (a * b).mean(axis=axis) - a.mean(axis=axis)

    theirs = stats.bootstrap(tuple(columns), statistic, paired=True, method="percentile", n_resamples=repeats, rng=seed)
    low, high = bootstrap_interval(lambda a, b: float(statistic(a, b)), *columns, repeats=repeats, seed=seed)
    density = stats.norm.pdf(stats.norm.ppf(share)) / theirs.standard_error
    gate = 5 * math.sqrt(2 * share * (1 - share) / repeats) / density
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=gate)
    assert gate < 0.2 * (high - low)  # so narrow that a wrong quantile, or unpaired draws, would show


def test_the_bootstrap_of_one_text_has_no_width() -> None:
    assert bootstrap_interval(lambda a: float(a.mean()), [0.25], repeats=50) == (0.25, 0.25)


# --- agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_kappa_is_scikit_learns(seed: int) -> None:
    chance = np.random.default_rng(seed)
    n, classes = int(chance.integers(1, 40)), int(chance.integers(1, 5))
    first = chance.integers(0, classes, n)
    second = np.where(chance.random(n) < 0.6, first, chance.integers(0, classes, n))
    if len(np.union1d(first, second)) == 1:  # 0 / 0: scikit-learn says nan, with a warning
        with pytest.raises(AgreementError, match="0 / 0"):
            cohen_kappa(first.tolist(), second.tolist())
        return
    expected = metrics.cohen_kappa_score(first, second)
    assert cohen_kappa(first.tolist(), second.tolist()) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", SEEDS)
def test_alpha_is_krippendorffs_own_with_gaps(seed: int, level: Any) -> None:
    chance = np.random.default_rng(seed)
    annotators, texts, values = (int(chance.integers(low, high)) for low, high in ((2, 6), (2, 30), (2, 6)))
    truth = chance.integers(1, values + 1, texts)
    noisy = np.where(
        chance.random((annotators, texts)) < 0.6, truth, chance.integers(1, values + 1, (annotators, texts))
    )
    table = np.where(chance.random((annotators, texts)) < 0.25, np.nan, noisy.astype(float))
    ratings = [column[~np.isnan(column)].tolist() for column in table.T]
    compared = [vote for votes in ratings if len(votes) > 1 for vote in votes]
    if len(set(compared)) < 2:
        with pytest.raises(AgreementError, match="two different values"):
            krippendorff_alpha(ratings, level)
        return
    # A text with one rating is compared with nothing. Ordinal distances must not count it either, so it is left out.
    kept = np.where((~np.isnan(table)).sum(axis=0) > 1, table, np.nan)
    expected = krippendorff.alpha(reliability_data=kept, level_of_measurement=level)
    assert krippendorff_alpha(ratings, level) == pytest.approx(expected, **EXACT)


def test_alpha_of_full_agreement_is_one_at_every_level() -> None:
    table = np.array([[1.0, 2, 3, 5], [1, 2, 3, 5]])
    for level in ("nominal", "ordinal", "interval"):
        assert krippendorff.alpha(reliability_data=table, level_of_measurement=level) == 1
        assert krippendorff_alpha(table.T.tolist(), level) == 1
