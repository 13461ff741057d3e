"""Few labels and a teacher: `python -m course_utils study-few-shot [EXPERIMENT ...] [--seeds N ...]`.

The student is two layers of MiniLM as it was pretrained. Of the training tweets, 16 to 256 have a label that it may
read; a seed draws which. The settings were chosen on validation, once for all sizes, with seed 0 and 64 labels. Each
finished run is written down at once, and several processes may share the work.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.distillation import (
    DistillationConfig,
    FewShotConfig,
    cut_layers,
    draw_labels,
    few_shot_student,
    people_logits,
    teacher_logits,
    without_labels,
)
from course_utils.distillation.few_shot import seeded
from course_utils.evaluation.metrics import majority_accuracy
from course_utils.evaluation.prediction import evaluate
from course_utils.models.backbones import DEFAULT_BACKBONE, load_classifier
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit
from course_utils.workshop.experiments.distillation import LAYERS, TEACHER, lesson, tweets
from course_utils.workshop.experiments.store import Row, Runs, options, over_seeds

COMMAND = "python -m course_utils study-few-shot"
SEEDS = (0, 1, 2, 3, 4)
SIZES = (16, 32, 64, 128, 256)
MIDDLE = 64
SETTINGS = FewShotConfig()
#: Labels alone want more steps than labels after a teacher.
ALONE = FewShotConfig(tune=TrainingConfig(learning_rate=3e-4, epochs=1), tune_steps=150)
#: What the tables show of each arm, over the seeds.
MEASURED = ("accuracy", "f1_macro", "validation_accuracy", "teacher_accuracy")

#: A teacher's answers to the training tweets, logits (texts, 2), and its accuracy on the test tweets.
Answers = tuple[torch.Tensor, float]


@dataclass(frozen=True)
class Arm:
    """One way to learn from few labels.

    Args:
        title: how the book calls it.
        teacher: a key of `TEACHERS`; None learns from the labels alone.
        settings: of steps 3 and 4.
        unlabelled: how many of the texts without a label the teacher answers for; None means all.
        reviews_first: whether the student itself learns the product reviews before, without a teacher.
    """

    title: str
    teacher: str | None = None
    settings: FewShotConfig = SETTINGS
    unlabelled: int | None = None
    reviews_first: bool = False


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    """Token vectors are good already, and few labels name few words."""
    model.get_input_embeddings().requires_grad_(False)
    return model


def _learn_reviews(model: PreTrainedModel, rate: float, seed: int, wrong: float = 0.0) -> None:
    """One epoch on sentences of product reviews; a share of their labels is turned round."""
    _, tokenizer = load_classifier()
    reviews, chance = load_sentiment("products"), random.Random(seed)
    labels = [1 - label if chance.random() < wrong else label for label in reviews["train"]["label"]]
    texts = Dataset.from_dict({"text": list(reviews["train"]["text"]), "label": labels})
    train = make_loader(texts, tokenizer, 32, shuffle=True, seed=seed)
    validation = make_loader(reviews["validation"], tokenizer, 64)
    fit(model, train, validation, TrainingConfig(learning_rate=rate, epochs=1, seed=seed))


def _answers(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Answers:
    test = make_loader(tweets()["test"], tokenizer, 64)
    return teacher_logits(teacher, tweets()["train"], tokenizer), evaluate(teacher, test).accuracy


@cache
def _review_teacher(seed: int, wrong: float = 0.0) -> Answers:
    teacher, tokenizer = load_classifier(seed=seed)
    _learn_reviews(_frozen(teacher), TEACHER.learning_rate, seed, wrong)
    return _answers(teacher, tokenizer)


@cache
def _few_teacher(seed: int, size: int) -> Answers:
    teacher, tokenizer = load_classifier(seed=seed)
    texts = without_labels(tweets()["train"], draw_labels(tweets()["train"], size, seed))
    validation = make_loader(tweets()["validation"], tokenizer, 64)
    few_shot_student(_frozen(teacher), texts, None, tokenizer, validation, seeded(ALONE, seed))
    return _answers(teacher, tokenizer)


@cache
def _untrained_teacher(seed: int) -> Answers:
    return _answers(*load_classifier(seed=seed))


def _tweet_teacher(seed: int) -> Answers:
    given = lesson(seed)
    return given.logits, given.accuracy


def _people_teacher() -> Answers:
    answers = people_logits(tweets()["test"]).argmax(1)
    right = (answers == torch.tensor(tweets()["test"]["label"])).float().mean()
    return people_logits(tweets()["train"]), float(right)


#: Who may teach, for a seed and a number of labels.
TEACHERS: dict[str, Callable[[int, int], Answers]] = {
    "reviews": lambda seed, size: _review_teacher(seed),
    "few": _few_teacher,
    "tweets": lambda seed, size: _tweet_teacher(seed),
    "people": lambda seed, size: _people_teacher(),
    "untrained": lambda seed, size: _untrained_teacher(seed),
    "reviews_20": lambda seed, size: _review_teacher(seed, 0.2),
    "reviews_40": lambda seed, size: _review_teacher(seed, 0.4),
    "reviews_50": lambda seed, size: _review_teacher(seed, 0.5),
}

_NO_4 = replace(SETTINGS, tune_steps=0)
_SOFT_3 = replace(SETTINGS, loss=replace(SETTINGS.loss, hard=0.0))
# Votes or labels for the same few texts: as many steps, of the same size and learning rate, as on labels alone.
_VOTE_LOSS = DistillationConfig(hard=0, temperature=1)
_ON_VOTES = replace(ALONE, loss=_VOTE_LOSS, learn=ALONE.tune, batch_size=ALONE.tune_batch_size, tune_steps=0)

ARMS: dict[str, Arm] = {
    "labels": Arm("labels only", settings=ALONE),
    "reviews": Arm("a teacher of product reviews", "reviews"),
    "few": Arm("a teacher of the same few labels", "few"),
    "people": Arm("twenty people", "people"),
    "votes": Arm("votes for the few texts, no others", "people", _ON_VOTES, unlabelled=0),
    "tweets": Arm("a teacher of all labels", "tweets"),
    "untrained": Arm("a teacher that has learnt nothing", "untrained"),
    "no_unlabelled": Arm("a teacher for the labelled texts only", "reviews", unlabelled=0),
    "no_4": Arm("without step 4", "reviews", _NO_4),
    "soft_3": Arm("no labels in step 3", "reviews", _SOFT_3),
    "no_labels": Arm("no label at all", "reviews", replace(_SOFT_3, tune_steps=0)),
    "reviews_first": Arm("no teacher: product reviews, then the labels", reviews_first=True, settings=ALONE),
    "reviews_20": Arm("20% of the reviews' labels wrong", "reviews_20"),
    "reviews_40": Arm("40% of the reviews' labels wrong", "reviews_40"),
    "reviews_50": Arm("50% of the reviews' labels wrong", "reviews_50"),
    "unlabelled_128": Arm("128 texts without a label", "reviews", unlabelled=128),
    "unlabelled_512": Arm("512 texts without a label", "reviews", unlabelled=512),
}

#: Each is a table of the book: its numbers of labels, and its arms. What stands in several of them runs once.
EXPERIMENTS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "curves": (SIZES, ("labels", "reviews")),
    "teachers": (SIZES, ("few", "people")),
    "votes": (SIZES, ("labels", "votes")),
    "steps": (
        (MIDDLE,),
        ("reviews", "untrained", "no_unlabelled", "labels", "no_4", "soft_3", "no_labels", "reviews_first"),
    ),
    "bad_teachers": ((MIDDLE,), ("tweets", "reviews", "reviews_20", "reviews_40", "reviews_50", "labels")),
    "unlabelled": ((MIDDLE,), ("no_unlabelled", "unlabelled_128", "unlabelled_512", "reviews")),
}


def train_once(arm: Arm, size: int, seed: int) -> Row:
    """One run; its row for the result file."""
    model, tokenizer = load_classifier(seed=seed)
    student = _frozen(cut_layers(model, LAYERS))
    settings, train = seeded(arm.settings, seed), tweets()["train"]
    labelled = draw_labels(train, size, seed)
    texts = without_labels(train, labelled)
    logits, accuracy = TEACHERS[arm.teacher](seed, size) if arm.teacher else (None, None)
    if arm.reviews_first:
        _learn_reviews(student, SETTINGS.learn.learning_rate, seed)
    if arm.unlabelled is not None and logits is not None:
        others = [row for row in range(len(train)) if row not in set(labelled)]
        rows = sorted(labelled + random.Random(seed).sample(others, arm.unlabelled))
        texts, logits = texts.select(rows), logits[rows]
        # As many steps as with all texts, or as on labels alone: more passes over fewer texts.
        read = ALONE.tune_steps * settings.batch_size if arm.settings is _ON_VOTES else settings.passes * len(train)
        settings = replace(settings, passes=max(1, read // len(rows)))
    validation, test = (make_loader(tweets()[split], tokenizer, 64) for split in ("validation", "test"))
    few_shot_student(student, texts, logits, tokenizer, validation, settings)
    scores = evaluate(student, test)
    row: Row = {"accuracy": scores.accuracy, "f1_macro": scores.f1_macro}
    row["validation_accuracy"] = evaluate(student, validation).accuracy
    return row if accuracy is None else {**row, "teacher_accuracy": accuracy}


def main(arguments: list[str]) -> int:
    """Run what is missing and write `book/results/few_shot_distillation.json`."""
    chosen = options(COMMAND, __doc__, EXPERIMENTS, SEEDS, arguments)
    runs = Runs("few_shot_distillation", COMMAND, ("arm", "labels", "seed"), summarize)
    if chosen.again:
        unwanted = {arm for name in chosen.experiments for arm in EXPERIMENTS[name][1]}
        runs.drop(lambda run: run["arm"] in unwanted and run["seed"] in chosen.seeds)
    for experiment in chosen.experiments:
        sizes, arms = EXPERIMENTS[experiment]
        for seed, size, name in product(chosen.seeds, sizes, arms):
            key = {"arm": name, "labels": size, "seed": seed}
            if not runs.has(key):
                row = train_once(ARMS[name], size, seed)
                runs.add({**key, **row})
                print(f"{ARMS[name].title}, {size} labels, seed {seed}: {row['accuracy']:.1%}", flush=True)
    runs.refresh()
    return 0


def summarize(runs: list[Row]) -> Row:
    """What the pages show: each arm over the seeds, where all of them are there, and the gain over labels alone."""
    train, test = tweets()["train"], tweets()["test"]
    content: Row = {
        "backbone": DEFAULT_BACKBONE,
        "texts": {split: len(tweets()[split]) for split in ("train", "validation", "test")},
        "reviews": len(load_sentiment("products")["train"]),
        "majority": majority_accuracy(list(train["label"]), list(test["label"])),
        "seeds": list(SEEDS),
        "sizes": list(SIZES),
        "arms": {},
    }
    by_key = {(run["arm"], run["labels"], run["seed"]): run for run in runs}
    for name, size in product(ARMS, SIZES):
        if any((name, size, seed) not in by_key for seed in SEEDS):
            continue
        mine = [by_key[name, size, seed] for seed in SEEDS]
        row = {"title": ARMS[name].title, "labels": size}
        row |= over_seeds(mine, [key for key in MEASURED if key in mine[0]])
        if all(("labels", size, seed) in by_key for seed in SEEDS):
            alone = [by_key["labels", size, seed]["accuracy"] for seed in SEEDS]
            gains = [{"gain": 100 * (run["accuracy"] - a)} for run, a in zip(mine, alone, strict=True)]
            row |= over_seeds(gains, ("gain",))
        content["arms"].setdefault(name, {})[str(size)] = row
    return content
