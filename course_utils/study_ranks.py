"""LoRA's rank against what it trains and what it reaches on the tweets: `python -m course_utils study-ranks`.

Every rank runs once with the learning rate that the large study chose for rank 8, and alpha at twice the rank, so that
only the rank changes. One seed: the differences between neighbours are smaller than what chance does to a test of this
size, and the page says so. Each finished run is written down at once.
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import DatasetDict

from course_utils import results, study
from course_utils.data import load_sentiment
from course_utils.methods import LoRAConfig
from course_utils.metrics import accuracy_interval

COMMAND = "python -m course_utils study-ranks"
RANKS = (1, 2, 4, 8, 16, 32, 64)
SEED = 0


def main(arguments: list[str]) -> int:
    """Run what is missing and write `book/results/ranks.json`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--again", action="store_true", help="throw away the stored runs first")
    options = parser.parse_args(arguments)
    tweets = load_sentiment("tweets")
    rows = [] if options.again else _stored()
    rate = float(results.read("quality")["methods"]["lora"]["learning_rate"])
    for rank in RANKS:
        if any((row["rank"], row["learning_rate"]) == (rank, rate) for row in rows):
            continue
        entry = study.Entry(f"LoRA, rank {rank}", LoRAConfig(rank=rank, alpha=2 * rank), (rate,))
        run = study.train_once(tweets, entry, rate, SEED)
        low, high = accuracy_interval(round(run["accuracy"] * len(tweets["test"])), len(tweets["test"]))
        rows.append({"rank": rank, **run, "low": low, "high": high})
        print(f"rank {rank}: {run['trainable']:,} trained, {run['accuracy']:.1%}", flush=True)
        _write(rows, rate, tweets)
    _write(rows, rate, tweets)
    return 0


def _write(rows: list[dict[str, Any]], rate: float, tweets: DatasetDict) -> None:
    content = {
        "learning_rate": rate,
        "epochs": study.EPOCHS,
        "seed": SEED,
        "texts": {split: len(tweets[split]) for split in tweets},
        "ranks": sorted((row for row in rows if row["learning_rate"] == rate), key=lambda row: row["rank"]),
    }
    results.write("ranks", COMMAND, content)


def _stored() -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = results.read("ranks")["ranks"]
    except FileNotFoundError:
        return []
    return rows
