"""The labs as sources of nbgrader: `python -m course_utils nbgrader COURSE`.

nbgrader (Jupyter's own system for assignments) marks cells in their metadata, version 3 of its schema: an exercise is a
cell with a solution, a check is a locked cell with points that must not raise. Our markers of an answer are nbgrader's
too, so it makes the stubs itself. The labs of `make notebooks` stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from course_utils.workshop.authoring import notebooks
from course_utils.workshop.grading.judge import HIDDEN_SEEDS
from course_utils.workshop.grading.labs import Lab, LabError, read_lab, sources

_SCHEMA = 3
_CONFIG = """# Written by `python -m course_utils nbgrader`.
c = get_config()
c.CourseDirectory.course_id = "peft"
# A lab trains a real model; a cell may take this many seconds.
c.ExecutePreprocessor.timeout = 600
"""
_TEST = """from course_utils.exercises import run_check
from course_utils.exercises.checking import other_numbers

result = run_check("{exercise}", {answer})
print(result)
assert result.status == "passed", str(result)
### BEGIN HIDDEN TESTS
with other_numbers({seed}):
    result = run_check("{exercise}", {answer})
assert result.status == "passed", "With other numbers: " + str(result)
### END HIDDEN TESTS"""


def main(arguments: list[str]) -> int:
    """Write the sources."""
    parser = argparse.ArgumentParser(prog="python -m course_utils nbgrader", description="Sources for nbgrader.")
    parser.add_argument("course", type=Path, metavar="COURSE", help="nbgrader's folder of the course; made if missing")
    parser.add_argument("labs", nargs="*", metavar="LAB", help="NN_name; default: all")
    parser.add_argument("--short", action="store_true", help="imports, exercises and checks only: grades in seconds")
    options = parser.parse_args(arguments)
    known = sources()
    if unknown := set(options.labs) - set(known):
        parser.error(f"no lab {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    try:
        for name in options.labs or known:
            path = options.course / "source" / name / f"{name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(source_notebook(known[name], short=options.short), path)
            print(f"wrote {path}")
        config = options.course / "nbgrader_config.py"
        if not config.exists():
            config.write_text(_CONFIG, encoding="utf-8")
    except (LabError, notebooks.AuthoringError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def source_notebook(source: Path, short: bool = False) -> NotebookNode:
    """A lab as nbgrader's instructor version, with solutions, points and hidden checks.

    Args:
        source: `solutions/NN_name.py`.
        short: leave out the cells that are neither text, nor imports, nor an exercise with its check.

    Raises:
        LabError: an exercise has no check.
    """
    lab = read_lab(source)
    notebook = notebooks.build(source, "lab")
    with_answers = jupytext.read(source, fmt="py:percent")
    kept = []
    for cell, original in zip(notebook.cells, with_answers.cells, strict=True):
        tags = cell.metadata.pop("tags", [])
        if "exercise" in tags:
            cell.source = original.source
            _mark(cell, f"answer-{cell.id}", solution=True)
        elif "check" in tags:
            _make_test(cell, lab)
        elif short and cell.cell_type == "code" and not _only_imports(cell.source):
            continue
        kept.append(cell)
    notebook.cells = kept
    nbformat.validate(notebook)
    return notebook


def _make_test(cell: NotebookNode, lab: Lab) -> None:
    tasks = [task for task in lab.tasks if f'"{task.exercise}"' in cell.source]
    tests = [_TEST.format(exercise=task.exercise, answer=task.answer, seed=HIDDEN_SEEDS[0]) for task in tasks]
    cell.source = "\n".join(tests)
    name = tasks[0].exercise.replace(".", "-").replace("_", "-")
    _mark(cell, name, points=sum(task.points for task in tasks))


def _mark(cell: NotebookNode, name: str, solution: bool = False, points: int | None = None) -> None:
    """Write nbgrader's metadata into a cell."""
    fields: dict[str, Any] = {
        "schema_version": _SCHEMA,
        "grade_id": name,
        "solution": solution,
        "grade": points is not None,
        "locked": not solution,
        "task": False,
    }
    if points is not None:
        fields["points"] = points
    cell.metadata["nbgrader"] = fields


def _only_imports(code: str) -> bool:
    lines = [line for line in code.split("\n") if line.strip() and not line.startswith((" ", "#"))]
    return all(line.startswith(("import ", "from ", "if ", ")", "warnings.")) for line in lines)
