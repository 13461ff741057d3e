"""The checks of chapter 1, Why fine-tune."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number


@exercise(
    "why.majority",
    points=1,
    passes="A model has learnt something only when it beats this number.",
    section="Know your floor first",
)
def _majority(answer: Any) -> None:
    train, test = [1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    value = number(call(answer, list(train), list(test)))
    compare(
        value,
        0.3,
        [
            (
                0.7,
                "You took the majority class of the test labels (or the error rate). The test labels are not known when the "
                "rule is made: take the most common class of the training labels, then see how often it is right in the test.",
            ),
            (0.6, "That is the share of the majority class in the training labels. Judge the rule on the test labels."),
            (3, "That is how many test labels are hit. An accuracy is a share: divide by their number."),
            (30, "That is in percent. Return the share itself, between 0 and 1."),
        ],
        f"With the training labels {train} and the test labels {test} it is 0.3, your function returns {value:g}.",
    )


class _Tiny(nn.Module):
    """A body and a head, like a classifier of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.1), nn.LayerNorm(5), nn.Linear(5, 5))
        self.classifier = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.bert(x))


@exercise(
    "why.freeze",
    points=2,
    passes="Only the head is trained, the body keeps every bit it had.",
    section="Four ways to get a classifier",
)
def _freeze(answer: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _Tiny().train()
    before = copy.deepcopy(model.state_dict())
    if not callable(answer):
        raise Wrong("Expected a function that takes a model.")
    returned = answer(model)
    model = returned if isinstance(returned, _Tiny) else model
    if any(not torch.equal(before[name], value) for name, value in model.state_dict().items()):
        raise Wrong("The weights have changed. Freezing sets `requires_grad`, it does not touch the numbers.")
    body = [p.requires_grad for p in model.bert.parameters()]
    head = [p.requires_grad for p in model.classifier.parameters()]
    if not any(body) and all(head):
        return
    if not any(body) and not any(head):
        raise Wrong("Everything is frozen, the head too, so nothing can learn. Leave `model.classifier` trainable.")
    if all(body) and all(head):
        if not model.training:
            raise Wrong(
                "`model.eval()` only turns dropout off; every parameter is still trained. Set `requires_grad` to False."
            )
        raise Wrong(
            "Nothing is frozen: the optimiser would still change all weights. Set `requires_grad` to False in the body."
        )
    if all(body) and not any(head):
        raise Wrong("It is the wrong way round: the pretrained body stays, the new head must learn.")
    if any(body):
        left = [name for name, p in model.bert.named_parameters() if p.requires_grad]
        raise Wrong(
            f"A part of the body is still trained: {', '.join(left)}. Freeze weights and biases of every layer."
        )
    raise Wrong("A part of the head is frozen; its weight and its bias are both new and must learn.")


@exercise(
    "why.memory",
    points=2,
    passes="What is not trained needs neither a gradient nor Adam's two averages.",
    section="What fine-tuning costs",
)
def _memory(answer: Any) -> None:
    total, trainable = 1000, 100
    right = 4 * total + 12 * trainable
    value = number(call(answer, total, trainable))
    all_weights = "You gave every weight a gradient and Adam's averages. Frozen weights have neither."
    compare(
        value,
        right,
        [
            (16 * total, all_weights),
            (
                16 * trainable,
                "The frozen weights are missing: they are not trained, but the forward pass still needs them.",
            ),
            (
                4 * total + 8 * trainable,
                "One of three is missing: each trained weight has a gradient and two averages of Adam's, of 4 bytes each.",
            ),
            (
                4 * total + 4 * trainable,
                "Adam keeps two averages a trained weight, of the gradient and of its square. They are missing.",
            ),
            (total + 3 * trainable, "That counts numbers, not bytes: an fp32 number takes 4 bytes."),
            (8 * right, "That is in bits. A byte has 8 of them, an fp32 number takes 4 bytes."),
            (12 * trainable, "The weights themselves are missing: 4 bytes each, trained or not."),
        ],
        f"For {total} weights of which {trainable} are trained, {right} bytes are needed; your function returns {value:g}.",
    )
    if not equal(number(call(answer, 500, 500)), 16 * 500):
        raise Wrong("It is right for one pair of numbers only; use the function's arguments.")
