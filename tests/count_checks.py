"""Count what the checks are tested with: `python tests/count_checks.py` writes `book/results/checks.json`."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from right_variants import VARIANTS

from course_utils.evaluation import results
from course_utils.workshop.experiments import store
from course_utils.workshop.grading.labs import read_lab, sources


def count() -> dict[str, Any]:
    """Exercise → points, wrong answers that must be rejected by name, other right answers; and the sums."""
    wrong: dict[str, int] = {}
    right: dict[str, int] = {}
    for path in sorted(Path(__file__).with_name("answers").glob("*.py")):
        answers = runpy.run_path(str(path))
        wrong |= {name: len(found) for name, found in answers["WRONG"].items()}
        right |= {name: len(found) for name, found in answers["RIGHT"].items()}
    for name, found in VARIANTS.items():
        right[name] += len(found)
    rows: dict[str, dict[str, Any]] = {}
    for source in sources().values():
        for task in read_lab(source).tasks:
            name = task.exercise
            rows[name] = {"lab": source.stem, "points": task.points, "wrong": wrong[name], "right": right[name]}
    total = {kind: sum(row[kind] for row in rows.values()) for kind in ("points", "wrong", "right")}
    return {"total": {"exercises": len(rows), **total}, "exercises": rows}


def stored() -> dict[str, Any]:
    """The counts that the book shows."""
    return results.read("checks")


if __name__ == "__main__":
    print(store.write("checks", "python tests/count_checks.py", count()))
