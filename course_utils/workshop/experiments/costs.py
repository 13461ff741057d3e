"""What a training step, the memory of a training and a file on disk cost: of one model, or of several in turn.

`bench` and `bench_large` compare our methods with peft's by these, `comparison` our methods with each other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from joblib.externals.loky import ProcessPoolExecutor
from torch import nn

from course_utils.checkpoints import save
from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.timing import in_turn
from course_utils.methods import MethodConfig
from course_utils.models.backbones import load_classifier
from course_utils.training.peak import high_water

Batch = dict[str, torch.Tensor]
Build = Callable[[], nn.Module]
_STEPS = 10  # of a training whose memory is measured


def prepare_batches(count: int, device: str = "cpu") -> list[Batch]:
    """The first batches of 32 tweets, on the device."""
    _, tokenizer = load_classifier()
    loader = make_loader(load_sentiment()["train"], tokenizer, 32, shuffle=True)
    batches: list[Batch] = []
    while len(batches) < count:
        batches += list(loader)
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches[:count]]


def training_steps(model: Any, batches: list[Batch]) -> Iterator[None]:
    """Take one whole training step on a batch each time that the next item is asked for."""
    model.train()
    method: MethodConfig | None = getattr(model, "tuning", None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for number, batch in enumerate(batches, start=1):
        loss = model(**batch).loss
        penalty = method.penalty(model) if method is not None else None  # peft's AdaLoRA adds its own in forward
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        if method is not None:
            method.after_step(model, number)
        elif hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(number)
        optimizer.zero_grad()
        yield


def train(model: nn.Module, batches: list[Batch]) -> None:
    """One training step on each batch."""
    for _ in training_steps(model, batches):
        pass


# --- time -----------------------------------------------------------------------------------------------------------


def now() -> float:
    """The time in seconds, once a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def step_times(models: Mapping[str, nn.Module], batches: list[Batch], warm_up: int) -> dict[str, np.ndarray]:
    """Milliseconds of each training step, (batches,): each batch goes through all models before the next one does.

    Args:
        models: name → what trains.
        batches: of the timed steps.
        warm_up: so many steps on the first batches come before that, and do not count.
    """
    again = list(islice(cycle(batches), warm_up))
    steps = {name: training_steps(model, [*again, *batches]) for name, model in models.items()}
    return in_turn({name: partial(next, own) for name, own in steps.items()}, len(batches), warm_up, now)


# --- memory ---------------------------------------------------------------------------------------------------------


def process_peak(build: Build) -> float:
    """By how many megabytes a process that builds a model and trains it grows; the process is a new one.

    Args:
        build: makes the model.
    """
    with ProcessPoolExecutor(max_workers=1) as process:
        return float(process.submit(_peak_here, build).result())


def _peak_here(build: Build) -> float:
    import peft  # noqa: F401 (so that every process carries the same libraries)

    batches = prepare_batches(_STEPS)
    before = psutil.Process().memory_info().rss / 2**20
    train(build(), batches)
    return high_water() - before


class GpuMemory(NamedTuple):
    """Megabytes of the tensors on a GPU, beyond those that were there before.

    Args:
        building: the most while the model was built.
        held: when it was built.
        training: the most from then on.
    """

    building: float
    held: float
    training: float


def gpu_memory(build: Build, batches: list[Batch]) -> GpuMemory:
    """What torch counts while a model is built and trained.

    Args:
        build: makes the model on the GPU.
        batches: that it is trained on.
    """
    gc.collect()  # what came before must not go away while this is measured
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = build()
    building = torch.cuda.max_memory_allocated()
    gc.collect()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(model, batches)
    counted = (building, held, torch.cuda.max_memory_allocated())
    return GpuMemory(*((size - before) / 2**20 for size in counted))


# --- storage --------------------------------------------------------------------------------------------------------


def storage(build: Build) -> dict[str, float]:
    """Kilobytes of our checkpoint of a model, and megabytes of the whole backbone, as files."""
    bare, _ = load_classifier()
    with TemporaryDirectory() as folder:
        bare.save_pretrained(Path(folder, "model"))
        whole = _size(Path(folder, "model"))
        checkpoint = _size(save(build(), Path(folder, "checkpoint")))
    return {"checkpoint_kb": round(checkpoint / 1e3, 1), "model_mb": round(whole / 1e6, 1)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
