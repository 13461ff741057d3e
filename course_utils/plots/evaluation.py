"""Figures of the chapter on evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from course_utils.evaluation import results
from course_utils.evaluation.intervals import accuracy_interval
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def reliability_diagram(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Accuracy against confidence, one panel a model, with Wilson's 95% interval of each bin.

    Args:
        models: title → bins, each with `n`, `confidence` and `accuracy`, as `metrics.reliability` returns them.
    """
    figure, panels = make_axes(4.4 * len(models), 4.2, columns=len(models))
    said = []
    for axes, (title, bins) in zip(np.atleast_1d(panels), models.items(), strict=True):
        axes.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", label="as sure as it is right")
        for row in bins:
            low, high = accuracy_interval(round(row["accuracy"] * row["n"]), row["n"])
            axes.vlines(row["confidence"], low, high, color=COLOURS[0], alpha=0.6)
            axes.annotate(
                str(row["n"]), (row["confidence"], low), (0, -12), textcoords="offset points", ha="center", size=9
            )
        confidence, accuracy = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
        axes.plot(confidence, accuracy, "o-", color=COLOURS[0], label="measured")
        axes.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0.48, 1.02), ylim=(0, 1.04))
        for which in ("x", "y"):
            percent_axis(axes, which)
        axes.legend(loc="lower right", fontsize=9)
        steps = ", ".join(
            f"{row['accuracy']:.0%} right at {row['confidence']:.0%} confidence ({row['n']} texts)" for row in bins
        )
        said.append(f"{title}: {steps}")
    return Picture(figure, f"Reliability diagrams, accuracy against confidence. {'. '.join(said)}.")


def calibration() -> Picture:
    """Head only with the smaller learning rate, before and after temperature scaling, and LoRA."""
    models = results.read("evaluation")["models"]
    slow, lora = models["head_only_slow"], models["lora"]
    return reliability_diagram(
        {
            "head only, smaller rate": slow["calibration"]["before"]["bins"],
            f"the same, T = {slow['temperature']:.2f}": slow["calibration"]["after"]["bins"],
            "LoRA": lora["calibration"]["before"]["bins"],
        }
    )


def roc_curves() -> Picture:
    """The ROC curves on the test split, from scores; the point that the answers give stands on each curve."""
    from sklearn.metrics import roc_curve

    stored = results.read("evaluation")
    labels = np.array(stored["labels"]["test"])
    figure, axes = make_axes(5.4, 4.6)
    said = []
    for colour, name in zip(COLOURS, ("lora", "head_only", "words"), strict=False):
        row, logits = stored["models"][name], np.array(stored["logits"][name]["test"])
        false_alarms, found, _ = roc_curve(labels, logits[:, 1] - logits[:, 0])
        area = row["roc_auc"]["scores"]
        axes.plot(false_alarms, found, color=colour, label=f"{row['title']}, area {area:.3f}")
        negative, positive = row["classes"]
        axes.plot(1 - negative["recall"], positive["recall"], "o", color=colour)
        said.append(f"{row['title']} has an area of {area:.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="guessing, area 0.5")
    axes.set(xlabel="negative tweets called positive", ylabel="positive tweets found")
    for which in ("x", "y"):
        percent_axis(axes, which)
    axes.legend(loc="lower right", fontsize=9)
    return Picture(figure, f"ROC curves, all above the diagonal of guessing: {'; '.join(said)}.")
