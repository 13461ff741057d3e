"""The reports that programs read: a grade book as CSV, and everything as JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from course_utils.workshop.grading.collect import Class
from course_utils.workshop.grading.labs import Lab
from course_utils.workshop.grading.records import Record, write


@dataclass(frozen=True)
class Report:
    """All that the reports show.

    Args:
        labs: those that were graded.
        found: what the folder held.
        records: one an exercise, lab and student.
        protections: what each student's code was kept from, and whether that held when it was tried; or a sentence.
    """

    labs: list[Lab]
    found: Class
    records: list[Record]
    protections: dict[str, bool] | str

    def by_student(self) -> dict[str, list[Record]]:
        """Student → their records."""
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            found[record.student].append(record)
        return dict(found)

    def handed_in(self, exercise: str) -> list[Record]:
        """The records of an exercise in notebooks that were handed in."""
        return [one for one in self.records if one.exercise == exercise and one.status != "not handed in"]

    def shares(self) -> dict[str, float]:
        """Exercise → the share of those who handed it in that got it right, the hardest first."""
        found = {}
        for lab in self.labs:
            for task in lab.tasks:
                tried = self.handed_in(task.exercise)
                if tried:
                    found[task.exercise] = sum(one.points > 0 for one in tried) / len(tried)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def mistakes(self) -> list[tuple[str, str, int]]:
        """(exercise, sentence, students) for wrong answers, the most common first."""
        counted = Counter((one.exercise, without_section(one.reason)) for one in self.records if one.status == "wrong")
        ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        return [(exercise, says, count) for (exercise, says), count in ordered]


def without_section(reason: str) -> str:
    """The sentence without the place to read again and without the points, which the reports show apart."""
    return re.sub(r"^(not right yet|passed, \d+ points)\. ", "", reason.partition(" (See “")[0])


def write_all(report: Report, out: Path) -> None:
    """Write `gradebook.csv` (a line an exercise), `totals.csv` (a line a student) and `grades.json`."""
    rows: list[Iterable[Any]] = [("student", "lab", "exercise", "points", "out of", "status", "reason")]
    for one in report.records:
        reason = without_section(one.reason)
        rows.append((one.student, one.lab, one.exercise, one.points, one.out_of, one.status, reason))
    write(out / "gradebook.csv", as_csv(rows))
    names = [lab.name for lab in report.labs]
    totals: list[Iterable[Any]] = [("student", *names, "points", "out of")]
    for student, records in report.by_student().items():
        points = [sum(one.points for one in records if one.lab == name) for name in names]
        totals.append((student, *points, sum(points), sum(lab.points for lab in report.labs)))
    write(out / "totals.csv", as_csv(totals))
    content = {
        "labs": {lab.name: {"title": lab.title, "points": lab.points} for lab in report.labs},
        "protections": report.protections,
        "problems": [asdict(problem) for problem in report.found.problems],
        "shares": report.shares(),
        "mistakes": [list(mistake) for mistake in report.mistakes()],
        "records": [asdict(record) for record in report.records],
    }
    write(out / "grades.json", json.dumps(content, indent=1, ensure_ascii=True) + "\n")


def as_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV that a spreadsheet opens without running anything: a text like `=1+1` stays a text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    for row in rows:
        writer.writerow([f"'{cell}" if str(cell)[:1] in "=+-@\t\r" and isinstance(cell, str) else cell for cell in row])
    return text.getvalue()
