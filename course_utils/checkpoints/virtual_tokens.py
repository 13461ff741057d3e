"""What the formats of prompt tuning, P-Tuning and prefix tuning share.

peft keeps one table, `prompt_embeddings`, whatever computed it, and drops the network that did. Ours goes into a second
file, `prompt_encoder.safetensors`, so that training can go on; the two must agree.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from course_utils.checkpoints.formats import CheckpointError, PeftFormat, Tensors
from course_utils.methods.targets import find_body

#: What peft puts before the name of a module of the model, for methods that wrap no layer.
_PREFIX = "base_model."
_TABLE = "prompt_embeddings"
ENCODER_FILE = "prompt_encoder.safetensors"


class VirtualTokensFormat(PeftFormat):
    """A table of virtual tokens, the head, and perhaps the encoder that computes the table."""

    #: What the wrapper of the body calls the module that makes the table.
    part: ClassVar[str]

    @abstractmethod
    def compute(self, module: Any) -> torch.Tensor:
        """The table that the module makes, as peft stores it."""

    def new_encoder(self, config: Any, model: nn.Module, columns: int) -> nn.Module | None:
        """A fresh encoder for these settings, to try stored weights on; None if the table itself is trained."""
        return None

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """The table that the model computes, and the head."""
        name, body = find_body(model)
        head = {
            _PREFIX + key.replace(f"{name}.base.", f"{name}.", 1): tensor
            for key, tensor in tensors.items()
            if not key.startswith(f"{name}.{self.part}.")
        }
        return {_TABLE: self.table(getattr(body, self.part))} | head

    def from_peft(self, tensors: Tensors, model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
        """The head under our names; and the table, or the encoder, which must compute the table."""
        name, _ = find_body(model)
        head: dict[str, torch.Tensor] = {}
        encoder: dict[str, torch.Tensor] = {}
        for key, tensor in tensors.items():
            own = key.removeprefix(_PREFIX)
            if key.startswith(_PREFIX):
                head[own.replace(f"{name}.", f"{name}.base.", 1) if own.startswith(f"{name}.") else own] = tensor
            elif key != _TABLE:
                encoder[key] = tensor
        table = tensors.get(_TABLE)
        columns = table.shape[1] if table is not None and table.ndim == 2 else 1
        with torch.random.fork_rng(devices=[]):  # its first weights are replaced at once
            module = self.new_encoder(config, model, columns)
        if module is None:
            if encoder:
                key = next(iter(encoder))
                raise CheckpointError(f"unexpected key {key!r}: expected {_TABLE!r}, and {_PREFIX!r} before all others")
            return head if table is None else head | {f"{name}.{self.part}.embedding.weight": table}
        self._check(module, encoder, table)
        return head | {f"{name}.{self.part}.{key}": tensor for key, tensor in encoder.items()}

    def _check(self, module: nn.Module, encoder: Tensors, table: torch.Tensor | None) -> None:
        try:
            module.load_state_dict(encoder)
        except RuntimeError as error:
            raise CheckpointError(f"{ENCODER_FILE} does not fit the settings: {error}") from error
        computed = self.table(module)
        if table is None or table.shape != computed.shape:
            raise CheckpointError(f"{_TABLE} is missing, or not of the shape {tuple(computed.shape)}")
        tolerance = 1e-4 if table.dtype == torch.float32 else 5e-2  # the encoder is computed in float32 here
        if (computed - table.float()).norm() > tolerance * computed.norm():
            raise CheckpointError(
                f"{ENCODER_FILE} does not compute {_TABLE}: the two files are of different checkpoints. Delete "
                f"{ENCODER_FILE} to load the table as it is"
            )

    @torch.no_grad()
    def table(self, module: nn.Module) -> torch.Tensor:
        """The table as it is after training, without the encoder's dropout."""
        training = module.training
        table = self.compute(module.eval()).detach().cpu().clone().contiguous()
        module.train(training)
        return table


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's tensors, ready to be saved."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
