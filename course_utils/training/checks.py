"""What is looked at before a run and at each of its steps, so that a fault is named and not trained on."""

from __future__ import annotations

import math
from collections.abc import Sized

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from course_utils.training.config import TrainingConfig, TrainingError


def check_trainable(trained: dict[str, nn.Parameter]) -> None:
    """Raise `TrainingError` where there is nothing to train."""
    if not trained:
        raise TrainingError(
            "no parameter of the model is trainable; inject a method first, for example inject(model, LoRAConfig())"
        )


def check_labels(model: nn.Module, loader: DataLoader) -> None:
    """Raise `TrainingError` for a label that is no class of the model; on a GPU it would end the process."""
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    if classes is None or not isinstance(loader.dataset, Sized):
        return
    for position in range(len(loader.dataset)):
        label = loader.dataset[position].get("labels")
        if not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
            raise TrainingError(
                f"text {position} has the label {label!r}, but the model has {classes} classes: labels must be whole "
                f"numbers from 0 to {classes - 1}"
            )


def check_finite(loss: float, norm: float, step: int, config: TrainingConfig) -> None:
    """Raise `TrainingError` when the loss or the length of the gradient is infinite or NaN."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise TrainingError(
        f"the loss is {loss} and the gradient's length {norm} at step {step}: training cannot go on, and the model was "
        f"put back to its best weights. Most often the learning rate ({config.learning_rate:g}) is too high: try a "
        "tenth of it. Else look for fp16 weights, or inputs that are not numbers."
    )
