"""A class with hostile, broken and unusual notebooks: each gets the points of its right answers, and no others."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import hostile
import nbformat
import pytest
from submissions import cell, cells, hand_in, lab, notebook, solved

from course_utils.workshop.authoring.notebooks import ROOT
from course_utils.workshop.grading import command
from course_utils.workshop.grading.pool import Pool
from course_utils.workshop.grading.records import Record
from course_utils.workshop.grading.sandbox import Limits

NAME, EXERCISE = "09_lora", "lora.forward"
#: The exercises that unusual notebooks answer; the others stay as the lab gives them out, which takes no time.
GIVEN = {EXERCISE: 3, "lora.count": 2}
#: Wall time: what an answer takes is thousandths of a second, and the rest is patience with a busy machine.
LIMITS = Limits(seconds=10, megabytes=700)
HOSTILE = {
    **hostile.BROKEN,
    **hostile.DECEITFUL,
    **{name: (hostile.attack(statement), "refused: ") for name, statement in hostile.ATTACKS.items()},
}


def _renamed(made: list[dict[str, object]]) -> list[dict[str, object]]:
    """Every id is new, as after a copy, or in a program that knows no ids."""
    return [{**one, "id": f"x{place}"} for place, one in enumerate(made)]


def _unusual() -> dict[str, tuple[str, str]]:
    """Name of the file, and a notebook that differs from the lab in form, but holds all right answers."""
    right = cells(NAME, {name: solved(NAME)[name] for name in GIVEN}, others="lab")
    forward = next(task for task in lab(NAME).tasks if task.exercise == EXERCISE)
    code = solved(NAME)[EXERCISE]
    without_checks = [one for one in right if "check(" not in one["source"]]
    without = [one for one in right if one["id"] != forward.cell_id]
    stub = cell(forward.stub, forward.cell_id)
    helper = cell(
        "import numpy as np\nfactors = {}\nfactors['one'] = 1\ndef times(a, b):\n    return np.sign(1) * a @ b"
    )
    helped = cell(hostile.HEAD + "return times(x, W.T) + b + alpha / len(A) * times(x @ A.T, B.T) * factors['one']")
    return {
        "as it is": (NAME, notebook(right)),
        "renamed lab": ("homework (final)", notebook(right)),
        "new ids": (NAME, notebook(_renamed(right), nbformat_minor=4)),
        "deleted checks": (NAME, notebook(without_checks)),
        "edited checks": (NAME, notebook([*without_checks, cell("check = print\nassert False")])),
        "duplicated checks": (NAME, notebook([one for one in right for _ in range(1 + ("check(" in one["source"]))])),
        "moved cells": (NAME, notebook(right[::-1])),
        "helper cells": (NAME, notebook([*without, helped, helper])),
        "two answers, the last counts": (NAME, notebook([cell(hostile.HEAD + hostile.WRONG), *right])),
        "a stub left behind": (NAME, notebook([*right, stub])),
        "other names": (NAME, notebook([*without, cell(code.replace("rank", "r").replace("alpha /", "alpha*1.0/"))])),
        "another function name": (
            NAME,
            notebook([*without, cell(code.replace("lora_forward", "mine"), forward.cell_id)]),
        ),
        "magics": (NAME, notebook([*without, cell("%%time\n!ls\n" + code + "\n%matplotlib inline\nlora_forward?")])),
        "own training": (NAME, notebook([*right, cell("while True: pass"), cell("model = fit(model)\nimport os")])),
        "deleted imports": (NAME, notebook([one for one in right if "import math" not in one["source"]])),
        "the lab's model": (NAME, notebook([*without, cell(code + "\nassert len(tokenizer) > 30_000 and model")])),
        "star import": (
            NAME,
            notebook([cell("from math import *"), *without, cell(code.replace("alpha /", "exp(0) * alpha /"))]),
        ),
        "text after the answer": (NAME, notebook([*without, cell(code + "\nlora_forward(1, 2, 3, 4, 5, 6)")])),
        "an old format": (NAME, nbformat.writes(nbformat.convert(nbformat.reads(notebook(right), 4), 3), 3)),
        "a byte order mark": (NAME, "\ufeff" + notebook(right)),
    }


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "empty"),
    "binary junk": (bytes(range(256)) * 9, "UTF-8"),
    "not in UTF-8": (notebook([cell("# é")]).encode("utf-16"), "UTF-8"),
    "no notebook": (b"[1, 2, 3]", "no notebook"),
    "cut off": (notebook([cell("x = 1")])[:-9].encode(), "no JSON"),
    "nested too deep": (b"[" * 100_000, "no JSON"),
    "a newer format": (notebook([], nbformat=99).encode(), "99"),
    "damaged": (notebook([{"cell_type": "code", "source": 5}]).encode(), "damaged"),
    "huge file": (b" " * (21 << 20), "MB"),
    "many cells": (notebook([cell("1")] * 3000).encode(), "3000"),
    "another course": (notebook([cell("x = 1")]).encode(), "no cell"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The class: a folder for each notebook below."""
    made = tmp_path_factory.mktemp("class")
    count = {"lora.count": solved(NAME)["lora.count"]}
    for name, (code, _) in HOSTILE.items():
        neighbour = count if name in hostile.BROKEN else {}
        hand_in(made, name, NAME, notebook(cells(NAME, {EXERCISE: code, **neighbour}, others="lab")))
    for name, code in {**hostile.BESIDE, **hostile.BESIDE_FOUND}.items():
        answers = {"why.freeze": code, "why.memory": solved("01_why_fine_tune")["why.memory"]}
        hand_in(made, name, "01_why_fine_tune", notebook(cells("01_why_fine_tune", answers, others="lab")))
    floats = "def lora_parameters(shapes, rank):\n    return float(sum(rank * sum(shape) for shape in shapes))\n"
    hand_in(made, "floats", NAME, notebook(cells(NAME, {"lora.count": floats}, others="lab")))
    environment = hostile.at_call("import os\nraise ValueError(sorted(os.environ))")
    hand_in(made, "reads the environment", NAME, notebook(cells(NAME, {EXERCISE: environment}, others="lab")))
    hand_in(made, "solved", NAME, notebook(cells(NAME, {})))
    for name, (file, content) in _unusual().items():
        hand_in(made, name, file, content)
    for name, (data, _) in UNREADABLE.items():
        hand_in(made, f"file: {name}", "another" if name == "another course" else NAME, data)
    hand_in(made, "untouched", NAME, notebook(cells(NAME, {}, others="lab")))
    (made / "linked").mkdir()
    (made / "linked" / f"{NAME}.ipynb").symlink_to(ROOT / "solutions" / f"{NAME}.ipynb")
    (made / "as it is" / "notes.txt").write_text("no notebook", encoding="utf-8")
    shutil.copy(made / "as it is" / f"{NAME}.ipynb", made / "as it is" / f"{NAME}-Copy1.ipynb")
    return made


HIDDEN = """
from course_utils.exercises import Wrong

def whole(answer):
    if not isinstance(answer([(2, 3)], 1), {}):
        raise Wrong("Whole numbers, please.")

HIDDEN = {{"lora.count": whole}}
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instructor's own check."""
    path = tmp_path_factory.mktemp("hidden") / "checks.py"
    path.write_text(HIDDEN.format("int"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def graded(
    folder: Path, hidden: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[tuple[str, str], Record]]]:
    """The reports, and (student, exercise) → record; the whole class is graded once."""
    out = tmp_path_factory.mktemp("report")
    hostile.VICTIM.mkdir()
    (hostile.VICTIM / "file").write_text("still here", encoding="utf-8")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COURSE_TEST_SECRET", "not for students")
            records = command.grade(folder, out, limits=LIMITS, roster=["Zoë Absent"], hidden=hidden)
        yield out, {(one.student, one.exercise): one for one in records}
    except command.GradingError as error:
        if "cannot confine" in str(error):  # a browser can be installed, another kernel cannot
            pytest.skip(str(error))
        raise
    finally:
        shutil.rmtree(hostile.VICTIM)


Graded = tuple[Path, dict[tuple[str, str], Record]]


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) + len(hostile.BESIDE) + len(hostile.BESIDE_FOUND) + len(UNREADABLE) >= 40


@pytest.mark.parametrize("student", HOSTILE)
def test_a_hostile_answer_earns_nothing_and_disturbs_nothing(graded: Graded, student: str) -> None:
    record = graded[1][student, EXERCISE]
    assert (record.points, record.status) in ((0, "wrong"), (0, "not attempted")), record
    assert HOSTILE[student][1] in record.reason, record
    assert graded[1][student, "lora.count"].points == (2 if student in hostile.BROKEN else 0)


@pytest.mark.parametrize("student", hostile.BESIDE)
def test_what_reaches_for_the_check_beside_it_is_looked_at_by_a_person(graded: Graded, student: str) -> None:
    record = graded[1][student, "why.freeze"]
    assert (record.points, record.status) == (0, "to review"), record
    assert graded[1][student, "why.memory"].points == 2


@pytest.mark.parametrize("student", hostile.BESIDE_FOUND)
def test_a_patch_is_found_afterwards(graded: Graded, student: str) -> None:
    record = graded[1][student, "why.freeze"]
    assert record.points == 0 and "changed what the check is made of: torch.equal" in record.reason, record


@pytest.mark.parametrize("student", _unusual())
def test_right_answers_count_in_every_form(graded: Graded, student: str) -> None:
    earned = {name: graded[1][student, name] for name in GIVEN}
    assert {name: record.points for name, record in earned.items()} == GIVEN, earned


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_reported(graded: Graded, name: str) -> None:
    assert graded[1][f"file: {name}", EXERCISE].status == "not handed in"
    problems = json.loads((graded[0] / "grades.json").read_text(encoding="utf-8"))["problems"]
    assert UNREADABLE[name][1] in next(one["says"] for one in problems if one["student"] == f"file: {name}")


def test_the_untouched_lab_and_who_is_absent(graded: Graded) -> None:
    for task in lab(NAME).tasks:
        assert graded[1]["untouched", task.exercise].status == "not attempted"
        assert graded[1]["Zoë Absent", task.exercise].status == "not handed in"
    problems = {
        one["path"]: one["says"]
        for one in json.loads((graded[0] / "grades.json").read_text(encoding="utf-8"))["problems"]
    }
    assert "link" in problems[f"linked/{NAME}.ipynb"]
    assert "counts" in problems[f"as it is/{NAME}-Copy1.ipynb"]
    assert ".txt file" in problems["as it is/notes.txt"]


def test_nothing_escaped(graded: Graded) -> None:
    assert (hostile.VICTIM / "file").read_text(
        encoding="utf-8"
    ) == "still here" and hostile.VICTIM.stat().st_mode & 0o777
    assert not hostile.ESCAPED.exists() and not (ROOT / "course_utils" / "escape.py").exists()
    assert all(json.loads((graded[0] / "grades.json").read_text(encoding="utf-8"))["protections"].values())


def test_no_secret_of_the_instructor_is_told(graded: Graded) -> None:
    told = graded[1]["reads the environment", EXERCISE].reason
    assert "HOME" in told and "COURSE_TEST_SECRET" not in told and "not for students" not in told


def test_the_notes_say_what_was_unusual(graded: Graded) -> None:
    assert "2 cells answer" in graded[1]["two answers, the last counts", EXERCISE].note
    assert "`mine`" in graded[1]["another function name", EXERCISE].note


def test_the_reports(graded: Graded) -> None:
    out, records = graded
    with (out / "gradebook.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records) and list(rows[0])[:4] == ["student", "lab", "exercise", "points"]
    assert not [value for row in rows for value in row.values() if value[:1] in ("=", "+", "@")]
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (out / "students").glob("*.html")}
    assert len(pages) == len({student for student, _ in records})
    assert not [name for name, page in pages.items() if "<script" in page or "http://" in page]
    page = pages["memory"]
    assert "Read again: “The formula, beside the code”" in page and "2 of 9 points" in page
    whole = (out / "class.html").read_text(encoding="utf-8")
    assert "<svg role=" in whole and "lora.forward" in whole and "Zoë Absent" in whole and "<script" not in whole


def test_a_second_run_grades_nothing_again_and_says_the_same(
    graded: Graded, folder: Path, hidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in graded[0].rglob("*.*") if path.is_file()}
    monkeypatch.setattr(command, "Pool", lambda *_, **__: pytest.fail("a server was started"))
    again = command.grade(folder, graded[0], limits=LIMITS, roster=["Zoë Absent"], hidden=hidden)
    assert {(one.student, one.exercise): one for one in again} == graded[1]
    after = {path.name: path.read_bytes() for path in graded[0].rglob("*.*") if path.is_file()}
    assert {name for name in before if before[name] != after[name]} <= {"grades.json", "class.html"}  # the protections


def test_a_hidden_check_decides_too(graded: Graded) -> None:
    record = graded[1]["floats", "lora.count"]
    assert record.points == 0 and "Whole numbers, please." in record.reason
    assert sum(graded[1]["solved", task.exercise].points for task in lab(NAME).tasks) == lab(NAME).points


def test_a_hidden_check_that_refuses_the_solution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_in(tmp_path / "in", "ada", NAME, notebook(cells(NAME, {})))
    (tmp_path / "hidden.py").write_text(HIDDEN.format("str"), encoding="utf-8")
    options = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--hidden", str(tmp_path / "hidden.py")]
    assert command.main(options) == 1
    assert "the solution of 09_lora earns no points for lora.count" in capsys.readouterr().err


def test_a_fault_of_the_grader_is_not_the_students() -> None:
    with Pool(1) as pool:
        verdicts = [verdict for _, verdict in pool.map([{"limits": {}}, {"limits": {"seconds": 0}}])]
    assert [verdict["status"] for verdict in verdicts] == ["not graded", "not graded"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no folder"),
        (["."], "holds no notebook"),
        ([".", "--labs", "99_none"], "there is no lab 99_none"),
        ([".", "--workers", "0"], "--workers must be 1 or more"),
        ([".", "--seconds", "0"], "seconds must be more than 0"),
        ([".", "--hidden", "none.py"], "there is no file none.py"),
        ([".", "--hidden", "empty.py"], "must define HIDDEN"),
        ([".", "--hidden", "unknown.py"], "there is no exercise lora.none"),
        ([".", "--roster", "none.txt"], "there is no file none.txt"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    (tmp_path / "unknown.py").write_text("HIDDEN = {'lora.none': print}", encoding="utf-8")
    if arguments[0] == ".":
        (tmp_path / "class").mkdir()
        arguments = ["class", *arguments[1:]]
    assert command.main([*arguments, "--out", "report"]) == 1
    assert words in capsys.readouterr().err
