"""Methods × learning rates × seeds on the tweets, one command: `python -m course_utils study`.

For each method every learning rate runs with seed 0. The two with the lowest validation loss are its finalists: they
run with all seeds, and the lower mean validation loss wins, because one seed decides little. Only the winner is judged
on the test split. Each finished run is written down at once, so a killed study goes on where it stopped. `--jobs 4`
trains four models at a time, each in a process of its own; on several machines with one shared folder, give each of
them other methods.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from datasets import DatasetDict
from joblib import Parallel, delayed
from tqdm import tqdm

from course_utils import results
from course_utils.backbones import DEFAULT_BACKBONE, load_classifier
from course_utils.case_study.baselines import word_counts
from course_utils.data import load_sentiment, make_loader
from course_utils.methods import FullConfig, MethodConfig, count_parameters, inject
from course_utils.methods.registry import METHODS
from course_utils.metrics import accuracy_interval, majority_accuracy, mean_and_spread
from course_utils.training import TrainingConfig, evaluate, fit

COMMAND = "python -m course_utils study"
SEEDS = (0, 1, 2, 3, 4)
EPOCHS = 3
BATCH_SIZE = 32
_JUDGED = ("validation_loss", "validation_accuracy")  # what a learning rate is chosen by


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


#: The rows of the registry that have learning rates. A new method is one more line there.
ENTRIES: dict[str, Entry] = {
    name: Entry(row.full_title, row.config, row.learning_rates, row.pretrained)
    for name, row in METHODS.items()
    if isinstance(row.learning_rates, tuple)
}


def main(arguments: list[str]) -> int:
    """Run what is missing and write `book/results/quality.json`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: all of {', '.join(ENTRIES)}")
    parser.add_argument("--again", action="store_true", help="throw away the stored runs of these methods first")
    parser.add_argument("--jobs", type=int, default=1, help="models that train at the same time (default 1)")
    options = parser.parse_args(arguments)
    unknown = set(options.methods) - set(ENTRIES)
    if unknown:
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(ENTRIES)}")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    methods = options.methods or list(ENTRIES)
    keep = _store()
    if options.again:
        keep.drop(methods)
    first = [(method, rate, SEEDS[0]) for method in methods for rate in ENTRIES[method].learning_rates]
    _run_missing(first, options.jobs)
    finals = [(method, rate) for method in methods for rate in finalists(keep.runs(), method)]
    _run_missing([(method, rate, seed) for method, rate in finals for seed in SEEDS[1:]], options.jobs)
    keep.refresh()
    return 0


def _run_missing(wanted: list[tuple[str, float, int]], jobs: int) -> None:
    """Train and judge what is not stored yet, `jobs` runs at a time, with a bar that tells the time left."""
    stored = {_key(run) for run in finished_runs()}
    missing = [key for key in wanted if key not in stored]
    threads = max(1, torch.get_num_threads() // jobs)
    work = Parallel(n_jobs=min(jobs, len(missing)) or 1, return_as="generator_unordered")
    for said in tqdm(work(delayed(_run_once)(*key, threads) for key in missing), total=len(missing), unit="run"):
        tqdm.write(said)


def _run_once(method: str, rate: float, seed: int, threads: int) -> str:
    """Train, judge and write the run down, perhaps in a process of its own; the line that says so."""
    torch.set_num_threads(threads)
    run = {"method": method, **train_once(_tweets(), ENTRIES[method], rate, seed)}
    _store().add(run)
    return f"{ENTRIES[method].title}, learning rate {rate:g}, seed {seed}: {run['accuracy']:.1%}"


@cache
def _tweets() -> DatasetDict:
    """Read once a process, which makes many runs."""
    return load_sentiment("tweets")


@cache
def _store() -> Store:
    """Made once a process: it fits the baselines."""
    return Store(_tweets())


def finished_runs() -> list[dict[str, Any]]:
    """The runs in the result file; none where there is no file."""
    runs: list[dict[str, Any]] = results.stored("quality").get("runs", [])
    return runs


def _key(run: dict[str, Any]) -> tuple[str, float, int]:
    return run["method"], run["learning_rate"], run["seed"]


def train_once(tweets: DatasetDict, entry: Entry, learning_rate: float, seed: int) -> dict[str, Any]:
    """One run; its row for the result file."""
    model, tokenizer = load_classifier(pretrained=entry.pretrained, seed=seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    inject(model, entry.config, seed=seed)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device)  # type: ignore[arg-type]  # the test is predicted there, too
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
        "device": results.device(),
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
            energy = torch.linalg.svdvals(parameter.detach().cpu() - before[name]).square()
            shares.append(energy.cumsum(0) / energy.sum())
    return [round(value, 4) for value in torch.stack(shares).mean(0).tolist()]


def finalists(runs: list[dict[str, Any]], method: str) -> list[float]:
    """The two learning rates with the lowest validation loss among the runs with the first seed, the best one first."""
    ranked = sorted(_runs_of(runs, method, seed=SEEDS[0]), key=lambda run: _finite(run["validation_loss"]))
    return [float(run["learning_rate"]) for run in ranked[:2]]


def best_rate(runs: list[dict[str, Any]], method: str) -> float | None:
    """The finalist with the lowest mean validation loss over all seeds; None while runs of a finalist are missing."""
    losses = {}
    for rate in finalists(runs, method):
        mine = _runs_of(runs, method, rate=rate)
        if {run["seed"] for run in mine} != set(SEEDS):
            return None
        losses[rate] = sum(_finite(run["validation_loss"]) for run in mine)
    return min(losses, key=losses.__getitem__, default=None)


def _runs_of(
    runs: list[dict[str, Any]], method: str, *, rate: float | None = None, seed: int | None = None
) -> list[dict[str, Any]]:
    return [
        run
        for run in runs
        if run["method"] == method and rate in (None, run["learning_rate"]) and seed in (None, run["seed"])
    ]


def _rates(runs: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """One row for each learning rate: its run with the first seed, and the mean over the seeds that it ran with."""
    rows = []
    for run in sorted(_runs_of(runs, method, seed=SEEDS[0]), key=lambda run: run["learning_rate"]):
        mine = _runs_of(runs, method, rate=run["learning_rate"])
        means = {f"mean_{key}": sum(one[key] for one in mine) / len(mine) for key in _JUDGED}
        seeds = [one["accuracy"] for one in sorted(mine, key=lambda one: one["seed"])]
        kept = {key: value for key, value in run.items() if key != "update_energy"}
        rows.append(kept | {"runs": len(mine), "seeds": seeds} | means)
    return rows


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def summarize(runs: list[dict[str, Any]], n_test: int) -> dict[str, Any]:
    """Mean and spread over the seeds for each method with a complete set of runs."""
    summary = {}
    for method, entry in ENTRIES.items():
        rate = best_rate(runs, method)
        if rate is None:
            continue
        chosen = sorted(_runs_of(runs, method, rate=rate), key=lambda run: run["seed"])
        mean, spread = mean_and_spread([run["accuracy"] for run in chosen])
        low, high = accuracy_interval(round(mean * n_test), n_test)
        # The time depends neither on the rate nor on the seed, but on the device, and on what else the machine does.
        device = chosen[0]["device"]
        seconds = [run["seconds"] for run in _runs_of(runs, method) if run["device"] == device]
        summary[method] = {
            "title": entry.title,
            "learning_rate": rate,
            "accuracy": {"mean": mean, "spread": spread, "low": low, "high": high},
            "seeds": [run["accuracy"] for run in chosen],
            "f1_macro": mean_and_spread([run["f1_macro"] for run in chosen])[0],
            "seconds": {"device": device, "fastest": min(seconds)},
            "trainable": chosen[0]["trainable"],
            "head": chosen[0]["head"],
            "share": chosen[0]["trainable"] / chosen[0]["total"],
        }
    return summary


def baselines(tweets: DatasetDict) -> dict[str, float]:
    """What needs no neural network: the majority class, and TF-IDF with logistic regression."""
    train, test = tweets["train"], tweets["test"]
    linear = word_counts(train["text"], train["label"])
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
        self.facts: dict[str, Any] = {
            "backbone": DEFAULT_BACKBONE,
            "epochs": EPOCHS,
            "batch_size": BATCH_SIZE,
            "seeds": list(SEEDS),
            "texts": {split: len(tweets[split]) for split in tweets},
            "baselines": baselines(tweets),
        }

    def runs(self) -> list[dict[str, Any]]:
        """All finished runs, those of other processes too."""
        return finished_runs()

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
            "rates": {method: rows for method in ENTRIES if (rows := _rates(runs, method))},
            "runs": runs,
        }
