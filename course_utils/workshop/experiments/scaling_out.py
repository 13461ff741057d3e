"""What chapter 23 measures: `python -m course_utils study-scaling` writes `book/results/scaling.json`.

* curves: the same command in one process and in two, step by step.
* methods: every method with DistributedDataParallel and with FSDP2, on a tiny BERT, beside one process.
* memory: what a process holds at its peak while it trains, beside the rule of `memory.peak_memory`.
* cost: the time of a step as one batch, with accumulation and with checkpointing, each compared in turn.

Nothing here says how much faster several processes are: two processes on one small machine share its cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from course_utils.evaluation import results
from course_utils.evaluation.timing import in_turn
from course_utils.methods.registry import METHODS
from course_utils.training.memory import SHAPES, peak_memory, training_memory
from course_utils.training.peak import (
    LENGTH,
    MEASURED_CONFIGS,
    peak_bytes,
    prepared,
    random_batch,
    train_and_look,
)
from course_utils.training.processes import launch
from course_utils.workshop.experiments import store
from course_utils.workshop.experiments.parallel import configs, difference, train_by_fit

COMMAND = "python -m course_utils study-scaling"
BATCHES = (8, 16, 32)
_TITLES = {"full": "full fine-tuning", "lora-qv": "LoRA, query and value"}
#: Method → what FSDP does not do with it.
REMARKS = {
    "adalora": "no: between two steps its penalty and its ranking read whole matrices, and a process holds a part",
    "qlora": "the 4-bit codes are buffers: they stay whole everywhere",
    "vera": "the frozen random matrices are buffers: they stay whole everywhere",
    "pissa": "the first A and B are kept as buffers: they stay whole everywhere",
}


def main(arguments: list[str]) -> int:
    """Measure and write the result file, part by part."""
    parts: dict[str, Callable[[], Any]] = {
        "curves": curves, "methods": methods, "memory": memory_rows, "cost": cost,
    }  # fmt: skip
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all of {', '.join(parts)}")
    parser.add_argument("--peak", nargs=3, metavar=("METHOD", "BATCH", "CHECKPOINTING"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:  # a memory process of ours
        method, batch, checkpointing = options.peak
        print(train_and_look(method, int(batch), checkpointing == "True"))
        return 0
    if unknown := set(options.parts) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(parts)}")
    for name in options.parts or parts:
        store.update("scaling", COMMAND, partial(_merged, name=name, measured=parts[name]()))
        print(f"{name}: done", flush=True)
    return 0


def _merged(stored: dict[str, Any], name: str, measured: Any) -> dict[str, Any]:
    kept = {key: stored[key] for key in ("curves", "methods", "memory", "cost") if key in stored}
    return kept | {name: measured}


def curves() -> dict[str, Any]:
    """Losses of the command `train`, and how far two processes are from one."""
    found: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        for processes in (1, 2):
            out = Path(folder, str(processes))
            arguments = ["train", "lora", "--device", "cpu", "--no-dropout", "--out", str(out)]
            launch(processes, "course_utils", *arguments)
            history = json.loads((out / "history.json").read_text(encoding="utf-8"))
            assert history["processes"] == processes
            found[str(processes)] = [row["loss"] for row in history["steps"]]
    apart = max(abs(one - two) for one, two in zip(*found.values(), strict=True))
    return {"losses": found, "steps": len(found["1"]), "difference": apart}


def methods() -> dict[str, Any]:
    """One row a method: beside one process, with DDP and with FSDP2."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        launch(2, "course_utils.workshop.experiments.parallel", str(out))
        found = json.loads(out.read_text(encoding="utf-8"))
    full = results.read("quality")["methods"]["full"]["trainable"]
    rows = {}
    for name, row in found.items():
        losses, weights, _ = train_by_fit(configs()[name])
        spread = {key: torch.tensor(value).view_as(weights[key]) for key, value in row["weights"].items()}
        trainable = results.read("quality")["methods"][name]["trainable"]
        rows[name] = {
            "title": METHODS[name].full_title,
            "trainable": trainable,
            "megabytes": 4 * trainable / 1e6,
            "share_of_full": trainable / full,
            "loss_difference": max(abs(one - two) for one, two in zip(losses, row["losses"], strict=True)),
            "weight_difference": difference(weights, spread),
            "ranks_equal": row["ranks_equal"],
            "frozen_unchanged": row["frozen_unchanged"],
            "ddp": "yes" if row["ranks_equal"] and row["frozen_unchanged"] else "no",
            "fsdp": "no" if "fsdp_error" in row else "yes",
            "fsdp_difference": row.get("fsdp_difference"),
            "fsdp_share": row["fsdp_share"],
            "remark": REMARKS.get(name, ""),
        }
    return rows


def memory_row(method: str, batch: int, checkpointing: bool) -> dict[str, Any]:
    """One measurement beside both rules, in megabytes of a million bytes."""
    measured = peak_bytes(method, batch, checkpointing) / 1e6
    rule = peak_memory(SHAPES["minilm"], method, batch, LENGTH, checkpointing=checkpointing) / 1e6
    simple = training_memory(SHAPES["minilm"], method, "float32", batch, LENGTH, checkpointing=checkpointing)
    return {
        "title": _TITLES[method] + (", checkpointing" if checkpointing else ""),
        "method": method,
        "batch": batch,
        "checkpointing": checkpointing,
        "measured_mb": round(measured, 1),
        "rule_mb": round(rule, 1),
        "ratio": round(rule / measured, 3),
        "simple_mb": round(simple.total / 1e6, 1),
        "simple_ratio": round(simple.total / 1e6 / measured, 3),
    }


def memory_rows() -> dict[str, Any]:
    """Each method with and without checkpointing, at several batch sizes; and the default allocator for two of them."""
    rows = [
        memory_row(method, batch, again) for method in MEASURED_CONFIGS for again in (False, True) for batch in BATCHES
    ]
    kept = {str(again): round(peak_bytes("lora-qv", 32, again, give_back=False) / 1e6, 1) for again in (False, True)}
    off = [abs(row["ratio"] - 1) for row in rows]
    return {"rows": rows, "default_allocator_mb": kept, "worst": max(off), "texts": LENGTH}


# --- time -----------------------------------------------------------------------------------------------------------


def cost(repeats: int = 7) -> dict[str, Any]:
    """Milliseconds of a step on 32 texts with LoRA: at once, as four batches of 8, and with checkpointing."""
    ways: dict[str, tuple[str, int, bool]] = {
        "plain": ("one batch of 32", 32, False),
        "accumulate": ("4 batches of 8", 8, False),
        "checkpointing": ("one batch of 32, checkpointing", 32, True),
    }
    models = {name: prepared("lora-qv", again) for name, (_, _, again) in ways.items()}
    whole = random_batch(32)
    runs = {name: partial(_gradients, models[name], whole, size) for name, (_, size, _) in ways.items()}
    times = in_turn(runs, repeats - 1, warm_up=1, clock=time.perf_counter)
    rows = {}
    for name, (title, size, again) in ways.items():
        ratio = float(np.median(times[name] / times["plain"]))
        peak = round(peak_bytes("lora-qv", size, again) / 1e6, 1)
        rows[name] = {
            "title": title, "ms": round(float(np.median(times[name]))), "ratio": round(ratio, 2), "peak_mb": peak,
        }  # fmt: skip
    return rows


def _gradients(model: nn.Module, batch: dict[str, torch.Tensor], size: int) -> None:
    """Forward and backward over a batch in pieces of `size` texts."""
    model.zero_grad()
    texts = len(batch["labels"])
    for start in range(0, texts, size):
        piece = {key: value[start : start + size] for key, value in batch.items()}
        (model(**piece).loss * len(piece["labels"]) / texts).backward()
