"""The check beside the student's code, for the exercises whose check hands over a model or another live object.

Student and check share a process here, so the check can be tampered with. Three things make that hard, and none makes
it impossible: `screen` lets no answer in that reaches for what an answer does not need; known wrong answers are still
rejected afterwards; and the functions that the check uses are still the ones that were there before.
"""

from __future__ import annotations

import builtins
import math
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from course_utils.exercises import checking, crashes

_WATCHED: list[ModuleType] = [builtins, math, torch, torch.nn, torch.nn.functional, torch.optim, torch.linalg, np]
_CLASSES: list[type] = [torch.Tensor, torch.nn.Module, torch.nn.Linear, torch.nn.Parameter, torch.optim.Optimizer]
_CHANGING = ("_seed", "_last")  # of the checks' own, and no sign of tampering
_before: dict[str, int] = {}


def remember() -> None:
    """Note how everything is; called once, before any student's code has run."""
    _before.update(_fingerprint())


def changed() -> list[str]:
    """The names of watched functions and attributes that are others now."""
    now = _fingerprint()
    return sorted(name for name, value in _before.items() if now.get(name) != value)


def _fingerprint() -> dict[str, int]:
    found = {}
    ours = [module for name, module in sorted(sys.modules.items()) if name.startswith("course_utils.")]
    things = [thing for module in ours for thing in vars(module).values() if isinstance(thing, type)]
    classes = [thing for thing in things if thing.__module__.startswith("course_utils.")]
    places: list[Any] = [*ours, *classes, *_WATCHED, *_CLASSES]
    for place in places:
        where = f"{place.__module__}.{place.__name__}" if isinstance(place, type) else place.__name__
        for name, value in vars(place).items():
            if (name.startswith("__") and place is not builtins) or (
                place in (checking, crashes) and name in _CHANGING
            ):
                continue
            code = value.__code__ if isinstance(value, FunctionType) else None
            found[f"{where}.{name}"] = hash(code) if isinstance(code, CodeType) else id(value)
    return found


def judge(answer: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Run the check and the hidden ones here; "word" goes back as it came."""
    name = message["judge"]
    exercise = checking.exercises()[name]
    results = [checking.run_check(name, answer)]
    for seed in message["seeds"]:
        with checking.other_numbers(seed):
            results.append(checking.run_check(name, answer))
    if message["hidden"]:
        space: dict[str, Any] = {}
        exec(message["hidden"], space)
        if check := space["HIDDEN"].get(name):
            results.append(checking.judge(exercise, check, answer))
    decisive = next((result for result in results if result.status != "passed"), results[0])
    status, says = decisive.status, decisive.message
    if status == "passed":
        if tampered := changed():
            status, says = "wrong", f"Your code changed what the check is made of: {', '.join(tampered[:3])}."
        elif any(checking.run_check(name, wrong).status == "passed" for wrong in _KNOWN_WRONG):
            status, says = "wrong", "After your code ran, the check accepts an answer that is known to be wrong."
    return {"word": message["word"], "status": status, "message": says}


def _nothing(*arguments: Any, **named: Any) -> None:
    """An answer that does nothing."""


def _stub(*arguments: Any, **named: Any) -> None:
    raise NotImplementedError


_KNOWN_WRONG = (_nothing, _stub, lambda *arguments, **named: 0, object())
