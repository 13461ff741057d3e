"""No check is fooled: each is fed with answers that are right but for one thing, and no two mistakes look the same."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fooling
import pytest
import torch
from patience import PATIENCE
from test_exercises import WRONG, _answers_of_solutions

from course_utils.exercises import checking, exercises, outcomes, run_check

_MEASURED = "a measurement, a rule of decoding or a table: nothing learns through it"
_AFTER = "a result of training, which is over when it is used"
_START = "a beginning: a parameter is made of it"
_BY_HAND = "it is itself a gradient, or the step that follows one"
_READS = "the model is only read, and a copy says the same"
_BATCH = "one batch serves for all set-ups: a set-up is what is tested"
_LOADER = "a loader makes its batches anew, so each may be used up"

#: (change, exercise) → why it may pass.
MAY_PASS: dict[tuple[str, str], str] = {
    **{
        ("detached", name): why
        for why, names in {
            _MEASURED: (
                "few_shot_distillation.expected",
                "prefix_tuning.gate",
                "qlora.int8",
                "qlora.nf4",
                "serving.mixed",
            ),
            _AFTER: (
                "debugging_clinic.save_trained",
                "ia3.merge",
                "lora.merge",
                "lora_family.dora",
                "p_tuning.finish",
            ),
            _START: ("adapters.initialise", "lora.initialise", "lora_family.pissa", "prompt_tuning.initialise"),
            _BY_HAND: (
                "bitfit.gradient",
                "distillation.gradient",
                "optimizers.adamw",
                "optimizers.gradient",
                "optimizers.momentum",
                "qlora.layer",
                "scaling_out.all_reduce",
            ),
        }.items()
        for name in names
    },
    **{("item", name): _MEASURED for name in ("few_shot_distillation.expected", "qlora.nf4")},
    ("numpy", "few_shot_distillation.expected"): _MEASURED,
    **{
        ("copies the model", name): _READS
        for name in ("debugging_clinic.save_trained", "map_of_peft.count", "p_tuning.finish")
    },
    **{
        ("ignores argument 2", f"debugging_clinic.detects_{name}"): _BATCH
        for name in ("lost_weights", "no_gradient", "padding", "wrong_training")
    },
    ("ignores argument 3", "debugging_clinic.detects_padding"): _BATCH,
    **{("damages its inputs", f"training_loop.{name}"): _LOADER for name in ("accumulate", "epoch")},
}

#: These are given a value, and no function.
VALUES = {"map_of_peft.families"}


def _functions() -> Iterator[tuple[str, Any]]:
    for name, answer in sorted(_answers_of_solutions().items()):
        if name not in VALUES:
            yield name, answer


def _fooled() -> tuple[set[tuple[str, str]], int]:
    """(change, exercise) of the answers that passed, and how many were tried."""
    passed, tried = set(), 0
    for name, answer in _functions():
        for change, maker in fooling.makers(len(inspect.signature(answer).parameters)).items():
            done: list[str] = []
            result = run_check(name, maker(answer, done))
            tried += bool(done)
            if done and result.status == "passed":
                passed.add((change, name))
    return passed, tried


def test_no_check_is_fooled() -> None:
    passed, tried = _fooled()
    print(
        f"{tried} answers with one fault, {len(passed)} passed, {len(passed - set(MAY_PASS))} of them without a reason"
    )
    assert tried > 700
    assert passed - set(MAY_PASS) == set()
    assert set(MAY_PASS) - passed == set(), "these are refused by now: take them from the table"


def test_a_refusal_has_a_reason_of_the_checks_own() -> None:
    """Numbers of another kind or place are refused in words, and not by a crash inside the check."""
    crashed = [
        (name, change, result.message)
        for name, answer in _functions()
        for change in ("wrong dtype", "wrong device", "numpy")
        if "your code stopped" in (result := run_check(name, fooling.MAKERS[change](answer, []))).message
    ]
    assert crashed == []


ON_A_DEVICE = """
import pretend_gpu, fooling, test_fooling
from course_utils.exercises import run_check

change = fooling.of_result(lambda value: value.to("pretend"))
wrong = []
for name, answer in test_fooling._functions():
    done = []
    result = run_check(name, change(answer, done))
    if done and (result.status == "passed" or "your code stopped" in result.message):
        wrong.append((name, result.message))
assert {name for name, _ in wrong} == {"few_shot_distillation.expected"}, wrong  # a number, wherever it is
"""


def test_a_result_on_another_device_is_refused() -> None:
    """On the device of `pretend_gpu`, in a process of its own, because it cannot be taken away again."""
    command = [sys.executable, "-c", ON_A_DEVICE]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _sizes(arguments: tuple[Any, ...]) -> str:
    return repr([each if isinstance(each, (int, float, str, bool)) else _size(each) for each in arguments])


def _size(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, torch.nn.Module):
        return [tuple(parameter.shape) for parameter in value.parameters()]
    if isinstance(value, (dict, list, tuple)):
        return len(value), [_size(each) for each in fooling.parts(value) if isinstance(each, torch.Tensor)]
    return len(value) if hasattr(value, "__len__") else type(value).__name__


def _calls(name: str, answer: Any) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def watched(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return answer(*arguments, **named)

    assert run_check(name, watched).status == "passed", name
    return calls


#: All set-ups have one size: what differs is what is broken in them.
ONE_SIZE = {name for name in WRONG if name.startswith("debugging_clinic.detects_")} | {"debugging_clinic.checkpoint"}


def test_each_check_asks_twice_with_other_sizes_in_float32() -> None:
    once, other_types = [], []
    for name, answer in _functions():
        calls = _calls(name, answer)
        if len({_sizes(arguments) for arguments in calls}) < 2 and name not in ONE_SIZE:
            once.append(name)
        floats = [one for one in fooling.parts(calls) if isinstance(one, torch.Tensor) and one.is_floating_point()]
        other_types += [(name, one.dtype) for one in floats if one.dtype != torch.float32]
    assert once == [] and other_types == []


#: Their sizes follow from each other: models and their texts; a block has an even length, and there are 16 levels.
COMMON = {name for name in WRONG if name.startswith("debugging_clinic.")} | {"evaluation.mend", "qlora.nf4"}


def test_each_check_has_a_call_whose_sizes_have_no_common_factor() -> None:
    """Where two sizes differ, none is a multiple of the other, and what is mistaken for what can be seen."""
    common = []
    for name, answer in _functions():
        shapes = [
            {size for value in arguments if isinstance(value, torch.Tensor) for size in value.shape if size > 1}
            for arguments in _calls(name, answer)
        ]
        shapes = [sizes for sizes in shapes if len(sizes) > 1]
        free = [all(math.gcd(a, b) == 1 for a, b in itertools.combinations(sizes, 2)) for sizes in shapes]
        if free and not any(free) and name not in COMMON:
            common.append((name, shapes))
    assert common == []


# --- collisions -----------------------------------------------------------------------------------------------------


def _collisions(name: str, answer: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pairs of messages that a check could not tell apart on its own data."""
    found: list[str] = []
    module = importlib.import_module(exercises()[name].check.__module__)

    def look(value: Any, right: Any, mistakes: Any, otherwise: str) -> None:
        known = [(wrong, message) for wrong, message in mistakes if not checking.equal(wrong, right)]
        for (one, said), (other, says) in itertools.combinations(known, 2):
            if said != says and checking.equal(one, other):
                found.append(f"{said} | {says}")
        checking.compare(value, right, known, otherwise)

    def look_at_all(results: Any, cases: Any, right: Any, mistakes: Any, say: Any) -> None:
        expected = [right(*case) for case in cases]
        known = [([wrong(*case) for case in cases], message) for wrong, message in mistakes]
        for values, message in known:
            if all(map(outcomes.alike, values, expected)):
                found.append(f"no mistake at all: {message}")
        for (one, said), (other, says) in itertools.combinations(known, 2):
            if said != says and all(map(outcomes.alike, one, other)):
                found.append(f"{said} | {says}")
        outcomes.same(results, cases, right, mistakes, say)

    with monkeypatch.context() as patch:
        for word, spy in (("compare", look), ("same", look_at_all)):
            if hasattr(module, word):
                patch.setattr(module, word, spy)
        assert run_check(name, answer).status == "passed", name
    return found


def test_no_two_mistakes_give_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: pairs for name, answer in _functions() if (pairs := _collisions(name, answer, monkeypatch))}
    assert found == {}
