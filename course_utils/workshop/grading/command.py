"""The command `python -m course_utils grade`."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from course_utils.errors import CourseError
from course_utils.exercises import exercises
from course_utils.workshop.authoring import notebooks
from course_utils.workshop.grading import pages, records, reports
from course_utils.workshop.grading.collect import Class, Submission, collect
from course_utils.workshop.grading.labs import Lab, LabError, read_lab, sources
from course_utils.workshop.grading.pool import Pool, ServerError
from course_utils.workshop.grading.sandbox import Limits, NoSandbox, require_limits


class GradingError(CourseError, RuntimeError):
    """Nothing was graded; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Grade a folder and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m course_utils grade", description="Grade a class's notebooks.")
    parser.add_argument("submissions", type=Path, metavar="SUBMISSIONS", help="one folder or one file a student")
    parser.add_argument("--out", type=Path, required=True, metavar="REPORT", help="folder for the reports")
    parser.add_argument("--labs", nargs="+", metavar="LAB", help="NN_name; default: those that somebody handed in")
    parser.add_argument("--roster", type=Path, metavar="FILE", help="names of all students, one a line")
    parser.add_argument("--hidden", type=Path, metavar="FILE", help="Python file with more checks, HIDDEN = {...}")
    parser.add_argument("--workers", type=int, default=2, help="how many at the same time (default: 2)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for one exercise (default: 30)")
    parser.add_argument("--megabytes", type=int, default=2000, help="of memory for one exercise (default: 2000)")
    parser.add_argument("--unprotected", action="store_true", help="go on where the system cannot confine a process")
    options = parser.parse_args(arguments)
    try:
        require_limits()
        limits = Limits(options.seconds, options.megabytes)
        if options.workers < 1:
            raise ValueError(f"--workers must be 1 or more, got {options.workers}")
        graded = grade(
            options.submissions,
            options.out,
            labs=options.labs,
            roster=_roster(options.roster),
            hidden=options.hidden,
            workers=options.workers,
            limits=limits,
            unprotected=options.unprotected,
        )
    except (GradingError, LabError, NoSandbox, ServerError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    failed = [record for record in graded if record.status == "not graded"]
    for record in failed:
        print(f"{record.student}, {record.exercise}: {record.reason} Run the command again.", file=sys.stderr)
    return 1 if failed else 0


def _roster(path: Path | None) -> list[str]:
    if path is None:
        return []
    if not path.is_file():
        raise GradingError(f"there is no file {path}; --roster wants one with a student's name on each line")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def grade(
    submissions: Path,
    out: Path,
    *,
    labs: list[str] | None = None,
    roster: Iterable[str] = (),
    hidden: Path | None = None,
    workers: int = 2,
    limits: Limits | None = None,
    unprotected: bool = False,
) -> list[records.Record]:
    """Grade a folder of notebooks and write the reports.

    Args:
        submissions: one folder or one file a student.
        out: folder for the reports; what it holds of an earlier run is used again where nothing changed.
        labs: names of the labs to grade; None for those that somebody handed in.
        roster: students who should be there.
        hidden: a Python file with `HIDDEN`, exercise → check.
        workers: how many exercises at the same time.
        limits: of each exercise.
        unprotected: go on where the system cannot confine a student's code.

    Returns:
        A record an exercise, lab and student.

    Raises:
        GradingError: an argument is wrong, a solution does not earn its points, or a protection is missing.
        FileNotFoundError: no such folder.
    """
    limits = limits or Limits()
    known = _sources(labs)
    _check_hidden(hidden)
    plans = {name: read_lab(source) for name, source in known.items()}
    found = collect(submissions, list(plans.values()), roster)
    if not found.students:
        raise GradingError(f"{submissions} holds no notebook: one folder or one file *.ipynb a student is expected")
    wanted = labs or sorted({submission.lab for submission in found.submissions})
    out.mkdir(parents=True, exist_ok=True)
    store = records.Store(out / "records", records.versions(known, limits, hidden))
    waiting = [one for one in found.submissions if store.get(one.student, one.lab, one.digest) is None]
    protections: dict[str, bool] | str = "nothing was run: all was graded before"
    if waiting:
        job = {"hidden": str(hidden.resolve()) if hidden else None, "limits": asdict(limits)}
        protections = _judge(waiting, plans, known, job, store, workers, unprotected)
    graded = _all_records(found, plans, wanted, store)
    report = reports.Report([plans[name] for name in wanted], found, graded, protections)
    reports.write_all(report, out)
    pages.write_all(report, out)
    return graded


def _sources(labs: list[str] | None) -> dict[str, Path]:
    """Name → source of the labs that are wanted."""
    if not sources():
        raise GradingError("this copy of the course holds no solutions, so it cannot grade: use the whole course")
    if unknown := set(labs or ()) - set(sources()):
        raise GradingError(f"there is no lab {', '.join(sorted(unknown))}; there are {', '.join(sources())}")
    return {name: source for name, source in sources().items() if labs is None or name in labs}


def _judge(
    waiting: list[Submission],
    plans: dict[str, Lab],
    known: dict[str, Path],
    job: dict[str, Any],
    store: records.Store,
    workers: int,
    unprotected: bool,
) -> dict[str, bool] | str:
    """Run what waits, the solutions first, and store what comes out; says how the system confines a process."""
    with Pool(min(workers, len(waiting))) as pool:
        job = {**job, "protected": _protected(pool, unprotected)}
        beside = {name: _beside(pool, plans[name], known[name], job) for name in {one.lab for one in waiting}}
        _run(pool, waiting, plans, beside, job, store)
        return pool.protections


def _check_hidden(path: Path | None) -> None:
    if path is None:
        return
    if not path.is_file():
        raise GradingError(f"there is no file {path}; --hidden wants a Python file with HIDDEN = {{exercise: check}}")
    checks = runpy.run_path(str(path)).get("HIDDEN")
    if not isinstance(checks, dict) or not all(callable(check) for check in checks.values()):
        raise GradingError(f"{path} must define HIDDEN = {{exercise: check}}, each check a function of the answer")
    if unknown := set(checks) - set(exercises()):
        raise GradingError(f"{path}: there is no exercise {', '.join(sorted(unknown))}")


def _protected(pool: Pool, unprotected: bool) -> bool:
    found = pool.protections
    missing = [found] if isinstance(found, str) else [says for says, holds in found.items() if not holds]
    if not missing:
        return True
    if not unprotected:
        raise GradingError(
            f"This system cannot confine a student's code ({'; '.join(missing)}), so nothing was run. Grade on Linux "
            "5.13 or newer, in WSL 2 or in a container; or, where you trust every notebook, add --unprotected."
        )
    print(f"Not protected: {'; '.join(missing)}. Only time and memory are limited.", file=sys.stderr)
    return False


def _beside(pool: Pool, lab: Lab, source: Path, job: dict[str, Any]) -> set[str]:
    """The exercises whose check has to run beside the answer, found with the solution; it must earn all points."""
    cells = [(cell.id, cell.source) for cell in notebooks.build(source, "solution").cells if cell.cell_type == "code"]
    jobs = [_job(lab, cells, task.exercise, False, job) for task in lab.tasks]
    first = list(pool.map(jobs))
    beside = {done["exercise"] for done, verdict in first if verdict["status"] != "passed"}
    again = pool.map([{**done, "beside": True} for done, _ in first if done["exercise"] in beside])
    for done, verdict in again:
        if verdict["status"] != "passed":
            raise GradingError(
                f"the solution of {lab.name} earns no points for {done['exercise']}: {verdict['message']}"
            )
    return beside


def _job(lab: Lab, cells: list[tuple[str, str]], exercise: str, beside: bool, job: dict[str, Any]) -> dict[str, Any]:
    plain = {"cells": lab.cells, "tasks": [asdict(task) for task in lab.tasks]}
    return {**job, "lab": plain, "cells": cells, "exercise": exercise, "beside": beside}


def _run(
    pool: Pool,
    waiting: list[Submission],
    labs: dict[str, Lab],
    beside: dict[str, set[str]],
    job: dict[str, Any],
    store: records.Store,
) -> None:
    """Judge all exercises of all submissions, and store each submission when its last exercise is done."""
    jobs = [
        {**_job(labs[one.lab], one.cells, task.exercise, task.exercise in beside[one.lab], job), "number": number}
        for number, one in enumerate(waiting)
        for task in labs[one.lab].tasks
    ]
    verdicts: dict[int, dict[str, records.Record]] = {number: {} for number in range(len(waiting))}
    for done, verdict in tqdm(pool.map(jobs), total=len(jobs), desc="exercises", unit=""):
        one = waiting[done["number"]]
        lab = labs[one.lab]
        task = next(task for task in lab.tasks if task.exercise == done["exercise"])
        mine = verdicts[done["number"]]
        mine[task.exercise] = records.record(one.student, one.lab, task, verdict, done["beside"])
        if len(mine) == len(lab.tasks) and all(record.status != "not graded" for record in mine.values()):
            store.put(one.student, one.lab, one.digest, [mine[task.exercise] for task in lab.tasks])
        elif len(mine) == len(lab.tasks):
            store.failed[one.student, one.lab] = [mine[task.exercise] for task in lab.tasks]


def _all_records(found: Class, labs: dict[str, Lab], wanted: list[str], store: records.Store) -> list[records.Record]:
    digests = {(one.student, one.lab): one.digest for one in found.submissions}
    graded = []
    for student in found.students:
        for name in wanted:
            digest = digests.get((student, name))
            if digest is None:
                graded += records.missing(student, labs[name])
            else:
                graded += store.get(student, name, digest) or store.failed[student, name]
    return graded
