"""Where does a model err? Accuracy on parts of a split that a reader can name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from course_utils.errors import CourseError
from course_utils.evaluation.baselines import NEGATIONS, lexicon_score
from course_utils.evaluation.intervals import accuracy_interval

_WORDS = re.compile(r"[\w'’]+")
_FACE = re.compile(r"(?<!\w)[:;=8xX][-'o]?[)(\]\[dDpP/\\|3]+(?!\w)|<3|[\u2600-\u27bf\U0001f300-\U0001faff]")
_SARCASM = re.compile(
    r"sarcas|\byeah,? right\b|\boh,? (?:great|joy|yay|goody|wonderful|good)\b|\blucky me\b|\bthanks a lot\b"
    r"|\b(?:just|how) (?:great|lovely|wonderful)\b|\bjust what (?:i|we) need|\blove (?:how|it when|when)\b",
    re.IGNORECASE,
)


class SliceError(CourseError, ValueError):
    """The table of slices cannot be made."""


def has_negation(text: str) -> bool:
    """Whether a word of the text negates: not, never, can't, ...

    >>> has_negation("I can’t wait"), has_negation("what a knot")
    (True, False)
    """
    words = _WORDS.findall(text.lower().replace("’", "'"))
    return any(word in NEGATIONS or word.endswith("n't") for word in words)


def has_face(text: str) -> bool:
    """Whether an emoji, an emoticon such as `:)`, or a heart `<3` is in the text."""
    return _FACE.search(text) is not None


def has_sarcasm_marker(text: str) -> bool:
    """Whether the text has a phrase that often goes with sarcasm. It finds few cases, and not only sarcasm."""
    return _SARCASM.search(text) is not None


def says_the_opposite(text: str, label: int) -> bool:
    """Whether the words of the list point the other way than the raters: irony, or words that the list misreads.

    >>> says_the_opposite("Thanks for ruining my week", label=0)
    True
    """
    score = lexicon_score(text)
    return score < 0 if label == 1 else score > 0


def agreement(soft_label: float) -> float:
    """The share of raters on the side of the majority, from 0.5 to 1.

    Args:
        soft_label: share of raters who vote positive, see `load_ratings`.
    """
    return max(soft_label, 1 - soft_label)


@dataclass(frozen=True)
class Slice:
    """A part of the texts.

    Args:
        title: as the table calls it.
        holds: whether a row of the data belongs to it. It may use the text and the ratings, never a model's answer.
    """

    title: str
    holds: Callable[[Mapping[str, Any]], bool]


#: Name → slice. They overlap: a text may stand in several.
SLICES: dict[str, Slice] = {
    "all": Slice("all texts", lambda row: True),
    "negation": Slice("with a negation", lambda row: has_negation(row["text"])),
    "face": Slice("with an emoticon or emoji", lambda row: has_face(row["text"])),
    "sarcasm": Slice("with a marker of sarcasm", lambda row: has_sarcasm_marker(row["text"])),
    "opposite": Slice("listed words say the opposite", lambda row: says_the_opposite(row["text"], row["label"])),
    "short": Slice("up to 8 words", lambda row: len(row["text"].split()) <= 8),
    "middle": Slice("9 to 16 words", lambda row: 8 < len(row["text"].split()) <= 16),
    "long": Slice("17 words and more", lambda row: len(row["text"].split()) > 16),
    "agreed": Slice("95% of the raters agree, or more", lambda row: agreement(row["soft_label"]) >= 0.95),
    "mostly": Slice("75% to 95% agree", lambda row: 0.75 <= agreement(row["soft_label"]) < 0.95),
    "disputed": Slice("fewer than 75% agree", lambda row: agreement(row["soft_label"]) < 0.75),
    "negative": Slice("negative texts", lambda row: row["label"] == 0),
    "positive": Slice("positive texts", lambda row: row["label"] == 1),
}


def slice_table(
    texts: Dataset | Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence[np.ndarray]],
    slices: Mapping[str, Slice] = SLICES,
) -> list[dict[str, Any]]:
    """Accuracy of each model on each slice.

    Args:
        texts: rows with `text`, `label` and `soft_label`.
        answers: model → its answers, an array (n,) for each of its seeds.
        slices: the parts.

    Returns:
        One row a slice: `name`, `title`, `n`, `share` of the texts, and for each model `accuracy` (mean over its
        seeds), Wilson's interval `low` and `high` for n texts, and `errors`, the share of all its errors that lie here.
        A slice without texts has n = 0 and no models.

    Raises:
        SliceError: a model has no answers, or not one for each text.
    """
    rows, labels = list(texts), np.array([row["label"] for row in texts])
    for model, seeds in answers.items():
        if not seeds or any(len(one) != len(rows) for one in seeds):
            got = [len(one) for one in seeds]
            raise SliceError(f"expected {len(rows)} answers of {model!r} for each seed, got {got}")
    right = {model: np.mean([np.asarray(one) == labels for one in seeds], axis=0) for model, seeds in answers.items()}
    table = []
    for name, part in slices.items():
        inside = np.array([part.holds(row) for row in rows])
        n = int(inside.sum())
        line: dict[str, Any] = {"name": name, "title": part.title, "n": n, "share": n / len(rows)}
        for model, hits in right.items() if n else ():
            accuracy = float(hits[inside].mean())
            low, high = accuracy_interval(round(accuracy * n), n)
            errors = float((1 - hits)[inside].sum() / max((1 - hits).sum(), 1e-9))
            line[model] = {"accuracy": accuracy, "low": low, "high": high, "errors": errors}
        table.append(line)
    return table
