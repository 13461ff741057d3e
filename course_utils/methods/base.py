"""What every tuning method is, and how it gets into a model.

A method is a frozen dataclass with the paper's names for its settings and one function, `apply`, that changes the
model. Everything else is the same for all methods: `targets` finds the layers, `inject` freezes and inserts, `counting`
counts, `merging` merges::

    model = inject(model, LoRAConfig(rank=8))  # freeze, insert, keep the head trainable
    print(count_parameters(model))
    ...                                        # train
    model = merge(model)                       # fold the update into the weights, or eject(model): take it out
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from course_utils.methods.errors import MethodError, refuse_foreign_weights
from course_utils.methods.guards import put_guards
from course_utils.methods.targets import find_head
from course_utils.methods.trial import Bare, refuse_without_effect


@dataclass(frozen=True)
class MethodConfig(ABC):
    """The settings of one tuning method.

    Args:
        head: names of the modules that are trained beside the method itself, because they are new. Default: all that
            is new, see `heads`.
    """

    name: ClassVar[str]
    head: tuple[str, ...] | None = None

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Change `model` in place, or raise and change nothing. All its parameters are frozen when this is called."""

    def find_head(self, model: nn.Module) -> tuple[str, ...]:
        """The names of the modules that are trained beside the method, see `targets.find_head`."""
        return find_head(model, self.head)

    # Five things that a method may ask of the training loop; most ask nothing.

    def check_steps(self, total: int) -> None:  # noqa: B027 (most methods plan nothing)
        """Raise `MethodError` where a run of `total` steps of the optimiser ends before what the method plans."""

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

    Whoever looks at a layer's weight, as T5 does for its type, finds that of the wrapped layer. Whoever computes with
    it passes by the method; `inject` refuses that.

    Args:
        base: the wrapped layer; its parameters stay frozen.
    """

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Any:
        """The weight of the wrapped layer, without what the method adds."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The bias of the wrapped layer, or None."""
        return self.base.bias

    @property
    def in_features(self) -> Any:
        """How many numbers go into the wrapped linear layer: 384."""
        return self.base.in_features

    @property
    def out_features(self) -> Any:
        """How many numbers come out of the wrapped linear layer: 1536."""
        return self.base.out_features

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
        MethodError: a method is already in the model, or this one does not fit it, or the model passes by what would
            be trained (one token is sent through it, see `trial`). The model is then unchanged.
    """
    present: MethodConfig | None = getattr(model, "tuning", None)
    if present is not None:
        raise MethodError(f"the model already carries {present.name}; merge it first, or load the model afresh")
    head = config.find_head(model)
    bare, recorded = Bare(model), hasattr(model, "new_modules")
    try:
        unread = _put_in(model, config, head, seed, bare)
        if unread:  # as if `head` had named the rest
            bare.restore()
            head = tuple(name for name in head if not unread.issuperset(model.get_submodule(name).parameters()))
            model.new_modules = head  # type: ignore[assignment]
            _put_in(model, config, head, seed, bare)
    except Exception:
        bare.restore()
        if not recorded:
            vars(model).pop("new_modules", None)
        raise
    if config.head is None:
        model.new_modules = head  # type: ignore[assignment]
    model.tuning = config  # type: ignore[assignment]
    put_guards(model, saving=any(isinstance(module, AdaptedLayer) for module in model.modules()))
    return model


def _put_in(model: nn.Module, config: MethodConfig, head: tuple[str, ...], seed: int, bare: Bare) -> set[nn.Parameter]:
    """Freeze, insert, unfreeze the head, try; the part of the head that nobody has named and that reaches nothing."""
    new = {parameter for name in head for parameter in model.get_submodule(name).parameters()}  # before it is wrapped
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        config.apply(model)
    for wrapper in (module for module in model.modules() if isinstance(module, AdaptedLayer)):
        wrapper.train(wrapper.base.training)  # a new module is in training mode, whatever mode the model is in
    for parameter in new:
        parameter.requires_grad_(True)
    return refuse_without_effect(model, config.name, bare, new, named=config.head is not None)


def trainable_dtype(weight: torch.Tensor) -> torch.dtype:
    """The type of new weights beside `weight`: float32 beside half precision, which is too coarse to learn in.

    Raises:
        MethodError: the weight is no floating point number: another library has packed several into one.
    """
    refuse_foreign_weights(weight)
    return torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
