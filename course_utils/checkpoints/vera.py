"""VeRA in peft's format: the vectors of each layer, and once for all layers the two shared matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from course_utils.checkpoints.errors import CheckpointError
from course_utils.checkpoints.formats import Format, Tensors
from course_utils.methods.lora import layer_shape
from course_utils.methods.targets import find_targets
from course_utils.methods.vera import Projections

#: The shared matrices belong to no module of the model, so peft's name for the model is not in front of them.
_A, _B = "base_model.vera_A", "base_model.vera_B"


class VeRAFormat(Format):
    """What a row cannot say of VeRA: two matrices that all layers share."""

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """peft's names, and the shared matrices unless the settings leave them to the seed."""
        shared = _projections(model)
        matrices = {_A: shared.A, _B: shared.B} if model.tuning.save_projection else {}  # type: ignore[union-attr]
        return super().to_peft(tensors, model) | {key: m.cpu().clone() for key, m in matrices.items()}

    def from_peft(self, tensors: Tensors, model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
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
