"""What to say when a learner's code stops: its own line, what it was given, and what the error means."""

from __future__ import annotations

import inspect
import linecache
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch

#: Files here are not the learner's: this library, the installed packages, and Python itself.
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_FOREIGN = (str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in _INSTALLED))
_WIDEST = 90  # characters of a line that are shown

#: Words of an error → what is behind it. The first that fits is said.
_MEANINGS = (
    (
        "shapes cannot be multiplied",
        "In `P @ Q` the columns of P must be as many as the rows of Q; `.T` turns a matrix.",
    ),
    ("must match the size of tensor", "Sizes are compared from the last axis on; each must be equal, or 1."),
    ("indexing result", "The places that a mask picks and the rows that are put there differ in number."),
    ("to have the same dtype", "Two types of numbers meet. What you were given says its own: `.to(x.dtype)`."),
    ("return_types.max", "`.max(dim=...)` gives values and positions: take `.values`, or use `.amax(dim=...)`."),
    ("return_types.min", "`.min(dim=...)` gives values and positions: take `.values`, or use `.amin(dim=...)`."),
    ("that requires grad. Use", "NumPy knows no gradients. Use torch for the whole calculation."),
    ("numpy", "Use torch for the whole calculation: NumPy knows neither gradients nor GPUs."),
    (
        "positional argument",
        "The function is called with the arguments of the stub, in that order. Keep its first line.",
    ),
    ("unexpected keyword", "The function is called with the arguments of the stub. Keep its first line."),
    ("is not defined", "The name is unknown here. Is it spelt as above? Was its cell run?"),
)
_IN_PLACE = "a leaf Variable that requires grad"
_last: BaseException | None = None


def parameter_names(answer: Any, count: int) -> list[str]:
    """What the learner's function calls its first arguments; "argument 1" where it does not say.

    Args:
        answer: the function.
        count: how many.
    """
    try:
        found = inspect.signature(answer).parameters.values()
    except (TypeError, ValueError):
        found = ()  # type: ignore[assignment]
    named = [one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return [named[n] if n < len(named) else f"argument {n + 1}" for n in range(count)]


def described(value: Any) -> str:
    """A value in a few words: its shape and type, or how much it holds.

    Args:
        value: a tensor gives "(3, 7) float32", a list "list of 5", a number itself.
    """
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}, of NumPy"
    if isinstance(value, (list, tuple, dict, set)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value) if len(repr(value)) <= 40 else f"text of {len(str(value))} characters"
    return "a function" if inspect.isroutine(value) else f"a {type(value).__name__}"


def note(error: BaseException, answer: Any, arguments: tuple[Any, ...]) -> None:
    """Keep with an error what the function was given when it stopped, and what its first line says that it should do."""
    names = parameter_names(answer, len(arguments))
    error.given = ", ".join(  # type: ignore[attr-defined]
        f"{name}: {described(value)}" for name, value in zip(names, arguments, strict=True)
    )
    said = answer.__doc__ if isinstance(answer, FunctionType) and answer.__doc__ else ""
    error.asked = said.strip().partition("\n")[0]  # type: ignore[attr-defined]


def own_line(error: BaseException) -> str:
    """Number and text of the learner's line where it stopped, as in "line 3, `return W @ x`"; "" if there is none."""
    if (told := getattr(error, "own_line", None)) is not None:
        return str(told)
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(_FOREIGN) and not file.startswith("<frozen"):
            text = linecache.getline(file, number, frame.f_globals).strip()
            text = text if len(text) <= _WIDEST else text[: _WIDEST - 2] + " …"
            found = f"line {number}, `{text}`" if text else f"line {number}"
    return found


def changes_in_place(error: BaseException) -> bool:
    """Whether torch stopped because an input that is trained was written over."""
    return isinstance(error, RuntimeError) and _IN_PLACE in str(error)


def explained(error: BaseException) -> str:
    """The sentences for a learner whose code stopped with this error."""
    global _last
    _last = error
    text = next((line for line in str(error).splitlines() if line.strip()), "").strip().rstrip(".:")
    where = f" in {line}" if (line := own_line(error)) else ""
    says = (
        f"your code stopped with {type(error).__name__}{where}: {text}."
        if text
        else (f"your code stopped with {type(error).__name__}{where}.")
    )
    meaning = next((meaning for words, meaning in _MEANINGS if words in str(error)), "")
    given, asked = getattr(error, "given", ""), getattr(error, "asked", "")
    parts = [says, meaning, f"It was given {given}." if given else "", f"Asked for: {asked}" if asked else ""]
    return " ".join(part for part in [*parts, "Whole traceback: check.traceback()."] if part)


def show_traceback(write: Callable[[str], Any] = print) -> None:
    """Print where the code stopped that was checked last, from the learner's own lines on.

    Args:
        write: takes the text.
    """
    if _last is None:
        write("No code has stopped with an error yet.")
        return
    found = traceback.TracebackException.from_exception(_last)
    own = [n for n, frame in enumerate(found.stack) if not frame.filename.startswith(_FOREIGN)]
    inside = [
        n for n, frame in enumerate(found.stack) if str(Path(__file__).with_name("checking.py")) == frame.filename
    ]
    first = next((n for n in own if n > max(inside, default=-1)), 0)
    found.stack = traceback.StackSummary.from_list(found.stack[first:])
    write("".join(found.format()).rstrip())
