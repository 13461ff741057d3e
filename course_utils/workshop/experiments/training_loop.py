"""The training loop's settings on a few tweets, one command: `python -m course_utils study-training`.

Full fine-tuning with several recipes (optimiser, learning rate, warm-up, clipping), overfitting on purpose, and what
transformers' Trainer does with gradient accumulation. All of it is judged on the validation split; the test split is
not looked at. Each finished run is written down at once, so a killed study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from datasets import DatasetDict
from torch import nn
from transformers import Trainer, TrainingArguments

from course_utils.data.batching import encode, make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.evaluation.intervals import mean_and_spread
from course_utils.evaluation.metrics import majority_accuracy
from course_utils.methods import FullConfig, LoRAConfig, MethodConfig, inject
from course_utils.models.backbones import DEFAULT_BACKBONE, load_classifier
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-training"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """One setting of the study.

    Args:
        title: how the book calls it.
        training: the loop's settings; the seed is put in for each run.
        texts: training tweets.
        batch_size: tweets a batch.
        method: what is trained.
        seeds: of the runs.
    """

    title: str
    training: TrainingConfig
    texts: int = 512
    batch_size: int = 32
    method: MethodConfig = field(default_factory=FullConfig)
    seeds: tuple[int, ...] = SEEDS


# AdamW without decay is Adam: the two differ in nothing else.
_PLAIN: dict[str, Any] = {
    "epochs": 2, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "clip_norm": math.inf,
}  # fmt: skip

RECIPES: dict[str, Setting] = {
    "article": Setting("the tutorial: Adam, 1e-3, constant", TrainingConfig(learning_rate=1e-3, **_PLAIN)),
    "rate": Setting("only the rate mended: Adam, 1e-4, constant", TrainingConfig(learning_rate=1e-4, **_PLAIN)),
    "course": Setting("the course: AdamW, 1e-4, warm-up, clipping", TrainingConfig(learning_rate=1e-4, epochs=2)),
    "cold": Setting("the course without warm-up", TrainingConfig(learning_rate=1e-4, epochs=2, warmup=0.0)),
    "high": Setting("the course at 5e-4", TrainingConfig(learning_rate=5e-4, epochs=2)),
    "high_cold": Setting("at 5e-4 without warm-up", TrainingConfig(learning_rate=5e-4, epochs=2, warmup=0.0)),
}

_LONG: dict[str, Any] = {"schedule": "constant", "warmup": 0.1}

#: The same number of steps for all three.
OVERFITTING: dict[str, Setting] = {
    "few": Setting(
        "64 tweets, all weights",
        TrainingConfig(learning_rate=1e-4, epochs=16, **_LONG), 64, 16, seeds=SEEDS[:1],
    ),
    "few_lora": Setting(
        "64 tweets, LoRA",
        TrainingConfig(learning_rate=2e-3, epochs=16, **_LONG), 64, 16, LoRAConfig(rank=8, alpha=16), SEEDS[:1],
    ),
    "many": Setting(
        "1,024 tweets, all weights",
        TrainingConfig(learning_rate=1e-4, epochs=1, **_LONG), 1024, 16, seeds=SEEDS[:1],
    ),
}  # fmt: skip

SETTINGS = {**RECIPES, **OVERFITTING}


def main(arguments: list[str]) -> int:
    """Run what is missing and write `book/results/training.json`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"default: all of {', '.join(SETTINGS)}")
    parser.add_argument("--again", action="store_true", help="throw away the stored runs of these settings first")
    options = parser.parse_args(arguments)
    unknown = set(options.settings) - set(SETTINGS)
    if unknown:
        parser.error(f"unknown setting {', '.join(sorted(unknown))}; choose from {', '.join(SETTINGS)}")
    chosen = options.settings or list(SETTINGS)
    stored = results.stored("training")
    runs = [run for run in stored.get("runs", []) if not (options.again and run["setting"] in chosen)]
    tweets = load_sentiment("tweets")
    trainer = stored.get("trainer") or trainer_accumulation(tweets)
    for name in chosen:
        for seed in SETTINGS[name].seeds:
            if any((run["setting"], run["seed"]) == (name, seed) for run in runs):
                continue
            runs.append({"setting": name, **train_once(tweets, SETTINGS[name], seed)})
            last = runs[-1]["evaluations"][-1]
            print(f"{SETTINGS[name].title}, seed {seed}: {last['accuracy']:.1%}", flush=True)
            _write(runs, tweets, trainer)
    _write(runs, tweets, trainer)
    return 0


def train_once(tweets: DatasetDict, setting: Setting, seed: int) -> dict[str, Any]:
    """One run; its row for the result file."""
    model, tokenizer = load_classifier(seed=seed)
    inject(model, setting.method, seed=seed)
    part = tweets["train"].select(range(setting.texts))
    train = make_loader(part, tokenizer, setting.batch_size, shuffle=True, seed=seed)
    validation = make_loader(tweets["validation"], tokenizer, 64)
    config = TrainingConfig(**{**vars(setting.training), "seed": seed})
    history = fit(model, train, validation, config)
    norms = [row["gradient_norm"] for row in history.steps]
    return {
        "seed": seed,
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "steps": len(norms),
        "longest_gradient": max(norms),
        "clipped": sum(norm > config.clip_norm for norm in norms) / len(norms),
        "losses": [round(row["loss"], 4) for row in history.steps],
        "evaluations": [
            {key: row[key] for key in ("step", "epoch", "train_loss", "loss", "accuracy")}
            for row in history.evaluations
        ],
    }


def trainer_accumulation(tweets: DatasetDict) -> dict[str, Any]:
    """First loss and gradient that Trainer reports for one step on 32 tweets: one batch, or 8 batches of 4."""
    measured = {
        "one": _trainer_step(tweets, 32, 1),
        "default": _trainer_step(tweets, 4, 8),
        "told": _trainer_step(tweets, 4, 8, accepts_loss_kwargs=False),
    }
    measured["ratio"] = {"loss": measured["default"]["loss"] / measured["one"]["loss"]}
    return measured


def _trainer_step(tweets: DatasetDict, batch_size: int, accumulate: int, **attributes: Any) -> dict[str, float]:
    model, tokenizer = load_classifier()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # else each way would draw other numbers
    for name, value in attributes.items():
        setattr(model, name, value)
    part = tweets["train"].select(range(32))
    rows = encode(list(part["text"]), list(part["label"]), tokenizer)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
    first = trainer.state.log_history[0]
    return {"loss": float(first["loss"]), "gradient_norm": float(first["grad_norm"])}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the pages show: recipes after their last epoch over the seeds, and the curves of the overfitting."""
    summary: dict[str, Any] = {"recipes": {}, "overfitting": {}}
    for name, setting in SETTINGS.items():
        mine = sorted((run for run in runs if run["setting"] == name), key=lambda run: run["seed"])
        if {run["seed"] for run in mine} != set(setting.seeds):
            continue
        if name in RECIPES:
            summary["recipes"][name] = _recipe(setting, mine)
        else:
            summary["overfitting"][name] = _overfitting(setting, mine[0])
    return summary


def _recipe(setting: Setting, runs: list[dict[str, Any]]) -> dict[str, Any]:
    last = [run["evaluations"][-1] for run in runs]
    row: dict[str, Any] = {"title": setting.title, "learning_rate": setting.training.learning_rate}
    for key in ("accuracy", "loss"):
        values = [evaluation[key] for evaluation in last]
        mean, spread = mean_and_spread(values)
        row[key] = {"mean": mean, "spread": spread, "low": min(values), "high": max(values), "seeds": values}
    row["clipped"] = mean_and_spread([run["clipped"] for run in runs])[0]
    row["longest_gradient"] = max(run["longest_gradient"] for run in runs)
    return row


def _overfitting(setting: Setting, run: dict[str, Any]) -> dict[str, Any]:
    best, last = run["evaluations"][run["best_epoch"] - 1], run["evaluations"][-1]
    return {
        "title": setting.title,
        "texts": setting.texts,
        "epochs": setting.training.epochs,
        "steps": run["steps"],
        "best_epoch": run["best_epoch"],
        "best": best,
        "last": last,
        "evaluations": run["evaluations"],
    }


def _write(runs: list[dict[str, Any]], tweets: DatasetDict, trainer: dict[str, Any]) -> None:
    content = {
        "backbone": DEFAULT_BACKBONE,
        "seeds": list(SEEDS),
        "texts": {"train": RECIPES["course"].texts, "validation": len(tweets["validation"])},
        "majority": majority_accuracy(list(tweets["train"]["label"]), list(tweets["validation"]["label"])),
        **summarize(runs),
        "trainer": trainer,
        "runs": runs,
    }
    store.write("training", COMMAND, content)
