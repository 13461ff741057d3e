"""Human-rated texts: load, clean, deduplicate, split in three, and batch by length.

The four files of Hutto and Gilbert (2014) hold texts and the ratings that 15 to 100 people gave each, from −4
(very negative) to +4 (very positive). A text's label is the sign of its mean rating; texts whose mean lies near zero
are dropped by a stated threshold, because nobody can say what their label should be.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from course_utils.data.errors import DataError


def encode(
    texts: list[str],
    labels: list[int] | list[float] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    """Turn texts into token ids.

    Args:
        texts: the texts; none may be empty.
        labels: one a text, or None for texts without labels.
        tokenizer: the backbone's.
        max_length: cut longer texts to so many tokens; default: the longest that the model takes. A warning counts
            the texts that were cut.

    Returns:
        One dictionary a text with `input_ids`, `attention_mask` and, where given, `labels`.
    """
    if labels is not None and len(labels) != len(texts):
        raise DataError(f"there are {len(texts)} texts and {len(labels)} labels; each text needs one label")
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"text {position} is empty or no string ({text!r}); drop it before encoding")
    special = tokenizer.num_special_tokens_to_add()
    if max_length is not None and max_length <= special:
        raise DataError(f"max_length must be above {special}, the tokens around a text; got {max_length}")
    longest = int(tokenizer.model_max_length)
    limit = min(max_length or longest, longest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoded = tokenizer(texts, truncation=False, verbose=False)
    cut = sum(len(ids) > limit for ids in encoded["input_ids"])
    if cut:
        warnings.warn(f"{cut} of {len(texts)} texts are longer than {limit} tokens and were cut there", stacklevel=2)
        encoded = tokenizer(texts, truncation=True, max_length=limit)
    rows = [
        {"input_ids": ids, "attention_mask": mask}
        for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]
    if labels is not None:
        for row, label in zip(rows, labels, strict=True):
            row["labels"] = label
    return rows


class LengthBucketedSampler(Sampler[list[int]]):
    """Batches of texts of about the same length, so that little time is spent on padding.

    Shuffle all texts, cut the order into buckets of `batch_size × bucket_batches`, sort each bucket by length, cut it
    into batches, and shuffle the batches; a batch that is not full comes last. Each pass over the sampler is another
    epoch with another order; the same seed gives the same orders.

    Args:
        lengths: number of tokens of each text.
        batch_size: texts a batch.
        shuffle: False sorts all texts by length, for evaluation.
        seed: of the orders.
        bucket_batches: batches a bucket; more means less padding and less randomness.
    """

    def __init__(
        self, lengths: list[int], batch_size: int, shuffle: bool = True, seed: int = 0, bucket_batches: int = 20
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        if not lengths:
            raise DataError("there are no texts to batch")
        self.lengths, self.batch_size, self.shuffle = lengths, batch_size, shuffle
        self.seed, self.bucket_batches = seed, bucket_batches
        self.drop_last = False  # accelerate reads it
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.lengths)))
        if not self.shuffle:
            order.sort(key=lambda i: self.lengths[i])
            yield from self._cut(order)
            return
        chance = random.Random(f"{self.seed}/{self.epoch}")
        self.epoch += 1
        chance.shuffle(order)
        size = self.batch_size * self.bucket_batches
        for start in range(0, len(order), size):
            order[start : start + size] = sorted(order[start : start + size], key=lambda i: self.lengths[i])
        batches = list(self._cut(order))
        # With several processes, accelerate loses texts when the short batch stands anywhere but at the end.
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        chance.shuffle(batches)
        yield from batches + last

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def make_loader(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
    *,
    shuffle: bool = False,
    seed: int = 0,
    max_length: int | None = None,
    label: str | None = "label",
) -> DataLoader:
    """Encode a split and serve it in length-bucketed, padded batches.

    Args:
        dataset: a split with the column `text`, and the column named by `label` unless that is None.
        tokenizer: the backbone's; it also pads.
        batch_size: texts a batch.
        shuffle: another order each epoch (training) or sorted by length (evaluation).
        seed: of the orders.
        max_length: see `encode`.
        label: the column to learn; None for texts without labels, which `predict` takes.

    Returns:
        A loader of dictionaries of tensors: `input_ids` and `attention_mask` (batch, longest text of the batch) and
        `labels` (batch,).

    Raises:
        DataError: a column is missing, or a text is empty.
    """
    if missing := [name for name in ("text", label) if name not in (*dataset.column_names, None)]:
        raise DataError(
            f"there is no column {missing[0]!r} among {', '.join(dataset.column_names)}: rename yours with "
            "dataset.rename_column, name the labels with label='...', or give label=None for texts without labels"
        )
    labels = None if label is None else list(dataset[label])
    rows = encode(list(dataset["text"]), labels, tokenizer, max_length)
    sampler = LengthBucketedSampler([len(row["input_ids"]) for row in rows], batch_size, shuffle, seed)

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in batch]
        padded = dict(tokenizer.pad(inputs, return_tensors="pt"))
        return padded if label is None else padded | {"labels": torch.tensor([row["labels"] for row in batch])}

    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


#: The same in several languages, for a tokenizer that knows one.
SENTENCES = {
    "English": "This film is wonderful, I would watch it again.",
    "German": "Dieser Film ist wunderbar, ich würde ihn noch einmal ansehen.",
    "Chinese": "这部电影太棒了,我想再看一遍。",
    "Korean": "이 영화는 정말 훌륭해서 다시 보고 싶어요.",
    "emoji": "This film 😍😍 again 🙏",
}
