"""Notebooks of students, made for the tests: a lab with some of its exercise cells filled in."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from course_utils.workshop.authoring import notebooks
from course_utils.workshop.grading.labs import Lab, read_lab, sources


@cache
def lab(name: str) -> Lab:
    return read_lab(sources()[name])


@cache
def _cells(name: str, kind: str) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, cell.source) for cell in notebooks.build(sources()[name], kind).cells]


@cache
def solved(name: str) -> dict[str, str]:
    """Exercise → code of the cell in the solution."""
    kept = {cell_id: source for cell_id, _, source in _cells(name, "solution")}
    return {task.exercise: kept[task.cell_id] for task in lab(name).tasks}


def cell(code: str, cell_id: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"cell_type": "code", "source": code, "metadata": {}, "outputs": []}
    found["execution_count"] = None
    return {**found, "id": cell_id} if cell_id else found


def cells(name: str, answers: dict[str, str], others: str = "solution") -> list[dict[str, Any]]:
    """The code cells of a lab with these answers; the other exercises are solved, or with "lab" as given out."""
    codes = {task.cell_id: answers[task.exercise] for task in lab(name).tasks if task.exercise in answers}
    return [cell(codes.get(key, code), key) for key, kind, code in _cells(name, others) if kind == "code"]


def notebook(made: list[dict[str, Any]], **fields: Any) -> str:
    """A notebook of these cells as JSON."""
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": made, **fields})


def hand_in(folder: Path, student: str, name: str, content: str | bytes) -> Path:
    path = folder / student / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path
