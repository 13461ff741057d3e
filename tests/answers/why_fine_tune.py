"""Answers to the exercises of chapter 1: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Function = Callable[..., Any]


def _freeze_nothing(model: nn.Module) -> None:
    model.requires_grad_(True)


def _freeze_everything(model: nn.Module) -> None:
    model.requires_grad_(False)


def _freeze_head(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith("classifier")


def _freeze_weights_only(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier") or name.endswith("bias")


def _freeze_by_eval(model: nn.Module) -> None:
    model.eval()


def _freeze_by_zero(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.bert.parameters():  # type: ignore[union-attr]
            parameter.zero_()


def _freeze_a_copy(model: nn.Module) -> nn.Module:
    return _freeze_by_module(copy.deepcopy(model))


def _freeze_the_module(model: nn.Module) -> None:
    model.bert.requires_grad = False


def _freeze_with_a_typo(model: nn.Module) -> None:
    for parameter in model.bert.parameters():  # type: ignore[union-attr]
        parameter.requiresgrad = False  # type: ignore[union-attr]


def _mode(labels: list[int]) -> int:
    return max(set(labels), key=labels.count)


def _freeze_by_module(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    return model


WRONG: dict[str, list[tuple[Function, str]]] = {
    "why.majority": [
        (lambda train, test: max(test.count(0), test.count(1)) / len(test), "majority class of the test labels"),
        (lambda train, test: train.count(_mode(train)) / len(train), "share of the majority class in the training"),
        (lambda train, test: test.count(_mode(train)), "divide by their number"),
        (lambda train, test: 100 * test.count(_mode(train)) / len(test), "in percent"),
        (lambda train, test: 1 - test.count(_mode(train)) / len(test), "error rate"),
        (lambda train, test: sum(test) / len(test), "always answers 1"),
        (lambda train, test: test.count(max(train)) / len(test), "always answers 1"),
        (lambda train, test: test.count(0) / len(test), "always answers 0"),
        (lambda train, test: min(test.count(0), test.count(1)) / len(test), "rarer class of the test"),
        (lambda train, test: test.count(_mode(train)) / len(train), "number of training labels"),
        (lambda train, test: 0.68, "it is 0.36"),
        (lambda train, test: "0.3 or so", "Expected a number"),
    ],
    "why.freeze": [
        (_freeze_nothing, "Nothing is frozen"),
        (_freeze_everything, "head too"),
        (_freeze_head, "wrong way round"),
        (_freeze_weights_only, "A part of the body"),
        (_freeze_by_eval, "only turns dropout off"),
        (_freeze_by_zero, "The weights have changed"),
        (_freeze_a_copy, "You froze a copy"),
        (_freeze_the_module, "only sticks a label on it"),
        (_freeze_with_a_typo, "`requiresgrad` is no switch"),
    ],
    "why.memory": [
        (lambda total, trainable: 16 * total, "gradient and Adam's averages"),
        (lambda total, trainable: 16 * trainable, "frozen weights are missing"),
        (lambda total, trainable: 4 * total + 8 * trainable, "One of three is missing"),
        (lambda total, trainable: 4 * total + 4 * trainable, "two averages"),
        (lambda total, trainable: total + 3 * trainable, "counts numbers, not bytes"),
        (lambda total, trainable: 8 * (4 * total + 12 * trainable), "in bits"),
        (lambda total, trainable: 4 * trainable + 12 * total, "exchanged"),
        (lambda total, trainable: (4 * total + 12 * trainable) / 1e6, "in MB"),
        (lambda total, trainable: 5200, "one pair of numbers only"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "why.majority": [lambda train, test: (torch.tensor(test) == torch.tensor(train).mode().values).float().mean()],
    "why.freeze": [_freeze_by_module],
    "why.memory": [lambda total, trainable: 16 * trainable + 4 * (total - trainable)],
}
