"""Answers to the exercises of chapter 98: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]

WRONG: dict[str, list[tuple[Function, str]]] = {
    "an_example.double": [
        (lambda x: x + 2, "You added 2"),
        (lambda x: x * x, "square"),
        (lambda x: x, "the number itself"),
    ],
}

RIGHT: dict[str, list[Function]] = {"an_example.double": [lambda x: x + x]}
