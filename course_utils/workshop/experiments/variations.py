"""One method with one or two of its settings changed at a time: `python -m course_utils study-variations [NAME ...]`.

Each variation runs once, with one seed, as in the large study. So the differences between neighbours are often smaller
than what chance does, and the pages say so; what these tables show is the shape: what matters, and what does not. Each
finished run is written down at once, in `book/results/NAME.json`, and several processes may share the work.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import DatasetDict

from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.evaluation.intervals import accuracy_interval
from course_utils.methods import LoRAConfig, MethodConfig, PfeifferConfig, PromptTuningConfig, PTuningConfig
from course_utils.methods.registry import METHODS, Method
from course_utils.models.backbones import load_classifier
from course_utils.training import whole_run
from course_utils.workshop.experiments import quality, store

COMMAND = "python -m course_utils study-variations"
SEED = 0
RANKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Variation:
    """One run.

    Args:
        fields: what is special about it, as the tables show it; no two variations of a table have the same.
        config: the method.
        learning_rate: of the run.
    """

    fields: dict[str, Any]
    config: MethodConfig
    learning_rate: float


def tables() -> dict[str, list[Variation]]:
    """Name of a result file → its variations. A new table is one more entry here."""
    _, tokenizer = load_classifier()
    words = tuple(tokenizer("positive or negative?", add_special_tokens=False)["input_ids"])
    starts = {
        "tokens drawn at random": PromptTuningConfig(init="vocabulary"),
        "words about the task": PromptTuningConfig(init="text", initial_tokens=words),
        "random numbers": PromptTuningConfig(init="random"),
    }
    return {
        # The rate is what the large study chose for rank 8, and alpha twice the rank, so that only the rank changes.
        "ranks": [Variation({"rank": rank}, LoRAConfig(rank=rank, alpha=2 * rank), 2e-3) for rank in RANKS],
        "prompt_starts": [
            Variation({"start": start}, config, rate) for start, config in starts.items() for rate in (1e-2, 5e-2)
        ],
        "prompt_lengths": [
            Variation({"virtual_tokens": k}, PromptTuningConfig(virtual_tokens=k), 1e-2) for k in (1, 5, 20, 60)
        ],
        "p_tuning_encoders": [
            Variation({"encoder": title}, PTuningConfig(encoder=encoder), rate)
            for title, encoder in (("MLP", "mlp"), ("LSTM", "lstm"))
            for rate in (1e-3, 2e-3, 5e-3)
        ],
        # MiniLM's width of 384 divided by 16 is 24, the default: that run is the large study's.
        "bottlenecks": [
            Variation({"size": size}, PfeifferConfig(size=None if size == 24 else size), 3e-3)
            for size in (1, 4, 24, 96)
        ],
        "lora_grid": [
            Variation(
                {"targets": title, "rank": rank}, LoRAConfig(rank=rank, alpha=2 * rank, targets=targets), learning_rate
            )
            for title, targets in (("query and value", None), ("all linear layers", "all-linear"))
            for rank in (2, 8, 32)
            for learning_rate in (5e-4, 2e-3, 5e-3)
        ],
    }


def main(arguments: list[str]) -> int:
    """Run what is missing and write the result files."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="NAME", help=f"default: all of {', '.join(tables())}")
    parser.add_argument("--again", action="store_true", help="throw away the stored runs first")
    options = parser.parse_args(arguments)
    planned = tables()
    if unknown := set(options.tables) - set(planned):
        parser.error(f"unknown table {', '.join(sorted(unknown))}; choose from {', '.join(planned)}")
    tweets = load_sentiment("tweets")
    for name in options.tables or planned:
        keep = partial(_keep, name, planned[name], tweets)
        if options.again:
            keep(None)
        for variation in planned[name]:
            if not any(_same(row, variation) for row in results.stored(name).get("rows", [])):
                row = _run(tweets, variation)
                keep(row)
                print(f"{name}: {variation.fields}, {variation.learning_rate:g}: {row['accuracy']:.1%}", flush=True)
    return 0


def _keep(name: str, planned: list[Variation], tweets: DatasetDict, new: dict[str, Any] | None) -> None:
    """Write one more row down, in the order of the plan; None throws all rows away.

    What is no longer planned is left out.
    """

    def content(stored: dict[str, Any]) -> dict[str, Any]:
        rows = [] if new is None else [*stored.get("rows", []), new]
        return {
            "epochs": whole_run.EPOCHS,
            "seed": SEED,
            "texts": {split: len(tweets[split]) for split in tweets},
            "rows": [row for variation in planned for row in rows if _same(row, variation)],
        }

    store.update(name, COMMAND, content)


def _run(tweets: DatasetDict, variation: Variation) -> dict[str, Any]:
    """Train and judge, unless the large study has made this very run already."""
    run = _in_the_study(variation)
    if run is None:
        entry = Method("", variation.config, (variation.learning_rate,))
        run = whole_run.train_once(tweets, entry, variation.learning_rate, SEED)
    n = len(tweets["test"])
    low, high = accuracy_interval(round(run["accuracy"] * n), n)
    return {**variation.fields, **run, "low": low, "high": high}


def _in_the_study(variation: Variation) -> dict[str, Any] | None:
    for run in quality.RUNS.rows():
        is_same = (run["learning_rate"], run["seed"]) == (variation.learning_rate, SEED)
        if is_same and METHODS[run["method"]].config == variation.config:
            return {key: value for key, value in run.items() if key != "method"}
    return None


def _same(row: dict[str, Any], variation: Variation) -> bool:
    wanted = variation.fields | {"learning_rate": variation.learning_rate}
    return all(row.get(key) == value for key, value in wanted.items())
