"""For checks that try an answer on several cases at once.

A mistake is a function too: an answer that agrees with it in all cases has made that mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from course_utils.exercises.checking import Wrong, equal


def same(
    outcomes: Sequence[Any],
    cases: Sequence[tuple[Any, ...]],
    right: Callable[..., Any],
    mistakes: Iterable[tuple[Callable[..., Any], str]],
    say: Callable[[tuple[Any, ...], Any, Any], str],
) -> None:
    """Accept the outcomes of the right function; else name the mistake that gives the same outcomes, or the case."""
    expected = [right(*case) for case in cases]
    if all(map(alike, outcomes, expected)):
        return
    for wrong, message in mistakes:
        if all(map(alike, outcomes, [wrong(*case) for case in cases])):
            raise Wrong(message)
    for case, outcome, wanted in zip(cases, outcomes, expected, strict=True):
        if not alike(outcome, wanted):
            raise Wrong(say(case, wanted, outcome))


def alike(one: Any, other: Any) -> bool:
    """Whether two outcomes are the same; numbers may differ by rounding."""
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return equal(one, other) if numbers else bool(one == other)


def names(value: Any, known: Iterable[str]) -> frozenset[str]:
    """The learner's names, in any order."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise Wrong(f"Expected a list of names, got {type(value).__name__}.")
    found = list(value)
    if unknown := [name for name in found if name not in set(known)]:
        raise Wrong(f"{unknown[0]!r} is none of the names that your function was given: return {', '.join(known)}.")
    if len(found) != len(set(found)):
        raise Wrong("A name stands in your list twice.")
    return frozenset(found)


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(sorted(names)) or "none"
