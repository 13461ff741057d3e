"""nbgrader itself releases and grades the sources that `python -m course_utils nbgrader` writes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from patience import PATIENCE
from submissions import lab, solved

from course_utils.workshop.grading import nbgrader
from course_utils.workshop.grading.labs import sources

NAME = "09_lora"


def run(course: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "nbgrader", *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in the activated environment
    environment = {**os.environ, "HOME": str(course), "PATH": path, "JUPYTER_NO_CONFIG": "1"}
    done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def test_nbgrader_releases_and_grades(tmp_path: Path) -> None:
    assert nbgrader.main([str(tmp_path), NAME, "--short"]) == 0
    run(tmp_path, "generate_assignment", NAME)
    released = nbformat.read(tmp_path / "release" / NAME / f"{NAME}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in released.cells)
    assert "raise NotImplementedError" in text and "HIDDEN" not in text and "other_numbers(" not in text
    assert "alpha / rank * (x @ A.T @ B.T)" not in text

    wrong = solved(NAME)["lora.forward"].replace("alpha / rank", "alpha")
    answers = {task.cell_id: solved(NAME)[task.exercise] for task in lab(NAME).tasks}
    answers[lab(NAME).tasks[0].cell_id] = wrong
    for cell in released.cells:
        key = cell.metadata.get("nbgrader", {}).get("grade_id", "").removeprefix("answer-")
        cell.source = answers.get(key, cell.source)
    handed_in = tmp_path / "submitted" / "ada" / NAME / f"{NAME}.ipynb"
    handed_in.parent.mkdir(parents=True)
    nbformat.write(released, handed_in)
    run(tmp_path, "autograde", NAME)

    query = (
        "select base_cell.name, grade.auto_score from grade join grade_cells on grade.cell_id = grade_cells.id "
        "join base_cell on base_cell.id = grade_cells.id"
    )
    with sqlite3.connect(tmp_path / "gradebook.db") as database:
        scores = dict(database.execute(query).fetchall())
    assert scores == {"lora-forward": 0, "lora-initialise": 2, "lora-merge": 2, "lora-count": 2}


def test_every_lab_becomes_a_source_with_all_its_points() -> None:
    for name, source in sources().items():
        notebook = nbgrader.source_notebook(source)
        marks = [cell.metadata["nbgrader"] for cell in notebook.cells if "nbgrader" in cell.metadata]
        assert sum(mark.get("points", 0) for mark in marks) == lab(name).points
        assert len({mark["grade_id"] for mark in marks}) == len(marks)
        assert not [cell for cell in notebook.cells if cell.metadata.get("tags")]


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nbgrader.main([str(tmp_path), "99_none"])
    assert "no lab 99_none" in capsys.readouterr().err
