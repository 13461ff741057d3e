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
import statistics
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from course_utils.evaluation.timing import in_turn
from course_utils.methods import MethodError, merge
from course_utils.workshop.experiments import costs, store
from course_utils.workshop.experiments.pairs import BUILDERS, PAIRS, Pair, Setting, build_ours

COMMAND = "python -m course_utils bench"


def main(arguments: list[str]) -> int:
    """Measure, print and write the result file."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Each method against its reference library.")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: all of {', '.join(PAIRS)}")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each model (default 60)")
    parser.add_argument("--processes", type=int, default=3, help="processes of each kind for memory (default 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the pretrained weights")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.processes < 1:
        parser.error("--steps and --processes must be at least 1")
    if unknown := set(options.methods) - set(PAIRS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(PAIRS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; measure on the processor with --device cpu")
    setting = Setting(options.device, getattr(torch, options.dtype))
    for name in options.methods or PAIRS:
        row = measure(name, options.steps, options.processes, setting)
        store.update(setting.results, " ".join([COMMAND, *setting.flags]), partial(_with_row, name=name, row=row))
        step, memory = row["step"], row["memory"]
        print(f"{row['title']}: step {step['ours_ms']:.0f} ms, ratio {step['ratio']:.3f} {step['quartiles']};", end=" ")
        print(f"memory {memory['ours_mb']:.0f} MB, ratio {memory['ratio']:.3f};", end=" ")
        print(f"checkpoint {row['storage']['checkpoint_kb']:.0f} kB", flush=True)
    return 0


def _with_row(stored: dict[str, Any], name: str, row: dict[str, Any]) -> dict[str, Any]:
    methods = stored.get("methods", {}) | {name: row}
    return {"methods": {key: methods[key] for key in PAIRS if key in methods}}


def measure(name: str, steps: int, processes: int, setting: Setting) -> dict[str, Any]:
    """Everything about one method."""
    pair = PAIRS[name]
    batches = costs.prepare_batches(steps, setting.device)
    return {
        "title": pair.title,
        "step": compare_steps({side: build(pair, setting) for side, build in BUILDERS.items()}, batches),
        "memory": compare_memory(pair, processes, setting),
        "merge": compare_merging(pair, setting),
        "storage": costs.storage(partial(build_ours, pair, Setting())),
    }


# --- measuring ------------------------------------------------------------------------------------------------------


def compare_steps(models: dict[str, nn.Module], batches: list[costs.Batch]) -> dict[str, Any]:
    """Milliseconds of a step for both, and the ratio ours / theirs pair by pair."""
    ours, theirs = costs.step_times(models, batches, warm_up=3).values()
    low, middle, high = np.quantile(ours / theirs, [0.25, 0.5, 0.75])
    return {
        "steps": len(batches),
        "ours_ms": round(float(np.median(ours)), 1),
        "theirs_ms": round(float(np.median(theirs)), 1),
        "ratio": round(float(middle), 3),
        "quartiles": [round(float(low), 3), round(float(high), 3)],
    }


def compare_memory(pair: Pair, processes: int, setting: Setting) -> dict[str, Any]:
    """Peak memory of building and training, for both, and the ratio of the medians."""
    builds = {side: partial(build, pair, setting) for side, build in BUILDERS.items()}
    if setting.device == "cuda":
        batches = costs.prepare_batches(10, setting.device)
        counted: dict[str, Any] = {}
        ours, theirs = (_gpu_peak(build, batches) for build in builds.values())
    else:
        counted = {"processes": processes}
        rounds = [[costs.process_peak(build) for build in builds.values()] for _ in range(processes)]
        ours, theirs = map(statistics.median, zip(*rounds, strict=True))
    return counted | {"ours_mb": round(ours, 1), "theirs_mb": round(theirs, 1), "ratio": round(ours / theirs, 3)}


def _gpu_peak(build: costs.Build, batches: list[costs.Batch]) -> float:
    memory = costs.gpu_memory(build, batches)
    return max(memory.building, memory.training)


def compare_merging(pair: Pair, setting: Setting, repeats: int = 3) -> dict[str, float] | None:
    """Milliseconds of a merge for both; None for a method that cannot be merged."""
    models = {side: iter([build(pair, setting) for _ in range(repeats)]) for side, build in BUILDERS.items()}
    runs = {
        "ours": lambda: merge(next(models["ours"])),
        "theirs": lambda: next(models["theirs"]).merge_and_unload(),  # type: ignore[operator]
    }
    try:
        times = in_turn(runs, repeats, warm_up=0, clock=costs.now)
    except MethodError:
        return None
    return {f"{side}_ms": round(float(np.median(values)), 1) for side, values in times.items()}
