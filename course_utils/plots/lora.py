"""Figures of the chapter on LoRA."""

from __future__ import annotations

from collections.abc import Sequence

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def update_energy(ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> Picture:
    """How much of full fine-tuning's change of the weights fits into a low-rank matrix."""
    shares = next(run["update_energy"] for run in results.read("quality")["runs"] if "update_energy" in run)
    figure, axes = make_axes(6.4, 3.6)
    axes.plot(range(1, len(shares) + 1), shares, color=COLOURS[0])
    axes.plot(ranks, [shares[rank - 1] for rank in ranks], "o", color=COLOURS[0])
    axes.set(xscale="log", xlabel="rank of the approximation", ylabel="share of the change it holds", ylim=(0, 1.02))
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    percent_axis(axes)
    said = ", ".join(f"rank {rank} holds {shares[rank - 1]:.0%}" for rank in ranks)
    return Picture(figure, f"Line chart that rises steeply and then flattens: {said} of the change.")


def grid() -> Picture:
    """Validation loss against the learning rate, a line a rank, for each choice of targets."""
    rows = results.read("lora_grid")["rows"]
    targets = list(dict.fromkeys(row["targets"] for row in rows))
    figure, both = make_axes(9.0, 3.4, columns=len(targets))
    said = []
    for axes, target in zip(both, targets, strict=True):
        for colour, marker, rank in zip(COLOURS, "so^", sorted({row["rank"] for row in rows}), strict=False):
            line = [row for row in rows if (row["targets"], row["rank"]) == (target, rank)]
            rates, losses = ([row[key] for row in line] for key in ("learning_rate", "validation_loss"))
            axes.plot(rates, losses, marker=marker, color=colour, label=f"rank {rank}")
            points = ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in zip(rates, losses, strict=True))
            said.append(f"{target}, rank {rank}: {points}")
        axes.set(xscale="log", xlabel="learning rate", ylim=(0, 1.1 * max(row["validation_loss"] for row in rows)))
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set_title(target, fontsize=10)
    both[0].set_ylabel("validation loss")
    both[0].legend(fontsize=9)
    return Picture(figure, f"Two line charts of validation loss against learning rate. {'; '.join(said)}.")
