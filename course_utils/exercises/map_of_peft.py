"""The checks of chapter 6, A map of PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from course_utils.exercises.checking import Wrong, call, compare, exercise, number

_IDEA = "The idea"
_MEMORY = "The formula, beside the code"
_COUNT = "Counting with and without the head"
_SIZES = "Trained, stored, deployed"

#: What a learner may answer.
FAMILIES = ("additive", "selective", "reparameterised", "hybrid", "none")

#: method → its family, and the sentence for whoever takes another one.
_RIGHT: dict[str, tuple[str, str]] = {
    "full fine-tuning": (
        "none",
        "It trains every weight. It is what the four families are compared with.",
    ),
    "BitFit": (
        "selective",
        "Nothing is added, and nothing is written in another form. Some of the old numbers are chosen.",
    ),
    "bottleneck adapters": (
        "additive",
        "New layers are put between the old ones, with a curve in them, so they are more than another form of a weight.",
    ),
    "(IA)³": (
        "additive",
        "New vectors are put beside the weights. That they can be merged is another question, and does not decide this.",
    ),
    "prompt tuning": (
        "additive",
        "New vectors stand before the text; no weight of the model is changed or written in another form.",
    ),
    "LoRA": (
        "reparameterised",
        "It learns the change of an old weight, in another form: as a product of two thin matrices.",
    ),
    "VeRA": (
        "reparameterised",
        "It learns the change of an old weight as a product again. Two factors are frozen, two vectors are trained.",
    ),
    "LoRA and all biases": (
        "hybrid",
        "Two families work at once: the biases are selected, and the matrices get a change in another form.",
    ),
    "distillation": (
        "none",
        "A smaller student is trained, usually all of it. Distillation makes a model small; it is no kind of PEFT.",
    ),
}


@exercise(
    "map_of_peft.families",
    points=2,
    passes="You asked what is trained, and not what the method is called.",
    section=_IDEA,
)
def _families(answer: Any) -> None:
    if not isinstance(answer, Mapping):
        raise Wrong(f"Expected a dictionary, method → family, got {type(answer).__name__}.")
    missing = [name for name in _RIGHT if answer.get(name, ...) in (None, ...)]
    if missing:
        raise Wrong(f"These methods have no family yet: {', '.join(missing)}.")
    if unknown := [str(name) for name in answer if name not in _RIGHT]:
        raise Wrong(f"The list does not contain {', '.join(unknown)}. Copy the names as they stand in `METHODS`.")
    for name, (family, reason) in _RIGHT.items():
        given = str(answer[name]).strip().lower().replace("parameterized", "parameterised")
        if given not in FAMILIES:
            raise Wrong(f"{answer[name]!r} is none of the answers. They are: {', '.join(FAMILIES)}.")
        if given != family:
            raise Wrong(f"{name} is not {given!r}. {reason}")


@exercise(
    "map_of_peft.memory",
    points=2,
    passes="Every weight must be stored; only what is trained needs a gradient and Adam's two averages.",
    section=_MEMORY,
)
def _memory(answer: Any) -> None:
    base, selected, added = 1000, 30, 7
    said = f"for base {base}, selected {selected}, added {added}"
    weights, gradients, adam = _numbers(
        call(answer, base, selected, added), 3, "bytes of weights, of gradients and of Adam's averages"
    )
    trained = selected + added
    compare(
        weights,
        4 * (base + added),
        [
            (base + added, "You counted weights. In fp32 each takes 4 bytes."),
            (4 * base, "The added numbers are weights too, and must be stored."),
            (4 * (base + trained), "The selected weights are counted twice: they are part of the base."),
            (4 * (base + selected), "The selected weights are part of the base already; the added ones are not."),
            (4 * trained, "The frozen weights are missing. Without them there is no forward pass."),
            (4 * (base - selected + added), "The selected weights are trained, but they must be stored all the same."),
        ],
        f"The weights take {4 * (base + added)} bytes {said}, yours {weights:g}.",
    )
    compare(
        gradients,
        4 * trained,
        [
            (trained, "You counted gradients. In fp32 each takes 4 bytes."),
            (4 * (base + added), "A frozen weight needs no gradient. That is where PEFT saves."),
            (4 * added, "The gradients of the selected weights are missing: they are trained too."),
            (4 * selected, "The gradients of the added numbers are missing: they are trained too."),
            (8 * trained, "There is one gradient for each trained number, not two."),
            (0, "There are gradients while training, one for each trained number."),
        ],
        f"The gradients take {4 * trained} bytes {said}, yours {gradients:g}.",
    )
    compare(
        adam,
        8 * trained,
        [
            (2 * trained, "You counted numbers. In fp32 each takes 4 bytes."),
            (4 * trained, "Adam keeps two averages for each trained number: of the gradient, and of its square."),
            (
                12 * trained,
                "That is three numbers for each trained one. The gradient was counted before; Adam keeps two.",
            ),
            (8 * (base + added), "Adam keeps nothing for a frozen weight."),
            (8 * added, "Adam's averages for the selected weights are missing."),
            (8 * selected, "Adam's averages for the added numbers are missing."),
        ],
        f"Adam's averages take {8 * trained} bytes {said}, yours {adam:g}.",
    )
    if _numbers(call(answer, 50, 50, 0), 3, "bytes") != [200, 200, 400]:
        raise Wrong(
            "It is wrong for full fine-tuning, where all 50 of 50 weights are selected: 200, 200 and 400 bytes."
        )


class _Tiny(nn.Module):
    """A body, whose last layer has a name that contains the word, and a head; what is trained is given by name."""

    def __init__(self, width: int, trained: Sequence[str]) -> None:
        super().__init__()
        self.bert = nn.Sequential(nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, width))
        self.bert.add_module("classifier_pooler", nn.Linear(width, 4))  # of the body: a checkpoint would bring it
        self.classifier = nn.Linear(4, 3)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)


@exercise(
    "map_of_peft.count",
    points=2,
    passes="With both numbers at hand you can compare with any paper.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    head = ["classifier.weight", "classifier.bias"]
    model = _Tiny(5, ["bert.0.bias", "bert.1.weight", "bert.1.bias", "bert.2.bias", *head])
    value = _numbers(call(answer, model), 2, "the trained numbers with the head, and without it")
    compare(
        torch.tensor(value),
        torch.tensor([35.0, 20.0]),
        [
            (torch.tensor([20.0, 35.0]), "Right, in the other order: first with the head, then without."),
            (torch.tensor([35.0, 15.0]), "The second is the head alone. Asked is what is trained without it."),
            (torch.tensor([35.0, 35.0]), "The head is in both. Leave out the names that begin with `classifier.`."),
            (torch.tensor([114.0, 99.0]), "You counted the frozen weights too. Look at `requires_grad`."),
            (torch.tensor([35.0, 99.0]), "The second counts the frozen weights too. Look at `requires_grad`."),
            (torch.tensor([114.0, 20.0]), "The first counts the frozen weights too. Look at `requires_grad`."),
            (torch.tensor([6.0, 4.0]), "You counted tensors. `numel()` says how many numbers one holds."),
            (torch.tensor([140.0, 80.0]), "These are bytes. Count the numbers."),
        ],
        f"35 numbers are trained in this model, 20 of them outside the head; yours are {value[0]:g} and {value[1]:g}.",
    )
    pooler = ["bert.classifier_pooler.weight", "bert.classifier_pooler.bias"]
    model = _Tiny(7, ["bert.1.weight", "bert.1.bias", *pooler, "classifier.weight"])
    value = _numbers(call(answer, model), 2, "the trained numbers with the head, and without it")
    compare(
        torch.tensor(value),
        torch.tensor([58.0, 46.0]),
        [
            (
                torch.tensor([58.0, 14.0]),
                "`bert.classifier_pooler` is no part of the head, though its name contains the word: it belongs to the "
                "body, which the checkpoint brings. The head is what is new. Ask how the name begins.",
            ),
            (
                torch.tensor([58.0, 43.0]),
                "You took the whole head away, but a part of this head is frozen and was never in the count.",
            ),
        ],
        "It is right for one model and wrong for another, whose head is trained only in part.",
    )


@exercise(
    "map_of_peft.sizes",
    points=2,
    passes="A file for each task is small; the model that answers is as large as the base, or larger.",
    section=_SIZES,
)
def _sizes(answer: Any) -> None:
    base, selected, added = 1000, 30, 7
    stored_right = 4 * (selected + added)
    for merges in (True, False):
        stored, deployed = _numbers(
            call(answer, base, selected, added, merges), 2, "bytes of the task's file and of the deployed model"
        )
        compare(
            stored,
            stored_right,
            [
                (selected + added, "You counted numbers. In fp32 each takes 4 bytes."),
                (
                    4 * added,
                    "The file lacks the selected numbers, among them the head. A fresh base does not know them.",
                ),
                (4 * selected, "The file lacks the added numbers."),
                (4 * base, "That is the base. It is stored once for all tasks, not in each file."),
                (4 * (base + added), "That is the whole model. The frozen numbers stay in the base's own file."),
                (16 * (selected + added), "Gradients and Adam's averages end with training; they are not stored."),
            ],
            f"The file takes {stored_right} bytes, yours {stored:g}.",
        )
        larger, same = 4 * (base + added), 4 * base
        wrong_way = (
            (larger, "A method that merges leaves nothing beside the base: its numbers are folded into the weights.")
            if merges
            else (same, "What cannot be merged stays beside the base, and must be in memory to answer.")
        )
        compare(
            deployed,
            same if merges else larger,
            [
                wrong_way,
                (stored_right, "That is the task's file. To answer, the model needs all its weights."),
                (4 * (base + selected + added), "The selected weights are counted twice: they are part of the base."),
                (
                    4 * (base - selected),
                    "The selected weights are needed too: with their new values, in the old place.",
                ),
                (base, "You counted numbers. In fp32 each takes 4 bytes."),
                (base + added, "You counted numbers. In fp32 each takes 4 bytes."),
                (16 * base, "Gradients and Adam's averages end with training; a deployed model has none."),
            ],
            f"The deployed model takes {same if merges else larger} bytes when merges is {merges}, yours {deployed:g}.",
        )
    value = _numbers(call(answer, 90, 11, 5, False), 2, "bytes")
    if value != [64, 380]:
        raise Wrong("It is right for one set of numbers only. Use the arguments.")


def _numbers(value: Any, length: int, what: str) -> list[float]:
    """The learner's tuple of numbers."""
    if not isinstance(value, (tuple, list)) or len(value) != length:
        raise Wrong(f"Expected {length} numbers: {what}.")
    return [number(one) for one in value]
