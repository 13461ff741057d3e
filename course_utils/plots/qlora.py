"""Figures of the chapter on QLoRA."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from course_utils.evaluation import results
from course_utils.methods.quantization import BLOCK, NF4_LEVELS
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def levels(weight: torch.Tensor | None = None, what: str = "normally distributed numbers") -> Picture:
    """Where the numbers of a weight lie after the division by their block's absmax, and where NF4 has its levels.

    Args:
        weight: whose numbers are shown; the default is a matrix of random numbers of the normal distribution.
        what: these numbers, in words.
    """
    if weight is None:
        weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    flat = weight.detach().float().flatten()
    blocks = flat[: flat.numel() // BLOCK * BLOCK].view(-1, BLOCK)
    scaled = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten()
    figure, axes = make_axes(6.8, 3.8)
    shares, _, _ = axes.hist(
        scaled.numpy(), bins=80, range=(-1, 1), weights=torch.full_like(scaled, 1 / scaled.numel()).numpy(), color="0.8"
    )
    top = float(max(shares))
    rows = (("NF4", NF4_LEVELS), ("equal steps", torch.linspace(-1, 1, 16)))
    for number, (title, table) in enumerate(rows):
        height = top * (1.12 + 0.14 * number)
        axes.plot(table.tolist(), [height] * 16, "|", color=COLOURS[number], markersize=16, markeredgewidth=2)
        axes.text(1.06, height, title, color=COLOURS[number], va="center", fontsize=10)
    axes.set(xlabel="weight / absmax of its block", ylabel="share of the weights", xlim=(-1.05, 1.05))
    axes.set_ylim(0, top * 1.4)
    percent_axis(axes)
    inside = [((scaled.abs() < 0.5).float().mean().item()), int((NF4_LEVELS.abs() < 0.5).sum())]
    return Picture(
        figure,
        f"Histogram of {what}, divided by the absmax of their block of {BLOCK}, with two rows of sixteen marks above "
        f"it. The histogram is a bell with its top at 0; {inside[0]:.0%} of the numbers lie between -0.5 and 0.5. "
        f"NF4 has {inside[1]} of its 16 levels there, close together at 0; equal steps have 8.",
    )


def formats(keys: Sequence[str] = ("minilm", "smollm2")) -> Picture:
    """Memory of the whole model, and the error of what it computes, for each number format."""
    models = results.read("quantization")["models"]
    figure, (left, right) = make_axes(9.4, 3.8, columns=2)
    said = []
    width = 0.8 / len(keys)
    titles = [row["title"].replace(", ", ",\n") for row in models[keys[0]]["rows"]]
    for number, key in enumerate(keys):
        title, rows = models[key]["title"], models[key]["rows"]
        places = [place + (number - (len(keys) - 1) / 2) * width for place in range(len(rows))]
        shares = [row["megabytes"] / rows[0]["megabytes"] for row in rows]
        errors = [row["output_error"] for row in rows]
        style = {"height": width, "color": COLOURS[number], "label": title}
        for axes, values, form in ((left, shares, ".0%"), (right, errors, ".1%")):
            drawn = axes.barh(places, values, **style)
            axes.bar_label(drawn, [format(value, form) for value in values], padding=3, fontsize=9)
        said.append(
            f"{title}: "
            + ", ".join(
                f"{row['title']} {row['megabytes']:.0f} MB, error {error:.1%}"
                for row, error in zip(rows, errors, strict=True)
            )
        )
    for axes, label in ((left, "memory of the whole model, beside float32"), (right, "relative error of the output")):
        axes.set_yticks(range(len(titles)), titles)
        axes.invert_yaxis()
        axes.set(xlabel=label)
        axes.margins(x=0.18)
        axes.grid(axis="y", visible=False)
        percent_axis(axes, "x")
    right.set_yticklabels([])
    right.legend(fontsize=9, loc="upper right")
    return Picture(
        figure, f"Two bar charts, memory of the whole model and relative error of its output. {'; '.join(said)}."
    )


def beside_rounding(updates: Sequence[float], roundings: Sequence[float]) -> Picture:
    """The size of what LoRA learnt in each layer, beside the size of the rounding error of four bits.

    Args:
        updates: ‖s B A‖ / ‖Ŵ‖ of each layer, in the order of the model.
        roundings: ‖Ŵ − W‖ / ‖W‖ of the same layers.
    """
    figure, axes = make_axes(6.8, 3.6)
    places = range(1, len(updates) + 1)
    axes.plot(places, updates, "o", color=COLOURS[0], label="what LoRA has learnt, ‖s B A‖ / ‖Ŵ‖")
    axes.plot(places, roundings, "s", color=COLOURS[1], label="error of rounding to four bits, ‖Ŵ − W‖ / ‖W‖")
    axes.set(xlabel="linear layer, from the first to the last", ylabel="share of the weight", ylim=(0, None))
    axes.set_ylim(0, 1.35 * max(*updates, *roundings))
    percent_axis(axes)
    axes.legend(fontsize=9, loc="upper left")
    return Picture(
        figure,
        f"Dot chart of {len(updates)} layers. What LoRA has learnt is {min(updates):.1%} to {max(updates):.1%} of the "
        f"weight, the error of rounding {min(roundings):.1%} to {max(roundings):.1%}.",
    )
