"""Do the annotators agree? Cohen's κ for two, Krippendorff's α for any number.

Both compare the disagreement that is there with the disagreement that chance alone would give:

    1 − observed disagreement / expected disagreement

so 1 is perfect agreement, 0 is what guessing gives, and below 0 is worse than guessing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from course_utils.errors import CourseError

LEVELS = ("nominal", "ordinal", "interval")


class AgreementError(CourseError, ValueError):
    """Agreement cannot be computed from these labels."""


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Cohen's κ (Cohen 1960): how far two annotators agree beyond chance.

    With p_o the share of texts on which they agree, and p_e the share that two people with the same habits would
    agree on by chance (for each class: the first one's share times the second one's, summed)::

        κ = (p_o − p_e) / (1 − p_e)

    Args:
        first, second: one label a text, from two people who labelled the same texts in the same order.

    Raises:
        AgreementError: the lists are empty or of different length, or both people gave one and the same label to
            every text. Then chance agrees fully as well, and κ is 0 / 0.
    """
    if len(first) != len(second) or len(first) == 0:
        raise AgreementError(f"expected two lists of one length, not empty; got {len(first)} and {len(second)}")
    n = len(first)
    agree = sum(a == b for a, b in zip(first, second, strict=True)) / n
    classes = set(first) | set(second)
    chance = sum(list(first).count(c) * list(second).count(c) for c in classes) / n**2
    if chance == 1:
        raise AgreementError("both gave the same label to every text, so κ is 0 / 0; choose texts that differ")
    return (agree - chance) / (1 - chance)


def krippendorff_alpha(ratings: Sequence[Sequence[float]], level: str = "interval") -> float:
    """Krippendorff's α (Krippendorff 2011): agreement of any number of annotators, with gaps.

    With n_uc how often text u was given the value c, m_u the ratings of text u, n_c how often c was given at all and
    n all ratings, and δ² the size of a disagreement::

        α = 1 − D_o / D_e
        D_o = 1/n Σ_u 1/(m_u − 1) Σ_c Σ_k n_uc n_uk δ²(c, k)       within the texts
        D_e = 1/(n (n − 1)) Σ_c Σ_k n_c n_k δ²(c, k)                over all texts

    Args:
        ratings: for each text, the values that it was given. Who gave them does not matter, and texts may have
            different numbers of ratings. A text with a single one says nothing about agreement and is left out.
        level: the size of a disagreement. "nominal": 1 if c ≠ k. "interval": (c − k)². "ordinal": squared number of
            ratings that lie between c and k, counting half of those at c and at k.

    Raises:
        AgreementError: unknown level, no text with two ratings, or only one value was ever given (α is 0 / 0).
    """
    if level not in LEVELS:
        raise AgreementError(f"there is no level {level!r}; choose one of {', '.join(LEVELS)}")
    texts = [list(votes) for votes in ratings if len(votes) > 1]
    values = sorted({value for votes in texts for value in votes})
    if len(values) < 2:
        raise AgreementError("expected texts with two or more ratings, and at least two different values among them")
    column = {value: position for position, value in enumerate(values)}
    counts = np.zeros((len(texts), len(values)))  # n_uc
    for row, votes in zip(counts, texts, strict=True):
        for value in votes:
            row[column[value]] += 1
    totals, sizes = counts.sum(0), counts.sum(1)  # n_c, m_u
    n = sizes.sum()
    squared = _squared_differences(np.array(values, dtype=float), totals, level)
    within = (((counts @ squared) * counts).sum(1) / (sizes - 1)).sum() / n
    over_all = totals @ squared @ totals / (n * (n - 1))
    return float(1 - within / over_all)


def _squared_differences(values: np.ndarray, totals: np.ndarray, level: str) -> np.ndarray:
    """δ²(c, k) for every pair of values."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # Ordinal: the middle of each value's place among all ratings in order.
    places = values if level == "interval" else np.cumsum(totals) - totals / 2
    difference: np.ndarray = places[:, None] - places[None, :]
    return difference**2
