"""QLoRA: LoRA beside weights that are stored in 4 bits (Dettmers et al. 2023, arXiv:2305.14314).

The frozen weights are only ever read, so they need not be exact. They are stored in NF4 (see `quantization`), and each
layer reads its weight back when it computes, in the forward and again in the backward pass::

    h = Ŵ x + b + s · B (A x)        Ŵ = dequantize(quantize(W)), of shape (out, in), frozen

A and B are those of LoRA, in full precision, on all linear layers of the body: as many trained numbers as LoRA has.
At the start B is zero, and the model computes what the quantised model computes: not quite what the original did.
The head, the output layer of a language model, embeddings, normalisations and biases are not quantised.

`merge` gives ``Ŵ + s · B A`` in full precision, exactly. To store that in 4 bits again is another rounding, which the
training did not see: `quantize(merge(model))`. The paper's paged optimiser needs a GPU and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from course_utils.methods.base import AdaptedLayer
from course_utils.methods.errors import MethodError, check_whole_number
from course_utils.methods.guards import put_guards
from course_utils.methods.lora import LoRAConfig
from course_utils.methods.nf4_layer import NF4Linear
from course_utils.methods.quantization import BLOCK
from course_utils.methods.targets import Targets, find_head, find_targets, replace_module


@dataclass(frozen=True)
class QLoRAConfig(LoRAConfig):
    """The settings of QLoRA: LoRA's, and how the weights are stored.

    A model that is quantised already (`quantize`) stays as it is and only gets its LoRA.

    Args:
        targets: as for LoRA; the default here is the paper's, all linear layers of the body.
        double: store the absmax values in 8 bits.
        block_size: how many neighbouring weights share one absmax.
        compute_dtype: in what the layers compute. None means the type of what comes in: float32, where the model is
            in float32. The paper's choice on a GPU is `torch.bfloat16`.
    """

    name: ClassVar[str] = "QLoRA"
    targets: Targets | None = "all-linear"
    double: bool = True
    block_size: int = BLOCK
    compute_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.block_size, self.compute_dtype)

    def apply(self, model: nn.Module) -> None:
        """Quantise the linear layers of the body, then wrap each target as LoRA does."""
        find_targets(model, self.targets, self.head, exclude=self.exclude)  # raises before anything is changed
        if not any(isinstance(module, NF4Linear) for module in model.modules()):
            head = (*find_head(model), *find_head(model, self.head))
            quantize(model, double=self.double, block_size=self.block_size, compute_dtype=self.compute_dtype, skip=head)
        super().apply(model)


def quantize(
    model: nn.Module,
    *,
    double: bool = True,
    block_size: int = BLOCK,
    compute_dtype: torch.dtype | None = None,
    skip: tuple[str, ...] | None = None,
) -> nn.Module:
    """Replace the linear layers of the body by `NF4Linear`, in place. Any method can be injected after that.

    Args:
        model: without a method.
        double: store the absmax values in 8 bits.
        block_size: how many neighbouring weights share one absmax.
        compute_dtype: in what the layers compute; None means the type of what comes in.
        skip: modules that stay as they are. Default: the classification head. The output layer of a language model
            always stays.

    Returns:
        The same model.

    Raises:
        MethodError: a method is in the model, a setting makes no sense, a weight is infinite or NaN, or no linear layer
            is left. The model is then unchanged.
    """
    _check(block_size, compute_dtype)
    if any(isinstance(module, AdaptedLayer) for module in model.modules()):
        raise MethodError("a method is in the model; quantise first and inject after that, or merge it, or take it out")
    layers = find_targets(model, "all-linear", skip)
    layers = {name: layer for name, layer in layers.items() if not isinstance(layer, NF4Linear)}
    if not layers:
        raise MethodError("there is no linear layer left to quantise: the model has none, or was quantised already")
    for name, layer in layers.items():
        if not layer.weight.is_meta and not bool(layer.weight.isfinite().all()):
            raise MethodError(f"the weight of {name} holds infinities or NaN: mend it before it is quantised")
    for name, layer in layers.items():
        new = NF4Linear(layer, double=double, block_size=block_size, compute_dtype=compute_dtype)
        replace_module(model, name, new)
    put_guards(model, saving=True)
    return model


def dequantize(model: nn.Module) -> nn.Module:
    """Replace each `NF4Linear` by an ordinary layer with the same weight, in place; what was rounded stays so."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NF4Linear):
            replace_module(model, name, module.dequantized())
    put_guards(model, saving=any(isinstance(module, AdaptedLayer) for module in model.modules()))
    return model


def _check(block_size: int, compute_dtype: torch.dtype | None) -> None:
    check_whole_number(block_size, "block_size")
    if compute_dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise MethodError(f"compute_dtype must be torch.float32, bfloat16, float16 or None, got {compute_dtype!r}")
