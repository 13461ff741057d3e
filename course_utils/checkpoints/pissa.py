"""PiSSA in peft's format: written as a plain LoRA of twice the rank, read in both of peft's forms.

What PiSSA has learnt is a difference of two products, which is one product of twice the rank::

    s · B A - s · B₀ A₀ = s · [B, -B₀] [A; A₀]

So the checkpoint is a plain LoRA for the untouched backbone, and nobody needs PiSSA, or its decomposition, to use it.
peft writes the same with `save_pretrained(..., path_initial_model_for_weight_conversion=...)`. Without that it writes
A and B alone, which fit only R, the rest of the weight; `load` then decomposes the backbone's weights again. That is
safe: singular vectors may come with another sign, and R is the same all the same.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from course_utils.checkpoints.formats import Format, Tensors


class PiSSAFormat(Format):
    """What a row cannot say of PiSSA: written, it has twice the rank."""

    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """The header of a LoRA of twice the rank and the same scaling."""
        factor = math.sqrt(2) if config.rank_stabilized else 2
        return super().header(model, replace(config, rank=2 * config.rank, alpha=factor * config.alpha))

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """The learnt difference as one product: [A; A₀] and [B, -B₀]."""
        doubled = dict(tensors)
        for name, layer in self.layers(model).items():
            a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            doubled[a] = torch.cat([tensors[a], layer.initial_a.to(tensors[a])], dim=0)
            doubled[b] = torch.cat([tensors[b], -layer.initial_b.to(tensors[b])], dim=1)
        return super().to_peft(doubled, model)
