"""Figures of the chapter on (IA)³."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from course_utils.evaluation import results
from course_utils.plots.quality import accuracy_against_parameters
from course_utils.plots.style import COLOURS, Picture, make_axes


def few_parameters() -> Picture:
    """(IA)³ between the head alone and all weights."""
    return accuracy_against_parameters(("head_only", "ia3", "bitfit", "lora", "lora_all", "full"))


def learning_rates(keys: Sequence[str] = ("full", "lora", "ia3")) -> Picture:
    """Validation loss at each learning rate that was tried, one line a method."""
    quality = results.read("quality")
    figure, axes = make_axes(6.4, 3.6)
    said = []
    for colour, marker, key in zip(COLOURS, "so^Dv", keys, strict=False):
        title = quality["methods"][key]["title"]
        rows = sorted(quality["rates"][key], key=lambda row: row["learning_rate"])
        rates, losses = ([row[part] for row in rows] for part in ("learning_rate", "validation_loss"))
        axes.plot(rates, losses, marker=marker, color=colour, label=title)
        tried = ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in zip(rates, losses, strict=True))
        said.append(f"{title}: {tried}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss", ylim=(0, None))
    axes.legend(fontsize=9)
    return Picture(figure, f"Line chart of validation loss against learning rate. {'; '.join(said)}.")


def factors_moved(distances: Mapping[str, Sequence[float]]) -> Picture:
    """How far the factors of each kind moved from one, layer by layer.

    Args:
        distances: kind of vector → the mean of |l − 1| in each layer.
    """
    figure, axes = make_axes(6.4, 3.6)
    for colour, marker, (kind, values) in zip(COLOURS, "so^Dv", distances.items(), strict=False):
        axes.plot(range(1, len(values) + 1), values, marker=marker, color=colour, label=kind)
    highest = max(max(values) for values in distances.values())
    axes.set(xlabel="layer", ylabel="mean distance from 1", ylim=(0, 1.1 * highest))
    axes.set_xticks(range(1, 1 + max(map(len, distances.values()))))
    axes.legend(fontsize=9)
    said = "; ".join(f"{kind}: {', '.join(f'{value:.3f}' for value in values)}" for kind, values in distances.items())
    return Picture(figure, f"Line chart of the mean distance of the factors from 1, by layer. {said}.")
