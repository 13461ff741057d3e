"""The rated texts as they were published (Hutto and Gilbert 2014): four domains, twenty raters a text."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from course_utils.data.errors import DataError
from course_utils.models.assets import fetch

#: The course's name of a domain → the name of its files.
DOMAINS = {
    "tweets": "tweets",
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
}


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
