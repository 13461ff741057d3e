"""DoRA in peft's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from course_utils.checkpoints.formats import CheckpointError, Tensors
from course_utils.checkpoints.lora import LoRAFormat
from course_utils.methods.dora import DoRAConfig
from course_utils.methods.lora import LoRAConfig

_MAGNITUDE = "lora_magnitude_vector"


class DoRAFormat(LoRAFormat):
    """`DoRAConfig` ↔ peft's `LoraConfig(use_dora=True)`."""

    method = DoRAConfig

    def reads(self, header: Mapping[str, Any]) -> bool:
        """peft's LoRA with `use_dora` switched on."""
        return super().reads(header) and bool(header.get("use_dora"))

    def header(self, model: nn.Module, config: LoRAConfig) -> dict[str, Any]:
        """LoRA's header and the switch."""
        return super().header(model, config) | {"use_dora": True}

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> LoRAConfig:
        """LoRA's settings, in a `DoRAConfig`."""
        return super().settings({key: value for key, value in header.items() if key != "use_dora"}, model)

    def from_peft(self, tensors: Tensors, model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
        """Our names. peft writes `lora_magnitude_vector`, some tools `lora_magnitude_vector.weight`; both are read."""
        doubled = [key for key in tensors if key.endswith(_MAGNITUDE) and f"{key}.weight" in tensors]
        if doubled:
            raise CheckpointError(f"{doubled[0]} is there twice, with and without .weight")
        ours = super().from_peft(tensors, model, config)
        return {
            name.removesuffix(".weight") if name.endswith(f"{_MAGNITUDE}.weight") else name: tensor
            for name, tensor in ours.items()
        }
