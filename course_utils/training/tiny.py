"""A tiny random BERT and 21 texts: what runs in several processes within a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from course_utils.data.batching import LengthBucketedSampler
from course_utils.methods import MethodConfig, inject
from course_utils.training.distributed import without_dropout

TEXTS, BATCH, WORDS = 21, 8, 64


def tiny_model(config: MethodConfig) -> nn.Module:
    """A random BERT of two layers with a method in it; no dropout, and always the same weights."""
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 48, "vocab_size": WORDS, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1)
        )
    return without_dropout(inject(model.train(), config))


def tiny_loader() -> DataLoader:
    """21 texts in batches of 8: the last batch of an epoch holds 5, and two processes get 3 and 2 of them."""
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WORDS, (TEXTS, 8), generator=chance)
    rows = [{"input_ids": row, "labels": int(row[1]) % 2} for row in ids]
    sampler = LengthBucketedSampler([8] * TEXTS, BATCH)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate_tiny)  # type: ignore[arg-type]


def collate_tiny(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of equal length as one batch."""
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": torch.stack([row["input_ids"] for row in rows]), "labels": labels}
