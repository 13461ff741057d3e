"""The checks decide from afar as they decide in the notebook: on all right and wrong answers that the tests know."""

from __future__ import annotations

import random
import runpy
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import count_checks
import numpy as np
import pytest
import torch

from course_utils.exercises import checking, crashes, exercises, run_check
from course_utils.workshop.authoring.notebooks import ROOT
from course_utils.workshop.grading import judge, screen, student
from course_utils.workshop.grading.channel import Channel, Closed
from course_utils.workshop.grading.values import Coder, NotPlain

WRONG: dict[str, list[tuple[Any, str]]] = {}
RIGHT: dict[str, list[Any]] = {}
for path in sorted((ROOT / "tests" / "answers").glob("*.py")):
    answers = runpy.run_path(str(path))
    WRONG |= answers["WRONG"]
    RIGHT |= answers["RIGHT"]


@contextmanager
def from_afar(function: Any) -> Iterator[judge.Answer]:
    """The function as the judge sees it, served by a thread in the place of the student's process."""
    here, there = socket.socketpair()

    def serve() -> None:
        channel = Channel(there.fileno(), there.fileno())
        try:
            while True:
                channel.send(student._call(function, channel.receive()["call"]))
        except Closed:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield judge.Answer(Channel(here.fileno(), here.fileno()), names=crashes.parameter_names(function, 12))
    finally:
        here.shutdown(socket.SHUT_RDWR)
        thread.join()
        here.close()
        there.close()


@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_and_right_answers_are_judged_from_afar_as_in_the_notebook(name: str) -> None:
    travelled = 0
    for answer in [*RIGHT[name], *(wrong for wrong, _ in WRONG[name])]:
        if not callable(answer):
            continue
        student.seed()
        here = run_check(name, answer)
        student.seed()
        with from_afar(answer) as remote:
            there = run_check(name, remote)
        if remote.untransferable:
            continue  # the check runs beside the answer
        travelled += 1
        assert (there.status, there.message) == (here.status, here.message)
    assert travelled or name in BESIDE


#: The exercises whose check hands over a live object. A new one is no mistake, but should be meant.
BESIDE = {
    "adapters.places",
    "choosing.fits",
    "comparison.vectors",
    "evaluation.mend",
    "llama.read",
    "map_of_peft.count",
    "map_of_peft.families",
    "p_tuning.finish",
    "scaling_out.save_once",
    "serving.latency",
    "training_loop.accumulate",
    "training_loop.epoch",
    "why.freeze",
    *(name for name in WRONG if name.startswith("debugging_clinic.")),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_other_numbers_accept_what_is_right_and_reject_what_is_wrong(name: str) -> None:
    for seed in judge.HIDDEN_SEEDS:
        with checking.other_numbers(seed):
            for answer in RIGHT[name]:
                student.seed()
                assert run_check(name, answer).status == "passed", run_check(name, answer)
            for answer, _ in WRONG[name]:
                student.seed()
                assert run_check(name, answer).status != "passed"


def test_every_exercise_has_enough_answers_and_the_page_counts_no_more_than_there_are() -> None:
    counted = count_checks.count()
    assert set(counted["exercises"]) == set(exercises())
    for name, row in counted["exercises"].items():
        assert row["wrong"] >= 3 and row["right"] >= 1, name
    stored = count_checks.stored()
    assert all(stored["total"][kind] <= counted["total"][kind] for kind in stored["total"])


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -2.5, "text", b"bytes", ..., range(3), 10**30),
        *([1, [2, (3, 4)]], {"a": [1], 2: {"b"}}, {1, 2}, frozenset({3})),
        *(torch.float16, torch.tensor(3), torch.zeros(0, 2), torch.ones(2, 3, dtype=torch.bfloat16)),
        *(torch.tensor([True, False]), np.arange(6).reshape(2, 3), np.float32(0.5), np.int64(3)),
    ],
)
def test_values_come_back_as_they_went(value: Any) -> None:
    back = Coder(strict=False).read(Coder(strict=True).write(value))
    assert type(back) is type(value)
    if isinstance(value, torch.Tensor):
        assert back.dtype == value.dtype and torch.equal(back, value)
    elif isinstance(value, np.ndarray):
        assert back.dtype == value.dtype and np.array_equal(back, value)
    else:
        assert back == value


def test_values_that_are_no_data() -> None:
    for value in (torch.nn.Linear(2, 2), lambda: 1, iter([1])):
        with pytest.raises(NotPlain):
            Coder(strict=True).write(value)
    strange = Coder(strict=False).read(Coder(strict=False).write(torch.nn.Linear(2, 2)))
    assert type(strange).__name__ == "Linear" and not callable(strange)
    assert list(Coder(strict=False).read(Coder(strict=False).write(x for x in (1, 2)))) == [1, 2]
    no_values: list[Any] = [["what"], ["tensor"], ["tensor", "x", [1], "", 0], ["same", 9], ["list", 3], [], [[]]]
    for nonsense in no_values:
        with pytest.raises(ValueError, match="no written value"):
            Coder(strict=False).read(nonsense)


def test_changes_in_place_and_identity_travel() -> None:
    def answer(x: torch.Tensor, names: list[str], table: dict[str, int]) -> torch.Tensor:
        names.append("new")
        table["n"] = 1
        return x.add_(1)

    x, names, table = torch.zeros(2), ["old"], {"m": 2}
    with from_afar(answer) as remote:
        assert remote(x, names, table) is x
        assert x.tolist() == [1, 1] and names == ["old", "new"] and table == {"m": 2, "n": 1}
        apart = judge.Answer(remote._channel, in_place=False)
        assert apart(x, names, table).tolist() == [2, 2] and x.tolist() == [1, 1] and len(names) == 2


def test_errors_travel() -> None:
    def raising(error: BaseException) -> Any:
        def answer() -> None:
            raise error

        return answer

    class OwnError(KeyError):
        pass

    for error, kind in ((ValueError("no"), ValueError), (OwnError("no"), KeyError), (SystemExit(1), Exception)):
        with from_afar(raising(error)) as remote, pytest.raises(kind) as caught:
            remote()
        assert type(caught.value).__name__ == type(error).__name__


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import gc", "gc"),
        ("from sys import _getframe", "sys._getframe"),
        ("import course_utils.exercises.checking as r", "checking"),
        ("x.__globals__", "__globals__"),
        ("f.f_back", "f_back"),
        ("import torch\ntorch.equal = 1", "torch.equal"),
        ("import torch\ntorch._C", "torch._C"),
        ("import torch\nsetattr(torch, 'equal', 1)", "setattr"),
        ("type(model).forward = 1", "forward"),
        ("eval('1')", "eval"),
        ("getattr(model, '__dict__')", "__dict__"),
    ],
)
def test_the_screen_sees(code: str, words: str) -> None:
    assert any(words in says for says in screen.suspicious(code)), screen.suspicious(code)


def test_the_screen_lets_the_solutions_through() -> None:
    from submissions import solved

    from course_utils.workshop.grading.labs import sources

    for name in sources():
        for exercise, code in solved(name).items():
            assert screen.suspicious(code) == [], exercise
    usual = "from course_utils.exercises import check\nimport torch\nclass A:\n    def __init__(self): self._x = 1\n"
    assert screen.suspicious(usual + "model.weight.data = torch.zeros(3)\nsetattr(model, 'head', 1)") == []


def test_the_same_random_numbers_for_everybody() -> None:
    drawn = []
    for _ in range(2):
        student.seed()
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]
