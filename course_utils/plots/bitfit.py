"""Figures of the chapter on BitFit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from course_utils import results
from course_utils.plots.base import COLOURS, Picture, make_axes, percent_axis


def selective(keys: Sequence[str] = ("head_only", "bitfit", "last_layers", "lora", "full")) -> Picture:
    """Test accuracy with its 95% interval against the number of trained parameters: what selecting reaches."""
    quality = results.read("quality")
    figure, axes = make_axes(6.8, 4.0)
    said = []
    for colour, marker, key in zip(COLOURS, "so^Dv", keys, strict=False):
        row = quality["methods"][key]
        mean, low, high = (row["accuracy"][part] for part in ("mean", "low", "high"))
        axes.errorbar(
            row["trainable"],
            mean,
            yerr=[[mean - low], [high - mean]],
            fmt=marker,
            markersize=8,
            capsize=4,
            color=colour,
            label=row["title"],
        )
        said.append(f"{row['title']} {mean:.1%} ({low:.1%} to {high:.1%}) with {row['trainable']:,}")
    majority = quality["baselines"]["majority"]
    axes.axhline(majority, color="grey", linestyle="--", label="majority class")
    axes.set(xscale="log", xlabel="trained parameters, head included", ylabel="test accuracy")
    percent_axis(axes)
    axes.legend(fontsize=9, loc="center right")
    return Picture(
        figure,
        f"Scatter chart of test accuracy, with its 95% interval, against trained parameters: {'; '.join(said)}. "
        f"The majority class alone gives {majority:.1%}.",
    )


def rates() -> Picture:
    """BitFit, the last layer and full fine-tuning: the validation loss at each learning rate that was tried."""
    return losses_by_rate(("full", "last_layers", "bitfit"))


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


def moved(distances: Mapping[str, Sequence[float]]) -> Picture:
    """How far the biases of each kind moved, layer by layer.

    Args:
        distances: kind of bias → the mean of |Δb| in each layer.
    """
    figure, axes = make_axes(7.6, 4.0)
    colours = (*COLOURS, "grey")
    for number, (kind, values) in enumerate(distances.items()):
        style = {"color": colours[number % len(colours)], "marker": "so^Dv*PX"[number % 8]}
        axes.plot(range(1, len(values) + 1), values, label=kind, **style)
    highest = max(max(values) for values in distances.values())
    axes.set(xlabel="layer", ylabel="mean distance |Δb|", ylim=(0, 1.1 * highest))
    axes.set_xticks(range(1, 1 + max(map(len, distances.values()))))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    said = "; ".join(f"{kind}: {', '.join(f'{value:.4f}' for value in values)}" for kind, values in distances.items())
    return Picture(
        figure, f"Line chart of the mean distance of the biases from their pretrained values, by layer. {said}."
    )
