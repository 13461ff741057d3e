"""What is looked at before a run and at each of its steps, so that a fault is named and not trained on."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.data import DataLoader

from course_utils.data.errors import DataError
from course_utils.data.labels import refuse_wrong_labels
from course_utils.methods.base import MethodConfig
from course_utils.methods.errors import MethodError
from course_utils.training.config import TrainingConfig, TrainingError


def check_trainable(trained: dict[str, nn.Parameter]) -> None:
    """Raise `TrainingError` where there is nothing to train."""
    if not trained:
        raise TrainingError(
            "no parameter of the model is trainable; inject a method first, for example inject(model, LoRAConfig())"
        )


def check_labels(model: nn.Module, loader: DataLoader) -> None:
    """Raise `TrainingError` for a label that is missing, or no class of the model."""
    try:
        refuse_wrong_labels(model, loader)
    except DataError as error:
        raise TrainingError(str(error)) from error


def check_steps(method: MethodConfig, total: int) -> None:
    """Raise `TrainingError` where what the method plans does not fit into the steps of the run."""
    try:
        method.check_steps(total)
    except MethodError as error:
        raise TrainingError(str(error)) from error


def check_finite(loss: float, norm: float, step: int, config: TrainingConfig, model: nn.Module) -> None:
    """Raise `TrainingError` when the loss or the length of the gradient is infinite or NaN; say what to try first."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    halves = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16]
    rate = f"learning rate ({config.learning_rate:g}) is too high: try a tenth of it"
    raise TrainingError(
        f"the loss is {loss} and the gradient's length {norm} at step {step}: training cannot go on, and the model was "
        "put back to its best weights. "
        + (
            f"{len(halves)} of its parameters, such as {halves[0]}, are fp16, which overflows above 65504 and loses "
            "what is small, so that no learning rate helps: load the model in float32 (model.float()) or bfloat16. "
            f"Only if it happens there, too, the {rate}."
            if halves
            else f"Most often the {rate}. Else look for weights or inputs that are not numbers."
        )
    )
