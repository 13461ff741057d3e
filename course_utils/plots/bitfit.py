"""Figures of the chapter on BitFit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from course_utils.plots.quality import accuracy_against_parameters, losses_by_rate
from course_utils.plots.style import COLOURS, Picture, make_axes


def selective() -> Picture:
    """What selecting reaches, between the head alone and all weights."""
    return accuracy_against_parameters(("head_only", "bitfit", "last_layers", "lora", "full"))


def rates() -> Picture:
    """BitFit, the last layer and full fine-tuning: the validation loss at each learning rate that was tried."""
    return losses_by_rate(("full", "last_layers", "bitfit"))


def biases_moved(distances: Mapping[str, Sequence[float]]) -> Picture:
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
