"""A learner's own copies of the labs: `make lab` opens them, and no update ever touches an answer.

`my_labs/` lies beside `labs/`; git ignores it. A lab that is missing there is copied, one that nobody has changed is
renewed, and one with somebody's work stays as it is: then a line says that the course has a newer one. The start
notebook says which lab comes next, and what has been solved.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from course_utils.errors import CourseError

FOLDER = "my_labs"
START = "00_start.ipynb"
_MEMORY = ".copied.json"  # name → sha256 of the file that was copied


class LabsError(CourseError, ValueError):
    """Nothing was changed; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Bring `my_labs` up to date, or start one lab over."""
    parser = argparse.ArgumentParser(prog="python -m course_utils my-labs", description="Your own copies of the labs.")
    parser.add_argument("--reset", metavar="LAB", help="start this lab over: 09, or 09_lora; the old copy is kept")
    parser.add_argument("--course", type=Path, default=Path.cwd(), help="the course's folder; default: this one")
    options = parser.parse_args(arguments)
    try:
        said = update(options.course) if options.reset is None else [reset(options.course, options.reset)]
    except (LabsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(said))
    return 0


def update(course: Path) -> list[str]:
    """Copy what is missing, renew what nobody has changed, and return what there is to say.

    Args:
        course: the folder that holds `labs`.

    Raises:
        LabsError: there are no labs.
    """
    folder, memory = course / FOLDER, _memory(course)
    fresh = newer = 0
    said = []
    for original in _originals(course):
        mine, digest = folder / _name(original), _sha256(original)
        if mine.exists() and memory.get(mine.name) == digest:
            continue
        if mine.exists() and _sha256(mine) not in (digest, memory.get(mine.name)):
            newer += 1
            said.append(
                f"{FOLDER}/{mine.name} holds your work, and the course has a newer one: make reset LAB={_number(mine)}"
            )
            continue
        _copy(original, mine)
        memory[mine.name] = digest
        fresh += 1
    _remember(course, memory)
    return [f"{fresh} notebook(s) copied to {FOLDER}" if fresh else f"your labs are in {FOLDER}", *said]


def reset(course: Path, lab: str) -> str:
    """Give a fresh copy of one lab; the old one is kept under another name, which is returned in a sentence.

    Args:
        course: the folder that holds `labs`.
        lab: "09", "9" or "09_lora".

    Raises:
        LabsError: there is no such lab, or more than one.
    """
    wanted = lab.zfill(2) if lab.isdecimal() else lab.removesuffix(".ipynb")
    labs = [path for path in _originals(course) if path.suffix == ".ipynb"]
    found = [path for path in labs if wanted in (Path(_name(path)).stem, _number(path))]
    if len(found) != 1:
        raise LabsError(
            f"there is no lab {lab!r}; say LAB=09 for one of {', '.join(Path(_name(path)).stem for path in labs)}"
        )
    mine = course / FOLDER / _name(found[0])
    kept = ""
    if mine.exists():
        old = next(
            path for n in range(1, 10_000) if not (path := mine.with_name(f"{mine.stem}.old-{n}.ipynb")).exists()
        )
        os.replace(mine, old)
        kept = f"; your old one is {FOLDER}/{old.name}"
    _copy(found[0], mine)
    _remember(course, _memory(course) | {mine.name: _sha256(found[0])})
    return f"{FOLDER}/{mine.name} is a fresh copy{kept}"


def _originals(course: Path) -> list[Path]:
    """The labs, and the files that they read."""
    found = sorted(path for path in (course / "labs").glob("*") if path.is_file() and not path.name.startswith("."))
    if not any(path.suffix == ".ipynb" for path in found):
        raise LabsError(
            f"there are no labs in {course / 'labs'}: run this in the course's folder, or name it: --course"
        )
    return [Path(__file__).with_name("start.ipynb"), *found]


def _name(original: Path) -> str:
    return START if original.parent == Path(__file__).parent else original.name


def _number(path: Path) -> str:
    return _name(path).partition("_")[0]


def _copy(original: Path, mine: Path) -> None:
    mine.parent.mkdir(exist_ok=True)
    partial = mine.with_name(f".{mine.name}.partial")
    shutil.copyfile(original, partial)  # not its permissions: a teacher's copy may be read-only
    os.replace(partial, mine)


def _memory(course: Path) -> dict[str, str]:
    path = course / FOLDER / _MEMORY
    try:
        content: dict[str, str] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # lost: then a changed lab counts as somebody's work
        return {}
    return content


def _remember(course: Path, memory: dict[str, str]) -> None:
    path = course / FOLDER / _MEMORY
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(memory, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
