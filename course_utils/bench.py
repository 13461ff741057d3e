"""Our LoRA beside peft's: time of a training step and peak memory, in turn within one run; and the size on disk.

`python -m course_utils bench` writes `book/results/bench.json`.

* Time: both models stand in one process and take steps on the same batches in turn, so that a slow moment of the
  machine hits both. A ratio is formed for each pair of steps; its median is printed.
* Memory: each model trains alone in a process of its own, several times in turn; the system says how much memory the
  process held at its peak, and what it held before the model was built is taken off.
* Storage: the files of our checkpoint, head included, beside those of the whole model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import nn

from course_utils import results
from course_utils.backbones import load_classifier
from course_utils.checkpoints import save
from course_utils.data import load_sentiment, make_loader
from course_utils.methods import LoRAConfig, inject, merge

COMMAND = "python -m course_utils bench"
PARTS = ("step", "memory", "storage")
_SETTINGS = LoRAConfig(rank=8, alpha=16)


def main(arguments: list[str]) -> int:
    """Measure, print and write the result file."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Our LoRA against peft's: step time and peak memory.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each model (default 60)")
    parser.add_argument("--processes", type=int, default=3, help="processes of each kind for memory (default 3)")
    parser.add_argument("--only", choices=list(BUILDERS), help=argparse.SUPPRESS)  # a memory process of ours
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.processes < 1:
        parser.error("--steps and --processes must be at least 1")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if options.only:
        print(json.dumps(_peak_memory(options.only)))
        return 0
    measure = {
        "step": lambda: compare_steps(options.steps),
        "memory": lambda: compare_memory(options.processes),
        "storage": compare_storage,
    }
    measured = _stored()
    for part in PARTS:
        if part in options.parts or part not in measured or not options.parts:
            measured[part] = measure[part]()
    step, memory, storage = (measured[part] for part in PARTS)
    table = [
        {
            "what": "training step",
            "ours": f"{step['ours_ms']:.0f} ms",
            "peft": f"{step['peft_ms']:.0f} ms",
            "ratio": step["ratio"],
        },
        {
            "what": "peak memory",
            "ours": f"{memory['ours_mb']:.0f} MB",
            "peft": f"{memory['peft_mb']:.0f} MB",
            "ratio": memory["ratio"],
        },
    ]
    settings = {"rank": _SETTINGS.rank, "alpha": _SETTINGS.alpha, "targets": "query, value"}
    results.write("bench", COMMAND, {"method": "LoRA", "settings": settings, **measured, "table": table})
    print(f"train step: ours {step['ours_ms']:.0f} ms, peft {step['peft_ms']:.0f} ms")
    print(f"  median ratio {step['ratio']:.3f}, half of the pairs in {step['quartiles']}")
    print(f"peak memory: ours {memory['ours_mb']:.0f} MB, peft {memory['peft_mb']:.0f} MB, ratio {memory['ratio']:.3f}")
    print(f"storage: checkpoint {storage['checkpoint_kb']:.0f} kB, whole model {storage['model_mb']:.0f} MB")
    return 0


def _stored() -> dict[str, Any]:
    """What an earlier run measured; a new part is put beside the others."""
    try:
        stored = results.read("bench")
    except FileNotFoundError:
        return {}
    return {part: stored[part] for part in PARTS if part in stored}


def _ours() -> nn.Module:
    model, _ = load_classifier()
    return inject(model, _SETTINGS)


def _peft() -> nn.Module:
    import peft

    model, _ = load_classifier()
    config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    return peft.get_peft_model(model, config)


BUILDERS: dict[str, Callable[[], nn.Module]] = {"ours": _ours, "peft": _peft}


def _batches(count: int) -> list[dict[str, torch.Tensor]]:
    _, tokenizer = load_classifier()
    loader = make_loader(load_sentiment()["train"], tokenizer, 32, shuffle=True)
    batches: list[dict[str, torch.Tensor]] = []
    while len(batches) < count:
        batches += list(loader)
    return batches[:count]


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    """One whole training step; its seconds."""
    started = time.perf_counter()
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def compare_steps(steps: int) -> dict[str, Any]:
    """Milliseconds of a step for both, and the ratio ours / peft pair by pair."""
    batches = _batches(steps)
    models = {name: build().train() for name, build in BUILDERS.items()}
    optimizers = {name: _optimizer(model) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for index, batch in enumerate([*batches[:3], *batches]):
        # Who goes first changes each time: the first one finds the batch cold in the processor's cache.
        for name in list(models)[:: 1 if index % 2 else -1]:
            seconds[name].append(_step(models[name], optimizers[name], batch))
    ours, peft = (seconds[name][3:] for name in ("ours", "peft"))  # the first three warm up
    ratios = [a / b for a, b in zip(ours, peft, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {
        "steps": steps,
        "ours_ms": round(1000 * statistics.median(ours), 1),
        "peft_ms": round(1000 * statistics.median(peft), 1),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


def compare_memory(processes: int) -> dict[str, Any]:
    """Peak memory of building and training, for both, and the ratio of the medians."""
    megabytes: dict[str, list[float]] = {name: [] for name in BUILDERS}
    for _ in range(processes):
        for name, values in megabytes.items():
            command = [sys.executable, "-m", "course_utils", "bench", "--only", name]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            values.append(float(json.loads(output.splitlines()[-1])))
    ours, peft = (statistics.median(megabytes[name]) for name in ("ours", "peft"))
    return {
        "processes": processes,
        "ours_mb": round(ours, 1),
        "peft_mb": round(peft, 1),
        "ratio": round(ours / peft, 3),
    }


def compare_storage() -> dict[str, float]:
    """Kilobytes of a checkpoint and megabytes of the whole model, as files."""
    model = _ours()
    with TemporaryDirectory() as folder:
        checkpoint = _size(save(model, Path(folder, "checkpoint")))
        merge(model).save_pretrained(Path(folder, "model"))  # type: ignore[operator]
        whole = _size(Path(folder, "model"))
    return {"checkpoint_kb": round(checkpoint / 1e3, 1), "model_mb": round(whole / 1e6, 1)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _peak_memory(name: str) -> float:
    """Train ten steps; by how many megabytes the process's peak lies above what it held before the model came."""
    import resource  # not on Windows

    import peft  # noqa: F401 (so that both processes carry the same libraries)

    batches = _batches(10)
    before = psutil.Process().memory_info().rss / 2**20
    model = BUILDERS[name]().train()
    optimizer = _optimizer(model)
    for batch in batches:
        _step(model, optimizer, batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return peak - before
