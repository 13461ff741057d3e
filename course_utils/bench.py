"""Each method beside its reference library: training step, peak memory, merging, and the size of a checkpoint.

`python -m course_utils bench [METHOD ...]` writes `book/results/bench.json` after each method; the others stay.

* Step: both models stand in one process and take steps on the same batches in turn, so that a slow moment of the
  machine hits both. A ratio is formed for each pair of steps; the median of the ratios is printed.
* Memory: each model trains alone in a process of its own, several times in turn; the system says how much memory the
  process held at its peak, and what it held before the model was built is taken off.
* Merge: the median of several merges, each of a fresh model, in turn. For QLoRA the reference rounds the result to 4
  bits again, and ours gives back a model in full precision.
* Storage: the files of our checkpoint, head included, and those of the whole model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from course_utils.methods import (
    AdaLoRAConfig,
    DoRAConfig,
    IA3Config,
    LoRAConfig,
    MethodConfig,
    MethodError,
    PiSSAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    QLoRAConfig,
    VeRAConfig,
    inject,
    merge,
)

COMMAND = "python -m course_utils bench"
_STEPS_OF_ADALORA = 1000  # far more than are timed, so that every timed step ranks and cuts
_QUERY_VALUE = ["query", "value"]


@dataclass(frozen=True)
class Contest:
    """Our method and the same one in the reference library.

    Args:
        title: how the book calls it.
        ours: our settings.
        theirs: the class of peft's settings, and its arguments.
    """

    title: str
    ours: MethodConfig
    theirs: tuple[str, dict[str, Any]]


def _lora(**more: Any) -> tuple[str, dict[str, Any]]:
    return "LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": _QUERY_VALUE} | more


#: A new method is one more line here. QLoRA's reference also needs bitsandbytes.
CONTESTS: dict[str, Contest] = {
    "lora": Contest("LoRA", LoRAConfig(rank=8, alpha=16), _lora()),
    "dora": Contest("DoRA", DoRAConfig(rank=8, alpha=16), _lora(use_dora=True)),
    "pissa": Contest("PiSSA", PiSSAConfig(rank=8, alpha=16), _lora(init_lora_weights="pissa")),
    "adalora": Contest(
        "AdaLoRA",
        AdaLoRAConfig(init_rank=12, target_rank=8, alpha=16, total_steps=_STEPS_OF_ADALORA),
        (
            "AdaLoraConfig",
            {"init_r": 12, "target_r": 8, "lora_alpha": 16, "total_step": _STEPS_OF_ADALORA}
            | {"target_modules": _QUERY_VALUE},
        ),
    ),
    "vera": Contest("VeRA", VeRAConfig(rank=256), ("VeraConfig", {"r": 256, "target_modules": _QUERY_VALUE})),
    "ia3": Contest(
        "(IA)³",
        IA3Config(),
        (
            "IA3Config",
            {
                "target_modules": r".*(key|value|layer\.\d+\.output\.dense)",
                "feedforward_modules": r".*layer\.\d+\.output\.dense",
            },
        ),
    ),
    "prompt": Contest(
        "prompt tuning",
        PromptTuningConfig(virtual_tokens=20, pool="peft"),
        ("PromptTuningConfig", {"num_virtual_tokens": 20}),
    ),
    "p_tuning": Contest(
        "P-Tuning",
        PTuningConfig(virtual_tokens=20, pool="peft"),
        ("PromptEncoderConfig", {"num_virtual_tokens": 20, "encoder_hidden_size": 384}),
    ),
    "prefix": Contest(
        "prefix tuning", PrefixTuningConfig(virtual_tokens=20), ("PrefixTuningConfig", {"num_virtual_tokens": 20})
    ),
    "qlora": Contest("QLoRA", QLoRAConfig(rank=8, alpha=16), _lora(target_modules="all-linear")),
}


def main(arguments: list[str]) -> int:
    """Measure, print and write the result file."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Each method against its reference library.")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: all of {', '.join(CONTESTS)}")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each model (default 60)")
    parser.add_argument("--processes", type=int, default=3, help="processes of each kind for memory (default 3)")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)  # a memory process of ours
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.processes < 1:
        parser.error("--steps and --processes must be at least 1")
    if unknown := set(options.methods) - set(CONTESTS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(CONTESTS)}")
    if options.only:
        print(json.dumps(_peak_memory(CONTESTS[options.methods[0]], options.only)))
        return 0
    for name in options.methods or CONTESTS:
        row = measure(name, options.steps, options.processes)
        methods = results.stored("bench").get("methods", {}) | {name: row}
        results.write("bench", COMMAND, {"methods": {key: methods[key] for key in CONTESTS if key in methods}})
        step, memory = row["step"], row["memory"]
        print(f"{row['title']}: step {step['ours_ms']:.0f} ms, ratio {step['ratio']:.3f} {step['quartiles']};", end=" ")
        print(f"memory {memory['ours_mb']:.0f} MB, ratio {memory['ratio']:.3f};", end=" ")
        print(f"checkpoint {row['storage']['checkpoint_kb']:.0f} kB", flush=True)
    return 0


def measure(name: str, steps: int, processes: int) -> dict[str, Any]:
    """Everything about one method."""
    contest = CONTESTS[name]
    return {
        "title": contest.title,
        "step": compare_steps(contest, steps),
        "memory": compare_memory(name, processes),
        "merge": compare_merging(contest),
        "storage": measure_storage(contest),
    }


# --- the two sides --------------------------------------------------------------------------------------------------


def _ours(contest: Contest) -> nn.Module:
    model, _ = load_classifier()
    return inject(model, contest.ours)


def _theirs(contest: Contest) -> nn.Module:
    import peft

    model, _ = load_classifier()
    if isinstance(contest.ours, QLoRAConfig):
        _quantize_with_bitsandbytes(model)
    settings, arguments = contest.theirs
    return peft.get_peft_model(model, getattr(peft, settings)(task_type="SEQ_CLS", **arguments))


SIDES: dict[str, Callable[[Contest], nn.Module]] = {"ours": _ours, "theirs": _theirs}


def _quantize_with_bitsandbytes(model: Any) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not name.startswith("classifier"):
            packed = Linear4bit(layer.in_features, layer.out_features, quant_type="nf4", compress_statistics=True)
            packed.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            packed.bias = layer.bias
            packed.support_avx512bf16_for_cpu = False  # else it repacks its weights and computes in bfloat16
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, packed.to("cpu"))
    model.is_loaded_in_4bit = True  # peft then takes the layers that it has for bitsandbytes


# --- measuring ------------------------------------------------------------------------------------------------------


def _batches(count: int) -> list[dict[str, torch.Tensor]]:
    _, tokenizer = load_classifier()
    loader = make_loader(load_sentiment()["train"], tokenizer, 32, shuffle=True)
    batches: list[dict[str, torch.Tensor]] = []
    while len(batches) < count:
        batches += list(loader)
    return batches[:count]


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def _step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], number: int) -> float:
    """One whole training step; its seconds."""
    started = time.perf_counter()
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
    return time.perf_counter() - started


def _median(values: list[float], digits: int) -> float:
    return round(statistics.median(values), digits)


def compare_steps(contest: Contest, steps: int) -> dict[str, Any]:
    """Milliseconds of a step for both, and the ratio ours / theirs pair by pair."""
    batches = _batches(steps)
    models = {side: build(contest).train() for side, build in SIDES.items()}
    optimizers = {side: _optimizer(model) for side, model in models.items()}
    seconds: dict[str, list[float]] = {side: [] for side in models}
    for index, batch in enumerate([*batches[:3], *batches]):
        # Who goes first changes each time: the first one finds the batch cold in the processor's cache.
        for side in list(models)[:: 1 if index % 2 else -1]:
            seconds[side].append(_step(models[side], optimizers[side], batch, index + 1))
    ours, theirs = (seconds[side][3:] for side in SIDES)  # the first three warm up
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {
        "steps": steps,
        "ours_ms": _median([1000 * s for s in ours], 1),
        "theirs_ms": _median([1000 * s for s in theirs], 1),
        "ratio": _median(ratios, 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


def compare_memory(name: str, processes: int) -> dict[str, Any]:
    """Peak memory of building and training, for both, and the ratio of the medians."""
    megabytes: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(processes):
        for side, values in megabytes.items():
            command = [sys.executable, "-m", "course_utils", "bench", name, "--only", side]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            values.append(float(json.loads(output.splitlines()[-1])))
    ours, theirs = (statistics.median(megabytes[side]) for side in SIDES)
    return {
        "processes": processes,
        "ours_mb": round(ours, 1),
        "theirs_mb": round(theirs, 1),
        "ratio": round(ours / theirs, 3),
    }


def _peak_memory(contest: Contest, side: str) -> float:
    """Train ten steps; by how many megabytes the process's peak lies above what it held before the model came."""
    import peft  # noqa: F401 (so that both processes carry the same libraries)

    batches = _batches(10)
    before = psutil.Process().memory_info().rss / 2**20
    model = SIDES[side](contest).train()
    optimizer = _optimizer(model)
    for number, batch in enumerate(batches, start=1):
        _step(model, optimizer, batch, number)
    return _high_water() - before


def _high_water() -> float:
    """The most megabytes that this process has held.

    On Linux `ru_maxrss` will not do: a new process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(lines["VmHWM"].split()[0]) / 2**10
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare_merging(contest: Contest, repeats: int = 3) -> dict[str, float] | None:
    """Milliseconds of a merge for both; None for a method that cannot be merged."""
    milliseconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, build in SIDES.items():
            model: Any = build(contest)
            started = time.perf_counter()
            try:
                merge(model) if side == "ours" else model.merge_and_unload()
            except MethodError:
                return None
            milliseconds[side].append(1000 * (time.perf_counter() - started))
    return {f"{side}_ms": _median(values, 1) for side, values in milliseconds.items()}


def measure_storage(contest: Contest) -> dict[str, float]:
    """Kilobytes of our checkpoint, and megabytes of the whole model, as files."""
    bare, _ = load_classifier()
    with TemporaryDirectory() as folder:
        bare.save_pretrained(Path(folder, "model"))
        whole = _size(Path(folder, "model"))
        checkpoint = _size(save(_ours(contest), Path(folder, "checkpoint")))
    return {"checkpoint_kb": round(checkpoint / 1e3, 1), "model_mb": round(whole / 1e6, 1)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
