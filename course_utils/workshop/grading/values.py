"""Values as JSON and back: how arguments and results cross from the judge to the student's process.

JSON cannot carry code, so the judge can read what a student's function returned and stay what it was: no method of the
student's ever runs in the process that gives the points. What is not plain data arrives as an empty object with the
name of its type.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import numpy as np
import torch

_NAMES = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128"
_DTYPES: dict[str, torch.dtype] = {f"torch.{name}": getattr(torch, name) for name in _NAMES.split()}
_MOST = 64 << 20  # bytes of one tensor
_CONTAINERS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": iter,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
}


class NotPlain(TypeError):  # noqa: N818 (the judge asks whether, and goes another way)
    """A value that only lives inside its process: a model, a function, an iterator over a file."""


class Coder:
    """Writes and reads values; remembers those that could be changed in place, in the order in which they came.

    Both sides meet them in the same order. So a result that *is* an argument is known again, and a change of an
    argument in place can be told to the other side.

    Args:
        strict: refuse what is not plain data, where False writes the name of its type.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.known: list[Any] = []
        self._places: dict[int, int] = {}

    def remember(self, value: Any) -> Any:
        """Note a value that came or went."""
        self._places[id(value)] = len(self.known)
        self.known.append(value)
        return value

    def write(self, value: Any, as_new: bool = False) -> Any:
        """The value as something that `json.dumps` takes.

        Args:
            value: anything.
            as_new: also where the value is known by now.

        Raises:
            NotPlain: `strict`, and it is no plain data.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if not as_new and id(value) in self._places:
            return ["same", self._places[id(value)]]
        if isinstance(value, torch.Tensor | np.ndarray | list | dict | set) and not as_new and self.strict:
            self.remember(value)
        return self._write_object(value)

    def _write_object(self, value: Any) -> list[Any]:
        if value is ...:
            return ["ellipsis"]
        if isinstance(value, torch.Tensor) and str(value.dtype) in _DTYPES and value.layout == torch.strided:
            numbers = value.detach().cpu().contiguous()
            data = numbers.reshape(-1).view(torch.uint8).numpy().tobytes() if numbers.numel() else b""
            history = bool(value.requires_grad) if value.grad_fn is None or self.strict else self._reached(value)
            return ["tensor", str(value.dtype), list(value.shape), _text(data), history]
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return [kind, value.dtype.str, list(value.shape), _text(value.tobytes())]
        if isinstance(value, torch.dtype) and str(value) in _DTYPES:
            return ["dtype", str(value)]
        if isinstance(value, bytes):
            return ["bytes", _text(value)]
        if isinstance(value, range):
            return ["range", value.start, value.stop, value.step]
        if isinstance(value, dict) or (isinstance(value, Mapping) and not self.strict):
            return ["dict", [[self.write(key), self.write(item)] for key, item in value.items()]]
        for name, kinds in (
            *(("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)),
            *(("keys", KeysView), ("values", ValuesView), ("iterator", Iterator)),
        ):
            if isinstance(value, kinds) and not (self.strict and name == "iterator"):
                return [name, [self.write(item) for item in value]]
        if self.strict:
            raise NotPlain(f"{type(value).__name__} is not plain data")
        return ["object", type(value).__name__]

    def _reached(self, value: torch.Tensor) -> list[int]:
        """The places of the known tensors at which the gradient of this one arrives."""
        places = [n for n, one in enumerate(self.known) if isinstance(one, torch.Tensor) and one.requires_grad]
        if not places:
            return []
        inputs = [self.known[place] for place in places]
        found = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
        return [place for place, gradient in zip(places, found, strict=True) if gradient is not None]

    def read(self, written: Any, remember: bool = False) -> Any:
        """The value that was written.

        Args:
            written: from `write`, or from somebody who only says so.
            remember: note what could be changed in place.

        Raises:
            ValueError: nobody can have written that.
        """
        try:
            return self._read(written, remember)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"that is no written value: {type(error).__name__}: {error}") from None

    def _read(self, written: Any, remember: bool) -> Any:
        return self._read_object(written, remember) if isinstance(written, list) else written

    def _read_object(self, written: list[Any], remember: bool) -> Any:
        kind, *rest = written
        if kind == "same":
            return self.known[rest[0]]
        place = len(self.known)
        noted = remember and kind in ("tensor", "array", "list", "dict", "set")
        if noted:
            self.known.append(None)  # its turn was before that of what it holds
        value = self._make(kind, rest, remember)
        if noted:
            self.known[place] = value
            self._places[id(value)] = place
        return value

    def _make(self, kind: str, rest: list[Any], remember: bool) -> Any:
        if kind in _CONTAINERS:
            return _CONTAINERS[kind]([self._read(item, remember) for item in rest[0]])
        if kind == "dict":
            return {self._read(key, remember): self._read(item, remember) for key, item in rest[0]}
        if kind == "tensor":
            data = bytearray(base64.b64decode(rest[2]))
            flat = torch.frombuffer(data, dtype=_DTYPES[rest[0]]) if data else torch.empty(0, dtype=_DTYPES[rest[0]])
            tensor = flat.reshape(rest[1]).requires_grad_(bool(rest[3]))
            if isinstance(rest[3], list):  # what it was computed from stays over there
                tensor.reached = [self.known[place] for place in rest[3]]  # type: ignore[attr-defined]
            return tensor
        if kind in ("array", "scalar"):
            array = np.frombuffer(base64.b64decode(rest[2]), dtype=rest[0]).reshape(rest[1]).copy()
            return array if kind == "array" else array[()]
        if kind == "object":
            return type(str(rest[0]), (), {})()
        simple: dict[str, Callable[..., Any]] = {"ellipsis": lambda: ..., "dtype": _DTYPES.get, "range": range}
        simple["bytes"] = base64.b64decode
        return simple[kind](*rest)


def put_back(old: Any, new: Any) -> None:
    """Change `old` in place to what `new` is, as the student's function did with its copy."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        with torch.no_grad():
            old.data = new.data if old.shape != new.shape else old.data.copy_(new)
        if old.is_leaf:
            old.requires_grad_(new.requires_grad)
    elif isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and old.shape == new.shape:
        old[...] = new
    elif isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, dict | set) and isinstance(new, type(old)):
        old.clear()
        old.update(new)


def _text(data: bytes) -> str:
    if len(data) > _MOST:
        raise NotPlain(f"{len(data) >> 20} MB are too much for one value")
    return base64.b64encode(data).decode()
