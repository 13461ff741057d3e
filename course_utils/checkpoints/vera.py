"""VeRA in peft's format: the vectors of each layer, and once for all layers the two shared matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.checkpoints.formats import (
    CheckpointError,
    PeftFormat,
    Tensors,
    head_from_peft,
    refuse_other_settings,
    targets_from_peft,
)
from course_utils.methods.lora import layer_shape
from course_utils.methods.targets import find_targets
from course_utils.methods.vera import Projections, VeRAConfig, VeRALinear

#: The shared matrices belong to no module of the model, so peft's name for the model is not in front of them.
_A, _B = "base_model.vera_A", "base_model.vera_B"
_READ = {
    *("r", "d_initial", "vera_dropout", "projection_prng_key", "save_projection"),
    *("target_modules", "modules_to_save", "bias"),
}
#: How peft stores a matrix (we see that in the model), and whether it fills the vectors that a checkpoint overwrites.
_HARMLESS = {"fan_in_fan_out", "init_weights", "runtime_config"}


class VeRAFormat(PeftFormat):
    """`VeRAConfig` ↔ peft's `VeraConfig`."""

    method = VeRAConfig

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Every header of peft's VeRA."""
        return header.get("peft_type") == "VERA"

    def header(self, model: nn.Module, config: VeRAConfig) -> dict[str, Any]:
        """peft's names for the settings."""
        wrapped = {name: module.base for name, module in model.named_modules() if isinstance(module, VeRALinear)}
        return {
            "peft_type": "VERA",
            "r": config.rank,
            "d_initial": config.initial_d,
            "vera_dropout": config.dropout,
            "projection_prng_key": config.projection_seed,
            "save_projection": config.save_projection,
            "target_modules": sorted(wrapped),
            "fan_in_fan_out": any(isinstance(base, Conv1D) for base in wrapped.values()),
            "bias": "none",
        }

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> VeRAConfig:
        """Our names for the settings; every variant that ours does not implement is refused by name."""
        if header.get("bias", "none") != "none":
            raise CheckpointError(f"the checkpoint trains biases too (bias={header['bias']!r}), which ours does not")
        refuse_other_settings(header, _READ | _HARMLESS)
        return VeRAConfig(
            rank=header["r"],
            initial_d=header.get("d_initial", 0.1),
            dropout=header.get("vera_dropout", 0.0),
            targets=targets_from_peft(header),
            projection_seed=header.get("projection_prng_key", 0),
            save_projection=header.get("save_projection", True),
            head=head_from_peft(header, model),
        )

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """peft's names, and the shared matrices unless the settings leave them to the seed."""
        shared = _projections(model)
        matrices = {_A: shared.A, _B: shared.B} if model.tuning.save_projection else {}  # type: ignore[union-attr]
        return super().to_peft(tensors, model) | {key: m.cpu().clone() for key, m in matrices.items()}

    def from_peft(self, tensors: Tensors, model: nn.Module, config: VeRAConfig) -> dict[str, torch.Tensor]:
        """The vectors under our names, after a look at the shared matrices."""
        if config.save_projection:
            layers = find_targets(model, config.targets, config.head).values()
            inputs, outputs = (max(sizes) for sizes in zip(*map(layer_shape, layers), strict=True))
            for key, shape in {_A: (config.rank, inputs), _B: (outputs, config.rank)}.items():
                if key not in tensors:
                    raise CheckpointError(f"the checkpoint lacks {key}, which save_projection=True says that it holds")
                found = tuple(tensors[key].shape)
                if found != shape:
                    raise CheckpointError(f"{key} has the shape {found} in the checkpoint, and the model needs {shape}")
            tensors = {key: tensor for key, tensor in tensors.items() if key not in (_A, _B)}
        return super().from_peft(tensors, model, config)

    def load_frozen(self, model: nn.Module, tensors: Tensors) -> None:
        """The shared matrices as they were saved: another version of PyTorch might draw others from the same seed."""
        if _A in tensors:
            shared = _projections(model)
            shared.A.copy_(tensors[_A])
            shared.B.copy_(tensors[_B])


def _projections(model: nn.Module) -> Projections:
    return next(module for module in model.modules() if isinstance(module, Projections))
