"""Find the parts of a model by name: its head, its body, and the linear layers that a method shall change."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.methods.architectures import architecture_of, model_type
from course_utils.methods.errors import MethodError, TargetError
from course_utils.methods.heads import default_head

Targets = str | tuple[str, ...]

#: The layers that hold one matrix: `nn.Linear`, weight (out, in), and GPT-2's `Conv1D`, weight (in, out).
Matrix = nn.Linear | Conv1D


def find_head(model: nn.Module, names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Names of the head's modules: those asked for, or all that is new (see `heads`).

    Raises:
        TargetError: the model has no module of that name; or it cannot be seen what is new, and no names are given.
    """
    if names is None:
        return default_head(model)
    if not isinstance(names, (tuple, list)):
        raise TargetError(f"head must be a tuple of names, such as ('classifier',), got {names!r}")
    for name in names:
        try:
            model.get_submodule(name)
        except AttributeError:
            existing = ", ".join(child for child, _ in model.named_children())
            raise TargetError(f"head names no module {name!r}; the model has {existing}") from None
    return names


def find_targets(
    model: nn.Module,
    targets: Targets | None,
    head: tuple[str, ...] | None = None,
    *,
    exclude: Targets | None = None,
) -> dict[str, Matrix]:
    """The linear layers that a method shall change.

    Args:
        model: the model to look into.
        targets: a tuple of names, each the last part or parts of a module's dotted name (`"query"`,
            `"attention.output.dense"`); or one regular expression for the whole dotted name; or `"all-linear"`; or
            None for the query and value projections of a known architecture.
        head: modules that are trained as they are and therefore are never targets. Default: all that is new.
        exclude: what is left out of these: names or a pattern, which are read in the same way. Each must be the name
            of some module.

    Returns:
        Dotted name → layer, in the model's order.

    Raises:
        TargetError: one of the names matches nothing. The message lists what exists.
    """
    found = _chosen(model, targets, find_head(model, head))
    if exclude is None:
        return found
    left_out = _left_out(model, exclude)
    kept = {name: module for name, module in found.items() if name not in left_out}
    if found and not kept:
        raise TargetError(f"exclude={exclude!r} leaves out all that targets={targets!r} names, so nothing is changed")
    return kept


def _chosen(model: nn.Module, targets: Targets | None, head: tuple[str, ...]) -> dict[str, Matrix]:
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Matrix) and not any(name == h or name.startswith(h + ".") for h in head)
    }
    if targets is None:
        architecture = architecture_of(model)
        if architecture is None:
            raise TargetError(f"no default targets for a model of type {model_type(model)!r}. {_existing(linear)}")
        targets = architecture.lora_targets
    if targets == "all-linear":
        _warn_of_fused_weights(model)
        output = model.get_output_embeddings() if isinstance(model, transformers.PreTrainedModel) else None
        return {name: module for name, module in linear.items() if module is not output}
    return _named(linear, targets, head)


def _left_out(model: nn.Module, exclude: Targets) -> set[str]:
    """The dotted names of all modules that `exclude` means."""
    names = [name for name, _ in model.named_modules()]
    if isinstance(exclude, str):
        try:
            return {name for name in names if re.fullmatch(exclude, name)}
        except re.error as error:
            raise TargetError(f"the pattern {exclude!r} is no regular expression: {error}") from None
    if not isinstance(exclude, (tuple, list)):
        raise TargetError(f"exclude must be a tuple of names, a pattern or None, got {exclude!r}")
    for end in exclude:
        if not any(_ends_with(name, end) for name in names):
            raise TargetError(f"exclude names {end!r}, and no module of {type(model).__name__} is called so")
    return {name for name in names if any(_ends_with(name, end) for end in exclude)}


def _named(linear: dict[str, Matrix], targets: Targets, head: tuple[str, ...]) -> dict[str, Matrix]:
    """The layers that these names end, or that this pattern matches."""
    if isinstance(targets, str):
        try:
            found = {name: module for name, module in linear.items() if re.fullmatch(targets, name)}
        except re.error as error:
            raise TargetError(f"the pattern {targets!r} is no regular expression: {error}") from None
        if not found:
            raise TargetError(
                f"the pattern {targets!r} matches the whole dotted name of no linear layer. For a list of names, "
                f"write a tuple: ({targets!r},). {_existing(linear)}"
            )
        return found
    if not isinstance(targets, (tuple, list)):
        raise TargetError(f"targets must be a tuple of names, a pattern, 'all-linear' or None, got {targets!r}")
    if not targets:
        raise TargetError(f"targets is empty, so nothing would be changed. {_existing(linear)}")
    for target in targets:
        if not any(_ends_with(name, target) for name in linear):
            hint = " (the head is trained as it is)" if target in head else ""
            raise TargetError(f"no linear layer is called {target!r}{hint}. {_existing(linear)}")
    return {name: module for name, module in linear.items() if any(_ends_with(name, t) for t in targets)}


def _warn_of_fused_weights(model: nn.Module) -> None:
    """Say which share of the weights "all-linear" does not see: the experts of a mixture in one tensor."""
    fused = {
        f"{name}.{key}": parameter.numel()
        for name, module in model.named_modules()
        if not isinstance(module, nn.modules.conv._ConvNd)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and 1 not in parameter.shape  # a position table may be (1, tokens, hidden)
    }
    if fused:
        share = sum(fused.values()) / sum(parameter.numel() for parameter in model.parameters())
        warnings.warn(
            f"{share:.0%} of the parameters are in no linear layer and stay as they are: {next(iter(fused))}"
            f"{f' and {len(fused) - 1} more' if len(fused) > 1 else ''} hold several matrices in one tensor (the "
            "experts of a mixture)",
            stacklevel=2,
        )


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _existing(linear: Mapping[str, nn.Module]) -> str:
    last_parts = sorted({name.rsplit(".", 1)[-1] for name in linear})
    example = next(iter(linear), "nothing")
    return f"The model's linear layers are called {', '.join(last_parts) or 'nothing'} (one in full: {example})."


def layer_shape(layer: Matrix) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, whichever way round it stores its weight: (384, 1536)."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features


def turned(layer: Matrix, matrix: torch.Tensor) -> torch.Tensor:
    """(out, in) → the way round that the layer stores its weight, and back: a `Conv1D` stores (in, out)."""
    return matrix.T if isinstance(layer, Conv1D) else matrix


def find_body(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and the module of the transformer without its head: `model.bert`, `model.transformer`, `model.model`.

    Raises:
        MethodError: the model has no head, or is none of transformers.
    """
    name = getattr(model, "base_model_prefix", "")
    body = getattr(model, name, None) if name else None
    if not isinstance(body, nn.Module) or body is model:
        raise MethodError(
            f"{type(model).__name__} has no body below a head. This method needs a model with a task, such as "
            "AutoModelForSequenceClassification or AutoModelForCausalLM"
        )
    return name, body


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where `model` has the module with the dotted name `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
