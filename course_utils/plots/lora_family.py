"""Figures of the chapter on the LoRA family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, hypot, pi, sin

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def accuracies(keys: Sequence[str] = ("lora", "lora_plus", "dora", "pissa", "adalora", "vera")) -> Picture:
    """Test accuracy of each method with its 95% interval, and the first one's interval as a band."""
    methods = results.read("quality")["methods"]
    figure, axes = make_axes(6.8, 0.45 * len(keys) + 1.2)
    said = []
    for height, key in enumerate(reversed(keys)):
        title, accuracy = methods[key]["title"], methods[key]["accuracy"]
        mean, low, high = (accuracy[part] for part in ("mean", "low", "high"))
        axes.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt="o", capsize=4, color=COLOURS[0])
        axes.plot(methods[key]["seeds"], [height] * len(methods[key]["seeds"]), "|", markersize=9, color=COLOURS[1])
        said.append(f"{title} {mean:.1%} ({low:.1%} to {high:.1%})")
    first = methods[keys[0]]["accuracy"]
    axes.axvspan(first["low"], first["high"], color=COLOURS[0], alpha=0.12, linewidth=0)
    axes.set_yticks(range(len(keys)), [methods[key]["title"] for key in reversed(keys)])
    axes.set(xlabel="test accuracy (small strokes: the single seeds)", ylim=(-0.6, len(keys) - 0.4))
    axes.grid(axis="y", visible=False)
    percent_axis(axes, "x")
    overlap = max(methods[key]["accuracy"]["low"] for key in keys) <= min(
        methods[key]["accuracy"]["high"] for key in keys
    )
    return Picture(
        figure,
        f"Test accuracies with 95% intervals: {', '.join(reversed(said))}. "
        f"{'All' if overlap else 'Not all'} intervals overlap each other.",
    )


def length_and_direction(row: tuple[float, float] = (0.0, 1.0), update: tuple[float, float] = (0.8, 0.4)) -> Picture:
    """One row of a weight as an arrow: before, after LoRA's update, and after DoRA's with m at its start.

    Args:
        row: of W.
        update: that row of s · B A.
    """
    length = hypot(*row)
    added = (row[0] + update[0], row[1] + update[1])
    turned = tuple(length * part / hypot(*added) for part in added)
    figure, axes = make_axes(7.0, 3.8)
    angles = [pi * step / 200 for step in range(101)]
    axes.plot(
        [length * cos(a) for a in angles], [length * sin(a) for a in angles], "--", color="grey", label="length m"
    )
    for colour, (label, end) in zip(
        COLOURS,
        (("row of W", row), ("LoRA: W + s·BA", added), ("DoRA: the same direction, length m", turned)),
        strict=False,
    ):
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 2.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=end, xytext=(0, 0), arrowprops=arrow)
        axes.plot([], [], color=colour, linewidth=2.5, label=label)
    axes.set(xlim=(-0.05, 1.2), ylim=(0, 1.5), aspect="equal", xlabel="first input", ylabel="second input")
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return Picture(
        figure,
        f"Three arrows from the origin. The row of W ends at {_point(row)}. With LoRA's update it ends at "
        f"{_point(added)}, longer and turned. With DoRA it ends at {_point(turned)}: turned as with LoRA, but as long "
        "as before.",
    )


def by_layer(lines: Mapping[str, Sequence[float]], label: str, *, percent: bool = False) -> Picture:
    """One number for each layer of the model, one line a kind of matrix.

    Args:
        lines: kind of matrix → its number in each layer.
        label: what the numbers are.
        percent: whether they are shares.
    """
    figure, axes = make_axes(6.4, 3.6)
    for colour, marker, (kind, values) in zip(COLOURS, "so^Dv", lines.items(), strict=False):
        axes.plot(range(1, len(values) + 1), values, marker=marker, color=colour, label=kind)
    axes.set(xlabel="layer", ylabel=label, ylim=(0, None))
    axes.set_xticks(range(1, 1 + max(map(len, lines.values()))))
    axes.legend(fontsize=9)
    if percent:
        percent_axis(axes)
    form = ".1%" if percent else "g"
    said = "; ".join(f"{kind}: {', '.join(format(value, form) for value in values)}" for kind, values in lines.items())
    return Picture(figure, f"Line chart of {label}, by layer. {said}.")


def _point(end: Sequence[float]) -> str:
    return f"({end[0]:.2f}, {end[1]:.2f})"
