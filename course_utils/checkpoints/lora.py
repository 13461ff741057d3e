"""LoRA, rsLoRA and LoRA+ in peft's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.checkpoints.formats import (
    CheckpointError,
    PeftFormat,
    head_from_peft,
    refuse_other_settings,
    targets_from_peft,
)
from course_utils.methods.lora import LoRAConfig, LoRALinear, LoRAPlusConfig

#: Settings that we read, each into a field of `LoRAConfig`.
READ = {"r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "modules_to_save"}
#: Settings that do not change what a loaded checkpoint computes: how it was initialised, how peft stores a matrix (we
#: see that in the model), and sizes that count only beside a setting that is refused.
HARMLESS = {
    *("corda_config", "eva_config", "lora_ga_config", "loftq_config"),
    *("ensure_weight_tying", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
}
#: Initialisations that leave the pretrained weights alone. The others (OLoRA, LoftQ ...) change them, so their
#: checkpoint fits only a backbone that was changed in the same way. `PiSSAFormat` repeats the change for PiSSA.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


class LoRAFormat(PeftFormat):
    """`LoRAConfig` ↔ peft's `LoraConfig`."""

    method: ClassVar[type[LoRAConfig]] = LoRAConfig

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Every header of peft's LoRA; `settings` refuses the variants that are something else."""
        return header.get("peft_type") == "LORA"

    def header(self, model: nn.Module, config: LoRAConfig) -> dict[str, Any]:
        """peft's names for the settings."""
        wrapped = {name: module.base for name, module in model.named_modules() if isinstance(module, LoRALinear)}
        return {
            "peft_type": "LORA",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "use_rslora": config.rank_stabilized,
            "target_modules": sorted(wrapped),
            "fan_in_fan_out": any(isinstance(base, Conv1D) for base in wrapped.values()),
            "bias": "none",
        }

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> LoRAConfig:
        """Our names for the settings; every variant that ours does not implement is refused by name."""
        if header.get("bias", "none") != "none":
            raise CheckpointError(
                f"the checkpoint trains biases beside LoRA (bias={header['bias']!r}), which ours does not"
            )
        if header.get("init_lora_weights", True) not in _INITIALISATIONS:
            raise CheckpointError(
                f"init_lora_weights={header['init_lora_weights']!r} also changes the pretrained weights, which this "
                "checkpoint does not hold. In peft, convert it to plain LoRA when saving."
            )
        refuse_other_settings(header, READ | HARMLESS | {"bias", "init_lora_weights"})
        return self.method(
            rank=header["r"],
            alpha=header["lora_alpha"],
            dropout=header.get("lora_dropout", 0.0),
            targets=targets_from_peft(header),
            rank_stabilized=header.get("use_rslora", False),
            head=head_from_peft(header, model),
        )


class LoRAPlusFormat(LoRAFormat):
    """`LoRAPlusConfig` → peft's `LoraConfig`: what LoRA+ has learnt is plain LoRA, and is loaded as such."""

    method = LoRAPlusConfig

    def reads(self, header: Mapping[str, Any]) -> bool:
        """No header: the two rates belong to the optimiser, and no checkpoint tells of them."""
        return False
