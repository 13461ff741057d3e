"""Figures of the chapter on prefix tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from course_utils.plots import quality
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis

_TRAINED, _COMPUTED, _TEXT = COLOURS[4], "#FBE3B0", COLOURS[5]


def where(k: int = 3, tokens: int = 4, layers: int = 3) -> Picture:
    """Where the trained vectors stand: at the input in prompt tuning, in every layer in prefix tuning.

    Args:
        k: virtual tokens.
        tokens: of the text.
        layers: of the model.
    """
    figure, both = make_axes(9.0, 0.55 * layers + 1.6, columns=2)
    for axes, title, trained in zip(
        both, ("prompt tuning, P-Tuning", "prefix tuning, P-Tuning v2"), (1, layers), strict=True
    ):
        rows = layers + 1  # the input below, then one row a layer
        for row in range(rows):
            deep = title.startswith("prefix")
            for place in range(k + tokens):
                if place >= k:
                    _cell(axes, row, place, _TEXT, "text")
                elif row == 0 and not deep:
                    _cell(axes, row, place, _TRAINED, "P")
                elif row > 0:
                    _cell(axes, row, place, _TRAINED if deep else _COMPUTED, "K, V" if deep else "")
        axes.set(
            title=f"{title}\n{trained} × {k} trained places", xlim=(-0.6, k + tokens - 0.4), ylim=(-0.6, rows - 0.4)
        )
        axes.set_yticks(range(rows), ["input", *(f"layer {number}" for number in range(1, rows))])
        axes.set_xticks(range(k + tokens))
        axes.set_xlabel("position")
        axes.grid(visible=False)
    return Picture(
        figure,
        f"Two grids of {layers} layers above the input. Left, prompt tuning and P-Tuning: {k} trained vectors stand "
        f"before the text at the input, and what the layers above make of them is computed. Right, prefix tuning and "
        f"P-Tuning v2: nothing stands before the text at the input, and each of the {layers} layers has {k} trained "
        f"keys and values of its own.",
    )


def _cell(axes: Axes, row: int, place: int, colour: str, words: str) -> None:
    axes.barh(row, 0.94, left=place - 0.47, height=0.8, color=colour)
    axes.text(place, row, words, ha="center", va="center", fontsize=9)


def seeds() -> Picture:
    """The methods with virtual tokens, and two to compare with."""
    return quality.seeds(("head_only", "prompt", "p_tuning", "prefix", "p_tuning_v2", "lora"))


def shares(lines: Mapping[str, Sequence[float]]) -> Picture:
    """The share of the attention that goes to the prefix, layer by layer.

    Args:
        lines: what was measured → the share in each layer.
    """
    figure, axes = make_axes(6.4, 3.6)
    said = []
    for colour, marker, (title, values) in zip(COLOURS, "so^Dv", lines.items(), strict=False):
        axes.plot(range(1, len(values) + 1), values, marker=marker, color=colour, label=title)
        said.append(f"{title}: {', '.join(f'{value:.0%}' for value in values)}")
    axes.set(xlabel="layer", ylabel="attention that goes to the prefix", ylim=(0, 1))
    axes.set_xticks(range(1, 1 + max(map(len, lines.values()))))
    percent_axis(axes)
    axes.legend(fontsize=9)
    return Picture(figure, f"Line chart of the mean share of attention on the prefix, by layer. {'; '.join(said)}.")
