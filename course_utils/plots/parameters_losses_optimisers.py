"""Figures of the chapter on parameters, losses and optimisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes

Path = Sequence[Sequence[float]]


def _bowl(axes: Axes, paths: Mapping[str, Path], curvature: tuple[float, float]) -> None:
    """Level lines of f(w) = (c₁ w₁² + c₂ w₂²) / 2 and paths on them."""
    across, up = np.meshgrid(np.linspace(-4.6, 1.6, 120), np.linspace(-1.6, 1.6, 120))
    heights = (curvature[0] * across**2 + curvature[1] * up**2) / 2
    axes.contour(across, up, heights, levels=(0.3, 1.5, 4, 8, 14, 22), colors="grey", linewidths=0.6, alpha=0.6)
    for (title, path), colour, mark in zip(paths.items(), COLOURS, "osD^", strict=False):
        points = np.asarray(path, dtype=float)
        outside = np.flatnonzero(np.abs(points[:, 1]) > 1.6)
        if len(outside):  # one point more shows where it goes; the rest would hide the others
            points = points[: outside[0] + 1]
        axes.plot(points[:, 0], points[:, 1], color=colour, marker=mark, markersize=3, linewidth=1, label=title)
    axes.plot(0, 0, "+", color="black", markersize=12)
    axes.set(xlabel="$w_1$", ylabel="$w_2$", xlim=(-4.6, 1.6), ylim=(-1.6, 1.6))
    axes.legend(fontsize=8, loc="upper right")


def paths_on_a_bowl(paths: Mapping[str, Path], curvature: tuple[float, float] = (1.0, 20.0)) -> Picture:
    """Paths of optimisers on f(w) = (c₁ w₁² + c₂ w₂²) / 2, from above; the cross is the minimum.

    Args:
        paths: title → points (steps, 2).
        curvature: c₁ and c₂.
    """
    figure, axes = make_axes(6.4, 4.0)
    _bowl(axes, paths, curvature)
    ends = "; ".join(f"{title} ends at ({path[-1][0]:.2f}, {path[-1][1]:.2f})" for title, path in paths.items())
    return Picture(figure, f"Level lines of a long bowl with its minimum at (0, 0), and paths on it. {ends}.")


def bowl() -> Picture:
    """The study's paths: three learning rates on the left, three optimisers on the right."""
    runs = results.read("optimizers")["bowl"]["runs"]
    figure, (left, right) = make_axes(9.6, 3.9, columns=2)
    rates = {f"{name}, {runs[name]['rate']:g}": runs[name]["path"] for name in ("too small", "right", "too large")}
    _bowl(left, rates, (1.0, 20.0))
    left.set_title("gradient descent", fontsize=10)
    others = {runs[name]["title"]: runs[name]["path"] for name in ("right", "momentum", "adam")}
    _bowl(right, others, (1.0, 20.0))
    right.set_title("three optimisers", fontsize=10)
    said = ", ".join(
        f"{run['title']} with rate {run['rate']:g} ends at a loss of {run['loss']:.2g}" for run in runs.values()
    )
    return Picture(
        figure,
        "Two views of a long bowl from above, with paths from the same start. Left, gradient descent: too small creeps "
        "and is far from the middle after 40 steps; right zigzags to the middle; too large jumps across the bowl, "
        "higher each time. Right: "
        f"momentum swings past the middle and back, Adam takes an even path. {said}.",
    )


def rates() -> Picture:
    """The study's losses on the tweets, for every optimiser and learning rate."""
    rows = results.read("optimizers")["tweets"]["rows"]
    figure, panels = make_axes(9.6, 3.8, columns=2)
    said = []
    for axes, split, name in zip(panels, ("train", "validation"), ("training", "validation"), strict=True):
        for title, colour, mark in zip(dict.fromkeys(row["title"] for row in rows), COLOURS, "osD^", strict=False):
            points = [(row["learning_rate"], row[f"{split}_loss"]) for row in rows if row["title"] == title]
            axes.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=4, linewidth=1, label=title)
            best = min(points, key=lambda point: point[1])
            said.append(f"{title} has its lowest {name} loss, {best[1]:.2f}, at {best[0]:g}")
        axes.axhline(np.log(2), color="grey", linestyle="--", label="ln 2, knowing nothing")
        axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=f"{name} loss", ylim=(0.08, 8))
        axes.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
        axes.minorticks_off()
    panels[0].legend(fontsize=8)
    return Picture(
        figure, f"Two charts of loss against learning rate, each line falls and rises again: {'; '.join(said)}."
    )


def valleys() -> Picture:
    """A curve with two valleys, and the loss on the straight line between trained networks."""
    found = results.read("optimizers")["valleys"]
    figure, (left, right) = make_axes(9.6, 3.6, columns=2)
    across = np.linspace(-2.05, 2.05, 200)
    left.plot(across, across**4 - 2 * across**2 + across / 2, color="grey")
    for run, colour, mark in zip(found["curve"].values(), COLOURS, "os", strict=False):
        w = np.asarray(run["path"])
        left.plot(w, w**4 - 2 * w**2 + w / 2, color=colour, marker=mark, markersize=4, linewidth=0.8)
        left.annotate(
            f"{run['loss']:.2f}", (w[-1], run["loss"]), xytext=(0, -14), textcoords="offset points", ha="center"
        )
    left.set(xlabel="$w$", ylabel="loss", ylim=(-2.3, 5))
    shares = np.linspace(0, 1, len(found["between"][0]))
    for number, line in enumerate(found["between"], start=1):
        right.plot(shares, line, color=COLOURS[number], label=f"seed 0 to seed {number}")
    right.set(xlabel="share of the way", ylabel="training loss", ylim=(0, None))
    right.legend(fontsize=8, loc="lower center")
    ends = " and ".join(f"{run['end']:.2f} with a loss of {run['loss']:.2f}" for run in found["curve"].values())
    return Picture(
        figure,
        f"Left: a curve with two valleys; gradient descent from two starts ends at {ends}. Right: the loss on the "
        "straight line from one trained network to four others begins and ends low, and rises between, up to "
        f"{found['highest']:.2f}.",
    )


def memory() -> Picture:
    """What one training step holds in memory, by kind, for three ways to train."""
    found = results.read("optimizers")["memory"]
    figure, panels = make_axes(9.6, 2.9, columns=2)
    kinds = ("weights", "gradients", "state", "activations")
    labels = ("weights", "gradients", "AdamW's averages", "activations")
    said = []
    for axes, end in zip(panels, ("", "_long"), strict=True):
        titles = [row["title"] for row in found["rows"]][::-1]
        left = np.zeros(len(titles))
        for kind, label, colour in zip(kinds, labels, COLOURS, strict=False):
            key = kind + end if kind == "activations" else kind
            sizes = np.array([row[key] for row in found["rows"]][::-1])
            axes.barh(titles, sizes, left=left, color=colour, label=label)
            left += sizes
        tokens = found["tokens" + end]
        axes.set(xlabel="megabytes")
        axes.set_title(f"{found['texts']} texts of {tokens} tokens", fontsize=10)
        axes.grid(axis="y", visible=False)
        totals = ", ".join(f"{row['title']} {row['total' + end]:,.0f} MB" for row in found["rows"])
        said.append(f"with {tokens} tokens a text {totals}")
    panels[1].set_yticklabels([])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return Picture(figure, f"Stacked bars of what a training step holds in memory: {'; '.join(said)}.")
