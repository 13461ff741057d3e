"""The checks of chapter 1, Why fine-tune."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number
from course_utils.exercises.outcomes import same

Labels = list[int]

#: Labels of training and of test. The common class of the one is that of the other, or not; it is 1, or 0.
_LABELS: list[tuple[Labels, Labels]] = [
    ([1, 0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0]),
    ([0, 1, 0], [0, 0, 1, 0, 1]),
    ([1, 1, 0, 1, 0], [1, 1, 0, 1, 1, 1, 0, 1, 1]),
]


def _share(labels: Labels, wanted: int) -> float:
    return labels.count(wanted) / len(labels)


def _common(labels: Labels) -> int:
    return max((0, 1), key=labels.count)


@exercise(
    "why.majority",
    points=1,
    passes="A model has learnt something only when it beats this number.",
    section="Know your floor first",
)
def _majority(answer: Any) -> None:
    def right(train: Labels, test: Labels) -> float:
        return _share(test, _common(train))

    same(
        [number(call(answer, list(train), list(test))) for train, test in _LABELS],
        _LABELS,
        right,
        [
            (
                lambda _, test: max(_share(test, 0), _share(test, 1)),
                "You took the majority class of the test labels. They are not known when the rule is made: take the most "
                "common class of the training labels, then see how often it is right in the test.",
            ),
            (
                lambda train, test: 1 - right(train, test),
                "That is the error rate, or the accuracy of the *rarer* training class. The rule answers the common one.",
            ),
            (
                lambda _, test: min(_share(test, 0), _share(test, 1)),
                "You took the rarer class of the test labels. Take the most common class of the training labels.",
            ),
            (
                lambda _, test: _share(test, 1),
                "Your rule always answers 1, whatever the training labels are. Their *most common* class need not be the "
                "largest number.",
            ),
            (
                lambda _, test: _share(test, 0),
                "Your rule always answers 0, whatever the training labels are. Their *most common* class need not be the "
                "smallest number.",
            ),
            (
                lambda train, _: _share(train, _common(train)),
                "That is the share of the majority class in the training labels. Judge the rule on the test labels.",
            ),
            (
                lambda train, test: test.count(_common(train)) / len(train),
                "You divided by the number of training labels. An accuracy is a share of the *test* labels.",
            ),
            (
                lambda train, test: test.count(_common(train)),
                "That is how many test labels are hit. An accuracy is a share: divide by their number.",
            ),
            (
                lambda train, test: 100 * right(train, test),
                "That is in percent. Return the share itself, between 0 and 1.",
            ),
        ],
        lambda case, wanted, outcome: (
            f"With the training labels {case[0]} and the test labels {case[1]} it is {wanted:.4f}, your function returns "
            f"{outcome:g}."
        ),
    )


class _Tiny(nn.Module):
    """A body and a head, like a classifier of transformers."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        more = [nn.Linear(width, width) for _ in range(layers)]
        self.bert = nn.Sequential(nn.Linear(7, width), nn.Dropout(0.1), nn.LayerNorm(width), *more)
        self.classifier = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.bert(x))


@exercise(
    "why.freeze",
    points=2,
    passes="Only the head is trained, the body keeps every bit it had.",
    section="Four ways to get a classifier",
)
def _freeze(answer: Any) -> None:
    for width, layers in ((5, 1), (3, 2)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _Tiny(width, layers).train()
        _frozen_body(answer, model)


def _frozen_body(answer: Any, model: _Tiny) -> None:
    before = copy.deepcopy(model.state_dict())
    returned = call(answer, model, returns=False)
    if isinstance(returned, _Tiny) and returned is not model and all(p.requires_grad for p in model.parameters()):
        raise Wrong("You froze a copy. The model that was handed over is trained as before: freeze its own parameters.")
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
        raise Wrong(_why_nothing_is_frozen(model))
    if all(body) and not any(head):
        raise Wrong("It is the wrong way round: the pretrained body stays, the new head must learn.")
    if any(body):
        left = [name for name, p in model.bert.named_parameters() if p.requires_grad]
        raise Wrong(
            f"A part of the body is still trained: {', '.join(left)}. Freeze weights and biases of every layer."
        )
    raise Wrong("A part of the head is frozen; its weight and its bias are both new and must learn.")


def _why_nothing_is_frozen(model: _Tiny) -> str:
    if any("requires_grad" in vars(module) for module in model.modules()):
        return (
            "A *module* has no `requires_grad`: `model.bert.requires_grad = False` only sticks a label on it, and freezes "
            "nothing. Set it on each parameter, or call `model.bert.requires_grad_(False)`, with the underscore."
        )
    if typed := {name for parameter in model.parameters() for name in getattr(parameter, "__dict__", {})}:
        return f"`{min(typed)}` is no switch of a parameter, so nothing is frozen. Its name is `requires_grad`."
    return "Nothing is frozen: the optimiser would still change all weights. Set `requires_grad` to False in the body."


@exercise(
    "why.memory",
    points=2,
    passes="What is not trained needs neither a gradient nor Adam's two averages.",
    section="What fine-tuning costs",
)
def _memory(answer: Any) -> None:
    total, trainable = 1009, 97
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
            (4 * trainable + 12 * total, "The two arguments are exchanged: first all weights, then the trained ones."),
            (right / 1e6, "That is in MB. Return bytes."),
            (right / 1e9, "That is in GB. Return bytes."),
        ],
        f"For {total} weights of which {trainable} are trained, {right} bytes are needed; your function returns {value:g}.",
    )
    if not all(equal(number(call(answer, n, m)), 4 * n + 12 * m) for n, m in ((500, 500), (2001, 1000))):
        raise Wrong("It is right for one pair of numbers only; use the function's arguments.")
