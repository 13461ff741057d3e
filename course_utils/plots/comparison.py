"""Figures of the chapter that compares all methods."""

from __future__ import annotations

from course_utils.evaluation import results
from course_utils.plots.quality import accuracy_against_prices
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def parameters_and_memory() -> Picture:
    """Accuracy against trained parameters, and against the memory of a training."""
    return _prices("trainable", "memory_mb")


def time_and_storage() -> Picture:
    """Accuracy against the time of a training step, and against the size of a checkpoint."""
    return _prices("step_ms", "checkpoint_kb")


_LABELS = {
    "trainable": "trained parameters, head included",
    "memory_mb": "megabytes of memory at the peak",
    "step_ms": "milliseconds of a training step",
    "checkpoint_kb": "kilobytes of a checkpoint",
}


def _prices(*names: str) -> Picture:
    methods = results.read("comparison")["methods"]
    return accuracy_against_prices(
        methods, {_LABELS[name]: {key: row[name] for key, row in methods.items()} for name in names}
    )


def two_kinds_of_luck() -> Picture:
    """Each method's seeds as dots, and the 95% interval of its mean for the luck of the texts."""
    methods = results.read("comparison")["methods"]
    rows = sorted(methods.values(), key=lambda row: row["accuracy"]["mean"])
    figure, axes = make_axes(7.6, 0.32 * len(rows) + 1.4)
    said = []
    for place, row in enumerate(rows):
        mean, low, high = (row["accuracy"][part] for part in ("mean", "low", "high"))
        axes.plot([low, high], [place, place], color="grey", linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(row["seeds"], [place] * len(row["seeds"]), "o", color=COLOURS[0], alpha=0.6, markersize=5)
        axes.plot([mean, mean], [place - 0.32, place + 0.32], color=COLOURS[1], linewidth=2)
        said.append(
            f"{row['title']} {mean:.1%}, texts {low:.1%} to {high:.1%}, "
            f"seeds {min(row['seeds']):.1%} to {max(row['seeds']):.1%}"
        )
    axes.plot([], [], color="grey", linewidth=5, alpha=0.35, label="95% interval: other texts")
    axes.plot([], [], "o", color=COLOURS[0], label="one seed")
    axes.plot([], [], color=COLOURS[1], linewidth=2, label="mean of the seeds")
    axes.set(xlabel="test accuracy")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    percent_axis(axes, "x")
    figure.legend(fontsize=9, loc="outside upper center", ncols=3, frameon=False)
    said.reverse()
    return Picture(
        figure, f"One row a method, the best on top: a bar for the texts, dots for the seeds. {'; '.join(said)}."
    )


#: A difference below this is written at the edge of the chart.
_FAR = -0.08


def differences() -> Picture:
    """Each method minus full fine-tuning over the seeds, with the 95% interval and Holm's verdict."""
    stored = results.read("comparison")
    rows = list(stored["differences"].values())
    figure, axes = make_axes(7.6, 0.32 * len(rows) + 1.4)
    said = []
    for place, row in enumerate(rows):
        found = row["p_holm"] <= 0.05
        colour, marker = (COLOURS[1], "s") if found else (COLOURS[0], "o")
        spans = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar(row["mean"], place, xerr=spans, fmt=marker, color=colour, capsize=3)
        if row["mean"] < _FAR:  # off the chart: the others would be squeezed together
            text = f"◂ {100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
            axes.annotate(text, (_FAR, place), color=colour, fontsize=9, va="center")
        verdict = "shown" if found else "not shown"
        said.append(f"{row['title']} {100 * row['mean']:+.1f} points, {verdict}")
    axes.axvline(0, color="grey", linestyle="--")
    axes.plot([], [], "s", color=COLOURS[1], label="a difference, by Holm's correction")
    axes.plot([], [], "o", color=COLOURS[0], label="no difference shown")
    axes.set(xlabel="points of accuracy more than full fine-tuning", xlim=(_FAR, None))
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+g}")
    figure.legend(fontsize=9, loc="outside upper center", ncols=2, frameon=False)
    return Picture(
        figure,
        f"One row a method: its mean difference from full fine-tuning over {stored['seeds']} seeds, with the 95% "
        f"interval. {'; '.join(said)}.",
    )
