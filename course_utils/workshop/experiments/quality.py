"""Methods × learning rates × seeds on the tweets, one command: `python -m course_utils study`.

For each method every learning rate runs with seed 0. The two with the lowest validation loss are its finalists: they
run with all seeds, and the lower mean validation loss wins, because one seed decides little. Only the winner is judged
on the test split. Each finished run is written down at once, so a killed study goes on where it stopped. `--jobs 4`
trains four models at a time, each in a process of its own; on several machines with one shared folder, give each of
them other methods.
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

import torch
from datasets import DatasetDict
from joblib import Parallel, delayed
from tqdm import tqdm

from course_utils.data.splits import load_sentiment
from course_utils.evaluation.baselines import word_counts
from course_utils.evaluation.intervals import accuracy_interval, mean_and_spread
from course_utils.evaluation.metrics import majority_accuracy
from course_utils.evaluation.rates import SEEDS, best_rate, finalists, runs_of
from course_utils.methods.registry import studied
from course_utils.models.backbones import DEFAULT_BACKBONE
from course_utils.training import whole_run
from course_utils.training.whole_run import BATCH_SIZE, EPOCHS
from course_utils.workshop.experiments.store import Runs

COMMAND = "python -m course_utils study"
_JUDGED = ("validation_loss", "validation_accuracy")  # what a learning rate is chosen by


def main(arguments: list[str]) -> int:
    """Run what is missing and write `book/results/quality.json`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: all of {', '.join(studied())}")
    parser.add_argument("--again", action="store_true", help="throw away the stored runs of these methods first")
    parser.add_argument("--jobs", type=int, default=1, help="models that train at the same time (default 1)")
    options = parser.parse_args(arguments)
    unknown = set(options.methods) - set(studied())
    if unknown:
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(studied())}")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    methods = options.methods or list(studied())
    if options.again:
        RUNS.drop(lambda run: run["method"] in methods)
    first = [(method, rate, SEEDS[0]) for method in methods for rate in studied()[method].rates]
    _run_missing(first, options.jobs)
    finals = [(method, rate) for method in methods for rate in finalists(RUNS.rows(), method)]
    _run_missing([(method, rate, seed) for method, rate in finals for seed in SEEDS[1:]], options.jobs)
    RUNS.refresh()
    return 0


def _run_missing(wanted: list[tuple[str, float, int]], jobs: int) -> None:
    """Train and judge what is not stored yet, `jobs` runs at a time, with a bar that tells the time left."""
    stored = {RUNS.key(run) for run in RUNS.rows()}
    missing = [key for key in wanted if key not in stored]
    threads = max(1, torch.get_num_threads() // jobs)
    work = Parallel(n_jobs=min(jobs, len(missing)) or 1, return_as="generator_unordered")
    for said in tqdm(work(delayed(_run_once)(*key, threads) for key in missing), total=len(missing), unit="run"):
        tqdm.write(said)


def _run_once(method: str, rate: float, seed: int, threads: int) -> str:
    """Train, judge and write the run down, perhaps in a process of its own; the line that says so."""
    torch.set_num_threads(threads)
    run = {"method": method, **whole_run.train_once(_tweets(), studied()[method], rate, seed)}
    RUNS.add(run)
    return f"{studied()[method].full_title}, learning rate {rate:g}, seed {seed}: {run['accuracy']:.1%}"


@cache
def _tweets() -> DatasetDict:
    """Read once a process, which makes many runs."""
    return load_sentiment("tweets")


@cache
def _facts() -> dict[str, Any]:
    """What the result file says beside the runs; made once a process, since it fits the baselines."""
    tweets = _tweets()
    return {
        "backbone": DEFAULT_BACKBONE,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "seeds": list(SEEDS),
        "texts": {split: len(tweets[split]) for split in tweets},
        "baselines": baselines(tweets),
    }


def _content(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything in the result file but the runs, made from them."""
    return {
        **_facts(),
        "methods": summarize(runs, _facts()["texts"]["test"]),
        "rates": {method: rows for method in studied() if (rows := _rates(runs, method))},
    }


#: The result file of the study, which several processes may fill together.
RUNS = Runs("quality", COMMAND, ("method", "learning_rate", "seed"), _content)


def _rates(runs: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """One row for each learning rate: its run with the first seed, and the mean over the seeds that it ran with."""
    rows = []
    for run in sorted(runs_of(runs, method, seed=SEEDS[0]), key=lambda run: run["learning_rate"]):
        mine = runs_of(runs, method, rate=run["learning_rate"])
        means = {f"mean_{key}": sum(one[key] for one in mine) / len(mine) for key in _JUDGED}
        seeds = [one["accuracy"] for one in sorted(mine, key=lambda one: one["seed"])]
        kept = {key: value for key, value in run.items() if key != "update_energy"}
        rows.append(kept | {"runs": len(mine), "seeds": seeds} | means)
    return rows


def summarize(runs: list[dict[str, Any]], n_test: int) -> dict[str, Any]:
    """Mean and spread over the seeds for each method with a complete set of runs."""
    summary = {}
    for method, row in studied().items():
        rate = best_rate(runs, method)
        if rate is None:
            continue
        chosen = sorted(runs_of(runs, method, rate=rate), key=lambda run: run["seed"])
        mean, spread = mean_and_spread([run["accuracy"] for run in chosen])
        low, high = accuracy_interval(round(mean * n_test), n_test)
        # The time depends neither on the rate nor on the seed, but on the device, and on what else the machine does.
        device = chosen[0]["device"]
        seconds = [run["seconds"] for run in runs_of(runs, method) if run["device"] == device]
        summary[method] = {
            "title": row.full_title,
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
