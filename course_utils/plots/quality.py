"""Figures of the study: what the methods reach on the tweets."""

from __future__ import annotations

from collections.abc import Sequence

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


def accuracy_against_parameters(keys: Sequence[str], *, floor: str = "majority") -> Picture:
    """Test accuracy with its 95% interval against the number of trained parameters, for a few methods.

    Args:
        keys: methods of the study.
        floor: the dashed line: "majority" for the majority class, or a method of the study.
    """
    quality = results.read("quality")
    figure, axes = make_axes(6.8, 4.0)
    said = []
    for colour, marker, key in zip(COLOURS, "so^DvPX", keys, strict=False):
        row = quality["methods"][key]
        mean, low, high = (row["accuracy"][part] for part in ("mean", "low", "high"))
        spans = [[mean - low], [high - mean]]
        style = {"fmt": marker, "markersize": 8, "capsize": 4, "color": colour, "label": row["title"]}
        axes.errorbar(row["trainable"], mean, yerr=spans, **style)
        said.append(f"{row['title']} {mean:.1%} ({low:.1%} to {high:.1%}) with {row['trainable']:,}")
    if floor == "majority":
        title, height = "majority class", quality["baselines"]["majority"]
    else:
        title, height = quality["methods"][floor]["title"], quality["methods"][floor]["accuracy"]["mean"]
    axes.axhline(height, color="grey", linestyle="--", label=title)
    axes.set(xscale="log", xlabel="trained parameters, head included", ylabel="test accuracy")
    percent_axis(axes)
    axes.legend(fontsize=9, loc="center right")
    return Picture(
        figure,
        f"Scatter chart of test accuracy, with its 95% interval, against trained parameters: {'; '.join(said)}. "
        f"Dashed: {title}, {height:.1%}.",
    )


def losses_by_rate(keys: Sequence[str]) -> Picture:
    """Validation loss of each run at each learning rate: one dot a seed, a line through their means.

    Args:
        keys: methods of the large study.
    """
    quality = results.read("quality")
    figure, axes = make_axes(6.6, 3.8)
    said = []
    for colour, marker, key in zip(COLOURS, "so^Dv", keys, strict=False):
        losses: dict[float, list[float]] = {}
        for run in quality["runs"]:
            if run["method"] == key:
                losses.setdefault(run["learning_rate"], []).append(run["validation_loss"])
        title, tried = quality["methods"][key]["title"], sorted(losses)
        axes.plot(tried, [sum(losses[rate]) / len(losses[rate]) for rate in tried], color=colour)
        for rate in tried:
            axes.plot([rate] * len(losses[rate]), losses[rate], marker, color=colour, alpha=0.7)
        axes.plot([], [], marker, ls="-", color=colour, label=title)
        each = (f"{', '.join(f'{loss:.3f}' for loss in sorted(losses[rate]))} at {rate:g}" for rate in tried)
        said.append(f"{title}: {'; '.join(each)}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss", ylim=(0, None))
    axes.legend(fontsize=9)
    return Picture(figure, f"Chart of validation loss against learning rate, one dot a seed. {'. '.join(said)}.")


def seeds(keys: Sequence[str]) -> Picture:
    """Test accuracy of each seed, and of their mean, for a few methods of the study."""
    quality = results.read("quality")
    figure, axes = make_axes(6.8, 0.45 * len(keys) + 1.3)
    said = []
    for place, key in enumerate(reversed(keys)):
        row = quality["methods"][key]
        mean, accuracies = row["accuracy"]["mean"], row["seeds"]
        axes.plot(accuracies, [place] * len(accuracies), "o", color=COLOURS[0], alpha=0.7)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2)
        each = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
        said.append(f"{row['title']}: {each}, mean {mean:.1%}")
    majority = quality["baselines"]["majority"]
    axes.axvline(majority, color="grey", linestyle="--", label=f"majority class {majority:.1%}")
    axes.plot([], [], "o", color=COLOURS[0], label="one seed")
    axes.plot([], [], color=COLOURS[1], label="mean")
    axes.set(xlabel="test accuracy", xlim=(majority - 0.02, 1.0))
    axes.set_yticks(range(len(keys)), [quality["methods"][key]["title"] for key in reversed(keys)])
    percent_axis(axes, "x")
    figure.legend(fontsize=9, loc="outside lower center", ncols=3, frameon=False)
    said.reverse()
    return Picture(figure, f"Dots for the seeds and a line for their mean. {'; '.join(said)}. Dashed: {majority:.1%}.")
