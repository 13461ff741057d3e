"""Answers that look right and are not: each is made from a right one by one change, and every check is fed with them.

A maker takes the right answer, and a list that is filled as soon as the change had something to change: a function that
returns a name has no dtype to get wrong. It gives a function of the same arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

Function = Callable[..., Any]
Maker = Callable[[Function, list[str]], Function]


def parts(value: Any) -> Iterator[Any]:
    """What a list, a tuple or a dictionary holds, through all its levels."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from parts(each)
    else:
        yield value


def mapped(value: Any, change: Callable[[torch.Tensor], Any], done: list[str]) -> Any:
    """The same value with `change` done to each tensor in it."""
    if isinstance(value, dict):
        return {key: mapped(each, change, done) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(mapped(each, change, done) for each in value)
    if not isinstance(value, torch.Tensor):
        return value
    changed = change(value)
    if changed is not value:
        done.append("changed")
    return changed


def constant(right: Function, done: list[str]) -> Function:
    """Returns what was right for the first call, for ever."""
    stored: list[Any] = []

    def answer(*arguments: Any, **named: Any) -> Any:
        if not stored:
            stored.append(copied(right(*arguments, **named)))
        done.append("stored")
        return copied(stored[0])

    return answer


def copied(value: Any) -> Any:
    """A copy; of a tensor with a history only the numbers can be copied."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(copied(each) for each in value)
    try:
        return copy.deepcopy(value)
    except (RuntimeError, TypeError):
        return value


def ignores(position: int) -> Maker:
    """Uses what stood at this position in the first call, for ever."""

    def maker(right: Function, done: list[str]) -> Function:
        stored: list[Any] = []

        def answer(*arguments: Any, **named: Any) -> Any:
            if len(arguments) <= position:
                return right(*arguments, **named)
            if not stored:
                stored.append(copied(arguments[position]))
            done.append("ignored")
            return right(*arguments[:position], copied(stored[0]), *arguments[position + 1 :], **named)

        return answer

    return maker


def of_result(change: Callable[[torch.Tensor], Any]) -> Maker:
    """Does something to each tensor of the result."""

    def maker(right: Function, done: list[str]) -> Function:
        return lambda *arguments, **named: mapped(right(*arguments, **named), change, done)

    return maker


def _floating(change: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    return lambda value: change(value) if value.is_floating_point() else value


def damages(right: Function, done: list[str]) -> Function:
    """Leaves other numbers in what it was given."""

    def answer(*arguments: Any, **named: Any) -> Any:
        result = copied_result(right(*arguments, **named))
        for each in arguments:
            damage(each, done)
        return result

    return answer


def copied_result(value: Any) -> Any:
    """A result that shares no memory with the arguments, and keeps its history."""
    if isinstance(value, torch.Tensor):
        return value.clone() if not isinstance(value, nn.Parameter) else value
    return type(value)(copied_result(each) for each in value) if type(value) in (list, tuple) else value


def damage(value: Any, done: list[str]) -> None:
    """Change what can be changed without a model noticing."""
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            value.data = ~value.data if value.dtype == torch.bool else value.data + 1
    elif isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        value += 1
    elif isinstance(value, list) and value:
        value.pop()
    elif isinstance(value, dict) and value:
        value.pop(next(iter(value)))
    else:
        return
    done.append("damaged")


def copies_the_model(right: Function, done: list[str]) -> Function:
    """Works on a copy of each model, and so leaves the learner's own as it was."""

    def answer(*arguments: Any, **named: Any) -> Any:
        own = []
        for each in arguments:
            own.append(copy.deepcopy(each) if isinstance(each, nn.Module) else each)
            done.extend(["copied"] * isinstance(each, nn.Module))
        return right(*own, **named)

    return answer


def _numpy(value: torch.Tensor) -> Any:
    return value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()


def leftover(value: torch.Tensor) -> torch.Tensor:
    """Whatever bits stood in the memory: most are no sensible number."""
    bits = torch.randint(-(2**31), 2**31, value.shape, generator=torch.Generator().manual_seed(value.numel()))
    return bits.to(torch.int32).view(torch.float32).clone().requires_grad_(value.requires_grad)


def _item(value: torch.Tensor) -> Any:
    return value.item() if value.dim() == 0 else value


#: What is changed → how. `ignores` is made for each argument, see `makers`.
MAKERS: dict[str, Maker] = {
    "constant": constant,
    "wrong dtype": of_result(_floating(lambda value: value.detach().half().requires_grad_(value.requires_grad))),
    "wrong device": of_result(lambda value: value.to("meta")),
    "detached": of_result(_floating(lambda value: value.detach())),
    "item": of_result(_floating(_item)),
    "damages its inputs": damages,
    "copies the model": copies_the_model,
    "uninitialised": of_result(_floating(leftover)),
    "not a number": of_result(_floating(lambda value: value * float("nan"))),
    "numpy": of_result(_numpy),
}


def makers(arguments: int) -> dict[str, Maker]:
    """All changes for a function of so many arguments."""
    return MAKERS | {f"ignores argument {n + 1}": ignores(n) for n in range(arguments)}
