"""What the chapter on data measures, one command: `python -m course_utils study-data`.

Every experiment counts words (TF-IDF with logistic regression, as `study.baselines`), because it must be run hundreds
of times. Writes `book/results/data.json` when all of them are done.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from course_utils.data.augment import AUGMENTATIONS, NEGATION
from course_utils.data.batching import SENTENCES
from course_utils.data.cleaning import clean, clean_text
from course_utils.data.ratings import DOMAINS, load_ratings
from course_utils.data.splits import TEST, load_sentiment, near_duplicate_groups, three_way_split
from course_utils.evaluation.agreement import cohen_kappa, krippendorff_alpha
from course_utils.evaluation.baselines import count_words, positive_scores, right_answers
from course_utils.evaluation.intervals import mean_and_spread
from course_utils.models.backbones import load_classifier
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-data"


def main(arguments: list[str]) -> int:
    """Run all experiments and write `book/results/data.json`."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    content: dict[str, Any] = {}
    for name, experiment in EXPERIMENTS.items():
        content[name] = experiment()
        print(f"{name}: done", flush=True)
    store.write("data", COMMAND, content)
    return 0


def _labelled(domain: str) -> tuple[pd.DataFrame, np.ndarray]:
    frame, _ = clean(load_ratings(domain))
    return frame, frame["label"].to_numpy()


def _split(labels: np.ndarray, seed: int, test: float = TEST) -> tuple[np.ndarray, np.ndarray]:
    train_rows, test_rows = train_test_split(np.arange(len(labels)), test_size=test, stratify=labels, random_state=seed)
    return train_rows, test_rows


# --- experiments -----------------------------------------------------------------------------------------------------


def domains() -> list[dict[str, Any]]:
    """Each domain: what cleaning leaves, and how well its raters agree."""
    rows = []
    for name in DOMAINS:
        frame = load_ratings(name)
        kept, counts = clean(frame)
        near_neutral = frame[frame["rating"].abs() < 0.5]
        raters = frame["ratings"].map(len)
        rows.append(
            {
                "domain": name,
                "published": counts.published,
                "near_neutral": counts.near_neutral,
                "duplicates": counts.duplicates,
                "kept": counts.kept,
                "positive": float(kept["label"].mean()),
                "fewest_raters": int(raters.min()),
                "most_raters": int(raters.max()),
                "alpha_interval": krippendorff_alpha(list(frame["ratings"])),
                "alpha_sign": krippendorff_alpha(signs(frame), "nominal"),
                "alpha_sign_kept": krippendorff_alpha(signs(kept), "nominal"),
                "alpha_sign_dropped": krippendorff_alpha(signs(near_neutral), "nominal"),
            }
        )
    return rows


def signs(frame: pd.DataFrame) -> list[list[float]]:
    """The ratings as −1 (negative), 0 (neutral) and 1 (positive)."""
    return [[float(np.sign(vote)) for vote in votes] for votes in frame["ratings"]]


def pairs(draws: int = 20) -> dict[str, float]:
    """κ and α of two ratings drawn from those of each tweet; the mean over the draws."""
    ratings = signs(load_ratings("tweets"))
    agreed, kappas, alphas = [], [], []
    for seed in range(draws):
        chance = random.Random(seed)
        first, second = zip(*(chance.sample(votes, 2) for votes in ratings), strict=True)
        agreed.append(float(np.mean(np.array(first) == np.array(second))))
        kappas.append(cohen_kappa(first, second))
        alphas.append(krippendorff_alpha(list(zip(first, second, strict=True)), "nominal"))
    means = {"agreement": agreed, "kappa": kappas, "alpha": alphas}
    return {**{name: float(np.mean(values)) for name, values in means.items()}, "draws": draws}


def raters(sizes: Sequence[int] = (1, 3, 5, 7, 9, 11, 15)) -> list[dict[str, Any]]:
    """How often the label that few raters give is the label that all of them give; a tie is half right."""
    rows = []
    for name in ("tweets", "news"):
        frame, labels = _labelled(name)
        chance = random.Random(0)
        for size in sizes:
            sums = [sum(chance.sample(list(votes), size)) for votes in frame["ratings"] for _ in range(5)]
            truth = np.repeat(labels, 5)
            right = np.where(np.array(sums) == 0, 0.5, (np.array(sums) > 0) == truth)
            rows.append({"domain": name, "raters": size, "right": float(right.mean())})
    return rows


def cleaning(seeds: int = 20) -> list[dict[str, Any]]:
    """Two steps of old recipes, on the tweets: what they do to word counts."""
    frame, labels = _labelled("tweets")
    texts = list(frame["text"])
    variants = {
        "as the course cleans": texts,
        "and stop words removed": [_without_stop_words(text) for text in texts],
        "and negations removed": [NEGATION.sub("", text) for text in texts],
    }
    negated = np.array([bool(NEGATION.search(text)) for text in texts])
    rows = []
    for title, changed in variants.items():
        counts = count_words(changed)
        accuracies, on_negated = [], []
        for seed in range(seeds):
            train, test = _split(labels, seed)
            right = right_answers(counts, labels, train, test)
            accuracies.append(float(right.mean()))
            on_negated.append(float(right[negated[test]].mean()))
        mean, spread = mean_and_spread(accuracies)
        negated_mean = float(np.mean(on_negated))
        rows.append({"cleaning": title, "accuracy": mean, "spread": spread, "negated": negated_mean, "seeds": seeds})
    return rows


def _without_stop_words(text: str) -> str:
    return " ".join(word for word in text.split() if word.lower().strip(".,!?") not in ENGLISH_STOP_WORDS)


def news_duplicates(seeds: int = 100) -> dict[str, Any]:
    """The news with their duplicates, split at random: accuracy on the test texts that also stand in training."""
    frame = load_ratings("news")
    frame = frame[frame["rating"].abs() >= 0.5]
    keys = frame["text"].map(clean_text).str.casefold().to_numpy()
    labels = (frame["rating"] > 0).to_numpy().astype(int)
    counts = count_words(list(keys))
    rows = []
    for seed in range(seeds):
        train, test = _split(labels, seed)
        right = right_answers(counts, labels, train, test)
        twice = np.isin(keys[test], keys[train])
        rows.append((right.mean(), right[twice].mean(), right[~twice].mean(), twice.sum(), len(test)))
    everything, on_twice, honest, leaked, size = (float(value) for value in np.mean(rows, axis=0))
    inflations = [row[0] - row[2] for row in rows]
    return {
        "texts": len(labels),
        "duplicates": len(keys) - len(set(keys)),
        "seeds": seeds,
        "test": size,
        "leaked": leaked,
        "leaked_share": leaked / size,
        "accuracy": everything,
        "on_leaked": on_twice,
        "on_rest": honest,
        "inflation_points": 100 * float(np.mean(inflations)),
        "inflated_seeds": int(sum(value > 0 for value in inflations)),
    }


def planted_duplicates(
    shares: Sequence[float] = (0, 0.05, 0.1, 0.2, 0.4, 0.6), seeds: int = 10
) -> list[dict[str, Any]]:
    """News without duplicates; then a growing share of the test texts takes the place of training texts."""
    frame, labels = _labelled("news")
    counts = count_words(list(frame["text"]))
    rows = []
    for share in shares:
        measured, honest = [], []
        for seed in range(seeds):
            train, test = _split(labels, seed)
            chance = np.random.default_rng(seed)
            copied = chance.permutation(len(test)) < round(share * len(test))
            leaky = np.concatenate([chance.permutation(train)[copied.sum() :], test[copied]])
            right = right_answers(counts, labels, leaky, test)
            measured.append(float(right.mean()))
            honest.append(float(right[~copied].mean()))
        rows.append({"share": share, "measured": float(np.mean(measured)), "honest": float(np.mean(honest))})
    return rows


def near_duplicates(seeds: int = 30) -> dict[str, Any]:
    """The tweets' families of variants: the course's split, and random splits against splits by family."""
    frame, labels = _labelled("tweets")
    families = near_duplicate_groups(list(frame["text"]))
    sizes = np.bincount(families)
    counts = count_words(list(frame["text"]))
    row_of = {name: row for row, name in enumerate(frame["id"])}
    tweets = load_sentiment("tweets")
    train, test = (np.array([row_of[name] for name in tweets[split]["id"]]) for split in ("train", "test"))
    right = right_answers(counts, labels, train, test)
    leaked = np.isin(families[test], families[train])
    apart, together = [], []
    for seed in range(seeds):
        together.append(float(right_answers(counts, labels, *_split(labels, seed)).mean()))
        split = GroupShuffleSplit(1, test_size=TEST, random_state=seed).split(labels, groups=families)
        apart.append(float(right_answers(counts, labels, *next(split)).mean()))
    return {
        "families": int((sizes > 1).sum()),
        "in_families": int(sizes[sizes > 1].sum()),
        "largest": int(sizes.max()),
        "test": len(test),
        "leaked": int(leaked.sum()),
        "leaked_share": float(leaked.mean()),
        "accuracy": float(right.mean()),
        "on_leaked": float(right[leaked].mean()),
        "on_rest": float(right[~leaked].mean()),
        "inflation_points": 100 * float(right.mean() - right[~leaked].mean()),
        "most_points_at_95": 5 * float(leaked.mean()),
        "seeds": seeds,
        "random_split": float(np.mean(together)),
        "family_split": float(np.mean(apart)),
    }


def splits(
    cases: Sequence[tuple[int, float]] = ((100, 0.3), (100, 0.1), (1000, 0.1)), seeds: int = 200
) -> list[dict[str, Any]]:
    """Three-way splits with and without `stratify`: the share of the rare class in test, and where it is missing."""
    rows = []
    for texts, rare in cases:
        labels = np.array([0] * round(rare * texts) + [1] * round((1 - rare) * texts))
        for stratified in (False, True):
            shares, missing = [], 0
            for seed in range(seeds):
                _, validation, test = three_way_split(labels, seed, stratified)
                shares.append(float((labels[test] == 0).mean()))
                missing += bool((labels[validation] == 1).all())
            rows.append(
                {
                    "texts": texts,
                    "rare": rare,
                    "stratified": stratified,
                    "split": "with stratify" if stratified else "without stratify",
                    "lowest": min(shares),
                    "highest": max(shares),
                    "missing": missing,
                    "seeds": seeds,
                }
            )
    return rows


def split_noise(texts: int = 200, seeds: int = 200) -> dict[str, Any]:
    """The test accuracy on 200 tweets over many splits: how much of its spread does `stratify` remove?"""
    frame, all_labels = _labelled("tweets")
    rows, _ = train_test_split(np.arange(len(frame)), train_size=texts, stratify=all_labels, random_state=0)
    labels, counts = all_labels[rows], count_words(list(frame["text"].iloc[rows]))
    spreads = {}
    for stratified in (False, True):
        parts = (three_way_split(labels, seed, stratified) for seed in range(seeds))
        accuracies = [float(right_answers(counts, labels, train, test).mean()) for train, _, test in parts]
        spreads["with" if stratified else "without"] = mean_and_spread(accuracies)[1]
    return {"texts": texts, "seeds": seeds, **spreads}


def imbalance(rare: float = 0.1, seeds: int = 20) -> dict[str, Any]:
    """Tweets of which few are negative: what class weights, resampling and another threshold do."""
    frame, labels = _labelled("tweets")
    counts = count_words(list(frame["text"]))
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        chance = np.random.default_rng(seed)
        few = chance.choice(negative, round(len(positive) * rare / (1 - rare)), replace=False)
        rows = np.concatenate([positive, few])
        train, validation, test = (rows[part] for part in three_way_split(labels[rows], seed))
        minority, majority = train[labels[train] == 0], train[labels[train] == 1]
        more = np.concatenate([majority, chance.choice(minority, len(majority))])
        fewer = np.concatenate([chance.choice(majority, len(minority), replace=False), minority])
        plain = positive_scores(counts, labels, train, test)
        moved = plain - _best_threshold(positive_scores(counts, labels, train, validation), labels[validation])
        answers = {
            "always the larger class": np.ones(len(test)),
            "as it is": plain,
            "threshold moved": moved,
            "class weights": positive_scores(counts, labels, train, test, class_weight="balanced"),
            "rare class repeated": positive_scores(counts, labels, more, test),
            "larger class thinned out": positive_scores(counts, labels, fewer, test),
        }
        for title, scores in answers.items():
            found.setdefault(title, []).append(_rare_class_scores(labels[test], scores))
    table = [
        {"way": title, **{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}}
        for title, rows in found.items()
    ]
    return {"rare": rare, "seeds": seeds, "table": table}


def _best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the highest macro F1, of a hundred between the lowest and the middle score."""
    candidates = np.quantile(scores, np.linspace(0, 0.5, 100))
    return float(max(candidates, key=lambda t: f1_score(labels, scores > t, average="macro")))


def _rare_class_scores(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    answers = (scores > 0).astype(int)
    return {
        "accuracy": float((answers == labels).mean()),
        "recall": float(recall_score(labels, answers, pos_label=0)),
        "precision": float(precision_score(labels, answers, pos_label=0, zero_division=0)),
        "f1_macro": float(f1_score(labels, answers, average="macro", zero_division=0)),
        "roc_auc": float(roc_auc_score(labels, scores)),
    }


def augmentation(sizes: Sequence[int] = (64, 128, 512), seeds: int = 30, copies: int = 4) -> dict[str, Any]:
    """Few tweets and four changed copies of each: the difference to the tweets alone, with its 95% interval.

    All training rows together weigh the same in each run (a text and its copies a fifth each), or even plain copies
    would look like a gain. The strength was chosen on the validation split.
    """
    tweets = load_sentiment("tweets")
    texts, labels = list(tweets["train"]["text"]), np.array(tweets["train"]["label"])
    test_texts, test_labels = list(tweets["test"]["text"]), np.array(tweets["test"]["label"])
    negated = np.array([bool(NEGATION.search(text)) for text in test_texts])
    rows = []
    for size in sizes:
        right: dict[str, list[np.ndarray]] = {"nothing": []}
        for seed in range(seeds):
            chosen, _ = train_test_split(np.arange(len(labels)), train_size=size, stratify=labels, random_state=seed)
            own = [texts[row] for row in chosen]
            right["nothing"].append(_learn(own, labels[chosen], test_texts, test_labels, 1))
            for title, change in AUGMENTATIONS.items():
                chance = random.Random(seed)
                more = own + [change(text, chance) for _ in range(copies) for text in own]
                many = np.tile(labels[chosen], copies + 1)
                right.setdefault(title, []).append(_learn(more, many, test_texts, test_labels, copies + 1))
        base = np.array(right["nothing"], dtype=float)
        for title, answers in right.items():
            gain = np.array(answers, dtype=float) - base
            rows.append(
                {
                    "labels": size,
                    "augmentation": title,
                    "accuracy": float(np.mean(answers)),
                    **_interval("gain", 100 * gain.mean(axis=1)),
                    **_interval("negated_gain", 100 * gain[:, negated].mean(axis=1)),
                }
            )
    shares = {
        "negated_test": int(negated.sum()),
        "negated_train": float(np.mean([bool(NEGATION.search(t)) for t in texts])),
    }
    return {"seeds": seeds, "copies": copies, **shares, "rows": rows}


def _learn(
    texts: list[str], labels: np.ndarray, test_texts: list[str], test_labels: np.ndarray, versions: int
) -> np.ndarray:
    counts = count_words(texts + test_texts)
    train, test = np.arange(len(texts)), np.arange(len(texts), len(texts) + len(test_texts))
    weight = np.full(len(texts), 1 / versions)
    everything = np.concatenate([labels, test_labels])
    return right_answers(counts, everything, train, test, strength=100, sample_weight=weight)


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean and normal 95% interval over the seeds."""
    mean, spread = mean_and_spread(list(values))
    half = 1.96 * spread / math.sqrt(len(values))
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def languages() -> list[dict[str, Any]]:
    """How the backbone's tokenizer cuts a sentence in languages that it was not made for."""
    _, tokenizer = load_classifier()
    rows = []
    for language, sentence in SENTENCES.items():
        tokens = tokenizer.tokenize(sentence)
        unknown = tokens.count(tokenizer.unk_token)
        rows.append(
            {
                "language": language,
                "sentence": sentence,
                "characters": len(sentence),
                "tokens": len(tokens),
                "unknown": unknown,
                "unknown_share": unknown / len(tokens),
            }
        )
    return rows


EXPERIMENTS = {
    function.__name__: function
    for function in (
        domains,
        pairs,
        raters,
        cleaning,
        news_duplicates,
        planted_duplicates,
        near_duplicates,
        splits,
        split_noise,
        imbalance,
        augmentation,
        languages,
    )
}
