"""Figures of the chapter on choosing a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from course_utils import results
from course_utils.plots.base import COLOURS, Picture, make_axes, percent_axis
from course_utils.plots.map_of_peft import FAMILIES


def front(rows: Mapping[str, tuple[float, float]]) -> list[str]:
    """The rows that no other row beats, the cheapest first.

    One row beats another if its value is no lower, its price is no higher, and one of the two is better.

    Args:
        rows: name → (value, price), such as (accuracy, trained parameters).
    """
    unbeaten = [
        name
        for name, (value, price) in rows.items()
        if not any(v >= value and p <= price and (v, p) != (value, price) for v, p in rows.values())
    ]
    return sorted(unbeaten, key=lambda name: rows[name][1])


def pareto() -> Picture:
    """The study's methods: test accuracy against trained parameters, and against the size of a checkpoint."""
    methods = results.read("quality")["methods"]
    sizes = {key: row["storage"]["checkpoint_kb"] for key, row in results.read("bench")["methods"].items()}
    families = {key: family for family, keys in FAMILIES.items() for key in keys if key in methods}
    prices = (
        ("trained parameters, head included", {key: methods[key]["trainable"] for key in families}),
        ("kilobytes of a checkpoint", {key: sizes[key] for key in families if key in sizes}),
    )
    styles = dict(zip(FAMILIES, zip(("#000000", *COLOURS), "xs^vo", strict=False), strict=True))
    figure, both = make_axes(9.6, 5.0, columns=2)
    said = []
    for axes, (label, price) in zip(both, prices, strict=True):
        said.append(_scatter(axes, methods, price, {key: styles[families[key]] for key in price}))
        axes.set(xscale="log", xlabel=label)
        axes.margins(x=0.14)
        percent_axis(axes)
    best = max((methods[key] for key in families), key=lambda row: row["accuracy"]["mean"])
    low, high = best["accuracy"]["low"], best["accuracy"]["high"]
    for axes in both:
        axes.axhspan(low, high, color="grey", alpha=0.15, linewidth=0, label="95% interval of the best")
        axes.set_ylim(min(methods[key]["accuracy"]["mean"] for key in families) - 0.02, high + 0.01)
    both[0].set_ylabel("test accuracy, mean of three seeds")
    for family, (colour, marker) in styles.items():
        both[0].plot([], [], marker, color=colour, label=family)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return Picture(
        figure,
        "Two scatter charts. Test accuracy against trained parameters; "
        f"{said[0]}. Accuracy against kilobytes of a checkpoint; {said[1]}. "
        f"A band marks the 95% interval of {best['title']}, {low:.1%} to {high:.1%}.",
    )


def _scatter(
    axes: Any, methods: Mapping[str, Any], price: Mapping[str, float], styles: Mapping[str, tuple[str, str]]
) -> str:
    """Draw the methods and the line of the unbeaten ones; the sentence for the alternative text."""
    points = {key: (float(methods[key]["accuracy"]["mean"]), float(cost)) for key, cost in price.items()}
    for key, (accuracy, cost) in points.items():
        colour, marker = styles[key]
        axes.plot(cost, accuracy, marker, color=colour, markersize=8)
    unbeaten = front(points)
    axes.step([points[key][1] for key in unbeaten], [points[key][0] for key in unbeaten], where="post", **_LINE)
    for number, key in enumerate(unbeaten, start=1):
        accuracy, cost = points[key]
        # Numbers stand above and below in turn, because the best methods lie close together.
        offset = (0, 8) if number % 2 else (0, -16)
        axes.annotate(str(number), (cost, accuracy), offset, textcoords="offset points", fontsize=9, ha="center")
    names = "\n".join(f"{number} {methods[key]['title']}" for number, key in enumerate(unbeaten, start=1))
    axes.text(0.98, 0.74, f"not beaten:\n{names}", transform=axes.transAxes, fontsize=9, ha="right", va="top")
    listed = ", ".join(f"{methods[key]['title']} ({points[key][0]:.1%}, {points[key][1]:,.0f})" for key in unbeaten)
    beaten = ", ".join(
        f"{methods[key]['title']} ({accuracy:.1%}, {cost:,.0f})"
        for key, (accuracy, cost) in points.items()
        if key not in unbeaten
    )
    return f"not beaten, from the cheapest on: {listed}; beaten: {beaten or 'none'}"


_LINE: dict[str, Any] = {"color": "grey", "linestyle": "--", "linewidth": 1, "label": "joins what no other beats"}


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
