"""The loss of distillation: PyTorch's value and gradient, its known limits, and the classic mistakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from course_utils.distillation import DistillationError, soft_label_loss

Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def logits(texts: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(texts, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(True), teacher


def pytorch(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    q, p = torch.log_softmax(student / temperature, -1), torch.softmax(teacher / temperature, -1)
    return temperature**2 * functional.kl_div(q, p, reduction="batchmean")


def swapped(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    p, q = torch.log_softmax(student / temperature, -1), torch.log_softmax(teacher / temperature, -1)
    return temperature**2 * (p.exp() * (p - q)).sum(-1).mean()


def without_square(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return soft_label_loss(student, teacher, temperature) / temperature**2


def mean_over_classes_too(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return soft_label_loss(student, teacher, temperature) / student.shape[1]


def student_not_softened(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return pytorch(student * temperature, teacher, temperature)


def probabilities_for_logs(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    q, p = torch.softmax(student / temperature, -1), torch.softmax(teacher / temperature, -1)
    return temperature**2 * functional.kl_div(q, p, reduction="batchmean")


def is_the_loss(loss: Loss, temperature: float) -> bool:
    """Whether value and gradient are those of PyTorch."""
    found = []
    for function in (loss, pytorch):
        student, teacher = logits()
        value = function(student, teacher, temperature)
        value.backward()
        found.append((value.detach(), student.grad))
    return all(torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_value_and_gradient_are_pytorch_s(temperature: float) -> None:
    assert is_the_loss(soft_label_loss, temperature)


@pytest.mark.parametrize(
    "mistake", [swapped, without_square, mean_over_classes_too, student_not_softened, probabilities_for_logs]
)
def test_the_classic_mistakes_are_caught(mistake: Loss) -> None:
    assert not is_the_loss(mistake, 2.0)


def test_the_gradient_by_hand() -> None:
    student, teacher = logits()
    soft_label_loss(student, teacher, 4.0).backward()
    by_hand = 4.0 * (torch.softmax(student / 4, -1) - torch.softmax(teacher / 4, -1)) / len(student)
    assert student.grad is not None and torch.allclose(student.grad, by_hand.detach(), rtol=1e-10)


def test_at_a_high_temperature_it_compares_the_logits() -> None:
    """Hinton's section 2.1: it tends to the squared distance of centred logits, divided by twice the classes."""
    student, teacher = (each - each.mean(-1, keepdim=True) for each in logits())
    distance = (student - teacher).square().sum(-1).mean() / (2 * student.shape[1])
    assert soft_label_loss(student, teacher, 1e4).item() == pytest.approx(distance.item(), rel=1e-3)


def test_it_is_zero_for_equal_answers_and_nothing_reaches_the_teacher() -> None:
    student, teacher = logits()
    teacher.requires_grad_(True)
    assert soft_label_loss(teacher.detach().clone(), teacher, 2.0).item() == pytest.approx(0, abs=1e-15)
    soft_label_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None and student.grad is not None


def test_very_sure_answers_stay_finite() -> None:
    student, teacher = torch.tensor([[1e4, -1e4]], requires_grad=True), torch.tensor([[-1e4, 1e4]])
    loss = soft_label_loss(student, teacher, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "said"),
    [
        ((4, 2), (4, 3), 2.0, r"got \(4, 2\) and \(4, 3\); let both read the same batch"),
        ((2,), (2,), 2.0, "one shape"),
        ((0, 2), (0, 2), 2.0, "one shape"),
        ((4, 2), (4, 2), 0.0, "a temperature above 0, got 0.0"),
        ((4, 2), (4, 2), float("nan"), "a temperature above 0, got nan"),
    ],
)
def test_bad_input(student: tuple[int, ...], teacher: tuple[int, ...], temperature: float, said: str) -> None:
    with pytest.raises(DistillationError, match=said):
        soft_label_loss(torch.zeros(student), torch.zeros(teacher), temperature)
