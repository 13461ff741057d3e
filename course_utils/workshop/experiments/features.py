"""What a frozen body already knows, read in three places: `python -m course_utils study-features`.

The same logistic regression reads three vectors of a text: what the pooler makes of the first token (what the head of a
`BertForSequenceClassification` sees), the first token itself, and the mean over all tokens, in which the backbone of
this course was trained to put a sentence's meaning. How strongly the weights are held back is chosen on validation; the
test split is judged once. Nothing is random, so there are no seeds.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.evaluation.intervals import accuracy_interval
from course_utils.models.backbones import load_classifier
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-features"
SPLITS = ("train", "validation", "test")
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
TITLES = {"pooler": "first token, through the pooler", "first": "first token", "mean": "mean over the tokens"}


def main(arguments: list[str]) -> int:
    """Write `book/results/features.json`, unless it is there."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--again", action="store_true", help="measure it although it is stored")
    if not parser.parse_args(arguments).again and "places" in results.stored("features"):
        return 0
    tweets = load_sentiment("tweets")
    model, tokenizer = load_classifier("minilm")
    data = {split: vectors(tweets[split], model, tokenizer) for split in SPLITS}
    content: dict[str, Any] = {"texts": {split: len(tweets[split]) for split in SPLITS}, "places": {}}
    for place, title in TITLES.items():
        splits = {split: (places[place], labels) for split, (places, labels) in data.items()}
        content["places"][place] = {"title": title} | judge(splits)
        print(f"{title}: {content['places'][place]['accuracy']:.1%}", flush=True)
    store.write("features", COMMAND, content)
    return 0


def vectors(dataset: Dataset, model: Any, tokenizer: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Three vectors for each text of a split, each (n, width), and the labels (n,)."""
    body = model.base_model.eval()
    found: dict[str, list[torch.Tensor]] = {place: [] for place in TITLES}
    labels = []
    with torch.no_grad():
        for batch in make_loader(dataset, tokenizer, 64):
            output = body(batch["input_ids"], attention_mask=batch["attention_mask"])
            tokens, mask = output.last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            found["pooler"].append(output.pooler_output)
            found["first"].append(tokens[:, 0])
            found["mean"].append((tokens * mask).sum(1) / mask.sum(1))
            labels.append(batch["labels"])
    return {place: torch.cat(parts).numpy() for place, parts in found.items()}, torch.cat(labels).numpy()


def judge(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Logistic regression on one vector a text, its strength chosen on validation, as a row of the result file."""

    def fitted(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=5000).fit(*splits["train"])

    def loss(model: LogisticRegression) -> float:
        x, labels = splits["validation"]
        return float(log_loss(labels, model.predict_proba(x)))

    models = {strength: fitted(strength) for strength in STRENGTHS}
    losses = {strength: loss(model) for strength, model in models.items()}
    best = min(losses, key=losses.__getitem__)
    x, labels = splits["test"]
    correct = int((models[best].predict(x) == labels).sum())
    low, high = accuracy_interval(correct, len(labels))
    return {
        "strength": best,
        "at_an_edge": best in (STRENGTHS[0], STRENGTHS[-1]),
        "trainable": 2 * (x.shape[1] + 1),
        "validation_loss": losses[best],
        "validation_accuracy": float(models[best].score(*splits["validation"])),
        "accuracy": correct / len(labels),
        "low": low,
        "high": high,
    }
