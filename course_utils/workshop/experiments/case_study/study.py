"""The case study, one command: `python -m course_utils study-case`.

Its stages, each of which needs the ones before it:

search     Optuna proposes settings of LoRA; validation judges them.
final      the two best settings with three seeds; the better one on average with five.
test       the chosen models and their rivals on the test split, once; everything the chapter says about their answers.
transfer   the same models on the other three domains.
deploy     merging, ONNX and int8: size, latency, answers.

Models and the search are kept in the cache folder, and each stage writes its part of `book/results/case_study.json`
when it is done, so a killed command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedTokenizerBase

from course_utils.data.ratings import DOMAINS
from course_utils.data.splits import load_sentiment
from course_utils.evaluation import baselines, results
from course_utils.evaluation.intervals import accuracy_interval, mean_and_spread
from course_utils.evaluation.metrics import majority_accuracy, score
from course_utils.evaluation.prediction import logits_of
from course_utils.methods import count_parameters
from course_utils.methods.registry import METHODS
from course_utils.models.backbones import DEFAULT_BACKBONE
from course_utils.training import whole_run
from course_utils.training.recipes import Recipe, runs_folder, trained
from course_utils.workshop.experiments import quality, store
from course_utils.workshop.experiments.case_study import search
from course_utils.workshop.experiments.case_study.deploy import measure
from course_utils.workshop.experiments.case_study.judging import judge
from course_utils.workshop.experiments.evaluation import rounded

COMMAND = "python -m course_utils study-case"
NAME = "case_study"
STAGES = ("search", "final", "test", "transfer", "deploy")
FINALIST_SEEDS = (0, 1, 2)
SEEDS = (0, 1, 2, 3, 4)
#: Methods of the study that are trained once more, with the study's learning rate, because we need their answers.
RIVALS = ("full",)


def main(arguments: list[str]) -> int:
    """Run the stages that are missing and write `book/results/case_study.json`."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"default: those not done; {', '.join(STAGES)}")
    parser.add_argument("--storage", type=Path, help="Optuna's SQLite file (default: in the cache folder)")
    parser.add_argument("--trials", type=int, default=search.BUDGET, help=f"default {search.BUDGET}")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; choose from {', '.join(STAGES)}")
    runs_folder().mkdir(parents=True, exist_ok=True)
    storage = options.storage or runs_folder() / "search.db"
    tweets = load_sentiment("tweets")
    done = results.stored(NAME)
    for stage in options.stages or [stage for stage in STAGES if stage not in done]:
        print(f"== {stage}", flush=True)
        try:
            part = run_stage(stage, tweets, storage, options.trials)
        except (search.SearchError, KeyError) as error:
            print(error.args[0], file=sys.stderr)
            return 1
        store.update(NAME, COMMAND, partial(_with_part, stage=stage, part=part))
    return 0


def run_stage(stage: str, tweets: DatasetDict, storage: Path, trials: int = search.BUDGET) -> dict[str, Any]:
    """The part of the result file that a stage makes.

    Args:
        stage: one of `STAGES`.
        tweets: the three splits.
        storage: Optuna's file; only the search needs it.
        trials: the budget; only the search needs it.

    Raises:
        KeyError: an earlier stage is missing; the message names it.
    """
    if stage == "search":
        return _search(tweets, storage, trials)
    if stage == "final":
        return _final(tweets)
    if stage == "test":
        return _test(tweets)
    if stage == "transfer":
        return _transfer(tweets)
    return measure(winner(), tweets)


def _with_part(stored: dict[str, Any], stage: str, part: dict[str, Any]) -> dict[str, Any]:
    parts = {name: stored[name] for name in STAGES if name in stored} | {stage: part}
    return {name: parts[name] for name in STAGES if name in parts}


def earlier(stage: str) -> dict[str, Any]:
    """What an earlier stage stored.

    Raises:
        KeyError: it has not run; the message says how to run it.
    """
    stored = results.stored(NAME)
    if stage not in stored:
        raise KeyError(f"the stage {stage!r} has not run yet; run: {COMMAND} {stage}")
    part: dict[str, Any] = stored[stage]
    return part


def winner() -> Recipe:
    """The setting that the stage `final` chose."""
    return search.recipe(earlier("final")["winner"])


def rival(method: str) -> Recipe:
    """A method of the study at the learning rate that validation chose there."""
    rate = results.read("quality")["methods"][method]["learning_rate"]
    return Recipe(METHODS[method].config, rate)


def _search(tweets: DatasetDict, storage: Path, trials: int) -> dict[str, Any]:
    finished = search.search(tweets, storage, trials)
    rows = search.table(finished)
    return {
        "backbone": DEFAULT_BACKBONE,
        "budget": trials,
        "startup": search.STARTUP,
        "epochs": whole_run.EPOCHS,
        "stopped": sum(row["state"] == "stopped early" for row in rows),
        "epochs_run": sum(row["epochs"] for row in rows),
        "epochs_without_pruning": trials * whole_run.EPOCHS,
        "seconds": round(sum(row["seconds"] or 0 for row in rows)),
        "known": search.KNOWN,
        "trials": rows,
        "finalists": [trial.params for trial in search.finalists(finished)],
    }


def _final(tweets: DatasetDict) -> dict[str, Any]:
    rows = []
    for parameters in earlier("search")["finalists"]:
        runs = [_validate(parameters, tweets, seed) for seed in FINALIST_SEEDS]
        rows.append({**parameters, "alpha": parameters["rank"] * parameters["scale"], **_means(runs), "runs": runs})
    best = min(rows, key=lambda row: float(row["mean_loss"]))
    chosen = {key: best[key] for key in search.KNOWN}
    runs = [_validate(chosen, tweets, seed) for seed in SEEDS]
    return {"finalists": rows, "winner": {**chosen, "alpha": best["alpha"], **_means(runs), "runs": runs}}


def _validate(parameters: dict[str, Any], tweets: DatasetDict, seed: int) -> dict[str, Any]:
    recipe = search.recipe(parameters)
    found = studied(recipe, seed)
    if found is None:
        found = trained(recipe, tweets, seed)[2]
    print(f"{parameters}, seed {seed}: {found['validation_loss']:.4f}", flush=True)
    return {"seed": seed, **{key: found[key] for key in ("validation_loss", "validation_accuracy", "best_epoch")}}


def studied(recipe: Recipe, seed: int) -> dict[str, Any] | None:
    """The run of the study with exactly these settings, which need not be made again; None if there is none."""
    if recipe != Recipe(METHODS["lora"].config, recipe.learning_rate):
        return None
    runs = [run for run in quality.RUNS.rows() if run["method"] == "lora" and run["seed"] == seed]
    return next((run for run in runs if run["learning_rate"] == recipe.learning_rate), None)


def _means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seeds": len(runs),
        "mean_loss": mean_and_spread([run["validation_loss"] for run in runs])[0],
        "mean_accuracy": mean_and_spread([run["validation_accuracy"] for run in runs])[0],
    }


def _test(tweets: DatasetDict) -> dict[str, Any]:
    evaluated = results.read("evaluation")["logits"]  # chapter 5 has these rivals' logits
    logits = {"majority": evaluated["majority"], "words": evaluated["words"], "head_only": evaluated["head_only"]}
    splits = ("validation", "test")
    logits["lexicon"] = {split: rounded(baselines.lexicon_logits(list(tweets[split]["text"]))) for split in splits}
    for method in RIVALS:
        logits[method] = _logits(*trained(rival(method), tweets, 0)[:2], tweets)
        print(f"{method}: done", flush=True)
    runs = []
    for seed in SEEDS:
        found = studied(winner(), seed) if seed else None  # of seed 0 we need the answers in any case
        if found is None:
            model, tokenizer, _ = trained(winner(), tweets, seed)
            logits[f"lora_{seed}"] = _logits(model, tokenizer, tweets)
            count = count_parameters(model)
            found = score(tweets["test"]["label"], np.array(logits[f"lora_{seed}"]["test"])).as_dict()
        runs.append({"seed": seed, "accuracy": found["accuracy"], "f1_macro": found["f1_macro"]})
        print(f"LoRA, seed {seed}: {found['accuracy']:.1%}", flush=True)
    return judge(tweets, logits, runs, count.trainable, count.total)


def _logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase, tweets: DatasetDict) -> dict[str, Any]:
    return {split: rounded(logits_of(model, tokenizer, tweets[split])) for split in ("validation", "test")}


def _transfer(tweets: DatasetDict) -> dict[str, Any]:
    linear = baselines.word_counts(tweets["train"]["text"], tweets["train"]["label"])
    models = {
        "full": trained(rival("full"), tweets, 0)[:2],
        "lora": trained(winner(), tweets, 0)[:2],
    }
    rows = []
    for domain in DOMAINS:
        texts = load_sentiment(domain)["test"]
        labels = list(texts["label"])
        row: dict[str, Any] = {"domain": domain, "n": len(texts)}
        row["majority"] = max(majority_accuracy([0], labels), majority_accuracy([1], labels))
        found = {
            "lexicon": baselines.lexicon_logits(list(texts["text"])),
            "words": baselines.word_count_logits(linear, list(texts["text"])),
            **{name: logits_of(*model, texts) for name, model in models.items()},
        }
        for name, logits in found.items():
            scores = score(labels, logits)
            low, high = accuracy_interval(round(scores.accuracy * len(texts)), len(texts))
            row[name] = {"accuracy": scores.accuracy, "low": low, "high": high, "f1_macro": scores.f1_macro}
        rows.append(row)
        print(row, flush=True)
    return {"domains": rows}
