"""Count what is trained, what of it is the head, and what a model holds in all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from course_utils.methods.targets import find_head


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter for all that will be trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model holds, and how many of them are trained."""

    trainable: int
    head: int
    total: int

    @property
    def share(self) -> float:
        """Trainable / total, between 0 and 1."""
        return self.trainable / self.total

    def __str__(self) -> str:
        percent = f"{self.share:.2%}" if self.share >= 1e-4 else f"{100 * self.share:.2g}%"
        return (
            f"{self.trainable:,} of {self.total:,} parameters are trained ({percent}): "
            f"{self.trainable - self.head:,} by the method, {self.head:,} in the head"
        )


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count all parameters, the trained ones, and those of the trained head; shared ones count once.

    A layer that stores its weight in another form, such as several in one byte, says in `packed_parameters` how many
    numbers that is.
    """
    head = tuple(f"{name}." for name in find_head(model))
    trained = trainable_parameters(model)
    of_head = [p for n, p in trained.items() if n.startswith(head) or n.replace(".base.", ".").startswith(head)]
    return ParameterCount(
        trainable=_total(trained.values()),
        head=_total(of_head),
        total=_total(model.parameters()) + sum(getattr(module, "packed_parameters", 0) for module in model.modules()),
    )


def _total(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
