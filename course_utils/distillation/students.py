"""Where a student comes from: a few layers of the teacher, or a small network of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers
from torch import nn

from course_utils.distillation.losses import DistillationError


def cut_layers(model: transformers.PreTrainedModel, layers: Sequence[int]) -> transformers.PreTrainedModel:
    """A student that has only these layers of a model: a copy, with its embeddings and its head.

    Nothing is shared with the model. All weights of the student are trainable, and it is in training mode.

    Args:
        model: an encoder such as BERT or RoBERTa with its head; it stays as it is.
        layers: which to keep, in order; 1 is the first. Layer k makes the hidden state k.

    Raises:
        DistillationError: the layers do not exist or are out of order, or the model has no list of layers.
    """
    total = int(model.config.num_hidden_layers)
    if not layers or list(layers) != sorted(set(layers)) or not 1 <= layers[0] <= layers[-1] <= total:
        raise DistillationError(f"expected layers from 1 to {total} in rising order, got {tuple(layers)}")
    student = copy.deepcopy(model)
    name = _list_of_layers(student)
    stack = student.get_submodule(name)
    student.set_submodule(name, nn.ModuleList(stack[layer - 1] for layer in layers))  # type: ignore[index]
    student.config.num_hidden_layers = len(layers)
    return student.requires_grad_(True).train()


def small_student(
    model: transformers.PreTrainedModel, *, layers: int = 2, width: int = 128, heads: int = 2, seed: int = 0
) -> transformers.PreTrainedModel:
    """A student of the model's kind and vocabulary with random weights, as narrow as you like.

    Args:
        model: whose configuration, but for the sizes, the student takes over.
        layers: of the encoder.
        width: of the hidden states; the feed-forward layer is four times as wide, as in BERT.
        heads: of each attention; the width must be a multiple.
        seed: of the weights. Your own random state is left as it was.

    Raises:
        DistillationError: sizes below 1, or a width that the heads cannot share.
    """
    if min(layers, width, heads) < 1 or width % heads:
        raise DistillationError(
            f"expected at least one layer and one head, and a width that is a multiple of the heads; got {layers} "
            f"layers, a width of {width} and {heads} heads"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.hidden_size, config.num_attention_heads = layers, width, heads
    config.intermediate_size = 4 * width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student: Any = type(model)(config)
    return cast(transformers.PreTrainedModel, student.to(model.device).train())


def encoder_parameters(model: transformers.PreTrainedModel) -> int:
    """Numbers in the layers of the encoder, without embeddings, pooler and head."""
    return sum(parameter.numel() for parameter in model.get_submodule(_list_of_layers(model)).parameters())


def _list_of_layers(model: transformers.PreTrainedModel) -> str:
    total = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name
    raise DistillationError(
        f"{type(model).__name__} has no list of {total} layers; expected an encoder such as BERT or RoBERTa"
    )
