"""The half of the grader that runs a student's code. It ends with the exercise, and nothing it says is believed.

It gets the code, runs it, and then calls the student's function as often as the judge asks for it.
"""

from __future__ import annotations

import json
import linecache
import random
from typing import Any

import numpy as np
import torch

from course_utils.exercises import crashes
from course_utils.exercises.checking import no_lucky_memory
from course_utils.workshop.grading import in_process
from course_utils.workshop.grading.channel import Channel
from course_utils.workshop.grading.values import Coder, NotPlain

_MOST_ARGUMENTS = 12


def serve(channel: Channel, code: list[str], name: str) -> None:
    """Run the code, then answer the judge until it hangs up.

    Args:
        channel: to the judge.
        code: pieces to run in one namespace; an error in one leaves the next alone.
        name: what the check is given.
    """
    seed()
    space: dict[str, Any] = {"__name__": "__main__"}
    errors = [error for number, piece in enumerate(code) if (error := _run(piece, space, f"<part {number}>"))]
    answer = space.get(name)
    kind = "missing" if name not in space else "function" if callable(answer) else "value"
    value = Coder(strict=False).write(answer) if kind == "value" else None
    names = crashes.parameter_names(answer, _MOST_ARGUMENTS) if kind == "function" else []
    channel.send({"kind": kind, "value": value, "error": errors[-1] if errors else None, "names": names})
    while True:
        message = channel.receive()
        if "judge" in message:
            channel.send(in_process.judge(answer, message))
        else:
            channel.send(_call(answer, message["call"]))


def seed() -> None:
    """The same random numbers for everybody."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def _run(piece: str, space: dict[str, Any], name: str) -> str | None:
    linecache.cache[name] = (len(piece), None, piece.splitlines(keepends=True), name)  # to show the line that stopped
    try:
        exec(compile(piece, name, "exec", dont_inherit=True), space)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the next piece runs all the same
        return describe(error)
    return None


def describe(error: BaseException) -> str:
    """The name of an error and what it says; an error whose text cannot be had has none."""
    try:
        text = str(error)[:500]
    except BaseException:
        text = "(its message cannot be shown)"
    return f"{type(error).__name__}: {text}"


def _call(answer: Any, written: list[Any]) -> dict[str, Any]:
    coder = Coder(strict=False)
    arguments, named = (coder.read(part, remember=True) for part in written)
    before = [json.dumps(coder.write(value, as_new=True)) for value in coder.known]
    try:
        with no_lucky_memory():
            result = answer(*arguments, **named)
        reply = {"result": coder.write(result)}
        now = [coder.write(value, as_new=True) for value in coder.known]
        reply["changed"] = [
            [place, new] for place, (old, new) in enumerate(zip(before, now, strict=True)) if json.dumps(new) != old
        ]
        return reply
    except NotPlain as error:
        return {"error": ["ValueError", f"your function returned more than the grader can carry: {error}"]}
    except BaseException as error:
        kind, _, text = describe(error).partition(": ")
        # `except ValueError` in a check must work for its subclasses too.
        known = [parent.__name__ for parent in type(error).__mro__ if parent.__module__ == "builtins"]
        return {"error": [kind, text, *known], "line": crashes.own_line(error)[:200]}
