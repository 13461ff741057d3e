"""Figures of the chapter on data."""

from __future__ import annotations

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def raters_needed() -> Picture:
    """How often the label of a few raters is the label of all of them."""
    rows = results.read("data")["raters"]
    figure, axes = make_axes(6.4, 3.6)
    said = []
    for colour, name, marker in zip(COLOURS, ("tweets", "news"), ("o", "s"), strict=False):
        own = [row for row in rows if row["domain"] == name]
        sizes, right = [row["raters"] for row in own], [row["right"] for row in own]
        axes.plot(sizes, right, marker=marker, color=colour, label=name)
        said.append(f"{name}: " + ", ".join(f"{n} give {share:.1%}" for n, share in zip(sizes, right, strict=True)))
    axes.set(xlabel="raters that are asked", ylabel="same label as all raters", xticks=sizes)
    percent_axis(axes)
    axes.legend(loc="lower right")
    return Picture(figure, f"Line chart that rises and flattens, label of few raters against all. {'; '.join(said)}.")


def planted_duplicates() -> Picture:
    """Measured accuracy against the share of test texts that also stand in training, and the honest accuracy."""
    rows = results.read("data")["planted_duplicates"]
    shares = [row["share"] for row in rows]
    figure, axes = make_axes(6.4, 3.6)
    axes.plot(shares, [row["measured"] for row in rows], "o-", color=COLOURS[1], label="measured on the whole test")
    axes.plot(
        shares, [row["honest"] for row in rows], "s--", color=COLOURS[0], label="on the texts that are really new"
    )
    axes.set(xlabel="share of the test texts that also stand in training", ylabel="accuracy")
    percent_axis(axes, "x")
    percent_axis(axes)
    axes.legend(loc="upper left")
    said = ", ".join(f"{row['share']:.0%} gives {row['measured']:.1%}" for row in rows)
    return Picture(
        figure,
        f"Line chart. The measured accuracy climbs with the share of planted duplicates: {said}. "
        f"On new texts it stays between {min(row['honest'] for row in rows):.1%} and "
        f"{max(row['honest'] for row in rows):.1%}.",
    )


def augmentation_gain(labels: int = 128) -> Picture:
    """What each augmentation changes, on all test tweets and on those with a negation."""
    stored = [row for row in results.read("data")["augmentation"]["rows"] if row["labels"] == labels]
    rows = [row for row in stored if row["augmentation"] != "nothing"][::-1]
    figure, axes = make_axes(7.0, 3.6)
    said = []
    for shift, key, title, marker in (
        (0.12, "gain", "all tweets", "o"),
        (-0.12, "negated_gain", "with a negation", "s"),
    ):
        gains = [row[key] for row in rows]
        half = [row[f"{key}_high"] - row[key] for row in rows]
        places = [place + shift for place in range(len(rows))]
        colour = COLOURS[0 if shift > 0 else 1]
        axes.errorbar(gains, places, xerr=half, fmt=marker, capsize=4, color=colour, label=title)
        values = ", ".join(f"{row['augmentation']} {row[key]:+.1f}" for row in rows[::-1])
        said.append(f"{title}: {values}")
    axes.axvline(0, color="grey", linestyle="--")
    axes.set_yticks(range(len(rows)), [row["augmentation"] for row in rows])
    axes.set(xlabel=f"change of the accuracy with {labels} labels, in percentage points")
    axes.legend(loc="upper left")
    return Picture(figure, f"Changes of the accuracy in points, with 95% intervals. {'; '.join(said)}.")
