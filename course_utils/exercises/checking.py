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

from course_utils.exercises import crashes


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
        return CheckResult(found, "wrong", f"{crashes.explained(error)} (See “{found.section}” in the chapter.)")
    return CheckResult(found, "passed", f"passed, {found.points} points. {found.passes}")


def check(name: str, answer: Any) -> None:
    """Check an answer and print the result; `check.traceback()` shows where the code stopped that was checked last."""
    print(run_check(name, answer))


check.traceback = crashes.show_traceback  # type: ignore[attr-defined]


def call(answer: Any, *arguments: Any, changes: bool = False, returns: bool = True) -> Any:
    """Call the learner's function, and see to what holds for all of them.

    Memory that the function leaves as it found it holds NaN, so that luck decides nothing. What it was given must be
    the same afterwards. A result of None means that it was not written yet.

    Args:
        answer: the function.
        arguments: for it.
        changes: it is meant to change what it is given.
        returns: it is meant to return something.
    """
    if not callable(answer):
        raise Wrong(
            f"Expected a function, got {type(answer).__name__}: hand over the function itself, without calling it."
        )
    before = [_frozen(value) for value in arguments]
    try:
        with no_lucky_memory():
            result = answer(*arguments)
    except (Wrong, NotImplementedError):
        raise
    except Exception as error:
        crashes.note(error, answer, arguments)
        if crashes.changes_in_place(error):
            raise Wrong(f"{_IN_PLACE} ({crashes.own_line(error)})") from None
        raise
    if not changes:
        for name, old, new in zip(crashes.parameter_names(answer, len(arguments)), before, arguments, strict=True):
            if not _unchanged(old, new):
                raise Wrong(f"{_IN_PLACE} (`{name}`)")
    if returns and (result is None or result is ...):
        raise Wrong("The function returns nothing. Did you forget `return`?")
    return result


_IN_PLACE = "Your function changes one of its inputs in place. The caller still needs it: make a new one."


@contextmanager
def no_lucky_memory() -> Iterator[None]:
    """Within it, `torch.empty` gives NaN and not what happened to stand in the memory."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _frozen(value: Any) -> Any:
    """A copy of plain data, to compare with afterwards."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _frozen(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_frozen(one) for one in value]
    return set(value) if isinstance(value, set) else value


def _unchanged(old: Any, new: Any) -> bool:
    if isinstance(new, torch.Tensor):
        return old.shape == new.shape and old.dtype == new.dtype and bool(((old == new) | (old != old)).all())
    if isinstance(new, np.ndarray):
        return bool(np.array_equal(old, new))
    if isinstance(new, dict):
        return list(old) == list(new) and all(_unchanged(old[key], new[key]) for key in new)
    if isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(_unchanged, old, new))
    return old == new if isinstance(new, set) else True


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
    """Whether two numbers or tensors have the same shape and differ by rounding only.

    Where one of the two was computed in 32 bits, four digits count; two numbers of Python must agree to six.
    """
    single = any(isinstance(value, torch.Tensor) and value.dtype in _SHORT for value in (one, other))
    a, b = (torch.as_tensor(value).detach().double() for value in (one, other))
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4 if single else 1e-6, atol=1e-5 if single else 1e-8)


_SHORT = (torch.float16, torch.bfloat16, torch.float32)


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
        raise Wrong(f"Expected {what} as a tensor, got an array of NumPy. Use torch: NumPy knows no gradients, no GPU.")
    if not isinstance(value, torch.Tensor):
        raise Wrong(f"Expected {what} as a tensor, got {type(value).__name__}.")
    same_device(value, what)
    if tuple(value.shape) != shape:
        raise Wrong(f"{what} should have the shape {shape}, yours has {tuple(value.shape)}.")
    if value.is_floating_point() and value.dtype != torch.float32:
        raise Wrong(f"{what} is in {value.dtype}, and what your function was given in float32. Keep the type.")
    return value


def same_device(value: torch.Tensor, what: str) -> None:
    """The learner's tensor is where everything is that a check hands over."""
    if value.device.type != "cpu":
        raise Wrong(f"{what} is on the device {value.device}, and what your function was given is on the processor.")


def loss(value: Any, *inputs: torch.Tensor) -> torch.Tensor:
    """The learner's loss, once its gradient has reached what it depends on.

    Args:
        value: from the learner.
        inputs: tensors that require a gradient.
    """
    if not isinstance(value, torch.Tensor):
        raise Wrong(
            f"Expected a loss as a tensor, got {type(value).__name__}. Without `.item()`: `loss.backward()` needs the way "
            "back to what it was computed from."
        )
    value = tensor(value, (), "the loss, one number,")
    reaches(value, *inputs)
    return value


def reaches(value: torch.Tensor, *inputs: torch.Tensor) -> None:
    """Send the result backwards, and see that a gradient arrives at each input.

    Args:
        value: from the learner.
        inputs: tensors that require a gradient.
    """
    lost = (
        "No gradient comes back through your result, so nothing before it could learn. Leave out `.detach()`, `.item()`, "
        "`.data`, `torch.no_grad()` and `torch.tensor(...)` of what was computed."
    )
    if (reached := getattr(value, "reached", None)) is not None:  # it came from another process, with its history told
        if any(all(one is not other for other in reached) for one in inputs):
            raise Wrong(lost)
        return
    if value.grad_fn is None:
        raise Wrong(lost)
    found = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
    if any(gradient is None for gradient in found):
        raise Wrong(lost)


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
    """Fixed random tensors in fp32, the type of a model's weights, to try an answer on."""
    generator = torch.Generator().manual_seed(_seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def trained_tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """The same tensors, and each waits for a gradient: for results that training goes through."""
    return [tensor.requires_grad_() for tensor in random_tensors(*shapes)]
