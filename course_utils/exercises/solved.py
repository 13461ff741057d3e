"""What has been solved: read from the notebooks as they were saved, so no kernel of a lab need run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError

_CHECK = re.compile(r"""^(?!\s*#).*?\bcheck\(\s*["']([\w.]+)["']""", re.MULTILINE)
_TRIED = re.compile(r"^([\w.]+): (?:not right yet|your code stopped)", re.MULTILINE)
_POINTS = "points:"


class ProgressError(CourseError, ValueError):
    """There is nothing to read; the message says what to do."""


@dataclass(frozen=True)
class LabProgress:
    """How far one lab is.

    Args:
        name: of its file, "09_lora".
        title: its first heading, "Lab 9: LoRA".
        points: exercise → what it is worth, in the order of the lab.
        solved: exercises whose check had passed when the notebook was saved.
        tried: exercises whose check had found a mistake.
    """

    name: str
    title: str
    points: dict[str, int]
    solved: frozenset[str]
    tried: frozenset[str]

    @property
    def earned(self) -> int:
        """Points of what is solved."""
        return sum(worth for name, worth in self.points.items() if name in self.solved)

    @property
    def next(self) -> str | None:
        """The first exercise that is not solved; None when all are."""
        return next((name for name in self.points if name not in self.solved), None)


@dataclass(frozen=True)
class Progress:
    """How far all labs of a folder are; `print` it, or let a notebook show it as a table.

    Args:
        labs: in the order of the course.
        unread: file → why it could not be read.
    """

    labs: tuple[LabProgress, ...]
    unread: dict[str, str]

    @property
    def next(self) -> tuple[str, str] | None:
        """(lab, exercise): the first open one of the lab that was begun last, or of the first lab; None at the end."""
        begun = [lab for lab in self.labs if (lab.solved or lab.tried) and lab.next]
        after = [lab for lab in self.labs if lab.next and (not begun or lab.name > begun[-1].name)]
        lab = begun[-1] if begun else after[0] if after else None
        return (lab.name, str(lab.next)) if lab else None

    def __str__(self) -> str:
        wide = max((len(lab.title) for lab in self.labs), default=0)
        lines = [f"{'':{wide}}  solved   points  next"]
        lines += [f"{lab.title:{wide}}  {_share(lab)}  {lab.next or 'done'}" for lab in self.labs]
        return "\n".join([*lines, *self._ending()])

    def _repr_markdown_(self) -> str:
        rows = [
            f"| [{lab.title}]({lab.name}.ipynb) | {len(lab.solved)} of {len(lab.points)} "
            f"| {lab.earned} of {sum(lab.points.values())} | {f'`{lab.next}`' if lab.next else 'done'} |"
            for lab in self.labs
        ]
        return "\n".join(["| lab | solved | points | next |", "|---|---:|---:|---|", *rows, "", *self._ending()])

    def _ending(self) -> Iterator[str]:
        earned, all_points = sum(lab.earned for lab in self.labs), sum(sum(lab.points.values()) for lab in self.labs)
        yield f"All together: {earned} of {all_points} points, as the notebooks were saved."
        if self.next:
            yield f"Go on with {self.next[1]} in {self.next[0]}.ipynb."
        elif not self.unread:
            yield "All is solved."
        for file, why in self.unread.items():
            yield f"{file} was left out: {why}"


def _share(lab: LabProgress) -> str:
    solved, points = f"{len(lab.solved)}/{len(lab.points)}", f"{lab.earned}/{sum(lab.points.values())}"
    return f"{solved:>6}  {points:>7}"


def progress(folder: str | Path = ".") -> Progress:
    """Read which exercises were solved when the labs were last saved.

    Args:
        folder: with the labs, such as `my_labs`, or the folder that holds `my_labs`.

    Returns:
        For each lab its exercises, what is solved, the points, and what comes next.

    Raises:
        ProgressError: there is no such folder, or no lab in it.
    """
    folder = Path(folder)
    place = folder / "my_labs" if (folder / "my_labs").is_dir() else folder
    if not place.is_dir():
        raise ProgressError(f"there is no folder {folder}: name the one with your labs, such as progress('my_labs')")
    labs, unread = [], {}
    for file in sorted(place.glob("[0-9][0-9]_*.ipynb")):
        if not re.fullmatch(r"\w+", file.stem, re.ASCII):  # what `make reset` has put aside, or a copy
            continue
        try:
            lab = _read(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            unread[file.name] = f"it is no notebook that can be read ({type(error).__name__}: {error}); save it again"
            continue
        if lab.points:
            labs.append(lab)
    if not labs and not unread:
        raise ProgressError(f"there is no lab in {place.resolve()}: `make lab` makes your copies, in my_labs")
    return Progress(tuple(labs), unread)


def _read(file: Path) -> LabProgress:
    cells: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["cells"]
    title, worth = file.stem, 0
    points: dict[str, int] = {}
    solved: set[str] = set()
    tried: set[str] = set()
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and title == file.stem and source.startswith("# "):
            title = source.splitlines()[0].removeprefix("# ")
        tags = cell["metadata"].get("tags", [])
        worth = next((int(tag.removeprefix(_POINTS)) for tag in tags if tag.startswith(_POINTS)), worth)
        if "check" in tags and (found := _CHECK.search(source)):
            points[found[1]] = worth
            said = "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))
            passed, wrong = said.rfind(f"{found[1]}: passed, "), _last(_TRIED, said, found[1])
            (solved if passed > wrong else tried if wrong >= 0 else set()).add(found[1])
    return LabProgress(file.stem, title, points, frozenset(solved), frozenset(tried))


def _last(pattern: re.Pattern[str], said: str, name: str) -> int:
    """Where the check of an exercise said so the last time; -1 for never."""
    return max((found.start() for found in pattern.finditer(said) if found[1] == name), default=-1)
