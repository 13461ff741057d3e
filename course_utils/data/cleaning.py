"""From published texts to texts with a label: clean, drop the near-neutral and the duplicates."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import pandas as pd

from course_utils.data.errors import DataError

#: What stands for an address and for a name of a user: pattern and word, in this order. Both are written in ASCII, and
#: end where another script begins: Chinese puts no space behind them. The classes are spelt out, because an exported
#: model carries these patterns as text, without flags.
REPLACEMENTS = (
    (re.compile(r"(?:https?://|www\.)[!-~]+", re.IGNORECASE), "http"),
    (re.compile(r"(?<![0-9A-Za-z_])@[0-9A-Za-z_]+", re.IGNORECASE), "@user"),
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
