"""After training: fold a method into the model's own weights, or take it out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from course_utils.methods.base import AdaptedLayer, MethodConfig
from course_utils.methods.errors import MethodError
from course_utils.methods.guards import remove_guards
from course_utils.methods.targets import replace_module


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Fold what a method has learnt into the model's own weights and take its wrappers out.

    The merged model has the base model's size, speed and file format. It is changed in place, can no longer be told
    from a fully fine-tuned one, and takes another method after that. Quantised layers that a method wraps come out in
    full precision: what was learnt is finer than their steps.

    Raises:
        MethodError: no method is in the model, or it cannot be merged. The model is then unchanged.
    """
    if getattr(model, "tuning", None) is None:
        raise MethodError("there is nothing to merge: no method was injected, or it was merged already")
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}
    _refuse_shared_weights(model, adapted)
    quantized = {module: module.base for module in adapted.values() if hasattr(module.base, "dequantized")}
    for wrapper, base in quantized.items():
        wrapper.base = base.dequantized()  # type: ignore[operator]
    try:
        merged = {name: module.merged() for name, module in adapted.items()}
    except MethodError:
        for wrapper, base in quantized.items():
            wrapper.base = base
        raise
    for name, layer in merged.items():
        replace_module(model, name, layer)
    model.tuning = None  # type: ignore[assignment]
    remove_guards(model)
    return model


def eject(model: nn.Module) -> nn.Module:
    """Take a method out again without merging: the body computes what it did before `inject`, bit for bit.

    The head stays as it was trained. The model is changed in place, and takes another method after that.

    Raises:
        MethodError: no method is in the model, or it changed the model's own weights and put nothing beside them
            (full fine-tuning, BitFit), so that there is nothing to take out. The model is then unchanged.
    """
    config: MethodConfig | None = getattr(model, "tuning", None)
    if config is None:
        raise MethodError("there is nothing to take out: no method was injected, or it was merged already")
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}
    if not adapted:
        raise MethodError(f"{config.name} trains the model's own weights and adds nothing that could be taken out")
    for name, module in {name: module.removed() for name, module in adapted.items()}.items():
        replace_module(model, name, module)
    model.tuning = None  # type: ignore[assignment]
    remove_guards(model)
    return model


def _refuse_shared_weights(model: nn.Module, adapted: Mapping[str, AdaptedLayer]) -> None:
    """A language model's output layer often is its embedding table: to change the one would change the other."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, module in adapted.items():
        if type(module).merged is AdaptedLayer.merged:
            continue  # it never merges, and says so itself
        if any(uses[id(p)] > 1 for p in module.base.parameters()):
            raise MethodError(
                f"{name} shares its weight with another layer (tied embeddings), which a merge would change too. "
                "Leave it out of the targets, or keep the model unmerged."
            )
