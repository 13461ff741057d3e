"""Human-rated texts: load, clean, deduplicate, split in three, and batch by length.

The four files of Hutto and Gilbert (2014) hold texts and the ratings that 15 to 100 people gave each, from −4
(very negative) to +4 (very positive). A text's label is the sign of its mean rating; texts whose mean lies near zero
are dropped by a stated threshold, because nobody can say what their label should be.
"""

from __future__ import annotations

import html
import json
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from course_utils.assets import fetch

#: The course's name of a domain → the name of its files.
DOMAINS = {
    "tweets": "tweets",
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
}
LABELS = ("negative", "positive")

_FEATURES = Features(
    {
        "id": Value("string"),
        "text": Value("string"),
        "label": ClassLabel(names=list(LABELS)),
        "rating": Value("float64"),
        "soft_label": Value("float64"),
        "ratings": Sequence(Value("int8")),
    }
)


class DataError(ValueError):
    """The texts or labels cannot be used as they are."""


def load_ratings(domain: str = "tweets") -> pd.DataFrame:
    """Every text of a domain as published, uncleaned, duplicates included.

    Args:
        domain: "tweets", "movies", "products" or "news".

    Returns:
        One row a text with the columns
        `id`; `text`, as published;
        `ratings`, the list of raw ratings, −4 to 4, one a rater;
        `rating`, their mean;
        `soft_label`, the share of raters who vote positive (a rating of 0 is half a vote for each side).

    The mean is computed from the raw ratings. For 195 tweets the published mean is another one, never with another
    sign.

    Raises:
        DataError: the domain is unknown.
        AssetError: the files cannot be fetched.
    """
    if domain not in DOMAINS:
        raise DataError(f"there is no domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    folder = fetch("ratings")
    texts = _read_table(folder / f"{DOMAINS[domain]}_GroundTruth.txt")
    raw = {row[0]: json.loads(row[3]) for row in _read_table(folder / f"{DOMAINS[domain]}_anonDataRatings.txt")}
    frame = pd.DataFrame({"id": [row[0] for row in texts], "text": [row[2] for row in texts]})
    frame["ratings"] = frame["id"].map(raw)
    frame["rating"] = frame["ratings"].map(lambda votes: sum(votes) / len(votes))
    frame["soft_label"] = frame["ratings"].map(
        lambda votes: sum(1.0 if vote > 0 else 0.5 if vote == 0 else 0.0 for vote in votes) / len(votes)
    )
    return frame


def _read_table(path: Any) -> list[list[str]]:
    """Read one of the files: tab-separated, UTF-8 (some begin with a byte-order mark), Windows line ends."""
    return [line.rstrip("\r").split("\t") for line in path.read_text("utf-8-sig").split("\n") if line.strip()]


#: What stands for an address and for a name of a user: pattern and word, in this order.
REPLACEMENTS = (
    (re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE), "http"),
    (re.compile(r"(?<!\w)@\w+"), "@user"),
)


def clean_text(text: str) -> str:
    """Decode HTML entities, replace addresses by `http` and user names by `@user`, fold white space.

    >>> clean_text("@anonymous  love it &lt;3 http://url_removed")
    '@user love it <3 http'
    """
    cleaned = html.unescape(html.unescape(text))  # a few of the news texts were encoded twice
    for pattern, word in REPLACEMENTS:
        cleaned = pattern.sub(word, cleaned)
    return " ".join(cleaned.split())


@dataclass(frozen=True)
class Cleaning:
    """How many texts each step of the cleaning removed."""

    published: int
    near_neutral: int
    empty: int
    duplicates: int

    @property
    def kept(self) -> int:
        """Texts that are left."""
        return self.published - self.near_neutral - self.empty - self.duplicates

    def __str__(self) -> str:
        return (
            f"{self.published:,} texts published, {self.near_neutral:,} near-neutral dropped, "
            f"{self.empty:,} empty dropped, {self.duplicates:,} duplicates dropped, {self.kept:,} kept"
        )


def clean(frame: pd.DataFrame, threshold: float = 0.5) -> tuple[pd.DataFrame, Cleaning]:
    """Clean the texts, drop near-neutral and duplicate ones, and label the rest by the sign of the mean rating.

    Args:
        frame: as `load_ratings` returns it.
        threshold: texts with |mean rating| below it are dropped; 0 < threshold ≤ 4.

    Returns:
        The frame with cleaned `text` and a new column `label` (0 negative, 1 positive), and the counts. Two texts are
        duplicates when they are equal but for upper and lower case after cleaning; the first one stays. This happens
        **before** the split, so that no test text was also trained on.
    """
    if not 0 < threshold <= 4:
        raise DataError(f"threshold is a mean rating and must lie above 0 and at most at 4, got {threshold}")
    rated = frame[frame["rating"].abs() >= threshold].copy()
    rated["text"] = rated["text"].map(clean_text)
    filled = rated[rated["text"] != ""]
    unique = filled[~filled["text"].str.casefold().duplicated()].copy()
    unique["label"] = (unique["rating"] > 0).astype(int)
    counts = Cleaning(len(frame), len(frame) - len(rated), len(rated) - len(filled), len(filled) - len(unique))
    return unique.reset_index(drop=True), counts


def near_duplicate_groups(texts: list[str], similarity: float = 0.7) -> np.ndarray:
    """Put texts that are almost the same into one group, to keep a group on one side of a split.

    Two texts are near-duplicates when they share so many of their trigrams (three letters in a row within a word):
    the number in both, divided by the number in one or the other (Jaccard). Upper case and punctuation between words
    hardly count. Groups are closed: if A is near B and B is near C, all three are one group. Every pair is compared, so
    ten thousand texts are the limit.

    Args:
        texts: cleaned texts.
        similarity: from 0 (nothing in common) to 1 (the same trigrams).

    Returns:
        The number of its group for each text; a text without near-duplicates is a group of its own.
    """
    if not 0 < similarity <= 1:
        raise DataError(f"similarity is a share above 0 and at most 1, got {similarity}")
    from scipy.sparse import coo_matrix  # here, because loading texts needs neither of the two
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import CountVectorizer

    trigrams = CountVectorizer(analyzer="char_wb", ngram_range=(3, 3), binary=True, dtype=np.int32)
    grams = trigrams.fit_transform(texts)
    sizes = np.asarray(grams.sum(axis=1)).ravel()
    both = (grams @ grams.T).tocoo()
    near = both.data >= similarity * (sizes[both.row] + sizes[both.col] - both.data)
    links = coo_matrix((both.data[near], (both.row[near], both.col[near])), shape=both.shape)
    groups: np.ndarray = connected_components(links, directed=False)[1]
    return groups


def load_sentiment(
    domain: str = "tweets",
    *,
    threshold: float = 0.5,
    validation: float = 0.10,
    test: float = 0.25,
    seed: int = 0,
) -> DatasetDict:
    """A cleaned domain, split into train, validation and test with the same share of positives in each.

    Args:
        domain: "tweets", "movies", "products" or "news".
        threshold: texts with |mean rating| below it are dropped.
        validation, test: shares of the whole; the rest is for training.
        seed: of the shuffle. The course's results all use 0.

    Returns:
        A `DatasetDict` with the splits `train`, `validation` and `test` and the columns `id`, `text`, `label`,
        `rating`, `soft_label`, `ratings` (see `load_ratings`).
    """
    if min(validation, test) <= 0 or validation + test >= 1:
        raise DataError(f"validation and test must be above 0 and leave room for train, got {validation}, {test}")
    frame, _ = clean(load_ratings(domain), threshold)
    whole = Dataset.from_pandas(frame[list(_FEATURES)], features=_FEATURES, preserve_index=False)
    rest = whole.train_test_split(test_size=test, stratify_by_column="label", seed=seed)
    parts = rest["train"].train_test_split(test_size=validation / (1 - test), stratify_by_column="label", seed=seed)
    return DatasetDict(train=parts["train"], validation=parts["test"], test=rest["test"])


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
        lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    cut = sum(length > limit for length in lengths)
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
    label: str = "label",
) -> DataLoader:
    """Encode a split and serve it in length-bucketed, padded batches.

    Args:
        dataset: a split with the column `text` and the column named by `label`.
        tokenizer: the backbone's; it also pads.
        batch_size: texts a batch.
        shuffle: another order each epoch (training) or sorted by length (evaluation).
        seed: of the orders.
        max_length: see `encode`.
        label: the column to learn.

    Returns:
        A loader of dictionaries of tensors: `input_ids` and `attention_mask` (batch, longest text of the batch) and
        `labels` (batch,).
    """
    rows = encode(list(dataset["text"]), list(dataset[label]), tokenizer, max_length)
    sampler = LengthBucketedSampler([len(row["input_ids"]) for row in rows], batch_size, shuffle, seed)

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([row["labels"] for row in batch])
        inputs = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in batch]
        return {**tokenizer.pad(inputs, return_tensors="pt"), "labels": labels}

    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
