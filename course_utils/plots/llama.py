"""Figures of the chapter on a Llama model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis

TRAINED = ("lora", "qlora", "prefix", "prompt")


def loss_curve(losses: Mapping[str, Sequence[float]]) -> Picture:
    """Training loss for each learnt token by step, one line a run.

    Args:
        losses: title → the loss of each step.
    """
    figure, axes = make_axes(6.4, 3.6)
    for (title, values), colour in zip(losses.items(), COLOURS, strict=False):
        axes.plot(range(1, len(values) + 1), _smooth(values), color=colour, label=title)
    axes.set(xlabel="step", ylabel="loss of a learnt token", ylim=(0, None))
    axes.legend(fontsize=9)
    said = "; ".join(
        f"{title} goes from {values[0]:.2f} to {_smooth(values)[-1]:.2f}" for title, values in losses.items()
    )
    return Picture(figure, f"Line chart of the training loss by step, smoothed. {said}.")


def curves() -> Picture:
    """The training loss of each method of the study."""
    runs = results.read("llama")["runs"]
    return loss_curve({runs[name]["title"]: runs[name]["losses"] for name in TRAINED})


def answers() -> Picture:
    """What share of the answers keeps the form, has the right sentiment, and is right, for each run."""
    content = results.read("llama")
    rows = list(content["runs"].values())[::-1]
    figure, axes = make_axes(7.6, 0.7 * len(rows) + 1.4)
    for offset, (key, label) in enumerate(
        (("readable", "keeps the form"), ("sentiment", "right sentiment"), ("exact", "right"))
    ):
        places = [position + 0.26 * (1 - offset) for position in range(len(rows))]
        shares = [row[key]["share"] for row in rows]
        errors = [
            [row[key]["share"] - row[key]["low"] for row in rows],
            [row[key]["high"] - row[key]["share"] for row in rows],
        ]
        axes.barh(places, shares, 0.24, xerr=errors, color=COLOURS[offset], label=label, error_kw={"lw": 0.8})
    guess = content["commonest"]
    axes.axvline(guess["exact"], color="grey", linestyle="--", label=f"always “{guess['answer']}”: right")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set(xlabel="share of the answers", xlim=(0, 1.02))
    axes.grid(axis="y", visible=False)
    percent_axis(axes, "x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=4, fontsize=9)
    said = "; ".join(
        f"{row['title']}: {row['readable']['share']:.0%} keep the form, {row['sentiment']['share']:.0%} have the right "
        f"sentiment, {row['exact']['share']:.0%} are right"
        for row in rows[::-1]
    )
    return Picture(figure, f"Bar chart of the answers of each run. {said}.")


def _smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """A running mean in which each older step counts less."""
    smooth, total, weights = [], 0.0, 0.0
    for value in values:
        total, weights = weight * total + value, weight * weights + 1
        smooth.append(total / weights)
    return smooth
