"""Every exercise: right answers pass, the stub counts as not attempted, wrong answers are rejected by name."""

from __future__ import annotations

import linecache
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from right_variants import VARIANTS

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


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_ten_other_ways_that_are_right_pass(name: str) -> None:
    assert len(VARIANTS[name]) >= 10
    refused = [(n, result.message) for n, f in enumerate(VARIANTS[name]) if (result := run_check(name, f)).points == 0]
    assert refused == []


def _source(code: str) -> Function:
    """A function as a notebook makes one: its lines can be looked up by the name of its cell."""
    space: dict[str, Any] = {}
    name = f"<cell {hash(code)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    exec(compile(code, name, "exec"), {"torch": torch}, space)
    return next(reversed(space.values()))


def test_a_crash_names_the_line_what_was_given_and_what_it_means() -> None:
    answer = _source(
        "def lora_forward(x, W, b, A, B, alpha):\n    '`W x + b`; x (rows, in) → (rows, out).'\n"
        "    s = alpha / len(A)\n    return W @ x + b + s * x @ A.T @ B.T\n"
    )
    message = run_check("lora.forward", answer).message
    assert "stopped with RuntimeError in line 4, `return W @ x + b + s * x @ A.T @ B.T`:" in message
    assert "mat1 and mat2 shapes cannot be multiplied (7x7 and 3x7)." in message
    assert "the columns of P must be as many as the rows of Q" in message
    assert (
        "x: (3, 7) float32, W: (7, 7) float32, b: (7,) float32, A: (2, 7) float32" in message
        and "alpha: 5.0" in message
    )
    assert "Asked for: `W x + b`; x (rows, in) → (rows, out)." in message
    shown: list[str] = []
    assert message.endswith("check.traceback(). (See “The formula, beside the code” in the chapter.)")
    checking.check.traceback(shown.append)  # type: ignore[attr-defined]
    assert shown[0].startswith("Traceback") and "return W @ x" in shown[0]
    assert "checking.py" not in shown[0] and shown[0].endswith("(7x7 and 3x7)")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(x, W, b, A, B, alpha): return x @ W.T + b[:3]", "each must be equal, or 1"),
        ("def f(x, W, b, A, B, alpha): return x.double() @ W.T", "`.to(x.dtype)`"),
        ("def f(x, W, b, A, B, alpha): return x / x.max(dim=1)", "take `.values`"),
        ("def f(x, W, b, A, B, alpha): return x.numpy() @ W.numpy()", "NumPy knows no gradients"),
        ("def f(x, W, b, A, B): return x", "Keep its first line"),
        ("def f(x, W, b, A, B, alpha): return F.linear(x, W)", "Was its cell run?"),
        ("def f(x, W, b, A, B, alpha):\n    W += B @ A\n    return x @ W.T", "changes one of its inputs in place"),
        ("def f(x, W, b, A, B, alpha):\n    W.data += B @ A\n    return x @ W.T", "(`W`)"),
    ],
)
def test_common_crashes_have_a_meaning(code: str, words: str) -> None:
    message = run_check("lora.forward", _source(code)).message
    assert words in message, message
    assert ".. " not in message and "\n" not in message
