"""Figures of the study: what the methods reach on the tweets."""

from __future__ import annotations

from course_utils import results
from course_utils.plots.base import COLOURS, Picture, bars, make_axes, percent_axis


def ways_to_a_classifier() -> Picture:
    """The study's test accuracies: baselines, from scratch, head only, LoRA and full fine-tuning."""
    quality = results.read("quality")
    values = {
        "always the majority class": quality["baselines"]["majority"],
        "from scratch": quality["methods"]["scratch"]["accuracy"]["mean"],
        "head only (feature extraction)": quality["methods"]["head_only"]["accuracy"]["mean"],
        "word counts (TF-IDF)": quality["baselines"]["tfidf"],
        "LoRA (PEFT)": quality["methods"]["lora"]["accuracy"]["mean"],
        "full fine-tuning": quality["methods"]["full"]["accuracy"]["mean"],
    }
    return bars(values, "test accuracy on the tweets", quality["baselines"]["majority"])


def accuracy_against_parameters() -> Picture:
    """The study's methods: test accuracy with its 95% interval against the number of trained parameters."""
    quality = results.read("quality")
    figure, axes = make_axes(6.8, 4.0)
    said = []
    for colour, (key, row) in zip(COLOURS, quality["methods"].items(), strict=False):
        if key == "scratch":
            continue
        accuracy = row["accuracy"]
        spans = [[accuracy["mean"] - accuracy["low"]], [accuracy["high"] - accuracy["mean"]]]
        axes.errorbar(
            row["trainable"],
            accuracy["mean"],
            yerr=spans,
            fmt="o",
            markersize=8,
            capsize=4,
            color=colour,
            label=row["title"],
        )
        said.append(f"{row['title']} reaches {accuracy['mean']:.1%} with {row['trainable']:,} trained parameters")
    axes.axhline(quality["baselines"]["majority"], color="grey", linestyle="--", label="majority class")
    axes.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy")
    percent_axis(axes)
    axes.legend(fontsize=9, loc="center right")
    return Picture(figure, f"Scatter chart of test accuracy against trained parameters: {'; '.join(said)}.")
