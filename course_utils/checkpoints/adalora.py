"""AdaLoRA in peft's format: only the triplets that are left, and a list that says how many each matrix has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.checkpoints.formats import (
    PREFIX,
    CheckpointError,
    PeftFormat,
    Tensors,
    head_from_peft,
    refuse_other_settings,
    targets_from_peft,
)
from course_utils.checkpoints.lora import HARMLESS
from course_utils.methods.adalora import AdaLoRAConfig, AdaLoRALinear

#: Our settings under peft's names, with peft's defaults.
_SETTINGS: dict[str, tuple[str, Any]] = {
    "init_rank": ("init_r", 12),
    "target_rank": ("target_r", 8),
    "total_steps": ("total_step", 0),
    "initial_steps": ("tinit", 0),
    "final_steps": ("tfinal", 0),
    "interval": ("deltaT", 1),
    "beta1": ("beta1", 0.85),
    "beta2": ("beta2", 0.85),
    "orthogonality": ("orth_reg_weight", 0.5),
    "alpha": ("lora_alpha", 8),
    "dropout": ("lora_dropout", 0.0),
}
_READ = {name for name, _ in _SETTINGS.values()} | {"target_modules", "modules_to_save", "rank_pattern", "bias"}
#: peft's AdaLoRA inherits these from its LoRA and does not look at them.
_WITHOUT_EFFECT = {"r", "use_rslora", "init_lora_weights"}


class AdaLoRAFormat(PeftFormat):
    """`AdaLoRAConfig` ↔ peft's `AdaLoraConfig`."""

    method = AdaLoRAConfig

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Every header of peft's AdaLoRA."""
        return header.get("peft_type") == "ADALORA"

    def header(self, model: nn.Module, config: AdaLoRAConfig) -> dict[str, Any]:
        """peft's names for the settings. `rank_pattern` is needed once a triplet was cut."""
        layers = _layers(model)
        pattern = {name: layer.alive().tolist() for name, layer in layers.items()}
        if all(sum(alive) == config.init_rank for alive in pattern.values()):
            ranks = None
        else:  # peft wants lists of the first length; for a loaded layer, only how many are True still counts
            ranks = {f"{n}.lora_E": alive + [False] * (config.init_rank - len(alive)) for n, alive in pattern.items()}
        return {theirs: getattr(config, ours) for ours, (theirs, _) in _SETTINGS.items()} | {
            "peft_type": "ADALORA",
            "target_modules": sorted(layers),
            "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
            "bias": "none",
            "rank_pattern": ranks,
        }

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> AdaLoRAConfig:
        """Our names for the settings; every variant that ours does not implement is refused by name."""
        if header.get("bias", "none") != "none":
            raise CheckpointError(f"the checkpoint trains biases too (bias={header['bias']!r}), which ours does not")
        refuse_other_settings(header, _READ | HARMLESS | _WITHOUT_EFFECT)
        settings = {ours: header.get(theirs, default) for ours, (theirs, default) in _SETTINGS.items()}
        pattern: Mapping[str, list[bool]] = header.get("rank_pattern") or {}
        ranks = {name.removesuffix(".lora_E"): sum(alive) for name, alive in pattern.items()}
        return AdaLoRAConfig(
            **settings,
            targets=targets_from_peft(header),
            head=head_from_peft(header, model),
            ranks=ranks if any(rank < settings["init_rank"] for rank in ranks.values()) else None,
        )

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """peft's names, without the triplets that were cut."""
        ours = dict(tensors)
        for name, layer in _layers(model).items():
            alive = layer.alive().cpu()
            for part in ("lora_A", "lora_E"):
                ours[f"{name}.{part}"] = ours[f"{name}.{part}"][alive]
            ours[f"{name}.lora_B"] = ours[f"{name}.lora_B"][:, alive]
        return {PREFIX + name: tensor.contiguous() for name, tensor in ours.items()}


def _layers(model: nn.Module) -> dict[str, AdaLoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaLoRALinear)}
