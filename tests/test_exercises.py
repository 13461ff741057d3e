"""Every exercise: right answers pass, the stub counts as not attempted, wrong answers are rejected by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from course_utils import authoring
from course_utils.exercises import exercises, run_check

Function = Callable[..., Any]


def _freeze_nothing(model: nn.Module) -> None:
    model.requires_grad_(True)


def _freeze_everything(model: nn.Module) -> None:
    model.requires_grad_(False)


def _freeze_head(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith("classifier")


def _freeze_weights_only(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier") or name.endswith("bias")


def _freeze_by_eval(model: nn.Module) -> None:
    model.eval()


def _freeze_by_zero(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.bert.parameters():  # type: ignore[union-attr]
            parameter.zero_()


def _freeze_by_module(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    return model


def _inplace_forward(x: Any, W: Any, b: Any, A: Any, B: Any, alpha: float) -> Any:
    W += alpha / A.shape[0] * B @ A
    return x @ W.T + b


def _inplace_merge(W: Any, A: Any, B: Any, alpha: float) -> Any:
    W += alpha / A.shape[0] * B @ A
    return W


#: exercise → wrong answer, and words of the message that name the mistake
WRONG: dict[str, list[tuple[Function, str]]] = {
    "why.majority": [
        (lambda train, test: max(test.count(0), test.count(1)) / len(test), "majority class of the test labels"),
        (lambda train, test: sum(train) / len(train), "share of the majority class in the training labels"),
        (lambda train, test: test.count(1), "divide by their number"),
        (lambda train, test: 100 * test.count(1) / len(test), "in percent"),
        (lambda train, test: 0.68, "it is 0.3"),
        (lambda train, test: "0.3 or so", "Expected a number"),
    ],
    "why.freeze": [
        (_freeze_nothing, "Nothing is frozen"),
        (_freeze_everything, "head too"),
        (_freeze_head, "wrong way round"),
        (_freeze_weights_only, "A part of the body"),
        (_freeze_by_eval, "only turns dropout off"),
        (_freeze_by_zero, "The weights have changed"),
    ],
    "why.memory": [
        (lambda total, trainable: 16 * total, "gradient and Adam's averages"),
        (lambda total, trainable: 16 * trainable, "frozen weights are missing"),
        (lambda total, trainable: 4 * total + 8 * trainable, "One of three is missing"),
        (lambda total, trainable: 4 * total + 4 * trainable, "two averages"),
        (lambda total, trainable: total + 3 * trainable, "counts numbers, not bytes"),
        (lambda total, trainable: 8 * (4 * total + 12 * trainable), "in bits"),
        (lambda total, trainable: 5200, "one pair of numbers only"),
    ],
    "lora.forward": [
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha * (x @ A.T @ B.T), "alpha alone"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + x @ A.T @ B.T, "alpha / rank is missing"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / A.shape[1] * (x @ A.T @ B.T), "width of the layer"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / math.sqrt(A.shape[0]) * (x @ A.T @ B.T), "rsLoRA"),
        (lambda x, W, b, A, B, alpha: x @ W.T + alpha / A.shape[0] * (x @ A.T @ B.T), "bias b is missing"),
        (lambda x, W, b, A, B, alpha: x @ (W @ (alpha / A.shape[0] * B @ A)).T + b, "multiplied with W"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / A.shape[0] * (x @ (B @ A)), "transposed"),
        (lambda x, W, b, A, B, alpha: alpha / A.shape[0] * (x @ A.T @ B.T), "frozen path is missing"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / 2 * (x @ A.T @ B.T), "rank 2 only"),
        (lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / A.shape[0] * (x @ B.T @ A.T), "stopped with RuntimeError"),
        (_inplace_forward, "in place"),
        (lambda x, W, b, A, B, alpha: None, "return"),
    ],
    "lora.initialise": [
        (lambda i, o, r: (torch.zeros(r, i), torch.zeros(o, r)), "Both are zero"),
        (lambda i, o, r: (torch.randn(r, i), torch.randn(o, r)), "Neither is zero"),
        (lambda i, o, r: (torch.zeros(o, r), torch.randn(r, i)), "Return A first"),
        (lambda i, o, r: (torch.randn(i, r), torch.zeros(r, o)), "should have the shape"),
        (lambda i, o, r: (torch.ones(r, i), torch.zeros(o, r)), "All entries"),
        (lambda i, o, r: (torch.randn(1, i).repeat(r, 1), torch.zeros(o, r)), "multiples of each other"),
    ],
    "lora.merge": [
        (lambda W, A, B, alpha: W + B @ A, "alpha / rank is missing"),
        (lambda W, A, B, alpha: W + alpha * B @ A, "alpha alone"),
        (lambda W, A, B, alpha: W + (alpha / A.shape[0] * B @ A).T, "transposed"),
        (lambda W, A, B, alpha: alpha / A.shape[0] * B @ A, "W is missing"),
        (lambda W, A, B, alpha: W @ (alpha / A.shape[0] * B @ A), "multiplied with W"),
        (_inplace_merge, "in place"),
        (lambda W, A, B, alpha: W + alpha / 2 * B @ A, "rank 2 only"),
    ],
    "lora.count": [
        (lambda shapes, rank: sum(rank * o * i for o, i in shapes), "multiplied the sides"),
        (lambda shapes, rank: sum(o * i for o, i in shapes), "frozen matrices"),
        (lambda shapes, rank: sum(rank * i for o, i in shapes), "A alone"),
        (lambda shapes, rank: sum(2 * rank * i for o, i in shapes), "square"),
        (lambda shapes, rank: sum(rank * (o + i) + o for o, i in shapes), "bias"),
        (lambda shapes, rank: sum(o + i for o, i in shapes), "rank is missing"),
        (lambda shapes, rank: 660, "one rank only"),
    ],
}

#: exercise → other right answers than the one in the solution
RIGHT: dict[str, list[Function]] = {
    "why.majority": [lambda train, test: (torch.tensor(test) == torch.tensor(train).mode().values).float().mean()],
    "why.freeze": [_freeze_by_module],
    "why.memory": [lambda total, trainable: 16 * trainable + 4 * (total - trainable)],
    "lora.forward": [
        lambda x, W, b, A, B, alpha: nn.functional.linear(x, W + alpha / len(A) * B @ A, b),
        lambda x, W, b, A, B, alpha: (W @ x.T + b[:, None] + (alpha / B.shape[1]) * B @ (A @ x.T)).T,
    ],
    "lora.initialise": [
        lambda i, o, r: (torch.randn(r, i), torch.zeros(o, r)),
        lambda i, o, r: [torch.zeros(r, i), torch.randn(o, r)],
        lambda i, o, r: (nn.Linear(i, r).weight, nn.Parameter(torch.zeros(o, r))),
    ],
    "lora.merge": [lambda W, A, B, alpha: torch.addmm(W, B, A, alpha=alpha / B.shape[1])],
    "lora.count": [lambda shapes, rank: float(rank * sum(sum(shape) for shape in shapes))],
}


def _answers_of_solutions() -> dict[str, Any]:
    """Run the exercise cells of each solution and map each exercise to the answer that its check is given."""
    answers: dict[str, Any] = {}
    for source in sorted((authoring.ROOT / "solutions").glob("[0-9][0-9]_*.py")):
        answers |= _answers(source, "solution")
    return answers


def _answers(source: Path, kind: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for cell in authoring.build(source, kind).cells:
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
    for source in sorted((authoring.ROOT / "solutions").glob("[0-9][0-9]_*.py")):
        for name, answer in _answers(source, "lab").items():
            result = run_check(name, answer)
            assert (result.status, result.points) == ("not attempted", 0), name
    for nothing in (None, ...):
        assert run_check("lora.count", nothing).status == "not attempted"


def test_the_section_to_read_again_exists() -> None:
    pages = "\n".join(path.read_text() for path in (authoring.ROOT / "book").glob("*.md"))
    headings = {line.lstrip("# ") for line in pages.splitlines() if line.startswith("#")}
    for exercise in exercises().values():
        assert exercise.section in headings, exercise.name


def test_broken_answers_are_told_so() -> None:
    assert "ZeroDivisionError" in run_check("lora.count", lambda shapes, rank: 1 / 0).message
    assert "Expected a function" in run_check("lora.count", 600).message
    with pytest.raises(KeyError, match="there is no exercise"):
        run_check("lora.nonsense", 1)
