"""The settings of a training run, and the error of one that cannot go on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from course_utils.errors import CourseError

SCHEDULES = ("linear", "constant")
PRECISIONS = ("fp32", "bf16", "auto")
DEVICES = ("auto", "cpu", "cuda")


class TrainingError(CourseError, RuntimeError):
    """Training cannot start or go on. The model keeps the best weights so far."""


@dataclass(frozen=True)
class TrainingConfig:
    """The hyper-parameters of a run.

    Args:
        learning_rate: the highest one, reached after the warm-up.
        epochs: passes over the training data, at most.
        schedule: "linear" falls to 0 at the end; "constant" stays.
        warmup: share of all steps in which the learning rate climbs from 0.
        weight_decay: AdamW's, on matrices only; biases, normalisations and other vectors are left alone.
        clip_norm: the gradient is scaled down to this length when it is longer; `math.inf` never clips.
        accumulate: the optimiser steps once every so many batches, as if they were one large batch. What is left over
            at the end of an epoch makes a smaller one.
        patience: stop after so many evaluations in a row without improvement; None never stops early.
        minimum_change: what counts as an improvement of the validation loss.
        seed: of dropout and of everything else that draws at random while training. (The order of the texts is the
            loader's.)
        precision: "fp32", "bf16" for autocast, or "auto" for the faster of the two here, see `training.precision`.
        device: "auto", "cpu" or "cuda".
        max_steps: stop after so many steps of the optimiser, for short experiments; None means all epochs.
        split_batches: for several processes. False: each process reads batches of its own, so that a step takes as
            many texts as all of them together hold. True: each batch is shared among the processes, so that a step
            takes the texts that it would take in one process.
    """

    learning_rate: float = 5e-4
    epochs: int = 3
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    patience: int | None = None
    minimum_change: float = 0.0
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    max_steps: int | None = None
    split_batches: bool = False

    def __post_init__(self) -> None:
        _require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate), "learning_rate above 0", self.learning_rate
        )
        _require(self.epochs >= 1, "epochs of at least 1", self.epochs)
        _require(self.schedule in SCHEDULES, f"schedule out of {SCHEDULES}", self.schedule)
        _require(0 <= self.warmup < 1, "warmup as a share from 0 to below 1", self.warmup)
        _require(self.weight_decay >= 0, "weight_decay of at least 0", self.weight_decay)
        _require(self.clip_norm > 0, "clip_norm above 0", self.clip_norm)
        _require(self.accumulate >= 1, "accumulate of at least 1", self.accumulate)
        _require(self.patience is None or self.patience >= 1, "patience of at least 1, or None", self.patience)
        _require(self.minimum_change >= 0, "minimum_change of at least 0", self.minimum_change)
        _require(self.precision in PRECISIONS, f"precision out of {PRECISIONS}", self.precision)
        _require(self.device in DEVICES, f"device out of {DEVICES}", self.device)
        _require(self.max_steps is None or self.max_steps >= 1, "max_steps of at least 1, or None", self.max_steps)


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise TrainingError(f"expected {expected}, got {got!r}")
