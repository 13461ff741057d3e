"""Figures of the chapter on scaling out."""

from __future__ import annotations

from collections.abc import Sequence

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes

_PARTS = (("weights", 2), ("gradients", 2), ("optimiser", 12))


def two_curves(one: Sequence[float], two: Sequence[float]) -> Picture:
    """Losses by step of one process and of two, one curve on the other.

    Args:
        one: the losses in one process.
        two: those of the same steps in two processes.
    """
    figure, axes = make_axes(6.4, 3.6)
    steps = range(1, len(one) + 1)
    axes.plot(steps, one, color=COLOURS[0], linewidth=5, alpha=0.35, label="one process")
    axes.plot(steps, two, "o--", color=COLOURS[1], markersize=4, label="two processes")
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(fontsize=9)
    apart = max(abs(first - second) for first, second in zip(one, two, strict=True))
    return Picture(
        figure,
        f"Line chart of the training loss over {len(one)} steps, from {one[0]:.3f} to {one[-1]:.3f}. The curve of two "
        f"processes lies on that of one: they are at most {apart:.0e} apart.",
    )


def curves() -> Picture:
    """The stored losses of one process and of two."""
    losses = results.read("scaling")["curves"]["losses"]
    return two_curves(losses["1"], losses["2"])


def stages(billions: float = 7.0, processes: int = 8) -> Picture:
    """What one process holds for full fine-tuning in mixed precision, by ZeRO's stage.

    Args:
        billions: weights of the model, in billions.
        processes: that share.
    """
    figure, axes = make_axes(6.8, 3.0)
    names = ["DDP (stage 0)", "ZeRO 1", "ZeRO 2", "ZeRO 3, FSDP"]
    left = [0.0] * len(names)
    for colour, (title, size) in zip(COLOURS, _PARTS, strict=False):
        first = {"optimiser": 1, "gradients": 2, "weights": 3}[title]
        widths = [billions * size / (processes if stage >= first else 1) for stage in range(len(names))]
        axes.barh(names, widths, left=left, color=colour, label=title)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axes.text(total + 1, place, f"{total:g} GB", va="center", fontsize=10)
    axes.invert_yaxis()
    axes.set(xlabel="GB in each process, without activations", xlim=(0, 1.18 * max(left)))
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=9, loc="lower right")
    said = ", ".join(f"{name} {total:g} GB" for name, total in zip(names, left, strict=True))
    return Picture(
        figure,
        f"Stacked bars of what one of {processes} processes holds while a model of {billions:g} billion weights is "
        f"fully fine-tuned: {said}. Stage 1 divides the optimiser's state, the longest part.",
    )


def memory() -> Picture:
    """The measured peak of a training step by batch size, and the rule."""
    rows = results.read("scaling")["memory"]["rows"]
    figure, axes = make_axes(6.8, 4.0)
    said = []
    for colour, title in zip(COLOURS, dict.fromkeys(row["title"] for row in rows), strict=False):
        mine = [row for row in rows if row["title"] == title]
        batches, measured = [row["batch"] for row in mine], [row["measured_mb"] for row in mine]
        axes.plot(batches, [row["rule_mb"] for row in mine], color=colour, label=title)
        axes.plot(batches, measured, "o", color=colour)
        said.append(f"{title} {measured[0]:.0f} to {measured[-1]:.0f} MB")
    axes.set(xlabel="texts in a batch", ylabel="MB at the peak", xticks=batches, ylim=(0, None))
    axes.legend(fontsize=9)
    return Picture(
        figure,
        f"Four lines by batch size, each with dots close to it. The dots, which are measured, go from {batches[0]} to "
        f"{batches[-1]} texts: {'; '.join(said)}.",
    )
