"""The registry of exercises, and how an answer is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import torch


class Wrong(Exception):  # noqa: N818 (it is no error of the program)
    """The answer is wrong; the message names the mistake and points to the way out."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Args:
        name: chapter and exercise, "lora.forward".
        points: what it is worth.
        passes: what a right answer has shown, as a sentence.
        section: heading of the chapter's page to read again.
        check: takes the answer; raises `Wrong`.
    """

    name: str
    points: int
    passes: str
    section: str
    check: Callable[[Any], None]


@dataclass(frozen=True)
class CheckResult:
    """What came out of a check.

    Args:
        exercise: the exercise.
        status: "passed", "wrong" or "not attempted".
        message: for the learner.
    """

    exercise: Exercise
    status: str
    message: str

    @property
    def points(self) -> int:
        """Points earned."""
        return self.exercise.points if self.status == "passed" else 0

    def __str__(self) -> str:
        return f"{self.exercise.name}: {self.message}"


_EXERCISES: dict[str, Exercise] = {}
#: Where the exercises of a chapter stand, if its module has another name.
_MODULES = {"why": "why_fine_tune", "optimizers": "parameters_losses_optimisers"}


def exercise(
    name: str, *, points: int, passes: str, section: str
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a check; see `Exercise` for the arguments."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        if name in _EXERCISES:
            raise ValueError(f"two exercises are called {name!r}")
        _EXERCISES[name] = Exercise(name, points, passes, section, function)
        return function

    return register


def exercises() -> dict[str, Exercise]:
    """All exercises of all chapters by name."""
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
    return dict(_EXERCISES)


def find(name: str) -> Exercise:
    """One exercise; of the chapters, only its own is imported.

    Args:
        name: chapter and exercise, "lora.forward".

    Raises:
        KeyError: there is no exercise of that name.
    """
    chapter = name.partition(".")[0]
    module = f"{__package__}.{_MODULES.get(chapter, chapter)}"
    if name not in _EXERCISES and chapter.isidentifier() and find_spec(module):
        import_module(module)
    if name not in _EXERCISES:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join(sorted(exercises()))}")
    return _EXERCISES[name]


def run_check(name: str, answer: Any) -> CheckResult:
    """Check an answer and return what came out; never raises for a wrong or broken answer.

    Args:
        name: of the exercise.
        answer: the learner's function or value. None, `...` and a function that raises NotImplementedError count as
            not attempted.

    Raises:
        KeyError: there is no exercise of that name.
    """
    found = find(name)
    return judge(found, found.check, answer)


def judge(found: Exercise, check: Callable[[Any], None], answer: Any) -> CheckResult:
    """What a check says about an answer to an exercise: `run_check` with another check than the exercise's own."""
    if answer is None or answer is ...:
        return CheckResult(found, "not attempted", "not attempted yet")
    try:
        check(answer)
    except NotImplementedError:
        return CheckResult(found, "not attempted", "not attempted yet")
    except Wrong as mistake:
        return CheckResult(found, "wrong", f"not right yet. {mistake} (See “{found.section}” in the chapter.)")
    except Exception as error:  # the learner's code may raise anything, and must hear about it
        return CheckResult(
            found,
            "wrong",
            f"your code stopped with {type(error).__name__}: {error}. (See “{found.section}” in the chapter.)",
        )
    return CheckResult(found, "passed", f"passed, {found.points} points. {found.passes}")


def check(name: str, answer: Any) -> None:
    """Check an answer and print the result."""
    print(run_check(name, answer))


def call(answer: Any, *arguments: Any) -> Any:
    """Call the learner's function; a result of None means that it was not written yet."""
    if not callable(answer):
        raise Wrong(
            f"Expected a function, got {type(answer).__name__}: hand over the function itself, without calling it."
        )
    result = answer(*arguments)
    if result is None or result is ...:
        raise Wrong("The function returns nothing. Did you forget `return`?")
    return result


def compare(value: Any, right: Any, mistakes: Iterable[tuple[Any, str]], otherwise: str) -> None:
    """Accept the right value; for any other, raise `Wrong` and name the mistake that leads to it.

    Args:
        value: a number or a tensor, from the learner.
        right: what it should be.
        mistakes: wrong values, each with the sentence for whoever arrives at it. A mistake that leads to the right
            value by chance is no mistake.
        otherwise: the sentence for a value that comes from none of these mistakes.
    """
    if equal(value, right):
        return
    for wrong, message in mistakes:
        if equal(value, wrong):
            raise Wrong(message)
    raise Wrong(otherwise)


def equal(one: Any, other: Any) -> bool:
    """Whether two numbers or tensors have the same shape and differ by rounding only."""
    a, b = (torch.as_tensor(value).detach().double() for value in (one, other))
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def number(value: Any) -> float:
    """The learner's result as a number."""
    if isinstance(value, str):  # float("0.5") would pass
        raise Wrong("Expected a number, got a text.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"Expected a number, got {type(value).__name__}.") from None


def tensor(value: Any, shape: tuple[int, ...], what: str) -> torch.Tensor:
    """The learner's result as a tensor of this shape; `what` begins the sentence that says what it should be."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        raise Wrong(f"Expected {what} as a tensor, got {type(value).__name__}.")
    if tuple(value.shape) != shape:
        raise Wrong(f"{what} should have the shape {shape}, yours has {tuple(value.shape)}.")
    return value


_seed = 7


@contextmanager
def other_numbers(seed: int) -> Iterator[None]:
    """Within it, `random_tensors` gives other numbers: an answer with the usual ones written into it fails."""
    global _seed
    before, _seed = _seed, seed
    try:
        yield
    finally:
        _seed = before


def random_tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Fixed random tensors in fp64, to try an answer on."""
    generator = torch.Generator().manual_seed(_seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
