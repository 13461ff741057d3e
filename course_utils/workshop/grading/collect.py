"""The notebooks of a folder: whose they are, of which lab, their code, and why some cannot be read."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from course_utils.workshop.grading.labs import Lab

_MOST_MEGABYTES = 20
_MOST_CELLS = 2000


class Unreadable(ValueError):  # noqa: N818 (the message is for the student)
    """A file is no notebook that can be graded; the message says why."""


@dataclass(frozen=True)
class Submission:
    """A student's notebook of one lab.

    Args:
        student: from the name of the folder or of the file.
        lab: name of the lab, "09_lora".
        path: of the file.
        digest: SHA-256 of the file.
        cells: (id, code) of its code cells.
    """

    student: str
    lab: str
    path: Path
    digest: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class Problem:
    """A file that is not graded.

    Args:
        student: whose it is.
        path: of the file, from the folder of submissions.
        says: what is wrong and what to do.
    """

    student: str
    path: str
    says: str


@dataclass
class Class:
    """What a folder holds.

    Args:
        submissions: at most one for a student and a lab, sorted.
        problems: files that are not graded.
        students: all names, also of those whose files cannot be read.
    """

    submissions: list[Submission] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    students: list[str] = field(default_factory=list)


def collect(folder: Path, labs: list[Lab], roster: Iterable[str] = ()) -> Class:
    """Read all submissions: `FOLDER/student/any.ipynb`, or `FOLDER/student_09_lora.ipynb`.

    Args:
        folder: one folder or one file a student.
        labs: those that may be handed in.
        roster: students who should be there.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: name the one that holds the students' notebooks")
    found = Class()
    students = set(roster)
    chosen: dict[tuple[str, str], Submission] = {}
    for path in sorted(_files(folder)):
        student = _student(path.relative_to(folder), labs)
        students.add(student)
        try:
            new = _read(path, student, labs)
        except Unreadable as problem:
            found.problems.append(Problem(student, str(path.relative_to(folder)), str(problem)))
            continue
        old = chosen.get((student, new.lab))
        # The name that the lab gave out counts before "09_lora-Copy1"; otherwise the first by the alphabet.
        counts, other = (new, old) if old and old.path.stem != new.lab == new.path.stem else (old or new, new)
        chosen[student, new.lab] = counts
        if old and other:
            says = f"not graded: {counts.path.name} is this student's notebook of {new.lab} too, and it counts"
            found.problems.append(Problem(student, str(other.path.relative_to(folder)), says))
    found.submissions = [chosen[key] for key in sorted(chosen)]
    found.students = sorted(students)
    return found


def _files(folder: Path) -> list[Path]:
    hidden = re.compile(r"(^|/)[._]")
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return [path for path in paths if not hidden.search(path.relative_to(folder).as_posix())]


def _student(path: Path, labs: list[Lab]) -> str:
    """The folder's name; for a file without one, its name without the lab's."""
    if len(path.parts) > 1:
        return path.parts[0]
    names = "|".join(re.escape(lab.name) for lab in labs)
    return re.sub(rf"[-_ .]*({names})[-_ .]*", "", path.stem) or path.stem


def _read(path: Path, student: str, labs: list[Lab]) -> Submission:
    if path.is_symlink():
        raise Unreadable("this is a link to another file; hand in the file itself")
    if path.suffix != ".ipynb":
        raise Unreadable(f"this is a {path.suffix or 'nameless'} file; hand in the notebook, a file *.ipynb")
    if path.stat().st_size > _MOST_MEGABYTES << 20:
        raise Unreadable(f"the file has more than {_MOST_MEGABYTES} MB; clear the outputs, and hand it in again")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from None
    cells = code_cells(data)
    return Submission(student, _lab(path, cells, labs).name, path, hashlib.sha256(data).hexdigest(), cells)


def code_cells(data: bytes) -> list[tuple[str, str]]:
    """(id, code) of a notebook's code cells; notebooks of older formats are read too.

    Raises:
        Unreadable: it is no notebook.
    """
    if not data.strip():
        raise Unreadable("the file is empty")
    again = "open it in Jupyter, save it, and hand it in again"
    try:
        raw = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Unreadable(f"the file is not in UTF-8, as notebooks are; {again}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the file is no notebook: it is no JSON ({str(error)[:80]}); {again}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("nbformat"), int):
        raise Unreadable(f"the file is JSON, but no notebook; {again}")
    if raw["nbformat"] not in (1, 2, 3, 4):
        raise Unreadable(f"the notebook's format is {raw['nbformat']}, and 4 is the newest that is known; {again}")
    try:
        return _code(raw)
    except Exception as error:  # nbformat raises what it happens to raise for a broken notebook
        raise Unreadable(f"the notebook is damaged ({type(error).__name__}: {str(error)[:80]}); {again}") from None


def _code(raw: dict[str, Any]) -> list[tuple[str, str]]:
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # it reports what does not matter here
    if raw["nbformat"] < 4:
        raw = nbformat.convert(nbformat.from_dict(raw), 4)
    cells = []
    for cell in raw["cells"]:
        source = cell.get("source", "")
        text = source if isinstance(source, str) else "".join(source)
        if cell.get("cell_type") == "code" and text.strip():
            # Colab keeps the id among the metadata.
            cells.append((str(cell.get("id") or cell.get("metadata", {}).get("id", "")), text))
    if len(cells) > _MOST_CELLS:
        raise ValueError(f"{len(cells)} code cells")
    return cells


def _lab(path: Path, cells: list[tuple[str, str]], labs: list[Lab]) -> Lab:
    """The lab of a notebook: by its cells, then by the names that it defines, then by the file's name."""
    ids = {cell_id for cell_id, _ in cells}
    code = "\n".join(source for _, source in cells)

    def likeness(lab: Lab) -> tuple[int, int, bool]:
        answers = sum(bool(re.search(rf"^(def )?{re.escape(task.answer)}\b", code, re.MULTILINE)) for task in lab.tasks)
        return len(ids & lab.cell_ids), answers, lab.name in path.stem

    best = max(labs, key=likeness)
    if not any(likeness(best)):
        raise Unreadable("no cell of it belongs to a lab that is graded here")
    return best
