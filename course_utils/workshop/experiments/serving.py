"""What it costs to serve a tuned model: `python -m course_utils study-serving` writes `book/results/serving.json`.

Time does not depend on what the weights have learnt, so nothing is trained: the new weights are drawn at random, large
enough that a wrong merge or a mixed-up adapter would show in the logits. All that is compared takes turns within one
run, on one processor thread; what is written down is the processor's time, which other programs disturb less than the
clock on the wall. A ratio is formed for each turn, and the median of the ratios counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from course_utils.data.batching import LengthBucketedSampler, encode
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.timing import Run, in_turn
from course_utils.methods import (
    DoRAConfig,
    LoRAConfig,
    MethodConfig,
    PfeifferConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    merge,
)
from course_utils.models.backbones import load_classifier
from course_utils.workshop.experiments import store
from course_utils.workshop.experiments.serving_adapters import (
    Batch,
    filled,
    measure_adapters,
    measure_language,
    measure_mixed,
)

COMMAND = "python -m course_utils study-serving"
NAME = "serving"
#: Row → how the book calls it, the method, and whether it is merged.
FORMS: dict[str, tuple[str, MethodConfig | None, bool]] = {
    "base": ("the base alone", None, False),
    "lora_merged": ("LoRA, merged", LoRAConfig(), True),
    "lora": ("LoRA, query and value", LoRAConfig(), False),
    "lora_all": ("LoRA, all linear layers", LoRAConfig(targets="all-linear"), False),
    "dora": ("DoRA, query and value", DoRAConfig(), False),
    "adapter": ("Pfeiffer's adapters", PfeifferConfig(), False),
    "prefix": ("prefix tuning, 20 positions", PrefixTuningConfig(virtual_tokens=20), False),
    "prompt": ("prompt tuning, 20 positions", PromptTuningConfig(virtual_tokens=20), False),
}
SIZES = (1, 2, 4, 8, 16, 32, 64)


def main(arguments: list[str]) -> int:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each comparison (default 15)")
    options = parser.parse_args(arguments)
    if options.rounds < 3:
        parser.error("--rounds must be at least 3: a median of fewer says nothing")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        content = measure(options.rounds)
        store.write(NAME, COMMAND, content)
    finally:
        torch.set_num_threads(threads)
    return 0


@torch.no_grad()
def measure(rounds: int) -> dict[str, Any]:
    """Everything that the chapter on serving shows."""
    model, tokenizer = load_classifier()
    texts = list(load_sentiment()["test"]["text"])
    rows = sorted(encode(texts[:512], None, tokenizer), key=lambda row: len(row["input_ids"]))
    middle = len(rows) // 2

    def batch(some: Sequence[dict[str, Any]], **padding: Any) -> Batch:
        return dict(tokenizer.pad(list(some), return_tensors="pt", **padding))

    single, many = batch(rows[middle : middle + 1]), batch(rows[middle - 16 : middle + 16])
    model.eval()
    first = in_turn({"first": partial(model, **single)}, 1, warm_up=0)["first"][0]  # before anything is warm
    content: dict[str, Any] = {
        "tokens": {"single": single["input_ids"].shape[1], "many": many["input_ids"].shape[1]},
        "forms": measure_forms(single, many, rounds),
        "requests": measure_requests(model, [batch([row]) for row in rows[::2]]) | {"first": first},
        "batches": measure_sizes(model, batch(rows[middle - 32 : middle + 32]), rounds),
        "padding": measure_padding(model, rows, batch),
        **measure_adapters(rounds),
        "mixed": measure_mixed(many, rounds),
    }
    return content | {"language": measure_language(max(3, rounds // 3))}


def measure_forms(single: Batch, many: Batch, rounds: int) -> dict[str, Any]:
    """One text and a batch of 32 through each form of the model; and what merging changes in the logits."""
    models: dict[str, Any] = {}
    for name, (_, config, merged) in FORMS.items():
        model, _ = load_classifier()
        models[name] = model.eval() if config is None else filled(model, config)
        if merged:
            merge(models[name])
    times = {
        "single": in_turn(_calls(models, single), 4 * rounds),
        "many": in_turn(_calls(models, many), rounds),
    }
    merged, apart = models["lora_merged"](**many).logits, models["lora"](**many).logits
    forms: dict[str, Any] = {name: {"title": title} for name, (title, _, _) in FORMS.items()}
    for size, measured in times.items():
        for name, values in measured.items():
            forms[name][f"{size}_ms"] = float(np.median(values))
            forms[name][f"{size}_ratio"] = float(np.median(values / measured["base"]))
    forms["lora_merged"]["difference"] = float((merged - apart).abs().max() / apart.abs().max())
    return forms


def _calls(models: Mapping[str, Any], batch: Batch) -> dict[str, Run]:
    return {name: partial(model, **batch) for name, model in models.items()}


def measure_requests(model: Any, singles: Sequence[Batch]) -> dict[str, Any]:
    """The latency of requests of one tweet each, from the shortest to the longest: each one's best of three."""
    runs = {str(place): partial(model, **batch) for place, batch in enumerate(singles)}
    times = np.array([values.min() for values in in_turn(runs, 3, warm_up=1).values()])
    return {
        "n": len(times),
        "mean": float(times.mean()),
        **{f"p{share}": float(np.percentile(times, share)) for share in (50, 95, 99)},
        "tokens": [batch["input_ids"].shape[1] for batch in singles],
        "ms": [round(float(value), 2) for value in times],
    }


def measure_sizes(model: Any, batch: Batch, rounds: int) -> list[dict[str, Any]]:
    """How long a batch takes, and how many texts a second that gives, for several sizes of a batch."""
    runs = {str(n): partial(model, **{key: value[:n] for key, value in batch.items()}) for n in SIZES}
    medians = {int(n): float(np.median(values)) for n, values in in_turn(runs, rounds).items()}
    return [{"size": n, "ms": ms, "per_second": 1000 * n / ms} for n, ms in medians.items()]


def measure_padding(model: Any, rows: Sequence[dict[str, Any]], batch: Callable[..., Batch]) -> dict[str, Any]:
    """The same texts in batches of 32: padded to 128 tokens, to the longest of the batch, and sorted before."""
    order = np.random.default_rng(0).permutation(len(rows))[:128]
    arrived = [rows[place] for place in order]
    by_length = LengthBucketedSampler([len(row["input_ids"]) for row in arrived], 32, shuffle=False)
    parts = [arrived[start : start + 32] for start in range(0, len(arrived), 32)]
    ways = {
        "fixed": ("always to 128", [batch(part, padding="max_length", max_length=128) for part in parts]),
        "longest": ("to the longest of the batch", [batch(part) for part in parts]),
        "sorted": ("sorted by length before", [batch([arrived[i] for i in part]) for part in by_length]),
    }

    def answer(batches: list[Batch]) -> None:
        for one in batches:
            model(**one)

    runs = {name: partial(answer, batches) for name, (_, batches) in ways.items()}
    times = in_turn(runs, 3, warm_up=1)
    return {
        name: {
            "title": title,
            "padding": 1
            - sum(int(one["attention_mask"].sum()) for one in batches) / sum(_size(one) for one in batches),
            "text_ms": float(np.median(times[name])) / len(arrived),
        }
        for name, (title, batches) in ways.items()
    }


def _size(batch: Batch) -> int:
    return batch["attention_mask"].numel()
