"""Drawings that explain: where each method sits, and what flows where. Grey is frozen, orange is trained.

They are as wide as a phone shows them, so that their words can be read there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from course_utils.plots.style import COLOURS, Picture, make_axes

FROZEN, TRAINED, FLOW = "#E4E4E4", "#F6C9A8", "#D6E6F2"
_EDGES = {FROZEN: "#8A8A8A", TRAINED: COLOURS[1], FLOW: COLOURS[0]}
_WIDTH = 4.7  # inches; on a screen of 390 pixels ten points stay above ten pixels
_SIZE = 9.5


def _canvas(height: float, width: float = 10.0) -> tuple[Figure, Axes]:
    """An empty sheet, `width` units wide and `height` high, each unit as long in both directions."""
    figure, axes = make_axes(_WIDTH, _WIDTH * height / width)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, wide: float, high: float, text: str, colour: str = FROZEN) -> None:
    """A box by its lower left corner, with its name."""
    shape = FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec=_EDGES[colour])
    axes.add_patch(shape)
    axes.text(x + wide / 2, y + high / 2, text, ha="center", va="center", fontsize=_SIZE)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="black", shrinkA=0, shrinkB=0))


def _note(axes: Axes, x: float, y: float, text: str, *way: tuple[float, float]) -> None:
    """Words beside the drawing, with a thin line on its way from what they speak of."""
    if way:
        across, up = zip(*way, (x - 0.1, y), strict=True)
        axes.plot(across, up, color=COLOURS[1], lw=0.9, ls=":")
    axes.text(x, y, text, ha="left", va="center", fontsize=_SIZE)


def _key(axes: Axes, y: float, entries: Sequence[tuple[str, str]] = ((FROZEN, "frozen"), (TRAINED, "trained"))) -> None:
    for place, (colour, name) in enumerate(entries):
        axes.add_patch(Rectangle((0.2 + 3.0 * place, y), 0.5, 0.35, fc=colour, ec=_EDGES[colour]))
        axes.text(0.85 + 3.0 * place, y + 0.17, name, va="center", fontsize=_SIZE)


def block() -> Picture:
    """A Transformer block, from the tokens to the head, with the place of every method."""
    figure, axes = _canvas(14.2)
    _box(axes, 0.2, 0.3, 1.5, 0.8, "virtual", TRAINED)
    _box(axes, 1.8, 0.3, 3.0, 0.8, "tokens' vectors")
    _arrow(axes, (2.6, 1.1), (2.6, 1.8))
    axes.add_patch(Rectangle((0.05, 1.55), 5.0, 9.9, fc="none", ec="#8A8A8A", ls="--"))
    axes.text(4.95, 11.2, "× layers", ha="right", va="center", fontsize=_SIZE, color="#555555")
    for place, name in enumerate(("query", "key", "value")):
        _box(axes, 0.3 + 1.6 * place, 1.8, 1.4, 0.8, name)
        _arrow(axes, (1.0 + 1.6 * place, 2.6), (1.0 + 1.6 * place, 3.2))
    _box(axes, 0.3, 3.2, 4.6, 0.8, "attention")
    _arrow(axes, (2.6, 4.0), (2.6, 4.4))
    _box(axes, 0.9, 4.4, 3.4, 0.8, "output")
    _arrow(axes, (2.6, 5.2), (2.6, 5.5))
    _box(axes, 0.9, 5.5, 3.4, 0.6, "adapter", TRAINED)
    _arrow(axes, (2.6, 6.1), (2.6, 6.4))
    _box(axes, 0.9, 6.4, 3.4, 0.7, "add and normalise")
    _arrow(axes, (2.6, 7.1), (2.6, 7.5))
    _box(axes, 0.9, 7.5, 3.4, 0.7, "up")
    _arrow(axes, (2.6, 8.2), (2.6, 8.6))
    _box(axes, 0.9, 8.6, 3.4, 0.7, "down")
    _arrow(axes, (2.6, 9.3), (2.6, 9.5))
    _box(axes, 0.9, 9.5, 3.4, 0.6, "adapter", TRAINED)
    _arrow(axes, (2.6, 10.1), (2.6, 10.3))
    _box(axes, 0.9, 10.3, 3.4, 0.7, "add and normalise")
    _arrow(axes, (2.6, 11.0), (2.6, 12.0))
    _box(axes, 0.9, 12.0, 3.4, 0.8, "head", TRAINED)
    places: list[Any] = [
        (12.4, "the head: trained\nby every method", (4.3, 12.4)),
        (10.65, "BitFit: each bias, of every\nmatrix and normalisation", (4.3, 10.65)),
        (9.3, "adapters: Houlsby here and\nbelow, Pfeiffer only here", (4.3, 9.8)),
        (7.95, "(IA)³: a factor for each\nnumber between up and down", (2.7, 8.4)),
        (6.6, "parallel adapters: beside\nup and down together", (4.3, 7.85)),
        (5.25, "LoRA and its family: beside\nany matrix, most often\nquery and value", (4.3, 4.8)),
        (3.6, "(IA)³: a factor for each\nkey and value", (2.7, 2.9)),
        (2.2, "prefix tuning: further\nkeys and values, ready made", (4.9, 2.2)),
        (0.55, "prompt tuning, P-Tuning:\nvectors before the text", (0.95, 0.3), (0.95, 0.1), (4.95, 0.1)),
    ]
    for height, text, *way in places:
        _note(axes, 5.5, height, text, *way)
    _key(axes, 13.5)
    said = "; ".join(text.replace("\n", " ") for _, text, *_ in reversed(places))
    return Picture(
        figure,
        "Drawing of a Transformer block, from below: the tokens' vectors, query, key and value, attention, its output, "
        "add and normalise, up, down, add and normalise, and above all layers the head. Beside it, from below, what "
        f"each method adds or trains: {said}.",
    )


def lora(width: int = 384, rank: int = 8) -> Picture:
    """One layer with LoRA: the frozen matrix, and the thin way round it, with the numbers of MiniLM."""
    figure, axes = _canvas(8.4)
    _box(axes, 3.4, 0.3, 3.2, 0.8, f"x: {width} numbers", FLOW)
    _box(axes, 0.4, 2.5, 4.0, 3.0, f"W\n{width} × {width}\n= {width * width:,}")
    _box(axes, 5.6, 2.3, 4.0, 0.7, f"A: {rank} × {width} = {rank * width:,}", TRAINED)
    _box(axes, 6.7, 3.7, 1.8, 0.6, f"{rank} numbers", FLOW)
    _box(axes, 5.6, 5.0, 4.0, 0.7, f"B: {width} × {rank} = {rank * width:,}", TRAINED)
    _arrow(axes, (4.2, 1.1), (2.4, 2.5))
    _arrow(axes, (5.8, 1.1), (7.6, 2.3))
    _arrow(axes, (7.6, 3.0), (7.6, 3.7))
    _arrow(axes, (7.6, 4.3), (7.6, 5.0))
    _arrow(axes, (7.6, 5.7), (5.5, 6.6))
    _arrow(axes, (2.4, 5.5), (4.5, 6.6))
    _note(axes, 7.0, 6.35, "times α / rank")
    _box(axes, 3.4, 6.6, 3.2, 0.8, f"sum: {width} numbers", FLOW)
    _key(axes, 7.8, ((FROZEN, "frozen"), (TRAINED, "trained"), (FLOW, "what flows")))
    return Picture(
        figure,
        f"Drawing of a layer with LoRA. The input of {width} numbers goes two ways: through the frozen matrix W with "
        f"{width * width:,} numbers; and through the trained A, which leaves {rank} numbers, and the trained B, which "
        f"makes {width} of them, with {rank * width:,} numbers each. The second result is multiplied by alpha over the "
        "rank, and both are added.",
    )


def qlora() -> Picture:
    """One layer with QLoRA: what is stored, what it becomes for a moment, and what is trained."""
    figure, axes = _canvas(8.5)
    _box(axes, 3.2, 0.3, 3.6, 0.8, "x: 16 bits", FLOW)
    _box(axes, 0.4, 2.0, 4.4, 1.3, "W: codes of 4 bits,\na scale for each 64")
    _arrow(axes, (2.5, 3.3), (2.5, 4.2))
    _note(axes, 2.7, 3.75, "looked up")
    _box(axes, 0.4, 4.2, 4.4, 1.3, "W: 16 bits, of this\nlayer, for this moment", FLOW)
    _box(axes, 5.8, 2.3, 3.8, 0.8, "A: 16 or 32 bits", TRAINED)
    _box(axes, 5.8, 4.4, 3.8, 0.8, "B: 16 or 32 bits", TRAINED)
    _arrow(axes, (6.0, 1.1), (7.7, 2.3))
    _arrow(axes, (7.7, 3.1), (7.7, 4.4))
    axes.plot([3.2, 0.05, 0.05], [0.7, 0.7, 4.85], color="#000000", lw=1.1)
    _arrow(axes, (0.05, 4.85), (0.4, 4.85))
    _arrow(axes, (2.5, 5.5), (4.4, 6.6))
    _arrow(axes, (7.7, 5.2), (5.6, 6.6))
    _box(axes, 3.2, 6.6, 3.6, 0.8, "sum: 16 bits", FLOW)
    _key(axes, 7.9, ((FROZEN, "frozen"), (TRAINED, "trained"), (FLOW, "for a moment")))
    return Picture(
        figure,
        "Drawing of a layer with QLoRA. The frozen matrix is stored as codes of 4 bits with one scale for 64 of them. "
        "For each product the codes of this layer alone are looked up and become numbers of 16 bits, which are thrown "
        "away after it. Beside it the trained A and B, of 16 or 32 bits. Both results are added. On the way back the "
        "gradient passes through the matrix, and only A and B are changed.",
    )


def kept() -> Picture:
    """What each operation keeps for the way back: with all trained, with LoRA, and with biases alone."""
    figure, axes = _canvas(8.6)
    operations = ("matrix", "GELU", "matrix", "normalise")
    columns = {
        "all trained": ("x", "its input", "x", "its input"),
        "LoRA": ("x, A x", "its input", "x, A x", "its input"),
        "BitFit": ("nothing", "its input", "nothing", "its input"),
    }
    for column, (title, keeps) in enumerate(columns.items()):
        left = 0.1 + 3.35 * column
        axes.text(left + 1.5, 7.3, title, ha="center", va="center", fontsize=_SIZE + 1)
        for row, (operation, what) in enumerate(zip(operations, keeps, strict=True)):
            y = 0.6 + 1.65 * row
            trains = operation == "matrix" and title == "all trained"
            _box(axes, left, y, 1.55, 0.9, operation, TRAINED if trains else FROZEN)
            axes.text(
                left + 1.65, y + 0.45, what, va="center", fontsize=_SIZE, weight="bold" if what == "nothing" else None
            )
            if row:
                _arrow(axes, (left + 0.77, y - 0.75), (left + 0.77, y))
            if title == "LoRA" and operation == "matrix":
                _box(axes, left + 0.1, y - 0.38, 1.35, 0.32, "", TRAINED)
    _key(axes, 8.0)
    said = "; ".join(
        f"{title}: " + ", ".join(f"{operation} {what}" for operation, what in zip(operations, keeps, strict=True))
        for title, keeps in columns.items()
    )
    return Picture(
        figure, f"Drawing of four operations one above the other, and what each keeps for the way back. {said}."
    )


def distillation() -> Picture:
    """A text, a teacher, a student, and the two losses."""
    figure, axes = _canvas(8.6)
    _box(axes, 3.6, 0.3, 2.8, 0.8, "texts", FLOW)
    _arrow(axes, (4.4, 1.1), (2.3, 2.0))
    _arrow(axes, (5.6, 1.1), (7.7, 2.0))
    _box(axes, 0.4, 2.0, 3.8, 1.6, "teacher\nlarge, done")
    _box(axes, 6.0, 2.2, 3.4, 1.1, "student\nsmall", TRAINED)
    _arrow(axes, (2.3, 3.6), (2.3, 4.4))
    _arrow(axes, (7.7, 3.3), (7.7, 4.4))
    _box(axes, 0.4, 4.4, 3.8, 0.8, "softened", FLOW)
    _box(axes, 5.8, 4.4, 3.8, 0.8, "softened; as it is", FLOW)
    _arrow(axes, (2.3, 5.2), (3.9, 6.2))
    _arrow(axes, (6.6, 5.2), (5.0, 6.2))
    _box(axes, 2.2, 6.2, 3.8, 0.8, "distance × T²", FLOW)
    _arrow(axes, (8.6, 5.2), (8.6, 6.2))
    _box(axes, 6.9, 6.2, 2.9, 0.8, "loss on labels", FLOW)
    _key(axes, 7.9, ((FROZEN, "frozen"), (TRAINED, "trained"), (FLOW, "what flows")))
    return Picture(
        figure,
        "Drawing of distillation. The same texts go through a large teacher, which is frozen, and a small student. "
        "The probabilities of both, softened by the temperature T, are compared, times T squared; and the student's "
        "own answers are compared with the labels. The loss is a weighted sum of both, and its gradient reaches the "
        "student alone.",
    )
