"""Figures of the chapter on choosing a method."""

from __future__ import annotations

import math
from collections.abc import Sequence

from course_utils.evaluation import results
from course_utils.evaluation.many_methods import front
from course_utils.plots.quality import accuracy_against_prices
from course_utils.plots.style import COLOURS, Picture, make_axes

__all__ = ["front", "pareto", "smallest_difference"]


def pareto() -> Picture:
    """The study's methods: test accuracy against trained parameters, and against the size of a checkpoint."""
    methods = results.read("quality")["methods"]
    sizes = {key: row["storage"]["checkpoint_kb"] for key, row in results.read("bench")["methods"].items()}
    prices = {
        "trained parameters, head included": {key: row["trainable"] for key, row in methods.items()},
        "kilobytes of a checkpoint": sizes,
    }
    return accuracy_against_prices(methods, prices)


def smallest_difference(
    accuracy: float = 0.95, sizes: Sequence[int] = (100, 338, 843, 3000, 10_000, 30_000)
) -> Picture:
    """The smallest difference that a test shows in 80% of cases, against its number of texts.

    Two models with mistakes of their own, the better one with this accuracy (computed, by the chapter's formula).
    """
    found = {n: _difference(accuracy, n) for n in sizes}
    line = [10 ** (2 + 2.6 * step / 60) for step in range(61)]
    figure, axes = make_axes(6.4, 3.6)
    axes.plot(line, [_difference(accuracy, n) for n in line], color=COLOURS[0])
    axes.plot(list(found), list(found.values()), "o", color=COLOURS[0])
    for n, difference in found.items():
        axes.annotate(f"{100 * difference:.1f}", (n, difference), (4, 5), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="texts in the test", ylabel="difference in points", ylim=(0, None))
    axes.set_xticks(list(sizes), [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    said = ", ".join(f"{100 * difference:.1f} points with {n:,} texts" for n, difference in found.items())
    return Picture(figure, f"Falling line: the smallest difference that a test shows in 80% of cases is {said}.")


def _difference(accuracy: float, n: float) -> float:
    """Solve n = (1.96 + 0.84)² (p (1 − p) + q (1 − q)) / (p − q)² for p − q, where p is given and q is lower."""
    difference = 0.0
    for _ in range(100):  # each round takes q's variance at the last difference; it settles quickly
        lower = accuracy - difference
        variance = accuracy * (1 - accuracy) + lower * (1 - lower)
        difference = (1.96 + 0.84) * math.sqrt(variance / n)
    return difference
