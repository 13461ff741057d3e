"""The checks of chapter 20, few-shot distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from course_utils.distillation import NO_LABEL, soft_label_loss
from course_utils.exercises.checking import (
    Wrong,
    call,
    compare,
    equal,
    exercise,
    loss,
    number,
    random_tensors,
    trained_tensors,
)

_FORMULA = "The formula, beside the code"
_PEOPLE = "People as a teacher"
_BAD = "A bad teacher"


@exercise(
    "few_shot_distillation.loss",
    points=3,
    passes="The labels speak where there are some, the teacher speaks for every text.",
    section=_FORMULA,
)
def _loss(answer: Any) -> None:
    student, teacher = trained_tensors((7, 2), (7, 2))
    labels = torch.tensor([1, NO_LABEL, NO_LABEL, 0, NO_LABEL, 1, NO_LABEL])
    known, a, T = labels != NO_LABEL, 0.3, 2.5
    hard = functional.cross_entropy(student[known], labels[known])
    soft = soft_label_loss(student, teacher, T)
    right = a * hard + (1 - a) * soft
    value = loss(call(answer, student, teacher, labels, a, T), student)
    if value.isnan():
        raise Wrong("The result is NaN. Take the cross-entropy over the texts that have a label only.")
    compare(
        value,
        right,
        [
            (
                a * hard + (1 - a) * soft_label_loss(student[known], teacher[known], T),
                "The teacher is heard for the labelled texts only. It speaks for every text: that is what it is for.",
            ),
            (
                a * hard + (1 - a) * soft_label_loss(student[~known], teacher[~known], T),
                "The teacher is heard for the unlabelled texts only. It speaks for every text.",
            ),
            ((1 - a) * hard + a * soft, "The weights are swapped: a belongs to the labels."),
            (hard + soft, "The weights are missing: a for the labels and 1 − a for the teacher."),
            (a * hard * 3 / 7 + (1 - a) * soft, "Divide the cross-entropy by the texts that have a label, not by all."),
            (a * hard + soft, "The teacher's part has the weight 1 − a."),
            (a * hard, "The teacher's part is missing."),
            ((1 - a) * soft, "The labels' part is missing."),
            (hard + (1 - a) * soft, "The labels' part has the weight a."),
            (a * hard + (1 - a) * T**2 * soft, "T² is in `soft_label_loss` already. You multiplied by it once more."),
            (
                a * hard + (1 - a) / T**2 * soft,
                "T² belongs to the teacher's part, and `soft_label_loss` has it already.",
            ),
            (
                a * functional.cross_entropy(torch.softmax(student[known], -1), labels[known]) + (1 - a) * soft,
                "You took the softmax before the cross-entropy, which takes the logits and does that itself.",
            ),
            (
                a * functional.cross_entropy(student[known] / T, labels[known]) + (1 - a) * soft,
                "The temperature is for the teacher's part. The cross-entropy takes the student's plain logits.",
            ),
            (
                a * hard + (1 - a) * soft_label_loss(teacher, student, T),
                "The direction is turned: the teacher's probabilities are the weights.",
            ),
        ],
        "The result is not a · CE (labelled texts) + (1 − a) · soft_label_loss (all texts).",
    )
    _without_labels(answer, student, teacher, a, T)
    student, teacher = trained_tensors((5, 3), (5, 3))
    labels, a, T = torch.tensor([2, 0, NO_LABEL, 1, 1]), 0.75, 4.0
    right = a * functional.cross_entropy(student, labels) + (1 - a) * soft_label_loss(student, teacher, T)
    if not equal(loss(call(answer, student, teacher, labels, a, T), student), right):
        raise Wrong("It is right for one batch only. Take a, T and the sizes from what you are given.")


def _without_labels(answer: Any, student: torch.Tensor, teacher: torch.Tensor, a: float, T: float) -> None:
    """A batch in which no text has a label."""
    soft = soft_label_loss(student, teacher, T)
    value = loss(call(answer, student, teacher, torch.full((7,), NO_LABEL), a, T), student)
    said = "In a batch without any label the teacher's part should remain, (1 − a) · soft_label_loss. "
    compare(
        value,
        (1 - a) * soft,
        [
            (soft, said + "Yours lacks the factor 1 − a there: a batch would weigh more for having no labels."),
            (0 * soft, said + "Yours is 0: the teacher speaks for these texts too."),
            (a * soft, said + "You gave it the factor a."),
        ],
        said + "PyTorch's mean over no text is NaN: treat the labels' part apart.",
    )


@exercise(
    "few_shot_distillation.votes",
    points=2,
    passes="Each person has one vote, and who says 0 gives half of it to each side.",
    section=_PEOPLE,
)
def _votes(answer: Any) -> None:
    ratings = [3, 1, 0, -1, 2, 0, 1, -3]
    compare(
        _value(call(answer, list(ratings))),
        5 / 8,
        [
            (4 / 8, "A rating of 0 counts as a vote against. Give half of it to each side."),
            (6 / 8, "A rating of 0 counts as a vote for. Give half of it to each side."),
            (4 / 6, "You left the zeros out. They are the votes of people in doubt: half for each side."),
            (
                (3 / 8 + 4) / 8,
                "That is the mean rating, moved to 0 to 1. Count votes: who says 3 and who says 1 vote alike.",
            ),
            (1, "That is the majority's label. The share of the votes is asked for."),
            (
                3 / 8,
                "That is the mean rating, or the share of the negative votes. Asked for is the share of the positive.",
            ),
            (5, "That is the number of votes. Divide by the number of people."),
        ],
        "For ratings of 3, 1, 0, −1, 2, 0, 1 and −3 it is 5 of 8.",
    )
    for others, share in (([0, 0], 0.5), ([-1, -4, 0, -2], 0.125), ([4] * 20, 1.0)):
        if not equal(_value(call(answer, list(others))), share):
            raise Wrong(f"It is right for one text only: for ratings {others} it is {share}.")


@exercise(
    "few_shot_distillation.expected",
    points=2,
    passes="The mean of the largest probability is what a teacher believes of itself. Nobody needed a label for it.",
    section=_BAD,
)
def _expected(answer: Any) -> None:
    logits = 2 * random_tensors((51, 2))[0]
    p = torch.softmax(logits, -1)
    compare(
        _value(call(answer, logits)),
        p.amax(1).mean(),
        [
            (
                p[:, 1].mean(),
                "That is the share of positive texts that it expects. Take the likelier class of each text.",
            ),
            (
                p[:, 0].mean(),
                "That is the share of negative texts that it expects. Take the likelier class of each text.",
            ),
            (logits.amax(1).mean(), "Those are logits. Make probabilities of them first."),
            (
                torch.sigmoid(logits).amax(1).mean(),
                "That is the sigmoid of each logit. Two classes that exclude each other share one softmax.",
            ),
            (
                logits.argmax(1).float().mean(),
                "That is the mean of the class *numbers*, argmax. Take the largest probability itself, amax.",
            ),
            (p.amax(1).amax(), "That is its surest answer. Take the mean over the texts."),
            (p.amin(1).mean(), "That is the share of wrong answers that it expects."),
            (torch.softmax(logits, 0).amax(1).mean(), "The softmax runs over the texts. It runs over the classes."),
            (p.mean(), "The mean over both classes is always 1 / 2. Take the larger one of each text."),
        ],
        "The result is not the mean over the texts of the likelier class's probability.",
    )
    logits = random_tensors((7, 2))[0]
    if not equal(_value(call(answer, logits)), torch.softmax(logits, -1).amax(1).mean()):
        raise Wrong("It is right for one table of logits only. Use the argument.")


def _value(value: Any) -> torch.Tensor:
    return torch.tensor(number(value))
