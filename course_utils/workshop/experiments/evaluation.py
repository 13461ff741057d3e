"""What one test split can say, one command: `python -m course_utils study-evaluation`.

Trains with the settings of the study (seed 0) and keeps the logits of each text of the validation and the test split.
Everything else in the result file is computed from these logits. A finished run is written down at once and not
trained again; `--again` throws the stored runs away.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import DatasetDict
from sklearn.metrics import roc_auc_score

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.evaluation.baselines import word_count_logits, word_counts
from course_utils.evaluation.calibration import (
    calibration_error,
    cross_entropy,
    fit_temperature,
    probabilities,
    reliability,
)
from course_utils.evaluation.intervals import accuracy_interval, bootstrap_interval, compare
from course_utils.evaluation.metrics import best_threshold, class_scores, f1_average, score
from course_utils.evaluation.prediction import predict_in_order
from course_utils.methods import inject
from course_utils.methods.registry import METHODS
from course_utils.models.backbones import LABELS, load_classifier
from course_utils.training import whole_run
from course_utils.training.loop import TrainingConfig, fit
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-evaluation"
SEED = 0
#: name → title, the study's method, learning rate; None takes the rate that the study chose.
TRAINED: dict[str, tuple[str, str, float | None]] = {
    "lora": ("LoRA", "lora", None),
    "head_only": ("head only", "head_only", None),
    "head_only_slow": ("head only, smaller learning rate", "head_only", 5e-2),
}
TITLES = {
    "majority": "always the majority class",
    "words": "word counts (TF-IDF)",
    "head_only_slow": TRAINED["head_only_slow"][0],
    "head_only": TRAINED["head_only"][0],
    "lora": TRAINED["lora"][0],
}
PAIRS = (("lora", "head_only"), ("head_only", "head_only_slow"), ("head_only", "words"))

Logits = dict[str, dict[str, list[list[float]]]]


def main(arguments: list[str]) -> int:
    """Train what is missing and write `book/results/evaluation.json`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--again", action="store_true", help="throw the stored logits away and train again")
    options = parser.parse_args(arguments)
    tweets = load_sentiment("tweets")
    labels = {split: [int(label) for label in tweets[split]["label"]] for split in ("validation", "test")}
    rates = {name: rate or _chosen_rate(method) for name, (_, method, rate) in TRAINED.items()}
    logits: Logits = {} if options.again else _stored(labels, rates)
    logits["majority"] = _training_share(tweets)
    logits["words"] = _word_counts(tweets)
    for name, (title, method, _) in TRAINED.items():
        if name not in logits:
            logits[name] = _train(tweets, method, rates[name])
            print(f"{title}, learning rate {rates[name]:g}: done", flush=True)
            store.write("evaluation", COMMAND, _content(labels, rates, logits))
    store.write("evaluation", COMMAND, _content(labels, rates, logits))
    return 0


def _chosen_rate(method: str) -> float:
    return float(results.read("quality")["methods"][method]["learning_rate"])


def _stored(labels: dict[str, list[int]], rates: dict[str, float]) -> Logits:
    """The logits of finished runs with these labels and rates."""
    try:
        old = results.read("evaluation")
    except FileNotFoundError:
        return {}
    if old["labels"] != labels:
        return {}
    return {name: old["logits"][name] for name in old["logits"] if old["rates"].get(name) == rates.get(name)}


def _content(labels: dict[str, list[int]], rates: dict[str, float], logits: Logits) -> dict[str, Any]:
    complete = {
        "settings": {"seed": SEED, "epochs": whole_run.EPOCHS, "batch_size": whole_run.BATCH_SIZE},
        "rates": rates,
    }
    judged = judge(labels, logits) if set(TITLES) <= set(logits) else {}
    return {**complete, **judged, "labels": labels, "logits": logits}


def _train(tweets: DatasetDict, method: str, learning_rate: float) -> dict[str, list[list[float]]]:
    """One run of the study; the logits in the order of the split."""
    model, tokenizer = load_classifier(seed=SEED)
    inject(model, METHODS[method].config, seed=SEED)
    train = make_loader(tweets["train"], tokenizer, whole_run.BATCH_SIZE, shuffle=True, seed=SEED)
    loaders = {split: make_loader(tweets[split], tokenizer, 64) for split in ("validation", "test")}
    config = TrainingConfig(learning_rate=learning_rate, epochs=whole_run.EPOCHS, seed=SEED)
    fit(model, train, loaders["validation"], config)
    return {split: rounded(predict_in_order(model, loader)) for split, loader in loaders.items()}


def _training_share(tweets: DatasetDict) -> dict[str, list[list[float]]]:
    """For every text the log of the class shares in the training split: it reads nothing."""
    share = np.bincount(tweets["train"]["label"]) / len(tweets["train"])
    return {split: rounded(np.tile(np.log(share), (len(tweets[split]), 1))) for split in ("validation", "test")}


def _word_counts(tweets: DatasetDict) -> dict[str, list[list[float]]]:
    linear = word_counts(tweets["train"]["text"], tweets["train"]["label"])
    return {split: rounded(word_count_logits(linear, tweets[split]["text"])) for split in ("validation", "test")}


def rounded(logits: np.ndarray) -> list[list[float]]:
    """Logits as a result file stores them."""
    return [[round(float(value), 4) for value in row] for row in logits]


def judge(labels: dict[str, list[int]], logits: Logits) -> dict[str, Any]:
    """Everything that the chapter says about these logits."""
    arrays = {name: {split: np.array(rows) for split, rows in splits.items()} for name, splits in logits.items()}
    truth = {split: np.array(values) for split, values in labels.items()}
    return {
        "n": {split: len(values) for split, values in labels.items()},
        "models": {name: _judge_one(title, truth, arrays[name]) for name, title in TITLES.items()},
        "pairs": [_judge_pair(first, second, truth["test"], arrays) for first, second in PAIRS],
        "sizes": [_size(n) for n in (100, 338, 843, 872, 2_000, 10_000)],
        "best_of": [_best_of(models) for models in (1, 5, 20, 100)],
    }


def _judge_one(title: str, truth: dict[str, np.ndarray], logits: dict[str, np.ndarray]) -> dict[str, Any]:
    labels, test = truth["test"], logits["test"]
    predicted, margin = test.argmax(axis=1), test[:, 1] - test[:, 0]
    scores, validation_scores = score(labels, test), score(truth["validation"], logits["validation"])
    right = int((predicted == labels).sum())
    low, high = accuracy_interval(right, len(labels))
    boot = bootstrap_interval(lambda y, p: float((y == p).mean()), labels, predicted)
    boot_f1 = bootstrap_interval(lambda y, p: f1_average(y, p, "macro"), labels, predicted)
    temperature = fit_temperature(truth["validation"], logits["validation"])
    cooled = probabilities(test, temperature)
    return {
        "title": title,
        "right": right,
        "validation_accuracy": validation_scores.accuracy,
        "accuracy": {"value": scores.accuracy, "low": low, "high": high, "boot_low": boot[0], "boot_high": boot[1]},
        "classes": [
            {"title": name, **asdict(row)} for name, row in zip(LABELS, class_scores(labels, predicted), strict=True)
        ],
        "f1": {name: f1_average(labels, predicted, name) for name in ("micro", "macro", "weighted")}
        | {"low": boot_f1[0], "high": boot_f1[1]},
        "roc_auc": {"scores": float(roc_auc_score(labels, margin)), "answers": float(roc_auc_score(labels, predicted))},
        "temperature": temperature,
        "calibration": {
            "before": _calibration(labels, probabilities(test), cross_entropy(labels, test)),
            "after": _calibration(labels, cooled, cross_entropy(labels, test / temperature)),
        },
        "threshold": _threshold(truth, logits),
    }


def _calibration(labels: np.ndarray, probability: np.ndarray, loss: float) -> dict[str, Any]:
    """The calibration error, and what chance alone would give: that of labels drawn from these very probabilities."""
    chance, draws = np.random.default_rng(SEED), []
    for _ in range(500):
        drawn = (probability.cumsum(axis=1) < chance.random((len(probability), 1))).sum(axis=1)
        draws.append(calibration_error(drawn, probability))
    return {
        "error": calibration_error(labels, probability),
        "by_chance": {"mean": float(np.mean(draws)), "high": float(np.quantile(draws, 0.95))},
        "confidence": float(probability.max(axis=1).mean()),
        "loss": loss,
        "bins": [asdict(row) for row in reliability(labels, probability)],
    }


def _threshold(truth: dict[str, np.ndarray], logits: dict[str, np.ndarray]) -> dict[str, float]:
    """Macro F1 on test at 0.5, at the threshold chosen on validation, and at the one chosen on test itself."""
    positive = {split: probabilities(rows)[:, 1] for split, rows in logits.items()}
    if len(np.unique(positive["test"])) == 1:
        return {}
    chosen, cheated = (best_threshold(truth[split], positive[split]) for split in ("validation", "test"))
    rows = {"default": 0.5, "chosen": chosen, "cheated": cheated}
    found = {"chosen": chosen, "cheated": cheated}
    for name, value in rows.items():
        for split in ("validation", "test"):
            found[f"{split}_{name}"] = f1_average(truth[split], (positive[split] > value).astype(int), "macro")
    return found


def _judge_pair(
    first: str, second: str, labels: np.ndarray, arrays: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    one, other = (arrays[name]["test"].argmax(axis=1) for name in (first, second))
    return {"title": f"{TITLES[first]} and {TITLES[second]}", "first": first, "second": second} | compare(
        labels, one, other
    )


def _size(n: int) -> dict[str, Any]:
    """The interval of an accuracy of 95% on n texts."""
    low, high = accuracy_interval(round(0.95 * n), n)
    return {"n": n, "low": low, "high": high, "half": (high - low) / 2}


def _best_of(models: int, accuracy: float = 0.95, n: int = 843, repeats: int = 2000) -> dict[str, Any]:
    """The best test accuracy, on average, among equally good models that err independently of each other."""
    best = np.random.default_rng(SEED).binomial(n, accuracy, (repeats, models)).max(axis=1) / n
    return {"models": models, "best": float(best.mean())}
