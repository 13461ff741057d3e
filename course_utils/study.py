"""Methods × learning rates × seeds on the tweets, one command: `python -m course_utils study`.

For each method the learning rate with the lowest validation loss is chosen with seed 0; then every seed runs with
that rate, and only these runs are judged on the test split. Each finished run is written down at once, so a killed
study goes on where it stopped, and several processes may share the work: give each of them other methods.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from course_utils import results
from course_utils.backbones import DEFAULT_BACKBONE, load_classifier
from course_utils.data import load_sentiment, make_loader
from course_utils.methods import (
    AdaLoRAConfig,
    BitFitConfig,
    DoRAConfig,
    FullConfig,
    HeadOnlyConfig,
    HoulsbyConfig,
    IA3Config,
    LastLayersConfig,
    LoRAConfig,
    LoRAPlusConfig,
    MethodConfig,
    ParallelAdapterConfig,
    PfeifferConfig,
    PiSSAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    PTuningV2Config,
    QLoRAConfig,
    VeRAConfig,
    count_parameters,
    inject,
)
from course_utils.metrics import accuracy_interval, majority_accuracy, mean_and_spread
from course_utils.training import TrainingConfig, evaluate, fit

COMMAND = "python -m course_utils study"
SEEDS = (0, 1, 2)
EPOCHS = 3
BATCH_SIZE = 32


@dataclass(frozen=True)
class Entry:
    """One method of the study.

    Args:
        title: how the book calls it.
        config: the method.
        learning_rates: the candidates.
        pretrained: False starts from random weights.
    """

    title: str
    config: MethodConfig
    learning_rates: tuple[float, ...]
    pretrained: bool = True


# Of 3 epochs of 69 steps: ranks fall after the first half epoch, and stay from the last epoch on.
_ADALORA_PLAN = {"init_rank": 12, "target_rank": 8, "initial_steps": 35, "final_steps": 69, "interval": 5}

#: A new method is one more line here.
ENTRIES: dict[str, Entry] = {
    "lora": Entry("LoRA, query and value", LoRAConfig(rank=8, alpha=16), (5e-4, 2e-3, 5e-3)),
    "full": Entry("full fine-tuning", FullConfig(), (5e-5, 1e-4, 2e-4)),
    "head_only": Entry("head only", HeadOnlyConfig(), (2e-2, 5e-2, 1e-1, 2e-1)),
    "scratch": Entry("from scratch", FullConfig(), (1e-4, 5e-4, 1e-3), pretrained=False),
    "bitfit": Entry("BitFit", BitFitConfig(), (1e-3, 5e-3, 2e-2)),
    "last_layers": Entry("last layer only", LastLayersConfig(layers=1), (1e-4, 5e-4)),
    "houlsby": Entry("Houlsby adapters", HoulsbyConfig(), (1e-3, 3e-3)),
    "pfeiffer": Entry("Pfeiffer adapters", PfeifferConfig(), (1e-3, 3e-3)),
    "parallel": Entry("parallel adapters", ParallelAdapterConfig(), (5e-4, 1e-3)),
    "lora_all": Entry("LoRA, all linear", LoRAConfig(rank=8, alpha=16, targets="all-linear"), (1e-3, 2e-3)),
    "lora_plus": Entry("LoRA+", LoRAPlusConfig(rank=8, alpha=16), (2e-4, 1e-3)),
    "dora": Entry("DoRA", DoRAConfig(rank=8, alpha=16), (2e-3, 5e-3)),
    "pissa": Entry("PiSSA", PiSSAConfig(rank=8, alpha=16), (5e-4, 2e-3)),
    "adalora": Entry("AdaLoRA", AdaLoRAConfig(alpha=24, total_steps=3 * 69, **_ADALORA_PLAN), (5e-3, 2e-2)),
    "vera": Entry("VeRA", VeRAConfig(rank=256), (1e-2, 5e-2)),
    "ia3": Entry("(IA)³", IA3Config(), (1e-2, 3e-2)),
    "prompt": Entry("prompt tuning", PromptTuningConfig(virtual_tokens=20), (1e-2, 5e-2)),
    "p_tuning": Entry("P-Tuning", PTuningConfig(virtual_tokens=20), (1e-3, 5e-3)),
    "prefix": Entry("prefix tuning", PrefixTuningConfig(virtual_tokens=20), (1e-2, 3e-2, 1e-1)),
    "p_tuning_v2": Entry("P-Tuning v2", PTuningV2Config(virtual_tokens=20), (3e-2, 1e-1)),
    "qlora": Entry("QLoRA", QLoRAConfig(rank=8, alpha=16), (1e-3, 2e-3)),
}


def main(arguments: list[str]) -> int:
    """Run what is missing and write `book/results/quality.json`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: all of {', '.join(ENTRIES)}")
    parser.add_argument("--again", action="store_true", help="throw away the stored runs of these methods first")
    options = parser.parse_args(arguments)
    unknown = set(options.methods) - set(ENTRIES)
    if unknown:
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(ENTRIES)}")
    methods = options.methods or list(ENTRIES)
    tweets = load_sentiment("tweets")
    keep = Store(tweets)
    if options.again:
        keep.drop(methods)
    for method in methods:
        for rate in ENTRIES[method].learning_rates:
            _run_once(keep, tweets, method, rate, SEEDS[0])
        for seed in SEEDS[1:]:
            _run_once(keep, tweets, method, best_rate(keep.runs(), method), seed)
    keep.refresh()
    return 0


def _run_once(keep: Store, tweets: DatasetDict, method: str, rate: float, seed: int) -> None:
    """Train and judge, unless this run is stored already; then write it down."""
    if any(_key(run) == (method, rate, seed) for run in keep.runs()):
        return
    run = {"method": method, **train_once(tweets, ENTRIES[method], rate, seed)}
    keep.add(run)
    print(f"{ENTRIES[method].title}, learning rate {rate:g}, seed {seed}: {run['accuracy']:.1%}", flush=True)


def _key(run: dict[str, Any]) -> tuple[str, float, int]:
    return run["method"], run["learning_rate"], run["seed"]


def train_once(tweets: DatasetDict, entry: Entry, learning_rate: float, seed: int) -> dict[str, Any]:
    """One run; its row for the result file."""
    model, tokenizer = load_classifier(pretrained=entry.pretrained, seed=seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    inject(model, entry.config, seed=seed)
    count = count_parameters(model)
    train = make_loader(tweets["train"], tokenizer, BATCH_SIZE, shuffle=True, seed=seed)
    validation, test = (make_loader(tweets[split], tokenizer, 64) for split in ("validation", "test"))
    config = TrainingConfig(learning_rate=learning_rate, epochs=EPOCHS, seed=seed)
    history = fit(model, train, validation, config)
    scores = evaluate(model, test)
    row = {
        "learning_rate": learning_rate,
        "seed": seed,
        "accuracy": scores.accuracy,
        "f1_macro": scores.f1_macro,
        "roc_auc": scores.roc_auc,
        "validation_loss": min(row["loss"] for row in history.evaluations),
        "validation_accuracy": history.evaluations[history.best_epoch - 1]["accuracy"],
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "threads": torch.get_num_threads(),
        "trainable": count.trainable,
        "head": count.head,
        "total": count.total,
    }
    if isinstance(entry.config, FullConfig) and entry.pretrained:
        row["update_energy"] = _update_energy(model, before)
    return row


def _update_energy(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> list[float]:
    """How much of the change of the query and value matrices its best rank-r approximation holds, r = 1, 2, ...

    The energy of a matrix is the sum of its squared singular values; the mean over all matrices.
    """
    shares = []
    for name, parameter in model.named_parameters():
        if name.endswith(("query.weight", "value.weight")):
            energy = torch.linalg.svdvals(parameter.detach() - before[name]).square()
            shares.append(energy.cumsum(0) / energy.sum())
    return [round(value, 4) for value in torch.stack(shares).mean(0).tolist()]


def best_rate(runs: list[dict[str, Any]], method: str) -> float:
    """The learning rate with the lowest validation loss among the runs with the first seed."""
    return float(min(_first_seed(runs, method), key=lambda run: _finite(run["validation_loss"]))["learning_rate"])


def _first_seed(runs: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["method"] == method and run["seed"] == SEEDS[0]]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def summarize(runs: list[dict[str, Any]], n_test: int) -> dict[str, Any]:
    """Mean and spread over the seeds for each method with a complete set of runs."""
    summary = {}
    for method, entry in ENTRIES.items():
        if not _first_seed(runs, method):
            continue
        rate = best_rate(runs, method)
        chosen = [run for run in runs if run["method"] == method and run["learning_rate"] == rate]
        if {run["seed"] for run in chosen} != set(SEEDS):
            continue
        mean, spread = mean_and_spread([run["accuracy"] for run in chosen])
        low, high = accuracy_interval(round(mean * n_test), n_test)
        summary[method] = {
            "title": entry.title,
            "learning_rate": rate,
            "accuracy": {"mean": mean, "spread": spread, "low": low, "high": high},
            "seeds": [run["accuracy"] for run in sorted(chosen, key=lambda run: run["seed"])],
            "f1_macro": mean_and_spread([run["f1_macro"] for run in chosen])[0],
            "seconds": {
                "mean": mean_and_spread([run["seconds"] for run in chosen])[0],
                "max": max(run["seconds"] for run in chosen),
            },
            "trainable": chosen[0]["trainable"],
            "head": chosen[0]["head"],
            "share": chosen[0]["trainable"] / chosen[0]["total"],
        }
    return summary


def baselines(tweets: DatasetDict) -> dict[str, float]:
    """What needs no neural network: the majority class, and TF-IDF with logistic regression."""
    train, test = tweets["train"], tweets["test"]
    linear = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    linear.fit(list(train["text"]), list(train["label"]))
    return {
        "majority": majority_accuracy(list(train["label"]), list(test["label"])),
        "tfidf": float(linear.score(list(test["text"]), list(test["label"]))),
    }


class Store:
    """The result file of the study, which several processes may fill together.

    Args:
        tweets: the three splits.
    """

    def __init__(self, tweets: DatasetDict) -> None:
        self.facts = {
            "backbone": DEFAULT_BACKBONE,
            "epochs": EPOCHS,
            "batch_size": BATCH_SIZE,
            "seeds": list(SEEDS),
            "texts": {split: len(tweets[split]) for split in tweets},
            "baselines": baselines(tweets),
        }

    def runs(self) -> list[dict[str, Any]]:
        """All finished runs, those of other processes too."""
        try:
            runs: list[dict[str, Any]] = results.read("quality")["runs"]
        except FileNotFoundError:
            return []
        return runs

    def add(self, run: dict[str, Any]) -> None:
        """Write one run down, in place of an older one with the same method, rate and seed."""
        self._change(lambda runs: [*(old for old in runs if _key(old) != _key(run)), run])

    def drop(self, methods: list[str]) -> None:
        """Throw the runs of these methods away."""
        self._change(lambda runs: [run for run in runs if run["method"] not in methods])

    def refresh(self) -> None:
        """Make the summary anew."""
        self._change(lambda runs: runs)

    def _change(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        results.update("quality", COMMAND, lambda stored: self._content(change(stored.get("runs", []))))

    def _content(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self.facts,
            "methods": summarize(runs, self.facts["texts"]["test"]),
            "rates": {
                method: [
                    {key: value for key, value in run.items() if key != "update_energy"}
                    for run in sorted(_first_seed(runs, method), key=lambda run: run["learning_rate"])
                ]
                for method in ENTRIES
                if _first_seed(runs, method)
            },
            "runs": runs,
        }
