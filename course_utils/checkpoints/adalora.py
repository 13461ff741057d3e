"""AdaLoRA in peft's format: only the triplets that are left, and a list that says how many each matrix has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from course_utils.checkpoints.formats import Format, Header, Tensors


class AdaLoRAFormat(Format):
    """What a row cannot say of AdaLoRA: the ranks."""

    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """`rank_pattern` is needed once a triplet was cut."""
        pattern = {name: layer.alive().tolist() for name, layer in self.layers(model).items()}
        if all(sum(alive) == config.init_rank for alive in pattern.values()):
            ranks = None
        else:  # peft wants lists of the first length; for a loaded layer, only how many are True still counts
            ranks = {f"{n}.lora_E": alive + [False] * (config.init_rank - len(alive)) for n, alive in pattern.items()}
        return super().header(model, config) | {"rank_pattern": ranks}

    def read(self, header: Header, model: nn.Module) -> dict[str, Any]:
        """Our settings, with the rank of each matrix if any is below the first."""
        settings = super().read(header, model)
        pattern: dict[str, list[bool]] = header.get("rank_pattern") or {}
        ranks = {name.removesuffix(".lora_E"): sum(alive) for name, alive in pattern.items()}
        return settings | {"ranks": ranks if any(rank < settings["init_rank"] for rank in ranks.values()) else None}

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """peft's names, without the triplets that were cut."""
        left = dict(tensors)
        for name, layer in self.layers(model).items():
            alive = layer.alive().cpu()
            for part in ("lora_A", "lora_E"):
                left[f"{name}.{part}"] = left[f"{name}.{part}"][alive]
            left[f"{name}.lora_B"] = left[f"{name}.lora_B"][:, alive].contiguous()
        return super().to_peft(left, model)
