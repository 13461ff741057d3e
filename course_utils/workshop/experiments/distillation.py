"""Students of one teacher on the tweets: `python -m course_utils study-distillation [EXPERIMENT ...] [--seeds N ...]`.

The teacher is MiniLM, all of it fine-tuned on the tweets; each seed has its own, trained anew by each process that
needs it. Settings were chosen on validation, with seed 0. Each finished run is written down at once, so a stopped study
goes on where it was, and several processes may share the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.distillation import (
    DistillationConfig,
    Distilled,
    cut_layers,
    encoder_parameters,
    small_student,
    soft_label_loss,
    teacher_logits,
    with_teacher,
)
from course_utils.distillation.mistakes import MISTAKES, SoftLoss
from course_utils.evaluation.calibration import calibration_error, cross_entropy, probabilities
from course_utils.evaluation.intervals import accuracy_interval
from course_utils.evaluation.metrics import score
from course_utils.evaluation.prediction import predict
from course_utils.models.backbones import DEFAULT_BACKBONE, load_classifier
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit
from course_utils.workshop.experiments.store import Row, Runs, options, over_seeds
from course_utils.workshop.experiments.student_speed import SPEED, speed

COMMAND = "python -m course_utils study-distillation"
SEEDS = (0, 1, 2)
TEACHER = TrainingConfig(learning_rate=1e-4, epochs=3)
LAYERS = (1, 2)
RATE, EPOCHS = 5e-4, 4
#: What the tables show of each arm, over the seeds.
MEASURED = (
    *("accuracy", "kept", "teacher_accuracy", "validation_accuracy", "validation_loss"),
    *("agreement", "distance", "loss", "calibration_error", "seconds"),
)


@dataclass(frozen=True)
class Arm:
    """One way to make a student.

    Args:
        title: how the book calls it.
        loss: what it learns by.
        layers: which layers it is cut from; None means a small network of its own, with random weights.
        start: "teacher", or "pretrained" for the same layers before any tweet was seen.
        soft_loss: in place of the right one, to show what a mistake does.
        learning_rate, epochs: of its training.
    """

    title: str
    loss: DistillationConfig
    layers: tuple[int, ...] | None = LAYERS
    start: str = "teacher"
    soft_loss: SoftLoss = soft_label_loss
    learning_rate: float = RATE
    epochs: int = EPOCHS


_HARD, _SOFT = DistillationConfig(hard=1), DistillationConfig(hard=0)
_BOTH = DistillationConfig(hard=0.5, temperature=4)

ARMS: dict[str, Arm] = {
    "labels": Arm("labels only", _HARD),
    "soft": Arm("soft labels", _SOFT),
    "both": Arm("soft labels and labels", DistillationConfig(hard=0.5)),
    "hidden": Arm("soft labels and hidden states", DistillationConfig(hard=0, hidden=1)),
    "attention": Arm("soft labels and attention", DistillationConfig(hard=0, attention=1)),
    "inside": Arm("soft labels, hidden states and attention", DistillationConfig(hard=0, hidden=1, attention=1)),
    "three": Arm("three layers of the teacher, soft labels", _SOFT, (1, 2, 3)),
    "pretrained_labels": Arm("two layers of the pretrained model, labels", _HARD, start="pretrained"),
    "pretrained_soft": Arm("two layers of the pretrained model, soft labels", _SOFT, start="pretrained"),
    "tiny_labels": Arm("tiny, from scratch, labels", _HARD, None, learning_rate=1e-3, epochs=8),
    "tiny_soft": Arm("tiny, from scratch, soft labels", _SOFT, None, learning_rate=1e-3, epochs=8),
    **{
        f"layers_{first}_{second}": Arm(f"layers {first} and {second}", _SOFT, (first, second))
        for first, second in ((1, 6), (3, 6), (5, 6))
    },
    **{
        f"temperature_{temperature}": Arm(f"T = {temperature}", DistillationConfig(hard=0, temperature=temperature))
        for temperature in (1, 4, 8)
    },
    "right": Arm("the right loss", _BOTH),
    **{name: Arm(title, _BOTH, soft_loss=loss) for name, (title, loss) in MISTAKES.items()},
}

#: Each is a table of the book. An arm that stands in several of them runs once.
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "kinds": ("labels", "soft", "both", "hidden", "attention", "inside"),
    "starts": ("labels", "soft", "pretrained_labels", "pretrained_soft", "three", "tiny_labels", "tiny_soft"),
    "layers": ("soft", "layers_1_6", "layers_3_6", "layers_5_6"),
    "temperatures": ("temperature_1", "soft", "temperature_4", "temperature_8"),
    "mistakes": ("right", *MISTAKES),
}


@dataclass(frozen=True)
class Lesson:
    """A trained teacher with all that its students need.

    Args:
        teacher: in evaluation mode.
        tokenizer: of both.
        logits: its answers to the training tweets.
        validation, test: loaders.
        answers: its logits on the test tweets, in that loader's order.
        accuracy: of these.
    """

    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    logits: torch.Tensor
    validation: DataLoader
    test: DataLoader
    answers: np.ndarray
    accuracy: float


@cache
def tweets() -> DatasetDict:
    """The tweets, read once a process."""
    return load_sentiment("tweets")


@cache
def lesson(seed: int) -> Lesson:
    """The teacher of a seed, trained once a process."""
    teacher, tokenizer = load_classifier(seed=seed)
    train = make_loader(tweets()["train"], tokenizer, 32, shuffle=True, seed=seed)
    validation, test = (make_loader(tweets()[split], tokenizer, 64) for split in ("validation", "test"))
    fit(teacher, train, validation, TrainingConfig(**{**vars(TEACHER), "seed": seed}))
    labels, answers = predict(teacher.eval(), test)
    logits = teacher_logits(teacher, tweets()["train"], tokenizer)
    return Lesson(teacher, tokenizer, logits, validation, test, answers, score(labels, answers).accuracy)


def build(arm: Arm, teacher: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The student of an arm, before it learns."""
    if arm.layers is None:
        return small_student(teacher, seed=seed)
    student = cut_layers(teacher if arm.start == "teacher" else load_classifier(seed=seed)[0], arm.layers)
    # Half of the weights: they are good already, and a step without them takes half the time.
    student.get_input_embeddings().requires_grad_(False)
    return student


def train_once(arm: Arm, seed: int) -> Row:
    """One run; its row for the result file."""
    given = lesson(seed)
    student = build(arm, given.teacher, seed)
    inside = arm.loss.hidden > 0 or arm.loss.attention > 0
    learner = Distilled(student, arm.loss, given.teacher if inside else None, soft_loss=arm.soft_loss)
    plain = make_loader(tweets()["train"], given.tokenizer, 32, shuffle=True, seed=seed)
    config = TrainingConfig(learning_rate=arm.learning_rate, epochs=arm.epochs, seed=seed)
    history = fit(learner, with_teacher(plain, given.logits), given.validation, config)
    labels, logits = predict(student, given.test)
    teacher_p, student_p = probabilities(given.answers), probabilities(logits)
    best = history.evaluations[history.best_epoch - 1]
    return {
        "accuracy": score(labels, logits).accuracy,
        "kept": score(labels, logits).accuracy / given.accuracy,
        "teacher_accuracy": given.accuracy,
        "validation_accuracy": best["accuracy"],
        "validation_loss": best["loss"],
        "agreement": float((logits.argmax(1) == given.answers.argmax(1)).mean()),
        "distance": float((teacher_p * (np.log(teacher_p + 1e-12) - np.log(student_p + 1e-12))).sum(1).mean()),
        "loss": cross_entropy(labels, logits),
        "calibration_error": calibration_error(labels, student_p),
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
        "parameters": student.num_parameters(),
        "encoder": encoder_parameters(student),
    }


def main(arguments: list[str]) -> int:
    """Run what is missing and write `book/results/distillation.json`."""
    chosen = options(COMMAND, __doc__, {**EXPERIMENTS, "speed": ()}, SEEDS, arguments)
    runs = Runs("distillation", COMMAND, ("arm", "seed"), summarize)
    if chosen.again:
        unwanted = {arm for name in chosen.experiments for arm in EXPERIMENTS.get(name, SPEED)}
        runs.drop(lambda run: run["arm"] in unwanted and run["seed"] in chosen.seeds)
    for experiment in chosen.experiments:
        if experiment == "speed" and not all(runs.has({"arm": arm, "seed": SEEDS[0]}) for arm in SPEED):
            for row in speed(LAYERS):
                runs.add({**row, "seed": SEEDS[0]})
        for seed in chosen.seeds:
            for name in EXPERIMENTS.get(experiment, ()):
                if not runs.has({"arm": name, "seed": seed}):
                    row = train_once(ARMS[name], seed)
                    runs.add({"arm": name, "seed": seed, **row})
                    print(f"{ARMS[name].title}, seed {seed}: {row['accuracy']:.1%}", flush=True)
    runs.refresh()
    return 0


def summarize(runs: list[Row]) -> Row:
    """What the pages show: each arm over the seeds, where all of them are there."""
    texts = {split: len(tweets()[split]) for split in ("train", "validation", "test")}
    content: Row = {"backbone": DEFAULT_BACKBONE, "texts": texts, "seeds": list(SEEDS), "arms": {}}
    teachers = {run["seed"]: run["teacher_accuracy"] for run in runs if "teacher_accuracy" in run}
    if set(teachers) == set(SEEDS):
        content["teacher"] = over_seeds([{"accuracy": accuracy} for accuracy in teachers.values()], ("accuracy",))
    for name, arm in ARMS.items():
        mine = [run for run in runs if run["arm"] == name]
        if {run["seed"] for run in mine} != set(SEEDS):
            continue
        row = {"title": arm.title, **over_seeds(mine, MEASURED)}
        low, high = accuracy_interval(round(row["accuracy"]["mean"] * texts["test"]), texts["test"])
        row["interval"] = {"low": low, "high": high}
        content["arms"][name] = row | {key: mine[0][key] for key in ("parameters", "encoder")}
    content["speed"] = {run["arm"].removeprefix("speed_"): run for run in runs if run["arm"] in SPEED}
    return content
