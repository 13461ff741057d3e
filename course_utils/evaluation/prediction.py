"""Run a trained classifier over a loader: labels, logits, scores. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from course_utils.data.batching import make_loader
from course_utils.data.labels import UNLABELLED, refuse_wrong_labels
from course_utils.evaluation.metrics import Scores, score

if TYPE_CHECKING:
    from accelerate import Accelerator


def predict(model: nn.Module, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and logits (n, classes) for every text of a loader, in the loader's order.

    The model's mode is restored afterwards. Texts need no labels, see `make_loader(..., label=None)`; the label of a
    text without one is -1 (or -100, where the loader says so).

    Raises:
        DataError: a label is no class of the model.
    """
    refuse_wrong_labels(model, loader, unlabelled=True)
    labels, logits = gather_predictions(model, loader)
    return labels.numpy(), logits.numpy()


def predict_in_order(model: nn.Module, loader: DataLoader) -> np.ndarray:
    """Logits (n, classes) in the order of the dataset, for a loader of `make_loader`, which serves texts by length."""
    _, served = predict(model, loader)
    order = [row for batch in loader.batch_sampler for row in batch]  # type: ignore[union-attr]
    logits = np.empty_like(served)
    logits[order] = served
    return logits


def evaluate(model: nn.Module, loader: DataLoader) -> Scores:
    """The model's scores on a loader.

    Raises:
        DataError: a label is missing, or no class of the model.
    """
    refuse_wrong_labels(model, loader)
    return score(*predict(model, loader))


@torch.no_grad()
def gather_predictions(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (n,) and logits (n, classes) as tensors on the processor; the mode is restored afterwards.

    Args:
        model: takes a batch as keywords and returns `.logits`. Labels are handed to it only where each text of the
            batch has one: with -1 among them the loss, which nobody wants here, would be an error.
        loader: what to predict.
        accelerator: of a run that goes on in several processes or in half precision. Each process then holds the
            predictions of all, and each text counts once.
    """
    device = next(model.parameters()).device
    labels, logits = [], []
    with _evaluating(model):
        for batch in loader:
            batch = {key: value.to(device) for key, value in batch.items()}
            truth = batch.get("labels")
            if truth is not None and bool((truth < 0).any()):
                del batch["labels"]
            with nullcontext() if accelerator is None else accelerator.autocast():
                output = model(**batch).logits
            if truth is None:
                truth = torch.full((len(output),), UNLABELLED[0], device=device)
            if accelerator is not None:
                output, truth = accelerator.gather_for_metrics((output, truth))
            labels.append(truth.cpu())
            logits.append(output.float().cpu())
    return torch.cat(labels), torch.cat(logits)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the model's own mode again after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def logits_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Dataset) -> np.ndarray:
    """The logits (n, classes) in the order of the split."""
    return predict_in_order(model, make_loader(texts, tokenizer, 64))
