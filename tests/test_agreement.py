"""κ against scikit-learn and the page's arithmetic, α against Krippendorff's published example and by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from course_utils.evaluation.agreement import AgreementError, cohen_kappa, krippendorff_alpha

#: Krippendorff (2011), four observers and twelve units, with gaps (0).
PUBLISHED = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
    (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
)
UNITS = [[row[unit] for row in PUBLISHED if row[unit]] for unit in range(12)]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_kappa_is_that_of_scikit_learn(classes: int) -> None:
    chance = np.random.default_rng(classes)
    for _ in range(20):
        first = chance.integers(classes, size=40)
        second = np.where(chance.random(40) < 0.6, first, chance.integers(classes, size=40))
        assert cohen_kappa(first.tolist(), second.tolist()) == pytest.approx(cohen_kappa_score(first, second))


@pytest.mark.parametrize(
    ("table", "kappa"),
    [((5, 1, 1, 3), 0.28 / 0.48), ((8, 1, 1, 0), -0.02 / 0.18), ((5, 0, 0, 5), 1), ((1, 1, 1, 1), 0)],
)
def test_kappa_of_the_page(table: tuple[int, int, int, int], kappa: float) -> None:
    both, first_only, second_only, neither = table
    first = ["pos"] * (both + first_only) + ["neg"] * (second_only + neither)
    second = ["pos"] * both + ["neg"] * first_only + ["pos"] * second_only + ["neg"] * neither
    assert cohen_kappa(first, second) == pytest.approx(kappa)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level: str, alpha: float) -> None:
    assert krippendorff_alpha(UNITS, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_the_page() -> None:
    assert krippendorff_alpha([[1, 1], [-1, -1], [1, -1]], "nominal") == pytest.approx(4 / 9)


def _by_pairs(texts: Sequence[Sequence[float]]) -> float:
    """α for intervals from its definition, pair by pair."""
    every = [vote for votes in texts for vote in votes]
    n = len(every)
    within = sum(sum((one - other) ** 2 for one in votes for other in votes) / (len(votes) - 1) for votes in texts) / n
    across = sum((one - other) ** 2 for one in every for other in every) / (n * (n - 1))
    return 1 - within / across


def test_alpha_of_texts_with_different_numbers_of_ratings() -> None:
    chance = np.random.default_rng(0)
    texts = [chance.integers(-4, 5, size=size).tolist() for size in (2, 3, 7, 20, 5)]
    assert krippendorff_alpha(texts) == pytest.approx(_by_pairs(texts))
    # One rating alone says nothing about agreement.
    assert krippendorff_alpha([*texts, [4]]) == pytest.approx(_by_pairs(texts))


def test_perfect_and_systematic() -> None:
    assert krippendorff_alpha([[1, 1, 1], [4, 4]]) == 1
    assert krippendorff_alpha([[1, 2], [1, 2], [1, 2]]) < 0


def test_the_sizes_of_the_steps_count_for_intervals_only() -> None:
    texts = [[1, 1], [1, 2], [2, 3], [3, 3]]
    stretched = [[{1: 1, 2: 2, 3: 100}[vote] for vote in votes] for votes in texts]
    for level in ("nominal", "ordinal"):
        assert krippendorff_alpha(texts, level) == pytest.approx(krippendorff_alpha(stretched, level))
    assert krippendorff_alpha(texts) != pytest.approx(krippendorff_alpha(stretched))


def test_what_cannot_be_computed() -> None:
    with pytest.raises(AgreementError, match="one length, not empty; got 2 and 1"):
        cohen_kappa([1, 0], [1])
    with pytest.raises(AgreementError, match="not empty"):
        cohen_kappa([], [])
    with pytest.raises(AgreementError, match="same label to every text"):
        cohen_kappa([1, 1], [1, 1])
    with pytest.raises(AgreementError, match="no level 'ratio'"):
        krippendorff_alpha(UNITS, "ratio")
    for texts in ([], [[1], [2]], [[1, 1], [1, 1]]):
        with pytest.raises(AgreementError, match="two different values"):
            krippendorff_alpha(texts)
