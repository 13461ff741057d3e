"""Which learning rate and which weight decay each trained parameter gets."""

from __future__ import annotations

from typing import Any

from torch import nn

from course_utils.methods.base import MethodConfig
from course_utils.training.config import TrainingConfig


def parameter_groups(
    trained: dict[str, nn.Parameter], method: MethodConfig, config: TrainingConfig
) -> list[dict[str, Any]]:
    """Decay matrices and leave vectors alone: pulling a bias or a normalisation's gain to zero helps nobody.

    A vector may be stored as one row or one column, as the factors of (IA)³ are. The parameters of one group share
    their learning rate, which the method may set apart (LoRA+).

    Args:
        trained: name → parameter.
        method: multiplies the learning rate of a name, see `MethodConfig.rate_factor`.
        config: its `learning_rate` and `weight_decay` are read.

    Returns:
        Groups as AdamW takes them: `params`, `lr`, `weight_decay`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        is_vector = sum(size > 1 for size in parameter.shape) < 2
        decay = 0.0 if is_vector else config.weight_decay
        groups.setdefault((method.rate_factor(name), decay), []).append(parameter)
    return [
        {"params": parameters, "lr": factor * config.learning_rate, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
