"""Distillation: a small student learns from a teacher's probabilities, not only from labels.

Source: Hinton, Vinyals, Dean 2015 (arXiv:1503.02531).

    p = softmax(teacher / T)    q = softmax(student / T)    (texts, classes)
    loss = T² · KL(p ‖ q) = T² · Σ p (log p − log q)        sum over classes, mean over texts

The temperature T ≥ 1 flattens both distributions, so that the teacher's small probabilities count. The gradient of the
KL shrinks with 1 / T², and T² takes that back: the share of this loss beside one on labels does not depend on T.
"""

from __future__ import annotations

import math

import torch


class DistillationError(ValueError):
    """The logits or the temperature make no sense together."""


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
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
