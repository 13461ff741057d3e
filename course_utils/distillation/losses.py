"""Distillation: a small student learns from a teacher's probabilities, not only from labels.

Source: Hinton, Vinyals, Dean 2015 (arXiv:1503.02531).

    p = softmax(teacher / T)    q = softmax(student / T)    (texts, classes)
    loss = T² · KL(p ‖ q) = T² · Σ p (log p − log q)        sum over classes, mean over texts

The temperature T ≥ 1 flattens both distributions, so that the teacher's small probabilities count. The gradient of the
KL shrinks with 1 / T², and T² takes that back: the share of this loss beside one on labels does not depend on T.

The two other losses compare what happens inside: the hidden states, and where each token looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from course_utils.errors import CourseError

#: The label of a text that has none; PyTorch's cross-entropy leaves such texts out.
NO_LABEL = -100


class DistillationError(CourseError, ValueError):
    """Student, teacher, their texts or the settings make no sense together."""


def soft_label_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of the softened probabilities, in nats; the mean over the texts.

    The direction matters: the teacher's probabilities are the weights. The mean is over texts alone, what PyTorch's
    `kl_div` calls `batchmean`; its default divides by the number of classes as well. No gradient reaches the teacher.

    Args:
        student: logits (texts, classes).
        teacher: logits of the same shape.
        temperature: T, above 0.

    Raises:
        DistillationError: shapes that differ or are not (texts, classes), no text, or a temperature that is not a
            finite number above 0.
    """
    if student.shape != teacher.shape or student.ndim != 2 or student.numel() == 0:
        raise DistillationError(
            f"expected logits of student and teacher with one shape (texts, classes), got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}; let both read the same batch, and give both the same classes in the same order"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise DistillationError(f"expected a temperature above 0, got {temperature}; 1 to 5 are usual")
    log_p = torch.log_softmax(teacher.detach() / temperature, dim=-1)
    log_q = torch.log_softmax(student / temperature, dim=-1)
    p = log_p.exp()
    distances = torch.where(
        p > 0, p * (log_p - log_q), 0.0
    )  # p log p is 0 where p is 0: a teacher may rule a class out
    return temperature**2 * distances.sum(dim=-1).mean()


def hard_label_loss(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels, the mean over the texts that have one; 0 where none has.

    Args:
        student: logits (texts, classes).
        labels: (texts,), with `NO_LABEL` where a text has none.
    """
    if bool((labels == NO_LABEL).all()):  # PyTorch's mean over no text is NaN
        return 0.0 * student.sum()
    return nn.functional.cross_entropy(student, labels, ignore_index=NO_LABEL)


def hidden_state_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    mask: torch.Tensor,
    projection: nn.Module | None = None,
) -> torch.Tensor:
    """Mean squared difference of hidden states, as in TinyBERT (Jiao et al. 2020): mean of (P h_student − h_teacher)².

    The mean is over the layers, the tokens that are no padding, and the width.

    Args:
        student: one tensor (texts, tokens, student's width) a layer.
        teacher: the layers to imitate, (texts, tokens, teacher's width) each, in the same order.
        mask: (texts, tokens), 1 for a token and 0 for padding.
        projection: P, from the student's width to the teacher's; may be None where the two are equal.

    Raises:
        DistillationError: no layer, another number of layers, or states that cannot be compared.
    """
    _check_layers(student, teacher, "hidden states")
    losses = []
    for mine, goal in zip(student, teacher, strict=True):
        mine = mine if projection is None else projection(mine)
        if mine.shape != goal.shape:
            raise DistillationError(
                f"hidden states of {tuple(mine.shape)} cannot be compared with {tuple(goal.shape)}; for another width "
                "give a projection, such as nn.Linear(student's width, teacher's width)"
            )
        real = mask.bool()  # chosen before anything is computed: what padding holds need not even be a number
        losses.append((mine[real] - goal.detach()[real]).square().mean(dim=-1).mean())
    return torch.stack(losses).mean()


def attention_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """KL(teacher ‖ student) of attention, as in MiniLM (Wang et al. 2020): for each token, how differently it looks.

    The mean is over the layers, the heads, and the tokens that are no padding.

    Args:
        student: attention after the softmax, (texts, heads, tokens, tokens) for each layer, without dropout.
        teacher: the layers to imitate, of the same shape, in the same order.
        mask: (texts, tokens), 1 for a token and 0 for padding.

    Raises:
        DistillationError: no layer (PyTorch's fast attention hands nothing out), another number of layers or heads.
    """
    _check_layers(student, teacher, "attention")
    losses = []
    for mine, goal in zip(student, teacher, strict=True):
        if mine.shape != goal.shape:
            raise DistillationError(
                f"attention of {tuple(mine.shape)} cannot be compared with {tuple(goal.shape)}; student and teacher "
                "need the same number of heads"
            )
        p, q = (each.transpose(1, 2)[mask.bool()] for each in (goal.detach(), mine))  # (real tokens, heads, tokens)
        log_q = q.clamp_min(torch.finfo(q.dtype).tiny).log()
        losses.append((torch.xlogy(p, p) - p * log_q).sum(dim=-1).mean())
    return torch.stack(losses).mean()


def _check_layers(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], what: str) -> None:
    if len(student) == 0 or len(student) != len(teacher):
        raise DistillationError(
            f"expected {what} of as many layers from the student as from the teacher, got {len(student)} and "
            f"{len(teacher)}. A model hands hidden states out with output_hidden_states=True; for attention it needs "
            "set_attn_implementation('eager') as well, or it hands out nothing"
        )
