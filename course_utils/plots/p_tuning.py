"""Figures of the chapter on P-Tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def runs(keys: Sequence[str] = ("prompt", "p_tuning")) -> Picture:
    """Test accuracy and ROC-AUC of each single run at each learning rate that was tried: one dot a seed."""
    quality = results.read("quality")
    majority = quality["baselines"]["majority"]
    titles = {"prompt": "prompt tuning", "p_tuning": "P-Tuning"}
    figure, (left, right) = make_axes(9.0, 3.8, columns=2)
    said = []
    for colour, marker, key in zip(COLOURS, "so^Dv", keys, strict=False):
        title = titles.get(key, key)
        done = sorted((run["learning_rate"], run["accuracy"], run["roc_auc"]) for run in _of(quality, key))
        rates = [rate for rate, _, _ in done]
        left.plot(rates, [accuracy for _, accuracy, _ in done], marker, color=colour, alpha=0.7, label=title)
        right.plot(rates, [auc for _, _, auc in done], marker, color=colour, alpha=0.7, label=title)
        each = "; ".join(f"{accuracy:.1%} and {auc:.2f} at {rate:g}" for rate, accuracy, auc in done)
        stuck = sum(accuracy <= majority + 1e-9 for _, accuracy, _ in done)
        said.append(
            f"{title}, accuracy and ROC-AUC: {each}. {stuck} of these {len(done)} runs end at the majority class"
        )
    left.axhline(majority, color="grey", linestyle="--", label=f"majority class {majority:.1%}")
    right.axhline(0.5, color="grey", linestyle="--", label="order by chance")
    left.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", ylim=(majority - 0.05, 1.0))
    right.set(xscale="log", xlabel="learning rate", ylabel="ROC-AUC", ylim=(0.45, 1.0))
    percent_axis(left)
    for axes in (left, right):
        axes.margins(x=0.1)
        axes.legend(fontsize=9, loc="lower right")
    return Picture(figure, f"Two charts by learning rate, one dot a run. {'. '.join(said)}.")


def _of(quality: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return [run for run in quality["runs"] if run["method"] == key]


def similarity(cosines: Mapping[str, Sequence[Sequence[float]]]) -> Picture:
    """How alike the virtual tokens are: the cosine of each pair, one square a table.

    Args:
        cosines: title → a k × k table of cosines.
    """
    figure, panels = make_axes(3.3 * len(cosines) + 0.6, 3.3, columns=len(cosines))
    said = []
    shown = None
    for axes, (title, table) in zip(panels if len(cosines) > 1 else [panels], cosines.items(), strict=True):
        shown = axes.imshow(table, vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set(title=title, xlabel="virtual token", ylabel="virtual token")
        axes.grid(visible=False)
        k = len(table)
        axes.set_xticks(range(0, k, 5))
        axes.set_yticks(range(0, k, 5))
        pairs = [table[row][column] for row in range(k) for column in range(k) if row != column]
        said.append(f"{title}: mean of two different vectors {sum(pairs) / len(pairs):.2f}")
    if shown is not None:
        figure.colorbar(shown, ax=panels, label="cosine")
    return Picture(figure, f"Coloured squares with the cosine of each pair of virtual tokens. {'; '.join(said)}.")
