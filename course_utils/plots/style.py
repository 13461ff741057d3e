"""One style for all figures, pictures with alternative text, and the charts that several chapters draw."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Colours that people with any colour vision tell apart (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 11,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@dataclass
class Picture:
    """A figure with its alternative text; a notebook shows it as an image that a screen reader can describe.

    Args:
        figure: of matplotlib.
        alt: what the picture shows, in words.
    """

    figure: Figure
    alt: str

    def __repr__(self) -> str:
        return f"Picture: {self.alt}"

    def _repr_html_(self) -> str:
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        plt.close(self.figure)  # or the notebook would show it a second time
        data = base64.b64encode(buffer.getvalue()).decode()
        return (
            f'<img alt="{html.escape(self.alt)}" style="max-width: 100%; height: auto; width: 40em" '
            f'src="data:image/png;base64,{data}">'
        )


def make_axes(width: float = 6.4, height: float = 3.8, columns: int = 1) -> tuple[Figure, Any]:
    """Axes in the course's style; `columns` of them side by side come as an array."""
    with plt.rc_context(_STYLE), plt.ioff():
        figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    return figure, axes


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Write an axis that holds shares in percent."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


def training_curves(histories: Mapping[str, Any], majority: float | None = None) -> Picture:
    """Training loss by step, and validation accuracy by step, one line a run.

    Args:
        histories: title → `History`.
        majority: the accuracy of the majority class, as a dashed line.
    """
    figure, (left, right) = make_axes(9.0, 3.6, columns=2)
    endings = []
    for title, history in histories.items():
        steps = history.steps_frame()
        smooth = steps["loss"].ewm(halflife=5).mean()
        left.plot(steps["step"], smooth, label=title)
        rows = history.evaluations_frame()
        right.plot(rows["step"], rows["accuracy"], marker="o", label=title)
        endings.append(f"{title} ends at {rows['accuracy'].iloc[-1]:.1%}")
    left.set(xlabel="step", ylabel="training loss (smoothed)", ylim=(0, None))
    right.set(xlabel="step", ylabel="validation accuracy")
    if majority is not None:
        right.axhline(majority, color="grey", linestyle="--", label="majority class")
    percent_axis(right)
    right.legend(fontsize=9)
    return Picture(figure, f"Two line charts, training loss and validation accuracy by step. {'; '.join(endings)}.")


def bars(values: Mapping[str, float], label: str, majority: float | None = None) -> Picture:
    """Horizontal bars of shares between 0 and 1, one a name.

    Args:
        values: name → share.
        label: of the axis.
        majority: the accuracy of the majority class, as a dashed line.
    """
    figure, axes = make_axes(6.8, 0.5 * len(values) + 1.3)
    names = list(values)[::-1]
    drawn = axes.barh(names, [values[name] for name in names], color=COLOURS[0])
    axes.bar_label(drawn, [f"{values[name]:.1%}" for name in names], padding=3)
    axes.set(xlabel=label, xlim=(0, 1.12))
    axes.grid(axis="y", visible=False)
    percent_axis(axes, "x")
    if majority is not None:
        axes.axvline(majority, color=COLOURS[1], linestyle="--", label=f"majority class {majority:.1%}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, fontsize=9)
    said = ", ".join(f"{name} {value:.1%}" for name, value in values.items())
    return Picture(figure, f"Bar chart of {label}: {said}.")
