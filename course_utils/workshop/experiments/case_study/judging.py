"""Everything that the chapter says about answers on the test split, computed from stored logits alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import DatasetDict

from course_utils.evaluation import results
from course_utils.evaluation.calibration import (
    calibration_error,
    cross_entropy,
    fit_temperature,
    probabilities,
    reliability,
)
from course_utils.evaluation.human_review import review
from course_utils.evaluation.intervals import accuracy_interval, compare, mean_and_spread
from course_utils.evaluation.metrics import class_scores, score
from course_utils.evaluation.slices import slice_table

Logits = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
#: The model that goes into use: the first seed, decided before the test, not the best one.
CHOSEN = "lora_0"
TITLES = {
    "majority": "always the majority class",
    "lexicon": "a list of words",
    "words": "word counts (TF-IDF)",
    "head_only": "head only",
    "bitfit": "BitFit",
    "ia3": "(IA)³",
    "lora": "LoRA",
    "full": "full fine-tuning",
}
#: Compared with McNemar's test, first against second; decided before the test.
PAIRS = (("lora", "lexicon"), ("lora", "words"), ("lora", "head_only"), ("lora", "full"))


def judge(
    tweets: DatasetDict, logits: Logits, runs: Sequence[Mapping[str, Any]], trainable: int, total: int
) -> dict[str, Any]:
    """Scores, comparisons, slices, calibration and the decision to ask a person.

    Args:
        tweets: the three splits.
        logits: model → split → rows of logits; LoRA's seeds are `lora_0`, `lora_3`, ...
        runs: `seed`, `accuracy` and `f1_macro` of each seed of LoRA, also of those without logits.
        trainable: LoRA's trained parameters, head included.
        total: all parameters.
    """
    arrays = {name: {split: np.array(rows) for split, rows in parts.items()} for name, parts in logits.items()}
    truth = {split: np.array(tweets[split]["label"]) for split in ("validation", "test")}
    seeds = [name for name in arrays if name.startswith("lora_")]
    arrays["lora"] = arrays[CHOSEN]
    models: dict[str, dict[str, Any]] = {name: {"title": title} for name, title in TITLES.items()}
    for name in set(models) & set(arrays):
        models[name] |= _scores(truth["test"], arrays[name]["test"])
    _add_seeds(models, runs, len(truth["test"]))
    models["lora"] |= {"trainable": trainable, "share": trainable / total}
    answers = {name: [arrays[name]["test"].argmax(1)] for name in ("lexicon", "words", "full")}
    answers["lora"] = [arrays[name]["test"].argmax(1) for name in seeds]
    return {
        "n": {split: len(labels) for split, labels in truth.items()},
        "models": models,
        "alpha_each": 0.05 / len(PAIRS),
        "pairs": [_pair(one, other, truth["test"], arrays) for one, other in PAIRS],
        "slices": slice_table(tweets["test"], answers),
        "calibration": calibrate(truth, arrays[CHOSEN]),
        "review": review(truth, arrays[CHOSEN]),
        "runs": [dict(run) for run in runs],
        "total": total,
        "logits": {name: dict(parts) for name, parts in logits.items()},
    }


def _scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    scores, predicted = score(labels, logits), logits.argmax(axis=1)
    low, high = accuracy_interval(int((predicted == labels).sum()), len(labels))
    return {
        "accuracy": {"value": scores.accuracy, "low": low, "high": high},
        "f1_macro": scores.f1_macro,
        "negative_recall": class_scores(labels, predicted)[0].recall,
        "roc_auc": scores.roc_auc,
    }


def _add_seeds(models: dict[str, dict[str, Any]], runs: Sequence[Mapping[str, Any]], n: int) -> None:
    """Mean over the seeds: ours for LoRA, the study's for its methods; a baseline draws nothing and has one value."""
    studied = results.read("quality")["methods"]
    for name, row in models.items():
        if name in studied:
            accuracies, f1 = studied[name]["seeds"], studied[name]["f1_macro"]
            row |= {key: studied[name][key] for key in ("trainable", "share")}
        else:
            accuracies, f1 = [row["accuracy"]["value"]], row["f1_macro"]
            row |= {"trainable": 0, "share": 0.0}
        if name == "lora":
            accuracies, f1 = [run["accuracy"] for run in runs], mean_and_spread([run["f1_macro"] for run in runs])[0]
        mean, spread = mean_and_spread(accuracies)
        low, high = accuracy_interval(round(mean * n), n)
        row |= {"mean": mean, "low": low, "high": high, "f1_mean": f1, "seeds": len(accuracies)}
        row |= {"each": list(accuracies), "lowest": min(accuracies), "highest": max(accuracies)}
        if len(accuracies) > 1:
            row["spread"] = spread


def _pair(first: str, second: str, labels: np.ndarray, arrays: Mapping[str, Any]) -> dict[str, Any]:
    one, other = (arrays[name]["test"].argmax(axis=1) for name in (first, second))
    return {"title": f"{TITLES[first]} and {TITLES[second]}", "first": first, "second": second} | compare(
        labels, one, other
    )


def calibrate(truth: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Temperature scaling: T from validation, its effect on test.

    Args:
        truth: split → labels.
        logits: split → logits (n, 2).

    Returns:
        `temperature`, and on test `before` and `after`: calibration `error`, `loss`, mean `confidence`, and `bins`.
    """
    temperature = fit_temperature(truth["validation"], logits["validation"])
    rows: dict[str, Any] = {"temperature": temperature}
    for name, divisor in (("before", 1.0), ("after", temperature)):
        probability = probabilities(logits["test"], divisor)
        rows[name] = {
            "error": calibration_error(truth["test"], probability),
            "loss": cross_entropy(truth["test"], logits["test"] / divisor),
            "confidence": float(probability.max(axis=1).mean()),
            "bins": [asdict(row) for row in reliability(truth["test"], probability)],
        }
    return rows
