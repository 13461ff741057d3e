"""The losses of distillation: PyTorch's value and gradient, their known limits, and the classic mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from course_utils.distillation import (
    NO_LABEL,
    DistillationError,
    attention_loss,
    hard_label_loss,
    hidden_state_loss,
    soft_label_loss,
)
from course_utils.distillation.mistakes import MISTAKES

Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def logits(texts: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(texts, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(True), teacher


def pytorch(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    q, p = torch.log_softmax(student / temperature, -1), torch.softmax(teacher / temperature, -1)
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


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_the_classic_mistakes_are_caught(name: str) -> None:
    assert not is_the_loss(MISTAKES[name][1], 2.0)


def test_each_mistake_is_the_one_that_it_says() -> None:
    student, teacher = logits()
    kl_div, log_softmax = functional.kl_div, torch.log_softmax
    p = torch.softmax(teacher / 2, -1)
    expected = {
        "swapped": pytorch(teacher, student, 2.0),
        "without_square": pytorch(student, teacher, 2.0) / 4,
        "mean_over_classes": 4
        * kl_div(log_softmax(student / 2, -1), p, reduction="none").mean(),  # PyTorch's own default
        "student_not_softened": 4 * kl_div(log_softmax(student, -1), p, reduction="batchmean"),
        "no_logarithm": 4 * kl_div(torch.softmax(student / 2, -1), p, reduction="batchmean"),
        "raw_logits": 4 * kl_div(student / 2, p, reduction="batchmean"),
        "answers_of_others": pytorch(student, teacher[[4, 0, 1, 2, 3]], 2.0),
    }
    assert set(expected) == set(MISTAKES)
    for name, value in expected.items():
        assert torch.allclose(MISTAKES[name][1](student, teacher, 2.0), value, rtol=1e-10), name


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


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("both", [False, True], ids=["the teacher", "both"])
def test_a_class_that_is_ruled_out_costs_nothing(both: bool, temperature: float) -> None:
    """p log p is 0 where p is 0. With the student sharing the -inf, the loss is that of the other classes alone."""
    student, teacher = logits()
    teacher[1, 2] = -math.inf
    mine = student.detach().clone()
    if both:
        mine[1, 2] = -math.inf
    mine.requires_grad_(True)
    loss = soft_label_loss(mine, teacher, temperature)
    loss.backward()
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(5):
        kept = [0, 1] if row == 1 else [0, 1, 2]
        p = torch.softmax(teacher[row, kept] / temperature, -1)
        q = torch.softmax(mine.detach()[row] / temperature, -1)[kept]
        expected += temperature**2 * (p * (p / q).log()).sum() / 5
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert mine.grad is not None and torch.isfinite(mine.grad).all()
    gradient = temperature * (torch.softmax(mine.detach() / temperature, -1) - torch.softmax(teacher / temperature, -1))
    assert torch.allclose(mine.grad, gradient / 5, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_padding_holds_need_not_be_a_number(value: float) -> None:
    """Nor may it reach the gradient: 0 times infinity is NaN."""
    for loss, make in ((hidden_state_loss, states), (attention_loss, attentions)):
        found: list[tuple[float, list[Any]]] = []
        for spoilt in (False, True):
            student, teacher = ([tensor.clone() for tensor in make(seed=seed)] for seed in (0, 1))
            for tensor in (*student, *teacher) if spoilt else ():
                rows = tensor if loss is hidden_state_loss else tensor.transpose(1, 2)
                rows[MASK == 0] = value
            leaves = [tensor.requires_grad_(True) for tensor in student]
            result = loss(leaves, teacher, MASK)
            result.backward()
            found.append((result.item(), [leaf.grad for leaf in leaves]))
        assert found[0][0] == found[1][0]
        assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))


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


def test_texts_without_a_label_are_left_out_of_the_cross_entropy() -> None:
    student, _ = logits()
    labels = torch.tensor([0, NO_LABEL, 2, NO_LABEL, 1])
    rows = [0, 2, 4]
    assert torch.equal(hard_label_loss(student, labels), functional.cross_entropy(student[rows], labels[rows]))
    nothing = hard_label_loss(student, torch.full((5,), NO_LABEL))
    nothing.backward()
    assert nothing.item() == 0 and student.grad is not None and not student.grad.any()


def states(layers: int = 2, width: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(layers, 3, 5, width, generator=generator, dtype=torch.float64))


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


def test_hidden_states_are_compared_token_by_token_and_padding_is_left_out() -> None:
    student, teacher = states(), states(seed=1)
    each = [
        ((s[text, token] - t[text, token]) ** 2).mean()
        for s, t in zip(student, teacher, strict=True)
        for text, token in MASK.nonzero().tolist()
    ]
    assert hidden_state_loss(student, teacher, MASK).item() == pytest.approx(torch.stack(each).mean().item())
    for state in student:
        state[1, 3:], state[2, 2:] = 1e6, 1e6
    assert hidden_state_loss(student, teacher, MASK).item() == pytest.approx(torch.stack(each).mean().item())


def test_a_narrow_student_is_projected() -> None:
    projection = torch.nn.Linear(3, 4, dtype=torch.float64)
    student, teacher = states(width=3), states(seed=1)
    loss = hidden_state_loss(student, teacher, MASK, projection)
    assert loss.item() == pytest.approx(hidden_state_loss([projection(s) for s in student], teacher, MASK).item())
    with pytest.raises(DistillationError, match=r"\(3, 5, 3\) cannot be compared .* give a projection"):
        hidden_state_loss(student, teacher, MASK)


def attentions(seed: int = 0, heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, heads, 5, 5, generator=generator, dtype=torch.float64)
    return list(scores.masked_fill(MASK[None, :, None, None, :] == 0, -torch.inf).softmax(-1))


def test_attention_is_compared_as_pytorch_does_and_padding_is_left_out() -> None:
    student, teacher = attentions(), attentions(seed=1)
    each = []
    for s, t in zip(student, teacher, strict=True):
        for text, token in MASK.nonzero().tolist():
            seen = MASK[text].bool()
            for head in range(2):
                q, p = s[text, head, token, seen], t[text, head, token, seen]
                each.append(functional.kl_div(q.log(), p, reduction="sum"))
    assert attention_loss(student, teacher, MASK).item() == pytest.approx(torch.stack(each).mean().item())
    assert attention_loss(teacher, teacher, MASK).item() == pytest.approx(0, abs=1e-12)


def test_nothing_inside_reaches_the_teacher() -> None:
    for loss, make in ((hidden_state_loss, states), (attention_loss, attentions)):
        student, teacher = ([each.requires_grad_(True) for each in make(seed=seed)] for seed in (0, 1))
        loss(student, teacher, MASK).backward()
        assert all(each.grad is None for each in teacher)
        assert all(each.grad is not None and each.grad.isfinite().all() and each.grad.any() for each in student)


def test_attention_that_is_not_handed_out_is_no_silent_zero() -> None:
    with pytest.raises(DistillationError, match=r"got 0 and 0.*set_attn_implementation\('eager'\)"):
        attention_loss((), (), MASK)
    with pytest.raises(DistillationError, match="got 2 and 1"):
        hidden_state_loss(states(), states()[:1], MASK)
    with pytest.raises(DistillationError, match="the same number of heads"):
        attention_loss(attentions(), attentions(heads=1), MASK)
