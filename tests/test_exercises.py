"""Every exercise: right answers pass, the stub counts as not attempted, wrong answers are rejected by name."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from course_utils.exercises import checking, exercises, run_check
from course_utils.workshop.authoring import notebooks

Function = Callable[..., Any]

#: exercise → wrong answers, each with words of the message that name the mistake
WRONG: dict[str, list[tuple[Function, str]]] = {}
#: exercise → other right answers than the one in the solution
RIGHT: dict[str, list[Function]] = {}
for path in sorted(Path(__file__).with_name("answers").glob("*.py")):
    chapter = runpy.run_path(str(path))
    WRONG |= chapter["WRONG"]
    RIGHT |= chapter["RIGHT"]


@cache
def _answers_of_solutions() -> dict[str, Any]:
    """Run the exercise cells of each solution and map each exercise to the answer that its check is given."""
    answers: dict[str, Any] = {}
    for source in sorted((notebooks.ROOT / "solutions").glob("[0-9][0-9]_*.py")):
        answers |= _answers(source, "solution")
    return answers


def _answers(source: Path, kind: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for cell in notebooks.build(source, kind).cells:
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            exec("import math, torch\n" + cell.source, space)
        if "check" in tags:
            given: list[tuple[str, Any]] = []
            exec(cell.source, {**space, "check": lambda name, answer, given=given: given.append((name, answer))})
            answers |= dict(given)
    return answers


def test_every_exercise_is_in_a_lab_and_has_tests() -> None:
    assert set(_answers_of_solutions()) == set(exercises()) == set(WRONG) == set(RIGHT)
    assert all(len(wrong) >= 3 for wrong in WRONG.values())


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_solution_earns_all_points(name: str) -> None:
    result = run_check(name, _answers_of_solutions()[name])
    assert (result.status, result.points) == ("passed", exercises()[name].points), result.message


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, all_ in RIGHT.items() for n in range(len(all_))])
def test_another_right_answer_passes(name: str, number: int) -> None:
    result = run_check(name, RIGHT[name][number])
    assert result.status == "passed", result.message


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, all_ in WRONG.items() for n in range(len(all_))])
def test_a_wrong_answer_is_rejected_by_name(name: str, number: int) -> None:
    answer, words = WRONG[name][number]
    result = run_check(name, answer)
    assert result.status == "wrong" and result.points == 0
    assert words in result.message, result.message
    assert result.exercise.section in result.message


def test_a_stub_counts_as_not_attempted() -> None:
    for source in sorted((notebooks.ROOT / "solutions").glob("[0-9][0-9]_*.py")):
        for name, answer in _answers(source, "lab").items():
            result = run_check(name, answer)
            assert (result.status, result.points) == ("not attempted", 0), name
    for nothing in (None, ...):
        assert run_check("lora.count", nothing).status == "not attempted"


def test_the_section_to_read_again_exists() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (notebooks.ROOT / "book").glob("*.md"))
    headings = {line.lstrip("# ") for line in pages.splitlines() if line.startswith("#")}
    for exercise in exercises().values():
        assert exercise.section in headings, exercise.name


def test_each_exercise_is_found_by_its_name_alone() -> None:
    """`find` imports one chapter, so the name must lead to the module that registers it."""
    for name, exercise in exercises().items():
        chapter = name.partition(".")[0]
        module = checking._MODULES.get(chapter, chapter)
        assert exercise.check.__module__ == f"course_utils.exercises.{module}"


def test_broken_answers_are_told_so() -> None:
    assert "ZeroDivisionError" in run_check("lora.count", lambda shapes, rank: 1 / 0).message
    assert "Expected a function" in run_check("lora.count", 600).message
    for name in ("lora.nonsense", "nonsense.forward", "../lora.count", ""):
        with pytest.raises(KeyError, match=r"there is no exercise .*lora\.count"):
            run_check(name, 1)
