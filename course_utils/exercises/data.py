"""The checks of chapter 3, Data."""

from __future__ import annotations

from typing import Any

import numpy as np

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number

_TEXTS = [
    "@anna Great film :)",
    "so sad",
    "@bob great film :)",
    "so  sad",
    "@anna great film :(",
    "Tom &amp; Jerry",
    "Tom & Jerry",
    "fine",
    "fine",
    "FINE",
]


@exercise(
    "data.deduplicate",
    points=2,
    passes="Each text stays once, and everything that carries a mood stays in it.",
    section="Cleaning",
)
def _deduplicate(answer: Any) -> None:
    value = call(answer, list(_TEXTS))
    try:
        kept = list(value)
    except TypeError:
        raise Wrong(f"Expected a list of positions, got {type(value).__name__}.") from None
    if any(isinstance(one, (str, bool)) for one in kept):
        raise Wrong(
            "Return the positions of the texts that stay (0, 1, ...), not the texts: the labels must follow them."
        )
    if kept != sorted(kept):
        raise Wrong(
            "The positions are not in order. Keep the order of the texts, so that the same run gives the same data."
        )
    mistakes = [
        ([0, 1, 2, 3, 4, 5, 6, 7, 9], "You compare the texts as they stand. Clean them and fold the case first."),
        ([0, 1, 2, 4, 5, 7, 9], "“fine” and “FINE” are still two texts. Compare without regard to the case."),
        ([0, 1, 2, 3, 4, 5, 6, 7], "You fold the case but do not clean: names, entities and spaces still differ."),
        ([2, 3, 4, 6, 9], "You keep the last copy of each text. Keep the first."),
        ([4], "You drop every copy. One of them must stay."),
        (
            [0, 1, 5, 7],
            "Two texts that differ in “:)” and “:(” became one. Leave the punctuation alone: here it is the mood.",
        ),
        ([2, 3, 6, 8, 9], "These are the copies. Return the texts that stay."),
    ]
    if kept != [0, 1, 4, 5, 7]:
        for wrong, message in mistakes:
            if kept == wrong:
                raise Wrong(message)
        raise Wrong(f"Of {_TEXTS} the positions [0, 1, 4, 5, 7] should stay; your function keeps {kept}.")
    others = ["well", "Well", "@ann hello", "bye", "BYE", "@bo hello", "well!"]
    if list(call(answer, list(others))) != [0, 2, 3, 6]:
        raise Wrong("It is right for one list of texts only. Look at the texts that are handed over.")


@exercise(
    "data.kappa",
    points=2,
    passes="Agreement counts only as far as it goes beyond chance.",
    section="Do two people agree? Cohen's kappa",
)
def _kappa(answer: Any) -> None:
    first, second = [1] * 8 + [0] * 2, [1] * 6 + [0] * 4
    value = number(call(answer, list(first), list(second)))
    agree, chance = 0.8, 0.8 * 0.6 + 0.2 * 0.4
    right = (agree - chance) / (1 - chance)
    compare(
        value,
        right,
        [
            (agree, "That is the plain agreement. Two people who guess agree often too: take out what chance gives."),
            (chance, "That is what chance gives. Compare the agreement with it: (agreement − chance) / (1 − chance)."),
            (
                agree - chance,
                "Divide by 1 − chance, the most that could be gained, or perfect agreement would not be 1.",
            ),
            ((agree - chance) / chance, "You divided by the chance agreement. Divide by 1 − chance."),
            (
                (agree - 0.5) / 0.5,
                "You took chance as 1 / classes. It depends on how often each person gives each class.",
            ),
            (
                (agree - 0.58) / 0.42,
                "You pooled both people's labels (that is Scott's π). Multiply the shares of each person.",
            ),
            ((agree - 0.48) / 0.52, "Chance counts for every class: two people may agree on 0 by chance as well."),
        ],
        f"For {first} and {second} it is {right:.4f}, your function returns {value:g}.",
    )
    words = ["neg", "neutral", "pos", "pos", "neutral", "neg"], ["neg", "pos", "pos", "pos", "neutral", "neutral"]
    if not equal(number(call(answer, *words)), 0.5):
        raise Wrong("It is right for the classes 0 and 1 only. Go over all classes that either person gave.")


@exercise(
    "data.split",
    points=3,
    passes="Three parts that share no text, each with the same mix of classes.",
    section="Three splits, two calls",
)
def _split(answer: Any) -> None:
    labels = [0] * 100 + [1] * 900
    parts = _parts(call(answer, list(labels), 0))
    rows = np.concatenate(parts)
    if len(set(rows.tolist())) < len(rows):
        raise Wrong("A text stands in two parts. Split the rest again, never the whole twice.")
    if len(rows) < len(labels):
        raise Wrong(f"{len(labels) - len(rows)} of {len(labels)} texts are in no part.")
    sizes = tuple(len(part) for part in parts)
    if not _near(sizes, (650, 100, 250)):
        for wrong, message in (
            (
                (675, 75, 250),
                "Validation is 10% of the rest. It should be 10% of the whole: divide by the share of the rest.",
            ),
            ((675, 225, 100), "Test should be 25% of the whole and validation 10%."),
            ((650, 250, 100), "The order is train, validation, test; validation is the small one."),
            ((250, 100, 650), "The order is train, validation, test; train is the large one."),
            ((750, 0, 250), "There is no validation part. Split the rest a second time."),
        ):
            if _near(sizes, wrong):
                raise Wrong(message)
        raise Wrong(f"Of 1,000 texts, 650, 100 and 250 should go to train, validation and test; yours are {sizes}.")
    for seed in range(6):  # one seed may be right by chance
        rare = [int((np.array(labels)[part] == 0).sum()) for part in _parts(call(answer, list(labels), seed))]
        if not _near(rare, (65, 10, 25), 1):
            where = "second" if abs(rare[2] - 25) <= 1 else "first"
            raise Wrong(
                f"Of the 100 rare labels {rare[0]}, {rare[1]} and {rare[2]} went to the three parts, and it should be 65, 10 "
                f"and 25. Pass `stratify` in both calls, with the labels of what is split there (look at the {where} call)."
            )
    again, other = _parts(call(answer, list(labels), 0)), _parts(call(answer, list(labels), 1))
    if any(a.tolist() != b.tolist() for a, b in zip(parts, again, strict=True)):
        raise Wrong("The same seed gives another split each time. Pass `random_state=seed` in both calls.")
    if sorted(parts[2].tolist()) == sorted(other[2].tolist()):
        raise Wrong("Another seed gives the same test part. Pass `random_state=seed`.")
    if sorted(parts[1].tolist()) == sorted(other[1].tolist()):
        raise Wrong("Another seed gives the same validation part. Pass `random_state=seed` in the second call too.")
    if not _near([len(part) for part in _parts(call(answer, [0] * 140 + [1] * 60, 0))], (130, 20, 50)):
        raise Wrong("It is right for 1,000 texts only. The shares are 65%, 10% and 25% of however many there are.")


def _parts(value: Any) -> list[np.ndarray]:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise Wrong("Expected three lists of positions: train, validation and test.")
    parts = [np.asarray(part) for part in value]
    if any(part.ndim != 1 for part in parts):
        raise Wrong("Expected three lists of positions: train, validation and test.")
    largest = max((int(part.max()) for part in parts if part.size and part.dtype.kind in "iu"), default=0)
    if any(part.size and part.dtype.kind not in "iu" for part in parts) or largest <= 1:
        raise Wrong("Return positions of texts, not the labels themselves: split `range(len(labels))`.")
    return parts


def _near(sizes: Any, wanted: tuple[int, ...], by: int = 2) -> bool:
    return all(abs(size - want) <= by for size, want in zip(sizes, wanted, strict=True))


@exercise(
    "data.leak",
    points=2,
    passes="A test text that was trained on says nothing about new texts.",
    section="Duplicates and leakage",
)
def _leak(answer: Any) -> None:
    train = ["@anna Great film :)", "so sad", "so sad", "bad day", "fine", "ok then", "fair"]
    test = ["@bob great film :)", "SO SAD", *["bad day"] * 4, "good day", "great film :("]
    test += ["new day", "old day", "hello", "hello"]
    value = number(call(answer, list(train), list(test)))
    compare(
        value,
        6 / 12,
        [
            (4 / 12, "You find exact copies only. Clean both sides and fold the case before you compare."),
            (5 / 12, "You fold the case but do not clean: “@anna” and “@bob” are both a user."),
            (
                3 / 12,
                "You count each leaked text once. A text that stands four times in the test counts four times in the score.",
            ),
            (3 / 8, "You made a set of the test texts. Every test text counts in the score, copies too."),
            (
                4 / 7,
                "That is the share of the training texts that stand in the test. Ask of each *test* text whether it was trained on.",
            ),
            (6 / 7, "You divided by the number of training texts. Divide by the number of test texts."),
            (6, "That is how many there are. Return their share of the test texts."),
            (50, "That is in percent. Return the share itself, between 0 and 1."),
        ],
        f"6 of the 12 test texts also stand in training, a share of 0.5; your function returns {value:g}.",
    )
    if not equal(number(call(answer, ["a"], ["b", "c"])), 0):
        raise Wrong("When no test text stands in training, the share is 0.")
    if not equal(number(call(answer, ["one", "two", "three"], ["Two", "four", "five", "one", "six"])), 2 / 5):
        raise Wrong("It is right for one pair of lists only. Look at the texts that are handed over.")
