"""The checks of chapter 98, An example."""

from __future__ import annotations

from typing import Any

from course_utils.exercises.checking import Wrong, call, compare, exercise, number


@exercise("an_example.double", points=1, passes="Twice the number.", section="The formula, beside the code")
def _double(answer: Any) -> None:
    value = number(call(answer, 3))
    mistakes = [
        (5, "You added 2. Multiply by it."),
        (9, "That is the square."),
        (3, "That is the number itself."),
    ]
    compare(value, 6, mistakes, f"For 3 it is 6, your function returns {value:g}.")
    if number(call(answer, 7)) != 14:  # another input: a stored answer fails here
        raise Wrong("It is right for 3 only. Use the argument.")
