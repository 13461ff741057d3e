"""Train, validation and test: by label, and with near-duplicates on one side."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from course_utils.data.cleaning import clean
from course_utils.data.errors import DataError
from course_utils.data.ratings import load_ratings
from course_utils.models.backbones import LABELS

_FEATURES = Features(
    {
        "id": Value("string"),
        "text": Value("string"),
        "label": ClassLabel(names=list(LABELS)),
        "rating": Value("float64"),
        "soft_label": Value("float64"),
        "ratings": List(Value("int8")),
    }
)


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


TEST = 0.25


def three_way_split(
    labels: np.ndarray, seed: int, stratified: bool = True, validation: float = 0.10, test: float = TEST
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers for train, validation and test by two calls of `train_test_split`."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    rest, test_rows = train_test_split(rows, test_size=test, random_state=seed, stratify=labels if stratified else None)
    train_rows, validation_rows = train_test_split(
        rest,
        test_size=validation / (1 - test),
        random_state=seed,
        stratify=labels[rest] if stratified else None,
    )
    return train_rows, validation_rows, test_rows
