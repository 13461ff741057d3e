"""One whole run: backbone, method, training, test."""

from __future__ import annotations

from typing import Any

import torch
from datasets import DatasetDict

from course_utils.data.batching import make_loader
from course_utils.evaluation import results
from course_utils.evaluation.prediction import evaluate
from course_utils.methods import FullConfig, count_parameters, inject
from course_utils.methods.registry import Method
from course_utils.models.backbones import load_classifier
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit

EPOCHS = 3
BATCH_SIZE = 32


def train_once(tweets: DatasetDict, method: Method, learning_rate: float, seed: int) -> dict[str, Any]:
    """Train a method as the study does, judge it on the test split, and return the row of the result file.

    Args:
        tweets: the three splits.
        method: a row of the registry, or one of your own: `Method("mine", MyConfig(), (1e-3,))`.
        learning_rate: the highest one of the run.
        seed: of the head, the order and dropout.
    """
    model, tokenizer = load_classifier(pretrained=method.pretrained, seed=seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    inject(model, method.config, seed=seed)
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
    if isinstance(method.config, FullConfig) and method.pretrained:
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
