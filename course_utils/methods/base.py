"""What every tuning method shares: choose the targets, freeze, insert, count, merge.

A method is a frozen dataclass with the paper's names for its settings and one function, `apply`, that changes the
model. Everything else is the same for all methods and stands here once::

    model = inject(model, LoRAConfig(rank=8))  # freeze, insert, keep the head trainable
    print(count_parameters(model))
    ...                                        # train
    model = merge(model)                       # fold the update into the weights, or eject(model): take it out
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

#: The names that transformers gives to the head of a classifier.
HEAD_NAMES = ("classifier", "score")

#: Query and value projections by model type, as in the LoRA paper. GPT-2 keeps query, key and value in one matrix.
QUERY_AND_VALUE: dict[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "xlm-roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
}

Targets = str | tuple[str, ...]

#: The layers that hold one matrix: `nn.Linear`, weight (out, in), and GPT-2's `Conv1D`, weight (in, out).
Matrix = nn.Linear | Conv1D


class MethodError(ValueError):
    """The method cannot be applied to this model with these settings."""


class TargetError(MethodError):
    """The names of the modules to change match nothing."""


@dataclass(frozen=True)
class MethodConfig(ABC):
    """The settings of one tuning method.

    Args:
        head: names of the modules that are trained beside the method itself, because they are new. Default: the
            classification head, where the model has one.
    """

    name: ClassVar[str]
    head: tuple[str, ...] | None = None

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Change `model` in place, or raise and change nothing. All its parameters are frozen when this is called."""

    # Four things that a method may ask of the training loop; most ask nothing.

    def rate_factor(self, parameter: str) -> float:
        """By what the learning rate of the parameter with this dotted name is multiplied."""
        return 1.0

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """A scalar that is added to the loss of each step, or None."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 (most methods do nothing here)
        """Called after optimiser step number `step`, counted from 1, while its gradients are still there."""

    def finished(self, step: int) -> bool:
        """Whether the weights after this step may be kept as the best: AdaLoRA's may not before its last cut."""
        return True


class AdaptedLayer(nn.Module):
    """A layer of the model, wrapped together with what a method adds to it.

    Args:
        base: the wrapped layer; its parameters stay frozen.
    """

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def merged(self) -> nn.Module:
        """The wrapped layer with the update folded into its weights, so that the wrapper is no longer needed."""
        raise MethodError(f"{type(self).__name__} computes something that no single weight can hold: no merge")

    def removed(self) -> nn.Module:
        """The wrapped layer as it was before the method came."""
        return self.base


def inject(model: nn.Module, config: MethodConfig, *, seed: int = 0) -> nn.Module:
    """Freeze a model, insert a tuning method, and keep its head trainable.

    Args:
        model: any model of transformers. It is changed in place.
        config: the method, for example `LoRAConfig(rank=8)`.
        seed: of the new weights. Your own random state is left as it was.

    Returns:
        The same model, with `model.tuning` set to `config`.

    Raises:
        MethodError: a method is already in the model, or this one does not fit it. The model is then unchanged.
    """
    present: MethodConfig | None = getattr(model, "tuning", None)
    if present is not None:
        raise MethodError(f"the model already carries {present.name}; merge it first, or load the model afresh")
    head = find_head(model, config.head)
    trainable_before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            config.apply(model)
        for wrapper in (module for module in model.modules() if isinstance(module, AdaptedLayer)):
            wrapper.train(wrapper.base.training)  # a new module is in training mode, whatever mode the model is in
    except Exception:
        for parameter, trainable in trainable_before.items():
            parameter.requires_grad_(trainable)
        raise
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    model.tuning = config  # type: ignore[assignment]
    return model


def find_head(model: nn.Module, names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Names of the head's modules: those asked for, or the classification head if there is one."""
    if names is None:
        return tuple(name for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module))
    if not isinstance(names, (tuple, list)):
        raise TargetError(f"head must be a tuple of names, such as ('classifier',), got {names!r}")
    for name in names:
        try:
            model.get_submodule(name)
        except AttributeError:
            existing = ", ".join(child for child, _ in model.named_children())
            raise TargetError(f"head names no module {name!r}; the model has {existing}") from None
    return names


def find_targets(model: nn.Module, targets: Targets | None, head: tuple[str, ...] | None = None) -> dict[str, Matrix]:
    """The linear layers that a method shall change.

    Args:
        model: the model to look into.
        targets: a tuple of names, each the last part or parts of a module's dotted name (`"query"`,
            `"attention.output.dense"`); or one regular expression for the whole dotted name; or `"all-linear"`; or
            None for the query and value projections of a known architecture.
        head: modules that are trained as they are and therefore are never targets. Default: the classification head.

    Returns:
        Dotted name → layer, in the model's order.

    Raises:
        TargetError: one of the names matches nothing. The message lists what exists.
    """
    head = find_head(model, head)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Matrix) and not any(name == h or name.startswith(h + ".") for h in head)
    }
    if targets is None:
        model_type = getattr(getattr(model, "config", None), "model_type", "")
        if model_type not in QUERY_AND_VALUE:
            raise TargetError(f"no default targets for a model of type {model_type!r}. {_existing(linear)}")
        targets = QUERY_AND_VALUE[model_type]
    if targets == "all-linear":
        output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        return {name: module for name, module in linear.items() if module is not output}
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


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _existing(linear: Mapping[str, nn.Module]) -> str:
    last_parts = sorted({name.rsplit(".", 1)[-1] for name in linear})
    example = next(iter(linear), "nothing")
    return f"The model's linear layers are called {', '.join(last_parts) or 'nothing'} (one in full: {example})."


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


def trainable_dtype(weight: torch.Tensor) -> torch.dtype:
    """The type of new weights beside `weight`: float32 beside half precision, which is too coarse to learn in."""
    return torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where `model` has the module with the dotted name `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


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
    head = find_head(model)
    trained = trainable_parameters(model)
    return ParameterCount(
        trainable=_total(trained.values()),
        head=_total(p for name, p in trained.items() if name.startswith(tuple(h + "." for h in head))),
        total=_total(model.parameters()) + sum(getattr(module, "packed_parameters", 0) for module in model.modules()),
    )


def _total(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


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


def refuse_packed_weights(module: nn.Module, method: str) -> None:
    """Raise `MethodError` if a weight is stored in 4 bits, for a method that has to change the weight itself."""
    if any(hasattr(part, "packed_parameters") for part in module.modules()):
        raise MethodError(
            f"{method} changes the weights themselves, and those of this model are stored in 4 bits. Call "
            "dequantize(model) first, or use a method that adds its own weights, such as LoRA"
        )


def positive_integer(value: Any, name: str) -> None:
    """Raise `MethodError` unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MethodError(f"{name} must be a whole number of at least 1, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
