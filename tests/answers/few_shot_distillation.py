"""Answers to the exercises of chapter 20: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from course_utils.distillation import NO_LABEL, hard_label_loss, soft_label_loss

Function = Callable[..., Any]


def _ce(student: Any, labels: Any) -> Any:
    return functional.cross_entropy(student, labels)


def _only(student: Any, teacher: Any, labels: Any, a: float, T: float, rows: Any) -> Any:
    return a * _ce(student, labels) + (1 - a) * soft_label_loss(student[rows], teacher[rows], T)


def _by_rows(student: Any, teacher: Any, labels: Any, a: float, T: float) -> Any:
    known = [row for row, label in enumerate(labels.tolist()) if label != NO_LABEL]
    hard = sum(-torch.log_softmax(student[row], -1)[labels[row]] for row in known) / max(1, len(known))
    return a * hard + (1 - a) * soft_label_loss(student, teacher, T)


def _right(student: Any, teacher: Any, labels: Any, a: float, T: float) -> Any:
    return a * hard_label_loss(student, labels) + (1 - a) * soft_label_loss(student, teacher, T)


def _share(ratings: list[int], zero: float) -> float:
    return sum(1.0 if rating > 0 else zero if rating == 0 else 0.0 for rating in ratings) / len(ratings)


WRONG: dict[str, list[tuple[Function, str]]] = {
    "few_shot_distillation.loss": [
        (lambda s, t, y, a, T: _only(s, t, y, a, T, y != NO_LABEL), "for the labelled texts only"),
        (lambda s, t, y, a, T: _only(s, t, y, a, T, y == NO_LABEL), "unlabelled texts only"),
        (lambda s, t, y, a, T: _right(s, t, y, 1 - a, T), "swapped"),
        (lambda s, t, y, a, T: _ce(s, y) + soft_label_loss(s, t, T), "weights are missing"),
        (lambda s, t, y, a, T: a * _ce(s, y) + soft_label_loss(s, t, T), "weight 1 − a"),
        (lambda s, t, y, a, T: a * _ce(s, y), "teacher's part is missing"),
        (lambda s, t, y, a, T: (1 - a) * soft_label_loss(s, t, T), "labels' part is missing"),
        (
            lambda s, t, y, a, T: (
                a * functional.cross_entropy(s, y, reduction="sum") / len(y) + (1 - a) * soft_label_loss(s, t, T)
            ),
            "not by all",
        ),
        (lambda s, t, y, a, T: a * _ce(s, y) + (1 - a) * soft_label_loss(t, s, T), "direction is turned"),
        (lambda s, t, y, a, T: a * _ce(s, y) + (1 - a) * soft_label_loss(s, t, T), "without any label"),
        (lambda s, t, y, a, T: a * _ce(s, y) * float("nan"), "NaN"),
        (lambda s, t, y, a, T: _right(s, t, y, a, T).item(), "Without `.item()`"),
        (lambda s, t, y, a, T: _right(s.detach(), t, y, a, T), "No gradient comes back"),
        (
            lambda s, t, y, a, T: _right(s, t, y, a, T) if (y != NO_LABEL).any() else soft_label_loss(s, t, T),
            "lacks the factor 1 − a",
        ),
        (
            lambda s, t, y, a, T: _right(s, t, y, a, T) if (y != NO_LABEL).any() else 0 * s.sum(),
            "Yours is 0",
        ),
        (lambda s, t, y, a, T: a * _ce(s, y) + (1 - a) * T**2 * soft_label_loss(s, t, T), "once more"),
        (lambda s, t, y, a, T: a * _ce(s.softmax(-1), y) + (1 - a) * soft_label_loss(s, t, T), "softmax before"),
        (lambda s, t, y, a, T: a * _ce(s / T, y) + (1 - a) * soft_label_loss(s, t, T), "plain logits"),
    ],
    "few_shot_distillation.votes": [
        (lambda ratings: _share(ratings, 0.0), "vote against"),
        (lambda ratings: _share(ratings, 1.0), "vote for"),
        (lambda ratings: _share([r for r in ratings if r] or [0], 0.0), "left the zeros out"),
        (lambda ratings: (sum(ratings) / len(ratings) + 4) / 8, "mean rating, moved"),
        (lambda ratings: int(sum(ratings) > 0), "majority's label"),
        (lambda ratings: _share(ratings, 0.5) * len(ratings), "number of votes"),
        (lambda ratings: 5 / 8, "one text only"),
    ],
    "few_shot_distillation.expected": [
        (lambda logits: torch.softmax(logits, -1)[:, 1].mean(), "positive texts"),
        (lambda logits: torch.softmax(logits, -1)[:, 0].mean(), "negative texts"),
        (lambda logits: logits.amax(1).mean(), "Those are logits"),
        (lambda logits: torch.softmax(logits, -1).max(), "surest answer"),
        (lambda logits: torch.sigmoid(logits).amax(1).mean(), "sigmoid of each logit"),
        (lambda logits: torch.softmax(logits, -1).argmax(1).float().mean(), "class *numbers*"),
        (lambda logits: torch.softmax(logits, -1).amin(1).mean(), "wrong answers"),
        (lambda logits: torch.softmax(logits, 0).amax(1).mean(), "over the texts"),
        (lambda logits: torch.softmax(logits, -1).mean(), "always 1 / 2"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "few_shot_distillation.loss": [_right, _by_rows],
    "few_shot_distillation.votes": [lambda ratings: _share(ratings, 0.5)],
    "few_shot_distillation.expected": [lambda logits: torch.sigmoid((logits[:, 0] - logits[:, 1]).abs()).mean()],
}
