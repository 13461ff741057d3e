"""A lab and its solution train many of the same models; in a run of the tests each of them is trained once.

`fit` is remembered here, by what decides its result: the model with its weights, its settings and the code of what the
notebook defined, the batches and the hyper-parameters (`fit` sets all random numbers itself). Whoever asks again with
the very same gets the weights, the history and the random numbers of the first time. What is different in one bit,
cannot be read through to its end, or is watched, is trained. `COURSE_REMEMBER=0 make test` trains everything.

The library knows nothing of it, and no learner meets it: `pool.py` gives the kernels of one run of pytest a folder, and
a start-up file of IPython that puts `remember` around `fit` when the notebook first imports it. This costs a kernel
nothing before that, so only the standard library is imported above.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import os
import random
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

#: The folder of one run of pytest; without it nothing is remembered.
FOLDER = "COURSE_REMEMBERED"
#: Stands for an attribute that is not there.
_NOTHING = "(nothing)"
_LOOP = "course_utils.training.loop"
_STARTUP = """
def _remember():
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("remembered", {file!r})
    module = sys.modules["remembered"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.watch_for_fit()
_remember()
del _remember
"""


def prepare(folder: Path) -> None:
    """Write the folder that a kernel's `IPYTHONDIR` names."""
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "remember.py").write_text(_STARTUP.format(file=__file__), encoding="utf-8")


def watch_for_fit() -> None:
    """Put `remember` around `fit` as soon as its module is imported."""
    if os.environ.get(FOLDER):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != _LOOP:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec and spec.loader
        run = spec.loader.exec_module

        def run_and_wrap(module: ModuleType) -> None:
            run(module)
            module.fit = remember(module.fit, Path(os.environ[FOLDER]))  # type: ignore[attr-defined]

        spec.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return spec


def remember(fit: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`fit`, which answers from `folder` what it has been asked before."""

    @functools.wraps(fit)
    def remembering(model: Any, train: Any, validation: Any, config: Any = None, **others: Any) -> Any:
        import torch

        def really() -> Any:
            return fit(model, train, validation, config, **others)

        if any(value is not None for value in others.values()):
            return really()  # somebody watches, or goes on
        before = _look(model, train, validation, config)
        if before is None:
            return really()
        beside = _beside(model, train, validation)
        key = hashlib.sha256(repr((before, beside, _how())).encode()).hexdigest()
        file = folder / f"{key}.pt"
        if file.is_file():
            return _recall(torch.load(file, weights_only=False), model, train, validation)
        history = really()
        after = _beside(model, train, validation)
        _put(beside, model, train, validation)
        now = _look(model, train, validation, config)
        _put(after, model, train, validation)
        if now is None or now.skeleton != before.skeleton:
            return history  # it changed more than that: the next one trains, too
        changed = [place for place, (one, two) in enumerate(zip(before.hashes, now.hashes, strict=True)) if one != two]
        tensors = {place: now.tensors[place].detach() for place in changed}
        part = folder / f"{key}.{uuid.uuid4().hex}"
        torch.save({"tensors": tensors, "beside": after, "random": _random(), "history": history}, part)
        part.replace(file)
        return history

    return remembering


def _recall(memory: dict[str, Any], model: Any, train: Any, validation: Any) -> Any:
    import numpy as np
    import torch

    tensors = _tensors(model, train, validation)
    with torch.no_grad():
        for place, value in memory["tensors"].items():
            tensors[place].copy_(value)
            tensors[place].grad = None
    _put(memory["beside"], model, train, validation)
    python, numbers, ours = memory["random"]
    random.setstate(python)
    np.random.set_state(numbers)
    torch.set_rng_state(torch.tensor(list(ours), dtype=torch.uint8))
    return memory["history"]


class _Look:
    """All that decides: a text of everything but tensors, and the tensors with a hash of each."""

    def __init__(self, skeleton: str, tensors: list[Any]) -> None:
        self.skeleton, self.tensors = skeleton, tensors
        self.hashes = [_hash(tensor) for tensor in tensors]

    def __repr__(self) -> str:
        return repr((self.skeleton, self.hashes))


def _look(*things: Any) -> _Look | None:
    """None where something cannot be read through to its end."""
    try:
        return _Look(*_take_apart(*things))
    except Exception:  # whatever it is, it is trained
        return None


def _tensors(*things: Any) -> list[Any]:
    return _take_apart(*things, None)[1]


def _take_apart(*things: Any) -> tuple[str, list[Any]]:
    """A hash of the pickled things without their tensors, with the code of what a notebook defined; and the tensors."""
    import io

    import torch
    from datasets.utils._dill import Pickler as Dill  # the same bytes in every process: it sorts sets, for one

    tensors: list[Any] = []
    places: dict[int, int] = {}

    class Pickler(Dill):
        def persistent_id(self, thing: Any) -> int | None:
            if not isinstance(thing, torch.Tensor):
                return None
            if id(thing) not in places:
                places[id(thing)] = len(tensors)
                tensors.append(thing)
            return places[id(thing)]

    # One after the other: what two of them share must not depend on which strings Python happens to share.
    said = hashlib.sha256()
    for thing in things:
        stream = io.BytesIO()
        with _hooks_numbered_anew(thing):
            Pickler(stream, recurse=True).dump(thing)
        said.update(stream.getvalue())
    return said.hexdigest(), tensors


@contextlib.contextmanager
def _hooks_numbered_anew(thing: Any) -> Iterator[None]:
    """A hook's number counts all hooks of the process; here it counts those of its module."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for module in thing.modules() if hasattr(thing, "modules") else ():
        hooks = {name: value for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict)}
        numbers = sorted({number for value in hooks.values() for number in value})
        for name, value in hooks.items():
            kept.append((vars(module), name, value))
            vars(module)[name] = type(value)((numbers.index(number), hook) for number, hook in value.items())
    try:
        yield
    finally:
        for owner, name, value in kept:
            owner[name] = value


def _hash(tensor: Any) -> str:
    import torch

    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    kind = f"{type(tensor).__name__} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {tensor.device}"
    return kind + hashlib.sha256(numbers).hexdigest()


def _beside(model: Any, *loaders: Any) -> dict[str, list[Any]]:
    """What a training changes beside numbers: (owner's place, attribute) → value."""
    return {
        attribute: [vars(owner).get(attribute, _NOTHING) for owner in owners]
        for attribute, owners in _owners(model, *loaders).items()
    }


def _put(beside: dict[str, list[Any]], model: Any, *loaders: Any) -> None:
    """Set it as it was, or as it will be."""
    for attribute, owners in _owners(model, *loaders).items():
        for owner, value in zip(owners, beside[attribute], strict=True):
            vars(owner).pop(attribute, None)
            if value != _NOTHING:
                vars(owner)[attribute] = value


def _owners(model: Any, *loaders: Any) -> dict[str, list[Any]]:
    modules = list(model.modules())
    return {
        "training": modules,
        "_is_accelerate_prepared": modules,
        "problem_type": [module.config for module in modules if hasattr(getattr(module, "config", None), "to_dict")],
        "epoch": [sampler for loader in loaders if (sampler := getattr(loader, "batch_sampler", None)) is not None],
    }


def _random() -> tuple[Any, ...]:
    import numpy as np
    import torch

    return random.getstate(), np.random.get_state(legacy=True), bytes(torch.get_rng_state().tolist())


def _how() -> tuple[Any, ...]:
    """What the rounding of sums hangs on."""
    import torch

    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    return torch.get_num_threads(), torch.get_default_dtype(), [os.environ.get(name) for name in names]
