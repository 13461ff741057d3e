"""The reports that people read: a page a student, and one for the whole class. Each is one file and loads nothing."""

from __future__ import annotations

from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from course_utils.plots.style import bars
from course_utils.workshop.grading.labs import Lab
from course_utils.workshop.grading.records import STATUSES, Record, file_name, write
from course_utils.workshop.grading.reports import Report, without_section

_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #1a1a1a; background: #fff }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #bbb }
td:last-child { overflow-wrap: anywhere }
td.number, th.number { text-align: right; white-space: nowrap }
svg { max-width: 100%; height: auto }
a { color: #00508c }
"""
_MOST_MISTAKES, _HARDEST = 15, 12


def write_all(report: Report, out: Path) -> None:
    """Write `students/NAME.html` and `class.html`."""
    (out / "students").mkdir(exist_ok=True)
    current = set()
    for student in report.found.students:
        path = out / "students" / f"{file_name(student)}.html"
        current.add(path)
        write(path, student_page(report, student))
    for old in set((out / "students").glob("*.html")) - current:
        old.unlink()  # of a student who is no longer in the class
    write(out / "class.html", class_page(report))


def student_page(report: Report, student: str) -> str:
    """Feedback for one student: each exercise with its mistake and the section to read again."""
    parts = [f"<h1>Feedback for {escape(student)}</h1>"]
    records = report.by_student().get(student, [])
    for lab in report.labs:
        mine = [one for one in records if one.lab == lab.name]
        points = sum(one.points for one in mine)
        parts.append(f"<h2>{escape(lab.title)}: {points} of {lab.points} points</h2>")
        if mine and all(one.status == "not handed in" for one in mine):
            parts.append("<p>No notebook of this lab was handed in.</p>")
        else:
            rows = [_feedback(one) for one in mine]
            parts.append(_table("Each exercise", ("exercise", "points", "result", "what to do"), rows, numbers=(1,)))
    problems = [problem for problem in report.found.problems if problem.student == student]
    if problems:
        parts.append("<h2>Files that were not graded</h2>")
        parts.append(_table("Files", ("file", "why"), [(one.path, one.says) for one in problems]))
    return _page(f"Feedback for {student}", parts)


def _feedback(one: Record) -> tuple[str, ...]:
    says = without_section(one.reason)
    if one.status in ("wrong", "not attempted"):
        says = f"{says[:1].upper()}{says[1:].rstrip('.: ')}. Read again: “{one.section}” in the chapter."
    return one.exercise, f"{one.points} of {one.out_of}", STATUSES[one.status], f"{says} {one.note}".strip()


def class_page(report: Report) -> str:
    """For the instructor: totals, the hardest exercises, common mistakes, and what a person should look at."""
    students = report.by_student()
    shares = report.shares()
    handed_in = len({(one.student, one.lab) for one in report.records if one.status != "not handed in"})
    rows: list[tuple[Any, ...]]
    parts = ["<h1>The class</h1>", f"<p>{len(students)} students, {handed_in} notebooks graded.</p>"]
    parts += ["<h2>Points</h2>", _totals(report.labs, students)]
    if shares:
        hardest = dict(list(shares.items())[:_HARDEST])
        parts += ["<h2>The hardest exercises</h2>", _chart(hardest)]
        rows = [(name, f"{100 * share:.0f}%", len(report.handed_in(name))) for name, share in hardest.items()]
        parts.append(_table("Share that got it right", ("exercise", "right", "notebooks"), rows, numbers=(1, 2)))
    if mistakes := report.mistakes()[:_MOST_MISTAKES]:
        rows = [(exercise, count, says) for exercise, says, count in mistakes]
        parts.append("<h2>The most common mistakes</h2>")
        parts.append(_table("Mistakes", ("exercise", "students", "what they were told"), rows, numbers=(1,)))
    if looks := [one for one in report.records if one.status in ("to review", "not graded") or one.note]:
        rows = [(one.student, one.exercise, f"{one.note} {one.reason}".strip()) for one in looks]
        parts += ["<h2>For you to look at</h2>", _table("Answers", ("student", "exercise", "why"), rows)]
    if report.found.problems:
        rows = [(one.student, one.path, one.says) for one in report.found.problems]
        parts += ["<h2>Files that were not graded</h2>", _table("Files", ("student", "file", "why"), rows)]
    return _page("The class", [*parts, "<h2>Protection</h2>", _protection(report)])


def _totals(labs: list[Lab], students: dict[str, list[Record]]) -> str:
    rows = []
    for student, records in students.items():
        cells = []
        for lab in labs:
            mine = [one for one in records if one.lab == lab.name]
            absent = all(one.status == "not handed in" for one in mine)
            cells.append("not handed in" if absent else sum(one.points for one in mine))
        rows.append((student, *cells, sum(one.points for one in records)))
    heads = ("student", *(f"{lab.name} (of {lab.points})" for lab in labs), "all")
    return _table("Points by student and lab", heads, rows, numbers=range(1, len(heads)))


def _protection(report: Report) -> str:
    found = report.protections
    if isinstance(found, str):
        return f"<p>{escape(found)}</p>"
    beside = sorted({one.exercise for one in report.records if one.beside})
    text = ", ".join(beside) or "none"
    return (
        _table(
            "Tried before the first notebook ran",
            ("protection", "held"),
            [(k, "yes" if v else "NO") for k, v in found.items()],
        )
        + f"<p>Checks that had to run in the student's own process: {escape(text)}. All others ran apart from it.</p>"
    )


def _chart(shares: dict[str, float]) -> str:
    """The shares as a picture in the page; the same numbers give the same bytes."""
    picture = bars(shares, "share that got it right")
    text = StringIO()
    with plt.rc_context({"svg.hashsalt": "grade", "svg.fonttype": "path"}):
        picture.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(picture.figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(picture.alt)}"', 1)


def _table(caption: str, heads: Any, rows: Any, numbers: Any = ()) -> str:
    def cell(tag: str, column: int, value: Any) -> str:
        name = ' class="number"' if column in numbers else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{name}{scope}>{escape(str(value))}</{tag}>"

    head = "".join(cell("th", column, value) for column, value in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell('td', n, value) for n, value in enumerate(row))}</tr>\n" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _page(title: str, parts: list[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )
