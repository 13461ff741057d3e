"""The half of the grader that decides. The student's function is in another process, and comes here as data only.

`Answer` looks to a check like the student's function: a call goes to the other process and the result comes back.
Where a check hands over something that cannot travel, such as a model, the check runs beside the student's code
(`in_process`); which exercises these are is found out with the solution alone, never with a student's answer.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
import runpy
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from course_utils.exercises import checking, run_check
from course_utils.workshop.grading.channel import Channel, Closed, TooLate
from course_utils.workshop.grading.student import seed
from course_utils.workshop.grading.values import Coder, NotPlain, put_back

#: Seeds of the hidden checks: the same check with other random numbers.
HIDDEN_SEEDS = (101,)
_LONGEST_NAME = 30
_STATUSES = ("passed", "wrong", "not attempted")


class Ended(Exception):  # noqa: N818 (it stands in a sentence for learners)
    """The student's process is gone."""


class Answer:
    """The student's function, from afar.

    Args:
        channel: to the process that has it.
        in_place: whether a change of an argument in place is done here too, as in the notebook.
        names: what it calls its arguments, as it says itself.
    """

    def __init__(self, channel: Channel, in_place: bool = True, names: Sequence[str] = ()) -> None:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        known = dict.fromkeys(name for name in map(str, names) if name.isidentifier() and len(name) <= _LONGEST_NAME)
        known = dict.fromkeys(name for name in known if not keyword.iskeyword(name))
        self.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in known])
        self._channel = channel
        self._in_place = in_place
        self.ended: str | None = None  # why there is nobody to call any more
        self.untransferable = False  # an argument could not travel

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the student's function.

        Raises:
            Exception: of the type that the student's function raised.
            Ended: its process is gone.
        """
        coder = Coder(strict=True)
        try:
            written = [coder.write(arguments), coder.write(named)]
        except NotPlain:
            self.untransferable = True
            raise
        reply = self._ask({"call": written})
        if "error" in reply:
            error = _error(*reply["error"])
            error.own_line = str(reply.get("line", ""))[:200]  # type: ignore[attr-defined]
            raise error
        for place, new in reply["changed"]:
            if self._in_place:
                put_back(coder.known[place], coder.read(new))
            else:
                coder.known[place] = coder.read(new)
        return coder.read(reply["result"])

    def _ask(self, message: Any) -> Any:
        if self.ended is None:
            try:
                self._channel.send(message)
                return self._channel.receive()
            except Closed:
                self.ended = "your code ended the Python process, by itself or because it asked for too much"
            except TooLate:
                self.ended = "your code ran longer than it may"
            except (ValueError, KeyError):
                self.ended = "your code disturbed the conversation with the grader"
        raise Ended(self.ended)


def decide(exercise: str, channel: Channel, plan: dict[str, Any]) -> dict[str, Any]:
    """Run the check, and then the hidden ones.

    Args:
        exercise: its name.
        channel: to the student's process, where the code has not run yet.
        plan: "beside" (whether the check runs in the student's process), "hidden" (a file with more checks, or None).

    Returns:
        "status", "message", and "untransferable" where the check needs to stand beside the answer.
    """
    answer = Answer(channel)
    try:
        hello = channel.receive()
        kind, error = hello["kind"], hello["error"]
        answer = Answer(channel, names=hello["names"])
        value: Any = answer if kind == "function" else Coder(strict=False).read(hello["value"])
    except Closed:
        return _wrong("Your cell ended the Python process before the check could run.")
    except TooLate:
        return _wrong("Your cell did not come to an end in time. Is there a loop that never ends?")
    except (ValueError, KeyError, TypeError):
        return _wrong("Your cell disturbed the conversation with the grader.")
    if kind == "missing":
        return _wrong(f"Your cell stopped with {error}." if error else "The cell defines no answer.")
    if plan["beside"]:
        return _decide_beside(exercise, answer, plan)
    attempts: list[tuple[str, Callable[[], checking.CheckResult]]] = [
        ("", lambda: run_check(exercise, value)),
        *((_OTHERS, lambda s=s: _with_other_numbers(exercise, channel, value, s)) for s in HIDDEN_SEEDS),
        *(("", lambda check=check: _run(exercise, check, value)) for check in _hidden(plan["hidden"], exercise)),
    ]
    first = None
    for prefix, attempt in attempts:
        seed()
        result = attempt()
        if answer.ended:
            return _wrong(f"{answer.ended[0].upper()}{answer.ended[1:]}.")
        if answer.untransferable:
            return {**_wrong("The check must stand beside the answer."), "untransferable": True}
        if result.status != "passed":
            return {"status": result.status, "message": prefix + result.message}
        first = first or result
    assert first
    return {"status": first.status, "message": first.message}


_OTHERS = "It passes in the notebook, and fails with other numbers: "


def _with_other_numbers(exercise: str, channel: Channel, value: Any, seed: int) -> checking.CheckResult:
    """The same check on other random tensors; what the function does to its arguments stays over there."""
    with checking.other_numbers(seed):
        return run_check(exercise, Answer(channel, in_place=False) if isinstance(value, Answer) else value)


def _run(exercise: str, check: Callable[[Any], None], value: Any) -> checking.CheckResult:
    return checking.judge(checking.exercises()[exercise], check, value)


def _hidden(path: str | None, exercise: str) -> list[Callable[[Any], None]]:
    """The instructor's own check; read only now, when the student's process is another one already."""
    if path is None:
        return []
    found = runpy.run_path(str(Path(path)))["HIDDEN"].get(exercise)
    return [found] if found else []


def _decide_beside(exercise: str, answer: Answer, plan: dict[str, Any]) -> dict[str, Any]:
    """Let the student's process run the check. The word that proves it was no guess is sent only now."""
    word = secrets.token_hex(16)
    hidden = Path(plan["hidden"]).read_text(encoding="utf-8") if plan["hidden"] else None
    try:
        reply = answer._ask({"judge": exercise, "word": word, "hidden": hidden, "seeds": HIDDEN_SEEDS})
    except Ended as ended:
        return _wrong(f"{str(ended)[0].upper()}{str(ended)[1:]}.")
    if not isinstance(reply, dict) or reply.get("word") != word or reply.get("status") not in _STATUSES:
        return _wrong("Your code disturbed the conversation with the grader.")
    return {"status": reply["status"], "message": str(reply.get("message"))[:2000]}


def _wrong(message: str) -> dict[str, Any]:
    return {"status": "wrong", "message": message}


def _error(kind: str, text: str, *parents: str) -> Exception:
    """An error like the student's: of the built-in type that it is or comes from."""
    for name in (kind, *parents):
        known = getattr(builtins, str(name), None)
        if isinstance(known, type) and issubclass(known, Exception) and known is not Exception:
            try:
                return known(text) if name == kind else type(str(kind), (known,), {})(text)
            except TypeError:  # UnicodeDecodeError and its like want more than a text
                continue
    return type(str(kind), (Exception,), {})(text)
