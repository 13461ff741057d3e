"""A trained weight that stands in a model twice, as a language model's embedding table that is its output layer too.

peft copies a trained module. So it unties the two and trains one of them, or both apart; that is another model than
ours, which trains the shared weight. With `ensure_weight_tying` it puts them together again, for LoRA and where the
other place is a linear layer without bias. Its file then holds the weight under both names, and both are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from course_utils.checkpoints.errors import CheckpointError
from course_utils.methods.heads import table_of_words

# By these last parts of names peft recognises that an embedding table is trained.
_RECOGNISED = ("embed_tokens", "lm_head")


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """The first name of each trained weight that has several → its other names.

    For example `{"model.embed_tokens.weight": ["lm_head.weight"]}`.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            names.setdefault(weight, []).append(name)
    return {first: others for first, *others in names.values() if others}


def refuse_what_peft_unties(model: nn.Module, method_ties: bool) -> None:
    """Raise `CheckpointError` if peft could not read a trained weight of this model as shared.

    Args:
        model: with a method.
        method_ties: whether peft knows `ensure_weight_tying` for the method.
    """
    for first, others in tied_names(model).items():
        if not (method_ties and _is_embedding_and_output(model, first, others)):
            raise _untied(first, others[0])


def without_twins(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of peft's, those of a shared weight under its first name only.

    Raises:
        CheckpointError: the checkpoint has not each of its names, or has different numbers: peft had untied them.
    """
    kept = dict(tensors)
    for first, others in tied_names(model).items():
        for other in others:
            if first not in kept or other not in kept or not torch.equal(kept[first], kept.pop(other)):
                raise _untied(first, other)
    return kept


def _is_embedding_and_output(model: Any, first: str, others: list[str]) -> bool:
    if not isinstance(model, transformers.PreTrainedModel):
        return False
    words, output = table_of_words(model), model.get_output_embeddings()
    places = {name: model.get_submodule(name.removesuffix(".weight")) for name in (first, *others)}
    return (
        list(places.values()) == [words, output]
        and isinstance(output, nn.Linear)
        and output.bias is None
        and bool(getattr(model.config, "tie_word_embeddings", False))
        and any(name.removesuffix(".weight").rpartition(".")[2] in _RECOGNISED for name in places)
    )


def _untied(one: str, other: str) -> CheckpointError:
    return CheckpointError(
        f"{one} is trained and is the same weight as {other} (tied embeddings). peft trains a copy of one and leaves "
        "the other as it was, so the checkpoint would mean two things; only for LoRA, and an output layer without a "
        "bias, it can keep them together (ensure_weight_tying). Leave the module out of the head (`head` here, "
        "`modules_to_save` in peft)"
    )
