"""Each method beside its reference library: training step, peak memory, merging, and the size of a checkpoint.

`python -m course_utils bench [METHOD ...]` writes `book/results/bench.json` after each method; the others stay. With
`--device cuda` and `--dtype float32` or `bfloat16` it writes `bench_cuda_float32.json` or `bench_cuda_bfloat16.json`.

* Step: both models stand in one process and take steps on the same batches in turn, so that a slow moment of the
  machine hits both. A ratio is formed for each pair of steps; the median of the ratios is printed.
* Memory: each model trains alone in a process of its own, several times in turn; the system says how much memory the
  process held at its peak, and what it held before the model was built is taken off. On a GPU torch counts the bytes of
  its tensors exactly, so one training of each is enough.
* Merge: the median of several merges, each of a fresh model, in turn. For QLoRA the reference rounds the result to 4
  bits again, and ours gives back a model in full precision.
* Storage: the files of our checkpoint, head included, and those of the whole model.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import nn

from course_utils.checkpoints import save
from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.methods import MethodConfig, MethodError, merge
from course_utils.models.backbones import load_classifier
from course_utils.training.peak import high_water
from course_utils.workshop.experiments import store
from course_utils.workshop.experiments.pairs import CONTESTS, SIDES, Contest, Place, build_ours

COMMAND = "python -m course_utils bench"


def main(arguments: list[str]) -> int:
    """Measure, print and write the result file."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Each method against its reference library.")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: all of {', '.join(CONTESTS)}")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each model (default 60)")
    parser.add_argument("--processes", type=int, default=3, help="processes of each kind for memory (default 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the pretrained weights")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)  # a memory process of ours
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.processes < 1:
        parser.error("--steps and --processes must be at least 1")
    if unknown := set(options.methods) - set(CONTESTS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(CONTESTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; measure on the processor with --device cpu")
    place = Place(options.device, getattr(torch, options.dtype))
    if options.only:
        print(json.dumps(process_peak(CONTESTS[options.methods[0]], options.only, place)))
        return 0
    for name in options.methods or CONTESTS:
        row = measure(name, options.steps, options.processes, place)
        store.update(place.results, " ".join([COMMAND, *place.flags]), partial(_with_row, name=name, row=row))
        step, memory = row["step"], row["memory"]
        print(f"{row['title']}: step {step['ours_ms']:.0f} ms, ratio {step['ratio']:.3f} {step['quartiles']};", end=" ")
        print(f"memory {memory['ours_mb']:.0f} MB, ratio {memory['ratio']:.3f};", end=" ")
        print(f"checkpoint {row['storage']['checkpoint_kb']:.0f} kB", flush=True)
    return 0


def _with_row(stored: dict[str, Any], name: str, row: dict[str, Any]) -> dict[str, Any]:
    methods = stored.get("methods", {}) | {name: row}
    return {"methods": {key: methods[key] for key in CONTESTS if key in methods}}


def measure(name: str, steps: int, processes: int, place: Place) -> dict[str, Any]:
    """Everything about one method."""
    contest = CONTESTS[name]
    return {
        "title": contest.title,
        "step": compare_steps(contest, steps, place),
        "memory": compare_memory(name, processes, place),
        "merge": compare_merging(contest, place),
        "storage": measure_storage(contest),
    }


# --- measuring ------------------------------------------------------------------------------------------------------


def prepare_batches(count: int, place: Place) -> list[dict[str, torch.Tensor]]:
    """The first batches of 32 tweets, where both sides compute."""
    _, tokenizer = load_classifier()
    loader = make_loader(load_sentiment()["train"], tokenizer, 32, shuffle=True)
    batches: list[dict[str, torch.Tensor]] = []
    while len(batches) < count:
        batches += list(loader)
    return [{key: value.to(place.device) for key, value in batch.items()} for batch in batches[:count]]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW for what is trained in the model."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def _now() -> float:
    """The time in seconds, once a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def take_step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], number: int) -> float:
    """One whole training step; its seconds."""
    started = _now()
    method: MethodConfig | None = getattr(model, "tuning", None)
    loss = model(**batch).loss
    penalty = method.penalty(model) if method is not None else None  # peft's AdaLoRA adds its own in forward
    (loss if penalty is None else loss + penalty).backward()
    optimizer.step()
    if method is not None:
        method.after_step(model, number)
    elif hasattr(model.base_model, "update_and_allocate"):
        model.base_model.update_and_allocate(number)
    optimizer.zero_grad()
    return _now() - started


def _median(values: list[float], digits: int) -> float:
    return round(statistics.median(values), digits)


def compare_steps(contest: Contest, steps: int, place: Place) -> dict[str, Any]:
    """Milliseconds of a step for both, and the ratio ours / theirs pair by pair."""
    batches = prepare_batches(steps, place)
    return race({side: build(contest, place) for side, build in SIDES.items()}, batches)


def race(models: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Both models take a training step on each batch, in turn; the first three batches come once more before that."""
    for model in models.values():
        model.train()
    optimizers = {side: make_optimizer(model) for side, model in models.items()}
    seconds: dict[str, list[float]] = {side: [] for side in models}
    for index, batch in enumerate([*batches[:3], *batches]):
        # Who goes first changes each time: the first one finds the batch cold in the processor's cache.
        for side in list(models)[:: 1 if index % 2 else -1]:
            seconds[side].append(take_step(models[side], optimizers[side], batch, index + 1))
    ours, theirs = (seconds[side][3:] for side in SIDES)  # the first three warm up
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {
        "steps": len(batches),
        "ours_ms": _median([1000 * s for s in ours], 1),
        "theirs_ms": _median([1000 * s for s in theirs], 1),
        "ratio": _median(ratios, 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


def compare_memory(name: str, processes: int, place: Place) -> dict[str, Any]:
    """Peak memory of building and training, for both, and the ratio of the medians."""
    if place.device == "cuda":
        ours, theirs = (_gpu_peak(CONTESTS[name], side, place) for side in SIDES)
        return {"ours_mb": round(ours, 1), "theirs_mb": round(theirs, 1), "ratio": round(ours / theirs, 3)}
    megabytes: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(processes):
        for side, values in megabytes.items():
            command = [sys.executable, "-m", "course_utils", "bench", name, "--only", side, *place.flags]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            values.append(float(json.loads(output.splitlines()[-1])))
    ours, theirs = (statistics.median(megabytes[side]) for side in SIDES)
    return {
        "processes": processes,
        "ours_mb": round(ours, 1),
        "theirs_mb": round(theirs, 1),
        "ratio": round(ours / theirs, 3),
    }


def take_steps(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> None:
    """One training step on each batch."""
    optimizer = make_optimizer(model.train())
    for number, batch in enumerate(batches, start=1):
        take_step(model, optimizer, batch, number)


def _gpu_peak(contest: Contest, side: str, place: Place) -> float:
    """By how many megabytes the tensors on the GPU grow while a model is built and trained."""
    batches = prepare_batches(10, place)
    gc.collect()  # what came before must not go away while this is measured
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    take_steps(SIDES[side](contest, place), batches)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def process_peak(contest: Contest, side: str, place: Place) -> float:
    """Train ten steps; by how many megabytes the process's peak lies above what it held before the model came."""
    import peft  # noqa: F401 (so that both processes carry the same libraries)

    batches = prepare_batches(10, place)
    before = psutil.Process().memory_info().rss / 2**20
    take_steps(SIDES[side](contest, place), batches)
    return high_water() - before


def compare_merging(contest: Contest, place: Place, repeats: int = 3) -> dict[str, float] | None:
    """Milliseconds of a merge for both; None for a method that cannot be merged."""
    milliseconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, build in SIDES.items():
            model: Any = build(contest, place)
            started = _now()
            try:
                merge(model) if side == "ours" else model.merge_and_unload()
            except MethodError:
                return None
            milliseconds[side].append(1000 * (_now() - started))
    return {f"{side}_ms": _median(values, 1) for side, values in milliseconds.items()}


def measure_storage(contest: Contest) -> dict[str, float]:
    """Kilobytes of our checkpoint, and megabytes of the whole model, as files."""
    bare, _ = load_classifier()
    with TemporaryDirectory() as folder:
        bare.save_pretrained(Path(folder, "model"))
        whole = _size(Path(folder, "model"))
        checkpoint = _size(save(build_ours(contest, Place()), Path(folder, "checkpoint")))
    return {"checkpoint_kb": round(checkpoint / 1e3, 1), "model_mb": round(whole / 1e6, 1)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
