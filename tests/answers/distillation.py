"""Answers to the exercises of chapter 19: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from course_utils.distillation.mistakes import MISTAKES

Function = Callable[..., Any]
_WRONG = {name: loss for name, (_, loss) in MISTAKES.items()}


def _kl(student: Any, teacher: Any, T: float, reduction: str = "batchmean") -> Any:
    q, p = torch.log_softmax(student / T, -1), torch.softmax(teacher / T, -1)
    if reduction == "mean":  # the default, which warns
        return functional.kl_div(q, p, reduction="none").mean()
    return functional.kl_div(q, p, reduction=reduction)


def _cross(student: Any, teacher: Any, T: float) -> Any:
    return -(T**2) * (torch.softmax(teacher / T, -1) * torch.log_softmax(student / T, -1)).sum(-1).mean()


def _difference(student: Any, teacher: Any, T: float) -> Any:
    return torch.softmax(student / T, -1) - torch.softmax(teacher / T, -1)


def _by_autograd(student: Any, teacher: Any, T: float) -> Any:
    student = student.clone().requires_grad_(True)
    return torch.autograd.grad(T**2 * _kl(student, teacher, T), student)[0]


def _square(student: Any, teacher: Any) -> Any:
    return (student - teacher) ** 2


WRONG: dict[str, list[tuple[Function, str]]] = {
    "distillation.soft_loss": [
        (_WRONG["swapped"], "KL(student ‖ teacher)"),
        (_WRONG["without_square"], "T² is missing"),
        (lambda s, t, T: T * _kl(s, t, T), "multiply by T²"),
        (_WRONG["mean_over_classes"], "texts and classes"),
        (lambda s, t, T: T**2 * _kl(s, t, T, "mean"), "texts and classes"),
        (lambda s, t, T: _kl(s, t, T, "mean"), "over the classes as well"),
        (lambda s, t, T: T**2 * _kl(s, t, T, "sum"), "added up the texts"),
        (_WRONG["student_not_softened"], "Only the teacher is softened"),
        (lambda s, t, T: T**2 * _kl(s, t * T, T), "Only the student is softened"),
        (lambda s, t, T: T**2 * _kl(s, t, 1.0), "Neither of the two"),
        (_WRONG["no_logarithm"], "use log_softmax"),
        (_WRONG["raw_logits"], "got logits"),
        (_cross, "cross-entropy"),
        (lambda s, t, T: 2.5**2 * _kl(s, t, 2.5), "T = 2.5, 4 texts"),
        (_WRONG["answers_of_others"], "The result is not"),
        (lambda s, t, T: (T**2 * _kl(s, t, T)).item(), "Without `.item()`"),
        (lambda s, t, T: torch.tensor(T**2 * _kl(s, t, T), requires_grad=True), "No gradient comes back"),
        (lambda s, t, T: T**2 * _kl(s.detach(), t, T), "No gradient comes back"),
    ],
    "distillation.gradient": [
        (lambda s, t, T: -T * _difference(s, t, T) / len(s), "sign"),
        (lambda s, t, T: T * _difference(s, t, T), "divide by their number"),
        (lambda s, t, T: _difference(s, t, T) / len(s), "factor T is missing"),
        (lambda s, t, T: T**2 * _difference(s, t, T) / len(s), "One T too many"),
        (lambda s, t, T: _difference(s, t, T) / T / len(s), "without T²"),
        (lambda s, t, T: _difference(s, t, T), "Both T and the number"),
        (lambda s, t, T: T * _difference(s, t, 1.0) / len(s), "at temperature T"),
        (lambda s, t, T: s - t, "The result is not"),
    ],
    "distillation.layers": [
        (lambda own, total: [total * k // own - 1 for k in range(1, own + 1)], "counted from 0"),
        (lambda own, total: [total * k // own for k in range(own)], "start at 0"),
        (lambda own, total: list(range(1, own + 1)), "the first layers"),
        (lambda own, total: list(range(total - own + 1, total + 1)), "the last layers"),
        (lambda own, total: [1 + total * k // own for k in range(own)], "last layer of the student"),
        (lambda own, total: [1, 6], "imitates layer 3"),
        (lambda own, total: [3, 6], "right for 2 of 6"),
        (lambda own, total: 3, "list of layer numbers"),
    ],
    "distillation.hidden_states": [
        (lambda s, t, mask: _square(s, t).mean(), "Padding is counted"),
        (lambda s, t, mask: (_square(s, t) * mask[..., None]).mean(), "still counts"),
        (lambda s, t, mask: (_square(s, t) * mask[..., None]).sum() / mask.sum(), "over the width too"),
        (lambda s, t, mask: (_square(s, t) * mask[..., None]).sum(), "That is the sum"),
        (lambda s, t, mask: (s - t).abs()[mask.bool()].mean(), "Square it"),
        (lambda s, t, mask: _square(s, t)[:, 0].mean(), "first token only"),
        (
            lambda s, t, mask: torch.stack(
                [_square(a, b)[m.bool()].mean() for a, b, m in zip(s, t, mask, strict=True)]
            ).mean(),
            "short text",
        ),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "distillation.soft_loss": [
        lambda s, t, T: T**2 * _kl(s, t, T),
        lambda s, t, T: T**2 * _kl(s, t, T, "sum") / len(s),
    ],
    "distillation.gradient": [_by_autograd],
    "distillation.layers": [
        lambda own, total: tuple(range(total // own, total + 1, total // own)),
        lambda own, total: torch.arange(1, own + 1) * (total // own),
    ],
    "distillation.hidden_states": [
        lambda s, t, mask: functional.mse_loss(s[mask.bool()], t[mask.bool()]),
        lambda s, t, mask: (_square(s, t) * mask[..., None]).sum() / (mask.sum() * s.shape[-1]),
    ],
}
