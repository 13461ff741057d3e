"""Figures of the chapter on few-shot distillation."""

from __future__ import annotations

from collections.abc import Sequence

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis


def curves(keys: Sequence[str] = ("labels", "reviews", "few", "people")) -> Picture:
    """Test accuracy against the number of labels: the mean of five seeds, and the range from the worst to the best."""
    stored = results.read("few_shot_distillation")
    sizes, said = stored["sizes"], []
    figure, axes = make_axes(7.0, 4.2)
    for colour, marker, key in zip(COLOURS, "so^Dv", keys, strict=False):
        rows = [stored["arms"][key][str(size)] for size in sizes]
        means = [row["accuracy"]["mean"] for row in rows]
        low, high = ([row["accuracy"][end] for row in rows] for end in ("low", "high"))
        axes.plot(sizes, means, marker=marker, color=colour, label=rows[0]["title"])
        axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        each = ", ".join(f"{size} labels {mean:.1%}" for size, mean in zip(sizes, means, strict=True))
        said.append(f"{rows[0]['title']}: {each}")
    axes.axhline(stored["majority"], color="grey", linestyle="--", label=f"majority class {stored['majority']:.1%}")
    axes.set(xscale="log", xlabel="labelled tweets", ylabel="test accuracy")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    percent_axis(axes)
    axes.legend(fontsize=9, loc="lower right")
    return Picture(figure, f"Line chart of test accuracy against the number of labels. {'. '.join(said)}.")


def students_and_teachers(
    keys: Sequence[str] = ("untrained", "reviews_50", "reviews_40", "reviews_20", "few", "reviews", "tweets", "people"),
) -> Picture:
    """The accuracy of each student against that of its teacher, with 64 labels."""
    stored = results.read("few_shot_distillation")
    figure, axes = make_axes(7.2, 4.2)
    said, everything = [], []
    for number, key in enumerate(keys):
        row = stored["arms"][key]["64"]
        teacher, student = row["teacher_accuracy"]["mean"], row["accuracy"]["mean"]
        marker = "os^DvPX*"[number % 8]
        axes.plot(teacher, student, marker, markersize=9, color=COLOURS[number % len(COLOURS)], label=row["title"])
        said.append(f"{row['title']}: teacher {teacher:.1%}, student {student:.1%}")
        everything += [teacher, student]
    ends = [min(everything) - 0.02, max(everything) + 0.02]
    axes.plot(ends, ends, color="grey", linewidth=1, label="as good as the teacher")
    alone = stored["arms"]["labels"]["64"]["accuracy"]["mean"]
    axes.axhline(alone, color="grey", linestyle="--", label=f"labels only, {alone:.1%}")
    axes.set(xlabel="test accuracy of the teacher", ylabel="test accuracy of the student")
    percent_axis(axes, "x")
    percent_axis(axes)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
    return Picture(
        figure,
        f"Scatter chart of the student's accuracy against its teacher's, with 64 labels. {'; '.join(said)}. "
        f"With the labels only: {alone:.1%}.",
    )
