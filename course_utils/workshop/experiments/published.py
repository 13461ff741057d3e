"""Third-party numbers that the pages quote, read from a clone: `study-published FOLDER`.

peft's own comparison keeps a file for each run. This copies the few fields that the pages quote, with the commit that
they stood at, so that each quoted number can be looked up, and a test can compare the pages with the copy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from course_utils.evaluation.intervals import accuracy_interval
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-published FOLDER"
FOLDER = "method_comparison/MetaMathQA/results"
TASKS = 1319  # of the test split of GSM8K

#: name → title, file without `.json`, what divides alpha (None where the method has no such factor)
RUNS: dict[str, tuple[str, str, str | None]] = {
    "rslora64": ("rsLoRA", "lora--llama-3.2-3B-rank64-rslora", "root"),
    "lora64": ("LoRA", "lora--llama-3.2-3B-rank64", "rank"),
    "lora32": ("LoRA", "lora--llama-3.2-3B-rank32", "rank"),
    "dora": ("DoRA", "lora--llama-3.2-3B-rank32-dora", "rank"),
    "adalora": ("AdaLoRA", "adalora--llama-3.2-3B-rank32", "rank"),
    "vera": ("VeRA", "vera--llama-3.2-3B-default", None),
    "full": ("full fine-tuning", "full-finetuning--llama-3.2-3B-lr_0.00001", None),
    "ia3_low": ("(IA)³", "ia3--llama-3.2-3B-default", None),
    "ia3": ("(IA)³", "ia3--llama-3.2-3B-lr_0.001", None),
    "prefix_low": ("prefix tuning", "prefixtuning--llama-3.2-3B-lr_0.001", None),
    "prefix": ("prefix tuning", "prefixtuning--llama-3.2-3B-tokens50-init_prefix-lr_0.005", None),
    "p_tuning": ("P-Tuning", "ptuning--llama-3.2-3B-default", None),
    "prompt_low": ("prompt tuning", "prompt_tuning--llama-3.2-3B-default", None),
    "prompt": ("prompt tuning", "prompt_tuning--llama-3.2-3B-sample_vocab-lr_0.001", None),
}


def main(arguments: list[str]) -> int:
    """Write `book/results/peft_gsm8k.json` from a clone of peft."""
    parser = argparse.ArgumentParser(prog="python -m course_utils study-published", description=__doc__)
    parser.add_argument("clone", metavar="FOLDER", type=Path, help="a clone of huggingface/peft")
    clone = parser.parse_args(arguments).clone
    rows = {}
    for name, (title, file, divisor) in RUNS.items():
        path = f"{FOLDER}/{file}.json"
        rows[name] = {"title": title, "file": path} | row(json.loads(_git(clone, "show", f"HEAD:{path}")), divisor)
    source = {"repository": "huggingface/peft", "at_commit": _git(clone, "rev-parse", "HEAD").strip()}
    store.write("peft_gsm8k", COMMAND, {**source, "fields": FIELDS, "rows": rows})
    return 0


#: our name → the field of peft's file
FIELDS = {
    "accuracy": "train_info.metrics[-1].test accuracy",
    "seconds": "train_info.train_time",
    "peak_gib": "train_info.accelerator_memory_max",
    "mean_gib": "train_info.accelerator_memory_reserved_avg",
    "seed": "run_info.train_config.seed",
    "learning_rate": "run_info.train_config.optimizer_kwargs.lr",
}


def row(content: dict[str, Any], divisor: str | None) -> dict[str, Any]:
    """The quoted fields of one of peft's result files; memory in GiB."""
    run, training = content["run_info"], content["train_info"]
    adapter: dict[str, Any] = run["peft_config"] or {}
    accuracy = training["metrics"][-1]["test accuracy"]
    low, high = accuracy_interval(round(accuracy * TASKS), TASKS)
    rank, factor = adapter.get("r"), None
    if rank is not None and divisor is not None:
        factor = adapter["lora_alpha"] / (rank**0.5 if divisor == "root" else rank)
    return {
        "created_at": run["created_at"],
        "seed": run["train_config"]["seed"],
        "learning_rate": run["train_config"]["optimizer_kwargs"]["lr"],
        "rank": rank if rank is not None else "–",
        "factor": f"{factor:g}" if factor is not None else "–",
        "n": TASKS,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "seconds": round(training["train_time"]),
        "peak_gib": training["accelerator_memory_max"] / 2**30,
        "mean_gib": training["accelerator_memory_reserved_avg"] / 2**30,
    }


def _git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(clone), *arguments], check=True, capture_output=True, text=True).stdout
