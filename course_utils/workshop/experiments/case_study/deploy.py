"""One model in four forms: LoRA beside the weights, merged, ONNX, and ONNX in int8. What each costs and answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from torch import nn

from course_utils.checkpoints import save
from course_utils.data.batching import LengthBucketedSampler, encode
from course_utils.evaluation.timing import in_turn
from course_utils.methods import merge
from course_utils.serving.exporting import export, to_int8
from course_utils.serving.runtime import MODELS, Classifier
from course_utils.training.recipes import Recipe, trained

TITLES = {
    "adapter": "PyTorch, LoRA not merged",
    "merged": "PyTorch, merged",
    "float32": "ONNX, float32",
    "int8": "ONNX, int8",
}
Batch = dict[str, np.ndarray]
Run = Callable[[Batch], np.ndarray]


def measure(recipe: Recipe, tweets: DatasetDict, rounds: int = 15) -> dict[str, Any]:
    """Size, milliseconds and answers of the four forms on the test split; one processor thread.

    Args:
        recipe: of the model, seed 0.
        tweets: the three splits; times and answers are taken on test.
        rounds: how often each form is timed; medians are reported.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, tokenizer, _ = trained(recipe, tweets, 0)
    apart, _, _ = trained(recipe, tweets, 0)  # stays unmerged
    texts, labels = list(tweets["test"]["text"]), np.array(tweets["test"]["label"])
    rows = encode(texts, None, tokenizer)
    order = [place for part in LengthBucketedSampler([len(r["input_ids"]) for r in rows], 32, False) for place in part]
    batches = [
        dict(tokenizer.pad([rows[i] for i in order[start : start + 32]], return_tensors="np"))
        for start in range(0, len(rows), 32)
    ]
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        save(apart, place / "adapter")
        merge(model)
        export(model, tokenizer, place)
        to_int8(place)
        model.save_pretrained(place / "merged")  # type: ignore[operator]
        whole = _megabytes(place / "merged")
        sizes = {"adapter": whole + _megabytes(place / "adapter"), "merged": whole}
        sizes |= {kind: (place / name).stat().st_size / 1e6 for kind, name in MODELS.items()}
        runs: dict[str, Run] = {"adapter": _torch_run(apart), "merged": _torch_run(model)}
        runs |= {kind: Classifier(place, kind).run for kind in MODELS}
        logits = {name: np.concatenate([run(batch) for batch in batches]) for name, run in runs.items()}
        single = [{key: value[:1] for key, value in batch.items()} for batch in batches]
        seconds = {
            "batch": _timed(runs, batches[len(batches) // 2 :][:4], rounds),
            "single": _timed(runs, single, rounds),
        }
    torch.set_num_threads(threads)
    adapter = sizes["adapter"] - sizes["merged"]
    return {
        "adapter_kb": 1000 * adapter,
        "n": len(labels),
        "rows": [_row(n, sizes, logits, labels[order], seconds) for n in TITLES],
    }


def _row(
    name: str, sizes: dict[str, float], logits: dict[str, np.ndarray], labels: np.ndarray, seconds: dict[str, Any]
) -> dict[str, Any]:
    answers, reference = logits[name].argmax(1), logits["adapter"]
    return {
        "name": name,
        "title": TITLES[name],
        "megabytes": sizes[name],
        "accuracy": float((answers == labels).mean()),
        "difference": float(np.abs(logits[name] - reference).max()),
        "changed": int((answers != reference.argmax(1)).sum()),
        "batch_ms": seconds["batch"][name],
        "single_ms": seconds["single"][name],
        "times": seconds["single"]["adapter"] / seconds["single"][name],
    }


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


def _torch_run(model: nn.Module) -> Run:
    model.eval()

    def run(batch: Batch) -> np.ndarray:
        with torch.no_grad():
            logits = model(**{key: torch.from_numpy(value) for key, value in batch.items()}).logits
        return np.asarray(logits.numpy())

    return run


def _timed(runs: dict[str, Run], batches: list[Batch], rounds: int) -> dict[str, float]:
    """Milliseconds a text; the forms take turns, so that a slow moment hits all. The first round warms up."""

    def over_all(run: Run) -> None:
        for batch in batches:
            run(batch)

    n = sum(len(batch["input_ids"]) for batch in batches)
    times = in_turn({name: partial(over_all, run) for name, run in runs.items()}, rounds, warm_up=1)
    return {name: float(np.median(values)) / n for name, values in times.items()}
