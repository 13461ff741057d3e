"""What came out: one record an exercise, stored for each submission, so that a run that stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from course_utils.workshop.grading.labs import Lab, Task
from course_utils.workshop.grading.sandbox import Limits

#: Status → in words, for the reports.
STATUSES = {
    "passed": "right",
    "wrong": "not right yet",
    "not attempted": "not attempted",
    "to review": "a person has to look at it",
    "not handed in": "not handed in",
    "not graded": "not graded",
}


@dataclass(frozen=True)
class Record:
    """One exercise of one student.

    Args:
        student: name.
        lab: name.
        exercise: name.
        points: earned.
        out_of: what it is worth.
        status: a key of `STATUSES`.
        reason: for the student.
        section: heading of the chapter to read again.
        note: for the instructor, or "".
        beside: the check had to run in the student's process.
    """

    student: str
    lab: str
    exercise: str
    points: int
    out_of: int
    status: str
    reason: str
    section: str
    note: str = ""
    beside: bool = False


def record(student: str, lab: str, task: Task, verdict: dict[str, Any], beside: bool) -> Record:
    """The record of a verdict."""
    status = verdict["status"]
    points = task.points if status == "passed" else 0
    # A student's text may hold what no file takes: half a character, or a bell.
    reason = "".join(sign if sign.isprintable() else " " for sign in str(verdict["message"]))[:1000]
    return Record(
        *(student, lab, task.exercise, points, task.points, status, reason, task.section),
        note=str(verdict.get("note", "")),
        beside=beside,
    )


def missing(student: str, lab: Lab) -> list[Record]:
    """The records of a lab that was not handed in."""
    verdict = {"status": "not handed in", "message": "No notebook of this lab was handed in."}
    return [record(student, lab.name, task, verdict, False) for task in lab.tasks]


class Store:
    """The records of submissions on disk, one file each.

    Args:
        folder: made when it is not there.
        versions: lab → version of its grader; records of another version are graded again.
    """

    def __init__(self, folder: Path, versions: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.versions = versions
        self.failed: dict[tuple[str, str], list[Record]] = {}  # what the next run tries again, so not on disk

    def get(self, student: str, lab: str, digest: str) -> list[Record] | None:
        """The stored records, None where this very file was not graded by this version."""
        try:
            stored = json.loads(self._path(student, lab).read_text(encoding="utf-8"))
            if (stored["digest"], stored["version"]) != (digest, self.versions[lab]):
                return None
            return [Record(**fields) for fields in stored["records"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, student: str, lab: str, digest: str, records: list[Record]) -> None:
        """Store in one step: a run that is stopped leaves a whole file or none."""
        content = {"digest": digest, "version": self.versions[lab], "records": [asdict(record) for record in records]}
        write(self._path(student, lab), json.dumps(content, indent=1) + "\n")

    def _path(self, student: str, lab: str) -> Path:
        return self.folder / f"{file_name(student)}.{lab}.json"


def file_name(student: str) -> str:
    """A name that every file system takes, a different one for each student."""
    name = quote(student, safe=" ", errors="surrogateescape").replace("%", "=")
    if len(name) < 100 and name.strip(" .") == name:
        return name
    return f"{name[:60].strip(' .')}-{hashlib.sha256(student.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def write(path: Path, text: str) -> None:
    """Write a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="replace", newline="")
    os.replace(partial, path)


def versions(sources: dict[str, Path], limits: Limits, hidden: Path | None) -> dict[str, str]:
    """Lab → a digest of all that decides about its points: the course's code, hidden checks, limits, its source."""
    digest = hashlib.sha256(f"{limits} {platform.python_version()} {torch.__version__}".encode())
    package = Path(__file__).parents[2]
    for path in [*sorted(package.rglob("*.py")), *([hidden] if hidden else [])]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    found = {}
    for name, source in sources.items():
        own = digest.copy()
        own.update(source.read_bytes())
        found[name] = own.hexdigest()[:16]
    return found
