"""What a lab asks, read from its source: exercises, points, stubs, and the cells around them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from course_utils.errors import CourseError
from course_utils.exercises import exercises
from course_utils.workshop.authoring import notebooks


class LabError(CourseError, ValueError):
    """A lab's source cannot be graded; the message names the lab and the cell."""


@dataclass(frozen=True)
class Task:
    """One exercise of a lab.

    Args:
        exercise: its name, "lora.forward".
        answer: what the check is given, "lora_forward".
        points: what it is worth, from the tag `points:3`.
        cell_id: of its cell in the notebook.
        stub: that cell before anybody wrote into it.
        section: heading of the chapter's page to read again.
    """

    exercise: str
    answer: str
    points: int
    cell_id: str
    stub: str
    section: str


@dataclass(frozen=True)
class Lab:
    """A lab.

    Args:
        name: "09_lora".
        title: "Lab 9: LoRA".
        tasks: its exercises in order.
        cells: the code of all other cells but the checks.
        cell_ids: of all cells, to recognise a notebook whose file has another name.
    """

    name: str
    title: str
    tasks: list[Task]
    cells: list[str]
    cell_ids: frozenset[str]

    @property
    def points(self) -> int:
        """What the whole lab is worth."""
        return sum(task.points for task in self.tasks)


def sources() -> dict[str, Path]:
    """Name → source of every lab."""
    return {path.stem: path for path in sorted((notebooks.ROOT / "solutions").glob("[0-9][0-9]_*.py"))}


def read_lab(source: Path) -> Lab:
    """The lab of a source.

    Raises:
        LabError: an exercise has no check, or a check gets something other than a name.
    """
    notebook = notebooks.build(source, "lab")
    stubs: list[tuple[str, str, int]] = []
    checked: dict[str, str] = {}
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            points = next(int(tag.removeprefix("points:")) for tag in tags if tag.startswith("points:"))
            stubs.append((cell.id, cell.source, points))
        elif "check" in tags:
            checked |= _checked(cell.source, source.name)
        elif cell.cell_type == "code":
            cells.append(cell.source)
    known = exercises()
    tasks = []
    for name, answer in checked.items():
        homes = [stub for stub in stubs if re.search(rf"^(def {answer}\(|{answer}\b.*=)", stub[1], re.MULTILINE)]
        if name not in known or not homes:
            missing = "a cell that defines it" if name in known else "a check of that name in course_utils/exercises"
            raise LabError(f"{source.name}: {name!r} is given {answer!r}, but there is no {missing}")
        cell_id, stub, points = homes[-1]
        tasks.append(Task(name, answer, points, cell_id, stub, known[name].section))
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    return Lab(source.stem, title, tasks, cells, frozenset(cell.id for cell in notebook.cells))


def _checked(code: str, where: str) -> dict[str, str]:
    """Exercise → name of the answer, from the calls of `check` in a cell."""
    found = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check":
            if not (
                len(node.args) == 2 and isinstance(node.args[0], ast.Constant) and isinstance(node.args[1], ast.Name)
            ):
                raise LabError(f'{where}: write check("chapter.exercise", name); found {ast.unparse(node)}')
            found[str(node.args[0].value)] = node.args[1].id
    return found
