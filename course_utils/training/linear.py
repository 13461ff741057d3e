"""A linear classifier on the vectors of a frozen backbone, trained with the optimisers written by hand."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor

from course_utils.data.batching import make_loader
from course_utils.training.optimizers import Optimizer, cross_entropy, cross_entropy_gradient

EPOCHS = 10
BATCH_SIZE = 32


def sentence_vectors(
    dataset: Dataset, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> tuple[Any, Any]:
    """One vector a text from a frozen backbone, the mean over its tokens, with a 1 at the end for the bias.

    Returns:
        Vectors (n, width + 1) and labels (n,), both sorted by the texts' length.
    """
    model.eval()
    vectors, labels = [], []
    with torch.no_grad():
        for batch in make_loader(dataset, tokenizer, 64):
            mask = batch["attention_mask"].unsqueeze(-1)
            tokens = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mean = (tokens * mask).sum(1) / mask.sum(1)
            vectors.append(torch.cat([mean, torch.ones(len(mean), 1)], dim=1))
            labels.append(batch["labels"])
    return torch.cat(vectors), torch.cat(labels)


def train_linear(x: Tensor, labels: Tensor, optimizer: Optimizer, seed: int = 0, epochs: int = EPOCHS) -> Tensor:
    """Train one linear layer, the head of a frozen body, in shuffled batches of 32; its weight (2, width)."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(2, x.shape[1], generator=generator)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH_SIZE):
            gradient = cross_entropy_gradient(x[rows] @ weight.T, labels[rows]).T @ x[rows]
            weight = optimizer.step(weight, gradient)
    return weight


def judge(weight: Tensor, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and accuracy of a linear layer."""
    logits = x @ weight.T
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return {"loss": cross_entropy(logits, labels).item(), "accuracy": accuracy}
