"""Figures of the chapter on adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from course_utils.plots.quality import accuracy_against_parameters
from course_utils.plots.style import COLOURS, Picture, make_axes

_FROZEN, _NEW, _TRAINED = "#e6e6e6", "#f6c9a8", "#bfe3d4"


def places() -> Picture:
    """The same block of BERT three times, with the adapters of Houlsby, Pfeiffer and the parallel kind."""
    figure, axes = make_axes(9.6, 6.0, columns=3)
    for ax, kind in zip(axes, ("Houlsby", "Pfeiffer", "parallel"), strict=True):
        _block(ax, kind)
    return Picture(
        figure,
        "Three drawings of one block, read from bottom to top: attention, add and normalise, feed-forward, add and "
        "normalise. Houlsby: an adapter after attention and one after the feed-forward part, each with a shortcut, and "
        "both normalisations are trained. Pfeiffer: one adapter after the feed-forward part; it reads the normalised "
        "sum, and what it gives is added to the sum, which is normalised once more. Parallel: one adapter beside the "
        "feed-forward part; it reads the same x.",
    )


def _block(axes: Axes, kind: str) -> None:
    axes.set(xlim=(-0.8, 10), ylim=(0, 16.4), title=kind)
    axes.axis("off")
    norm = _TRAINED if kind == "Houlsby" else _FROZEN
    _sublayer(axes, 0.3, "attention", norm, adapter=kind if kind == "Houlsby" else "")
    _sublayer(axes, 8.3, "feed-forward", norm, adapter=kind)


def _sublayer(axes: Axes, bottom: float, title: str, norm: str, adapter: str) -> None:
    """From x at the bottom to LN at the top; the block's own shortcut runs at the right."""
    middle, y_sum = 4.0, bottom + 5.3
    _line(axes, [(middle, bottom - 0.3), (middle, bottom + 7.7)])
    _line(axes, [(middle, bottom + 0.4), (9.4, bottom + 0.4), (9.4, y_sum), (middle + 0.35, y_sum)])
    _box(axes, middle, bottom + 1.5, 4.4, title, _FROZEN)
    axes.text(middle + 0.25, bottom - 0.1, "x", style="italic")
    axes.text(middle, y_sum, "+", ha="center", va="center", bbox=_ROUND)
    if adapter == "Houlsby":
        _line(axes, [(middle, bottom + 2.5), (7.6, bottom + 2.5), (7.6, bottom + 4.3), (middle + 0.35, bottom + 4.3)])
        _box(axes, middle, bottom + 3.4, 3.0, "adapter", _NEW)
        axes.text(middle, bottom + 4.3, "+", ha="center", va="center", bbox=_ROUND)
    elif adapter == "Pfeiffer":
        _line(axes, [(middle, bottom + 2.7), (0.9, bottom + 2.7), (0.9, y_sum), (middle - 0.35, y_sum)])
        _box(axes, 1.5, bottom + 3.1, 2.8, "LN(h + x)", _FROZEN)
        _box(axes, 1.5, bottom + 4.3, 2.8, "adapter", _NEW)
    elif adapter == "parallel":
        _line(axes, [(middle, bottom + 0.4), (0.6, bottom + 0.4), (0.6, y_sum), (middle - 0.35, y_sum)])
        _box(axes, 0.9, bottom + 3.4, 2.8, "adapter", _NEW)
    if adapter:
        axes.text(middle + 0.25, bottom + 2.15, "h", style="italic")
    _box(axes, middle, bottom + 6.7, 3.0, "LN", norm)


_ROUND = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black"}


def _line(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    axes.plot(*zip(*points, strict=True), color="black", linewidth=1.2, zorder=0)


def _box(axes: Axes, x: float, y: float, width: float, words: str, colour: str) -> None:
    axes.barh([y], [width], left=x - width / 2, height=1.0, color=colour, edgecolor="black", zorder=2)
    axes.text(x, y, words, ha="center", va="center", fontsize=9, zorder=3)


def accuracy() -> Picture:
    """Adapters, LoRA and all weights, above the head alone."""
    return accuracy_against_parameters(("pfeiffer", "houlsby", "parallel", "lora", "full"), floor="head_only")


def across_domains(accuracies: Mapping[str, Mapping[str, float]]) -> Picture:
    """A table in colours: each adapter on the texts of each domain.

    Args:
        accuracies: name of the adapter → domain of the texts → accuracy.
    """
    adapters, domains = list(accuracies), list(next(iter(accuracies.values())))
    figure, axes = make_axes(5.6, 0.8 * len(adapters) + 1.2)
    values = [[accuracies[adapter][domain] for domain in domains] for adapter in adapters]
    axes.imshow(values, cmap="Blues", vmin=0.4, vmax=1.2, aspect="auto")
    for row, adapter in enumerate(adapters):
        for column, domain in enumerate(domains):
            axes.text(column, row, f"{values[row][column]:.1%}", ha="center", va="center")
            if adapter == domain:
                axes.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=COLOURS[1]))
    axes.set_xticks(range(len(domains)), domains)
    axes.set_yticks(range(len(adapters)), adapters)
    axes.set(xlabel="texts", ylabel="adapter")
    axes.grid(visible=False)
    said = "; ".join(
        f"{adapter}: " + ", ".join(f"{domain} {value:.1%}" for domain, value in row.items())
        for adapter, row in accuracies.items()
    )
    return Picture(figure, f"Table in colours of validation accuracy, adapter by adapter. {said}.")
