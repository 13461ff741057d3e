"""How a method that adds something gets into a model: find modules, wrap each, put the wrappers in their place.

A new method on linear layers is a configuration and a layer. Where it changes the weight by some ΔW, the layer says
`delta`, and has its forward pass and its merge from here::

    class MyConfig(TargetsConfig):                    class MyLinear(AdditiveLayer):
        def make_layer(self, base):                       def delta(self):
            return MyLinear(base, self)                       return ...  # (out, in)
"""

from __future__ import annotations

import inspect
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.methods.base import AdaptedLayer, MethodConfig
from course_utils.methods.errors import MethodError, TargetError
from course_utils.methods.targets import Matrix, Targets, find_targets, replace_module, turned


@dataclass(frozen=True)
class WrappingConfig(MethodConfig):
    """A method that puts wrappers around modules of the model."""

    def apply(self, model: nn.Module) -> None:
        """Make all wrappers, and only then put them in place: an error leaves the model as it was."""
        wrappers = self.wrappers(model)
        for name in wrappers:
            _refuse_layer_that_is_not_called(model, name)
        for name, wrapper in wrappers.items():
            replace_module(model, name, wrapper)

    @abstractmethod
    def wrappers(self, model: nn.Module) -> Mapping[str, AdaptedLayer]:
        """Dotted name → what shall stand there. The model is not changed yet."""


def _refuse_layer_that_is_not_called(model: nn.Module, name: str) -> None:
    """Raise `MethodError` for a layer inside a module that takes its weight and never calls it."""
    path, _, child = name.rpartition(".")
    parent = model.get_submodule(path)
    if hasattr(parent, "A_log") and _takes_weight(parent, child):  # the trial on a processor calls the layer
        raise MethodError(
            f"{name} stands in a {type(parent).__name__}, whose kernels for the GPU take the layer's weight and pass "
            f"by whatever is wrapped around it. Leave the layer out: exclude=({child!r},)"
        )
    if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):  # the second in its fast path, in eval()
        raise MethodError(
            f"{name} stands in a {type(parent).__name__} of PyTorch, which computes with the layer's weight and passes "
            "by whatever is wrapped around it. Leave the layer out: targets=(...) with other names"
        )


def _takes_weight(parent: nn.Module, child: str) -> bool:
    """Whether the source of a state-space layer (Mamba) hands the weight of this part to a kernel."""
    try:
        source = inspect.getsource(type(parent))
    except (OSError, TypeError):
        return False
    return re.search(rf"self\.{child}\.weight\b(?!\.(dtype|device|shape))", source) is not None


@dataclass(frozen=True)
class TargetsConfig(WrappingConfig):
    """A method on linear layers.

    Args:
        targets: the matrices to adapt, see `find_targets`; None means query and value.
        exclude: which of them are left out, in the same words; None means none.
    """

    targets: Targets | None = None
    exclude: Targets | None = None

    def wrappers(self, model: nn.Module) -> Mapping[str, AdaptedLayer]:
        """A wrapper for each target."""
        layers = find_targets(model, self.targets, self.head, exclude=self.exclude)
        if not layers:
            raise TargetError(
                f"{type(model).__name__} has no linear layer outside its head, so nothing would be changed"
            )
        return self.wrap(layers)

    def wrap(self, layers: Mapping[str, Matrix]) -> Mapping[str, AdaptedLayer]:
        """The wrappers of all targets by name; a method whose layers share something or differ overrides this."""
        return {name: self.make_layer(layer) for name, layer in layers.items()}

    def make_layer(self, base: Matrix) -> AdaptedLayer:
        """The wrapper of one target, `base`, which stays as it is."""
        raise NotImplementedError(f"{type(self).__name__} needs make_layer, or wrap where the layers are not alike")


class AdditiveLayer(AdaptedLayer):
    """A linear layer whose weight is changed by adding ΔW: ``h = (W + ΔW) x + b``.

    Args:
        base: an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)); its parameters stay frozen.
    """

    base: Matrix

    @abstractmethod
    def delta(self) -> torch.Tensor:
        """The learnt change of the weight, ΔW, of shape (out, in)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``base(x) + ΔW x``. A method that need not form ΔW has a cheaper way of its own."""
        h, delta = self.base(x), self.delta()
        return (h + F.linear(x.to(delta.dtype), delta)).to(h.dtype)

    def merged(self) -> nn.Module:
        """The base layer with ``W + ΔW`` as its weight."""
        weight = self.base.weight
        delta = turned(self.base, self.delta())
        weight.data = (weight + delta).to(weight.dtype)  # adds in the wider of the two types
        return self.base
