"""The checks of chapter 19, distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from course_utils.distillation import hidden_state_loss, soft_label_loss
from course_utils.distillation.mistakes import (
    mean_over_classes,
    no_logarithm,
    raw_logits,
    student_not_softened,
    swapped,
    without_square,
)
from course_utils.exercises.checking import (
    Wrong,
    call,
    compare,
    equal,
    exercise,
    loss,
    number,
    random_tensors,
    tensor,
    trained_tensors,
)

_FORMULA = "The formula, beside the code"
_INSIDE = "Inside the teacher: hidden states and attention"
_STUDENT = "Where the student comes from"


@exercise(
    "distillation.soft_loss",
    points=3,
    passes="The teacher's probabilities weigh, T² is there, and the mean is over the texts.",
    section=_FORMULA,
)
def _soft_loss(answer: Any) -> None:
    student, teacher = (logits.mul_(2) for logits in random_tensors((4, 3), (4, 3)))
    student.requires_grad_()
    T = 2.5
    value = loss(call(answer, student, teacher, T), student)
    right = soft_label_loss(student, teacher, T)
    with_both = mean_over_classes(student, teacher, T)
    p, q = (torch.softmax(logits / T, -1) for logits in (teacher, student))
    cross = -(p * q.log()).sum(-1).mean()
    compare(
        value,
        right,
        [
            (
                swapped(student, teacher, T),
                "That is KL(student ‖ teacher). The teacher's probabilities are the weights: Σ p (log p − log q).",
            ),
            (without_square(student, teacher, T), "T² is missing: at a high temperature this loss would fade away."),
            (
                T * without_square(student, teacher, T),
                "You multiplied by T. The gradient shrinks with 1 / T²: multiply by T².",
            ),
            (with_both, "The mean is over texts and classes. Add up the classes, and take the mean over the texts."),
            (without_square(student, teacher, T) / 3, "T² is missing, and the mean is over the classes as well."),
            (right * 4, "You added up the texts. Take their mean, or the loss grows with the size of the batch."),
            (student_not_softened(student, teacher, T), "Only the teacher is softened. Both logits are divided by T."),
            (soft_label_loss(student, teacher * T, T), "Only the student is softened. Both logits are divided by T."),
            (
                no_logarithm(student, teacher, T),
                "`kl_div` wants the logarithm of the student's probabilities: use log_softmax for the student.",
            ),
            (raw_logits(student, teacher, T), "`kl_div` wants the logarithm of probabilities, and got logits."),
            (
                T**2 * cross,
                "That is the cross-entropy −Σ p log q. It has the same gradient, but it is not 0 where the two agree: "
                "add Σ p log p.",
            ),
            (
                soft_label_loss(student * T, teacher * T, T),
                "Neither of the two is divided by T before the softmax.",
            ),
        ],
        "The result is not T² · Σ p (log p − log q), the mean over the texts.",
    )
    student, teacher = trained_tensors((2, 5), (2, 5))
    if not equal(loss(call(answer, student, teacher, 3.0), student), soft_label_loss(student, teacher, 3.0)):
        raise Wrong("It is right for T = 2.5, 4 texts and 3 classes only. Take all three from what you are given.")


@exercise(
    "distillation.gradient",
    points=2,
    passes="The student is pushed by the difference of two probabilities, and T cancels all but once.",
    section=_FORMULA,
)
def _gradient(answer: Any) -> None:
    student, teacher = random_tensors((5, 3), (5, 3))
    T = 2.5
    q, p = torch.softmax(student / T, -1), torch.softmax(teacher / T, -1)
    value = tensor(call(answer, student, teacher, T), (5, 3), "the gradient")
    compare(
        value,
        T * (q - p) / 5,
        [
            (T * (p - q) / 5, "The sign is turned: the gradient points to where the loss grows, q − p."),
            (T * (q - p), "The loss is the mean over the texts: divide by their number."),
            ((q - p) / 5, "The factor T is missing: T² from the loss, and 1 / T from the softmax."),
            (T**2 * (q - p) / 5, "One T too many: T² from the loss, times 1 / T from dividing the student's logits."),
            ((q - p) / T / 5, "That is the gradient without T²."),
            (q - p, "Both T and the number of texts are missing."),
            (
                T * (torch.softmax(student, -1) - torch.softmax(teacher, -1)) / 5,
                "Both probabilities are at temperature T: divide the logits first.",
            ),
        ],
        "The result is not T (q − p) / texts.",
    )
    student, teacher = random_tensors((7, 2), (7, 2))
    right = 1.5 * (torch.softmax(student / 1.5, -1) - torch.softmax(teacher / 1.5, -1)) / 7
    if not equal(tensor(call(answer, student, teacher, 1.5), (7, 2), "the gradient"), right):
        raise Wrong("It is right for T = 2.5 and 5 texts only. Take both from what you are given.")


@exercise(
    "distillation.layers",
    points=2,
    passes="The last layer of the student imitates the last one of the teacher, and the others stand evenly between.",
    section=_INSIDE,
)
def _layers(answer: Any) -> None:
    value = _whole_numbers(call(answer, 2, 6))
    mistakes: dict[tuple[int, ...], str] = {
        (2, 5): "You counted from 0. Hidden state 0 is the embeddings: the last layer of 6 is number 6.",
        (0, 5): "You counted from 0. Hidden state 0 is the embeddings: the last layer of 6 is number 6.",
        (
            0,
            3,
        ): "You start at 0, which is the embeddings. The last layer of the student imitates the last of the teacher.",
        (1, 2): "Those are the first layers. Spread them evenly: each layer of the student stands for three.",
        (5, 6): "Those are the last layers. Spread them evenly: each layer of the student stands for three.",
        (1, 4): "The last layer of the student must imitate the last one of the teacher: k · 6 / 2 for k = 1, 2.",
        (1, 6): "The first layer of two stands for three layers of six, so it imitates layer 3.",
    }
    if value != (3, 6):
        raise Wrong(mistakes.get(value, f"For 2 layers of 6 it is (3, 6), your function returns {value}."))
    for own, total in ((3, 12), (4, 8), (1, 6), (6, 6)):
        value = _whole_numbers(call(answer, own, total))
        right = tuple(total * k // own for k in range(1, own + 1))
        if value != right:
            raise Wrong(f"It is right for 2 of 6; for {own} of {total} it is {right}, your function returns {value}.")


def _whole_numbers(value: Any) -> tuple[int, ...]:
    try:
        return tuple(int(number(each)) for each in value)
    except TypeError:
        raise Wrong(f"Expected a list of layer numbers, got {type(value).__name__}.") from None


@exercise(
    "distillation.hidden_states",
    points=2,
    passes="Each real token counts once, and padding not at all.",
    section=_INSIDE,
)
def _hidden_states(answer: Any) -> None:
    student, teacher = trained_tensors((2, 5, 3), (2, 5, 3))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    value = loss(call(answer, student, teacher, mask), student)
    square = (student - teacher) ** 2
    of_texts = torch.stack([square[0].mean(), square[1, :2].mean()]).mean()
    compare(
        value,
        hidden_state_loss([student], [teacher], mask),
        [
            (square.mean(), "Padding is counted. It has no meaning: take only the tokens where the mask is 1."),
            (
                (square * mask[..., None]).mean(),
                "Padding is set to 0, but it still counts in the number that you divide by. Divide by the real tokens.",
            ),
            (
                (square * mask[..., None]).sum() / mask.sum(),
                "You divided by the tokens only. The mean is over the width too.",
            ),
            ((square * mask[..., None]).sum(), "That is the sum. Take the mean over real tokens and width."),
            (
                of_texts,
                "You took the mean of the texts' means, so a short text's token weighs more. Each token weighs the same.",
            ),
            (
                (student - teacher).abs().mean(-1)[mask.bool()].mean(),
                "That is the absolute difference. Square it.",
            ),
            (
                functional.mse_loss(student[:, 0], teacher[:, 0]),
                "That compares the first token only; all real tokens count.",
            ),
        ],
        "The result is not the mean of (student − teacher)² over the real tokens and the width.",
    )
    student, teacher = trained_tensors((3, 4, 7), (3, 4, 7))
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    if not equal(loss(call(answer, student, teacher, mask), student), hidden_state_loss([student], [teacher], mask)):
        raise Wrong("It is right for one shape only. Take the sizes and the mask that you are given.")
