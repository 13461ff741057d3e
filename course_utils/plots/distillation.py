"""Figures of the chapter on distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from course_utils.evaluation import results
from course_utils.evaluation.calibration import probabilities
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def softened(
    logits: Sequence[float] = (5.0, 3.0, -2.0), temperatures: Sequence[float] = (1.0, 2.0, 5.0, 20.0)
) -> Picture:
    """What a temperature does to the probabilities of three classes."""
    names = ("positive", "neutral", "negative")
    figure, axes = make_axes(6.8, 3.6)
    width, said = 0.8 / len(names), []
    shares = [probabilities(np.array([logits]), temperature)[0] for temperature in temperatures]
    for number, name in enumerate(names):
        places = [place + (number - 1) * width for place in range(len(temperatures))]
        drawn = axes.bar(places, [row[number] for row in shares], width, color=COLOURS[number], label=name)
        axes.bar_label(drawn, [f"{row[number]:.1%}" for row in shares], fontsize=8, padding=2)
    axes.set_xticks(range(len(temperatures)), [f"T = {temperature:g}" for temperature in temperatures])
    axes.set(ylabel="probability", ylim=(0, 1.05))
    axes.grid(axis="x", visible=False)
    percent_axis(axes)
    axes.legend(fontsize=9)
    for temperature, row in zip(temperatures, shares, strict=True):
        each = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, row, strict=True))
        said.append(f"T = {temperature:g}: {each}")
    return Picture(figure, f"Bar chart of three probabilities at four temperatures. {'; '.join(said)}.")


def students(keys: Sequence[str] = ("labels", "soft", "both", "hidden", "attention", "inside")) -> Picture:
    """Test accuracy of each seed and their mean, for a few ways to teach a student; the teacher as a line."""
    stored = results.read("distillation")
    figure, axes = make_axes(7.2, 0.45 * len(keys) + 1.5)
    said = []
    for place, key in enumerate(reversed(keys)):
        row = stored["arms"][key]
        mine = [run["accuracy"] for run in stored["runs"] if run["arm"] == key]
        mean = row["accuracy"]["mean"]
        axes.plot(mine, [place] * len(mine), "o", color=COLOURS[0], alpha=0.7)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2)
        said.append(f"{row['title']} {mean:.1%} ({', '.join(f'{accuracy:.1%}' for accuracy in mine)})")
    teacher = stored["teacher"]["accuracy"]["mean"]
    axes.axvline(teacher, color="black", linestyle="-", label=f"teacher {teacher:.1%}")
    axes.axvline(0.97 * teacher, color="grey", linestyle="--", label="97% of it")
    axes.plot([], [], "o", color=COLOURS[0], label="one seed")
    axes.plot([], [], color=COLOURS[1], label="mean")
    axes.set_yticks(range(len(keys)), [stored["arms"][key]["title"] for key in reversed(keys)])
    axes.set(xlabel="test accuracy")
    percent_axis(axes, "x")
    figure.legend(fontsize=9, loc="outside lower center", ncols=4, frameon=False)
    said.reverse()
    return Picture(
        figure,
        f"Dots for the seeds and a line for their mean. {'; '.join(said)}. The teacher has {teacher:.1%}, and 97% of "
        f"that is {0.97 * teacher:.1%}.",
    )


def speed_and_accuracy() -> Picture:
    """Accuracy of teacher and students against the time that one tweet takes."""
    stored = results.read("distillation")
    points = {
        "teacher": stored["teacher"]["accuracy"]["mean"],
        "three": stored["arms"]["three"]["accuracy"]["mean"],
        "two": stored["arms"]["soft"]["accuracy"]["mean"],
        "tiny": stored["arms"]["tiny_soft"]["accuracy"]["mean"],
    }
    figure, axes = make_axes(6.6, 3.8)
    said = []
    for (key, accuracy), colour, marker in zip(points.items(), COLOURS, "so^D", strict=False):
        row = stored["speed"][key]
        title = f"{row['title']}, {row['parameters'] / 1e6:.1f} million weights"
        axes.plot(row["batch_ms"], accuracy, marker, markersize=9, color=colour, label=title)
        said.append(f"{title}: {accuracy:.1%} in {row['batch_ms']:.1f} ms")
    axes.set(xlabel="milliseconds a tweet, in batches of 32, on one processor core", ylabel="test accuracy")
    axes.set_xlim(0, None)
    axes.margins(y=0.25)
    percent_axis(axes)
    axes.legend(fontsize=9, loc="lower right")
    return Picture(figure, f"Scatter chart of test accuracy against milliseconds a tweet. {'; '.join(said)}.")
