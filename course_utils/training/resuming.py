"""Go on after an interruption: `fit(model, train, validation, config, resume="run")`.

The folder holds one file, `state.pt`, with everything that decides how the run goes on:

* the trained weights, the best ones so far, and the buffers beside them (AdaLoRA's notes on importance are such);
* the optimiser's averages and the schedule;
* the history, which says in which epoch and at which step the run stands;
* the random states, now and at the beginning of the epoch: with the latter the loader gives the same batches again, and
  those that were trained on already are passed over.

It is written after each evaluation, and when the run ends early, always under another name first, so that a file of
that name is whole. What is not in it comes from the caller again: the pretrained weights, the texts, the settings. The
state remembers what these were, and is refused where they are not the same.

One thing does not come back: a dataset that changes its texts at random, in the middle of an epoch. accelerate draws a
batch ahead, and that one is drawn anew. At the beginning of an epoch even such a run goes on exactly.
"""

from __future__ import annotations

import os
import pickle
import random
import time
import zlib
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from course_utils.methods.base import MethodConfig
from course_utils.training.config import TrainingConfig, TrainingError
from course_utils.training.history import BestWeights, History

STATE = "state.pt"
_CHECKSUMS = ("frozen weights", "rows")
Moment = dict[str, Any]


class Running(Protocol):
    """What a state is made of; `run.Run` has it."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    train: DataLoader
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    accelerator: Accelerator
    total: int
    bar: Any
    history: History
    best: BestWeights
    started: float


class Savepoint:
    """Where a run stands, noted after each step, so that another run can go on from there.

    Args:
        folder: for `state.pt`; None notes and writes nothing.
        loader: the one to learn from, as it was given to `fit`.
        origin: what the run was started with, see `describe_origin`.

    Raises:
        TrainingError: the folder holds the state of another run, or a file that is none.
    """

    def __init__(self, folder: str | Path | None, loader: DataLoader, origin: dict[str, Any]) -> None:
        self.file = None if folder is None else Path(folder).expanduser() / STATE
        self.loader, self.origin = loader, origin
        self.epoch_start: Moment | None = None
        self.now: Moment | None = None  # None while weights are being changed
        self.state: dict[str, Any] | None = None if self.file is None else _read(self.file)
        if self.state is not None and (differences := _differences(self.state["origin"], origin)):
            raise TrainingError(
                f"{self.file} is the state of another run: {'; '.join(differences)}. Go on with what that run was "
                "started with, or name another folder to begin anew"
            )

    @contextmanager
    def in_one_piece(self) -> Iterator[None]:
        """What happens in here belongs together: a run that is interrupted inside goes on from its last evaluation."""
        self.now = None
        yield
        self.now = self._moment()

    def groups(self, run: Running, groups: Iterator[list[Any]], epoch: int) -> Iterator[list[Any]]:
        """Of an epoch's groups of batches those that are still to be trained on, at most as many as the run has steps.

        Args:
            run: its history says how many groups of this epoch are done.
            groups: all of the epoch. Its first batch is drawn here and not before.
            epoch: counted from 1.
        """
        done = sum(row["epoch"] == epoch for row in run.history.steps)
        if self.state is None:
            self.epoch_start = self.now = self._moment()
        else:  # the first epoch of a run that goes on
            self.epoch_start, self.now = self.state["moments"][run.accelerator.process_index]
            self.state = None
            if done == 0:
                self.epoch_start = self.now
            _return_to(self.epoch_start, self.loader)
            if hasattr(run.train, "iteration"):  # accelerate's count of the epochs
                run.train.iteration = epoch - 1
            for _ in range(done):
                next(groups)
            if done:
                _set_random(self.now)
        return islice(groups, run.total - len(run.history.steps))

    def write(self, run: Running) -> None:
        """Write the state, if there is a whole one; all processes call this together, the first one writes."""
        if self.file is None or self.now is None:
            return
        moments = gather_object([(self.epoch_start, self.now)])
        if not run.accelerator.is_main_process:
            return
        state = {
            "origin": self.origin,
            "weights": {name: parameter.detach() for name, parameter in run.trained.items()},
            "buffers": _buffers(run.model),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "best": {"weights": run.best.weights, "loss": run.best.loss, "waited": run.best.waited},
            "history": asdict(run.history) | {"seconds": time.perf_counter() - run.started},
            "moments": moments,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.file)

    @torch.no_grad()
    def restore(self, run: Running) -> None:
        """Bring a run that has just been started to where the state says; do nothing where there is none."""
        if self.state is None:
            return
        for mine, saved in ((run.trained, "weights"), (_buffers(run.model), "buffers")):
            for name, tensor in mine.items():
                tensor.copy_(self.state[saved][name])
        run.optimizer.load_state_dict(self.state["optimizer"])
        run.scheduler.load_state_dict(self.state["scheduler"])
        best, history = self.state["best"], self.state["history"]
        run.best.weights = {name: best["weights"][name].to(parameter.device) for name, parameter in run.trained.items()}
        run.best.loss, run.best.waited = best["loss"], best["waited"]
        run.started -= history.pop("seconds")
        for name, value in history.items():
            setattr(run.history, name, value)
        run.bar.update(len(run.history.steps))

    def _moment(self) -> Moment | None:
        """The random states, and where the loader's order stands."""
        if self.file is None:
            return None
        order = [generator.get_state() for generator in _generators(self.loader)]
        return {"random": _random(), "order": order, "epoch": getattr(self.loader.batch_sampler, "epoch", None)}


def describe_origin(
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    method: MethodConfig,
    config: TrainingConfig,
    loaders: Mapping[str, DataLoader],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What a run is started with, in so few words that two can be compared: names, settings, and checksums."""
    before = _random()
    set_seed(0)  # a dataset may change its texts at random; then it changes them here in the same way each time
    origin = {
        "model": {
            "class": type(model).__name__,
            "trained parameters": {name: f"{tuple(p.shape)} {p.dtype}" for name, p in trained.items()},
            "frozen weights": _checksum(_frozen(model, trained)),
        },
        "method": {"settings": repr(method)},
        "config": asdict(config),
        "machine": {
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
        },
    } | {name: _texts(loader) for name, loader in loaders.items()}
    _set_random({"random": before})
    return origin


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two runs were started with and is not the same, a few words each."""
    found = []
    for part, settings in now.items():
        before = then.get(part, {})
        for name in sorted(name for name in {*settings, *before} if settings.get(name) != before.get(name)):
            was, now_is = before.get(name), settings.get(name)
            short = name not in _CHECKSUMS and len(f"{was}{now_is}") < 400
            found.append(f"{part}: {name} " + (f"was {was!r} and is {now_is!r}" if short else "differ"))
    return found


def _read(file: Path) -> dict[str, Any] | None:
    """The state in a file; None where there is none yet."""
    if file.parent.exists() and not file.parent.is_dir():
        raise TrainingError(f"resume names a folder for the state of the run, and {file.parent} is a file")
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        state["origin"], state["moments"]
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{file} is no state of a run, or is damaged; delete it to begin anew") from error
    return state


# --- random states, and the order of the texts ------------------------------------------------------------------------


def _random() -> dict[str, Any]:
    drawn: Any = np.random.get_state()
    kind, keys, *rest = drawn
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": (kind, keys.tolist(), *rest),
        "python": random.getstate(),
    }


def _set_random(moment: Moment) -> None:
    states = moment["random"]
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    if states["mps"] is not None:
        torch.mps.set_rng_state(states["mps"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


def _return_to(moment: Moment, loader: DataLoader) -> None:
    """Random states and the loader's order as they were."""
    _set_random(moment)
    for generator, state in zip(_generators(loader), moment["order"], strict=True):
        generator.set_state(state)
    if moment["epoch"] is not None:
        loader.batch_sampler.epoch = moment["epoch"]  # type: ignore[union-attr]


def _generators(loader: DataLoader) -> list[torch.Generator]:
    """The sources of chance that a loader and its samplers have of their own."""
    samplers = (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = (getattr(each, "generator", None) for each in (loader, *samplers))
    return list({id(each): each for each in found if each is not None}.values())


# --- what a run was started with --------------------------------------------------------------------------------------


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a training may change beside the parameters; weights that are packed into 4 bits are none of it."""
    return {
        f"{prefix}.{name}": buffer
        for prefix, module in model.named_modules()
        if not hasattr(module, "packed_parameters")
        for name, buffer in module.named_buffers(recurse=False)
    }


def _frozen(model: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    own = _buffers(model)
    packed = {name: buffer for name, buffer in model.named_buffers() if name not in own and f".{name}" not in own}
    return packed | {name: parameter for name, parameter in model.named_parameters() if name not in trained}


def _checksum(values: Mapping[str, Any]) -> int:
    """One number for names and values; tensors count with every bit."""
    total = 0
    for name, value in sorted(values.items()):
        content: Any = repr(value).encode()
        if isinstance(value, torch.Tensor):
            content = value.detach().cpu().flatten().view(torch.uint8).numpy().data if value.numel() else b""
            name = f"{name} {tuple(value.shape)} {value.dtype}"
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return total


def _texts(loader: DataLoader) -> dict[str, Any]:
    """What a loader serves: a checksum of its rows, and the plain settings of its sampler, such as seed and size."""
    settings = {
        name: value
        for name, value in vars(loader.batch_sampler or loader.sampler).items()
        if isinstance(value, (bool, int, float, str)) and name != "epoch"
    }
    rows: Any = loader.dataset
    total = 0
    for position in range(len(rows) if isinstance(rows, Sized) else 0):
        row = rows[position]
        total = zlib.crc32(str(_checksum(row if isinstance(row, Mapping) else {"": row})).encode(), total)
    return settings | {"batches": len(loader), "rows": total}
