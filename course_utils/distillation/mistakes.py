"""What goes wrong in the loss on soft labels: each function has one mistake that is often made, to be measured.

All take and return what `soft_label_loss` does. None of them raises an error: that is why they go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from course_utils.distillation.losses import soft_label_loss

SoftLoss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def swapped(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(student ‖ teacher): the other direction."""
    log_p, log_q = (torch.log_softmax(logits / temperature, -1) for logits in (teacher.detach(), student))
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def without_square(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher ‖ student) without T²."""
    return soft_label_loss(student, teacher, temperature) / temperature**2


def mean_over_classes(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`kl_div` with its default, which divides by the number of classes as well."""
    return soft_label_loss(student, teacher, temperature) / student.shape[1]


def student_not_softened(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Only the teacher's logits are divided by T."""
    return soft_label_loss(student * temperature, teacher, temperature)


def no_logarithm(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`kl_div` is given the student's probabilities, where it wants their logarithm."""
    p, q = (torch.softmax(logits / temperature, -1) for logits in (teacher.detach(), student))
    return temperature**2 * nn.functional.kl_div(q, p, reduction="batchmean")


def raw_logits(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`kl_div` is given the student's logits, where it wants the logarithm of probabilities."""
    p = torch.softmax(teacher.detach() / temperature, -1)
    return temperature**2 * nn.functional.kl_div(student / temperature, p, reduction="batchmean")


def answers_of_others(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Each text gets the teacher's answer to the text before it: stored in one order, read in another."""
    return soft_label_loss(student, teacher.roll(1, dims=0), temperature)


#: What each is called in tables.
MISTAKES: dict[str, tuple[str, SoftLoss]] = {
    "swapped": ("KL(student ‖ teacher)", swapped),
    "without_square": ("T² forgotten", without_square),
    "mean_over_classes": ("kl_div with its default mean", mean_over_classes),
    "student_not_softened": ("student not divided by T", student_not_softened),
    "no_logarithm": ("probabilities where their logarithm is wanted", no_logarithm),
    "raw_logits": ("logits where logarithms of probabilities are wanted", raw_logits),
    "answers_of_others": ("the teacher's answers stand one text further", answers_of_others),
}
