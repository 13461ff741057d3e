"""Methods that add nothing and only choose which of the model's own parameters are trained.

* full fine-tuning: all of them;
* head only, also called feature extraction or linear probe: only the new head;
* last layers: the head and the top blocks of the body;
* BitFit: the head and every bias, ``b ← b + Δb`` (Ben Zaken et al. 2022, arXiv:2106.10199).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from course_utils.methods.base import MethodConfig, MethodError, positive_integer


@dataclass(frozen=True)
class FullConfig(MethodConfig):
    """Full fine-tuning: every parameter is trained."""

    name: ClassVar[str] = "full fine-tuning"

    def apply(self, model: nn.Module) -> None:
        """Unfreeze everything."""
        model.requires_grad_(True)


@dataclass(frozen=True)
class HeadOnlyConfig(MethodConfig):
    """Feature extraction: the body stays as it was, only the new head is trained."""

    name: ClassVar[str] = "head only"

    def apply(self, model: nn.Module) -> None:
        """Leave the body frozen; `inject` unfreezes the head."""


@dataclass(frozen=True)
class LastLayersConfig(MethodConfig):
    """Train the top blocks of the body and the head.

    Args:
        layers: how many blocks, counted from the top; at least 1. What comes after them (a pooler, a last
            normalisation) is trained too.
    """

    name: ClassVar[str] = "last layers"
    layers: int = 1

    def __post_init__(self) -> None:
        positive_integer(self.layers, "layers")

    def apply(self, model: nn.Module) -> None:
        """Unfreeze the last blocks and what follows them."""
        path, blocks = _blocks(model)
        if self.layers > len(blocks):
            raise MethodError(f"layers is {self.layers}, but the model has only {len(blocks)} blocks")
        for block in blocks[-self.layers :]:
            block.requires_grad_(True)
        names = [name for name, _ in model.named_parameters()]
        last = max(index for index, name in enumerate(names) if name.startswith(path + "."))
        for name in names[last + 1 :]:
            model.get_parameter(name).requires_grad_(True)


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks: the longest `ModuleList` of the model, and its dotted name."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise MethodError("the model has no list of blocks, so there are no last layers to choose")
    return max(lists, key=lambda item: len(item[1]))


@dataclass(frozen=True)
class BitFitConfig(MethodConfig):
    """BitFit: train every bias, those of the layer normalisations included."""

    name: ClassVar[str] = "BitFit"

    def apply(self, model: nn.Module) -> None:
        """Unfreeze every parameter that is called bias."""
        biases = [p for name, p in model.named_parameters() if name.split(".")[-1] == "bias"]
        if not biases:
            model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            raise MethodError(
                f"BitFit trains biases, and this model ({model_type}) has none: the Llama family leaves them out of "
                "its linear layers and normalisations. Use LoRA, or a model with biases (BERT, RoBERTa, GPT-2)."
            )
        for bias in biases:
            bias.requires_grad_(True)
