"""Prompt tuning and P-Tuning in peft's format: the k vectors as a table, see `virtual_tokens`.

peft cannot say which position a classifier of the BERT family reads, see `VirtualPromptConfig.pool`. Where ours reads
[CLS], the header says so in one setting more, `pool`. peft warns that it does not know this setting and reads the first
virtual token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from course_utils.checkpoints.formats import CheckpointError, head_from_peft, refuse_other_settings
from course_utils.checkpoints.virtual_tokens import ENCODER_FILE, VirtualTokensFormat, tensors_of
from course_utils.methods import MethodConfig
from course_utils.methods.p_tuning import PromptEncoder, PTuningConfig
from course_utils.methods.prompt_body import VirtualPromptConfig, pools_first_token
from course_utils.methods.prompts import PromptTuningConfig
from course_utils.methods.targets import find_body

#: Read by both; the sizes are those of the model, which the shape of the table is checked against.
_READ = {"num_virtual_tokens", "modules_to_save", "pool", "num_transformer_submodules"}
_SIZES = {"token_dim", "num_attention_heads", "num_layers"}


class _VirtualPromptFormat(VirtualTokensFormat):
    """What the two have in common."""

    part = "prompt"

    def compute(self, module: Any) -> torch.Tensor:
        """P, (k, hidden)."""
        table: torch.Tensor = module()
        return table

    @abstractmethod
    def reads(self, header: Mapping[str, Any]) -> bool:
        """Whether the header is this method's."""

    def header(self, model: nn.Module, config: VirtualPromptConfig) -> dict[str, Any]:
        """peft's names for the settings that both have."""
        pool = {"pool": config.pool} if pools_first_token(model) and config.pool != "peft" else {}
        return {"num_virtual_tokens": config.virtual_tokens, "num_transformer_submodules": 1} | pool

    def common_settings(self, header: Mapping[str, Any], model: nn.Module, others: set[str]) -> dict[str, Any]:
        """Our names for the settings that both have; all but these and `others` are refused."""
        refuse_other_settings(header, _READ | _SIZES | others)
        if header.get("num_transformer_submodules") not in (None, 1):
            raise CheckpointError("the checkpoint is of a model with encoder and decoder, which the course leaves out")
        return {
            "virtual_tokens": header["num_virtual_tokens"],
            "pool": header.get("pool", "peft" if pools_first_token(model) else "text"),
            "head": head_from_peft(header, model),
        }


class PromptTuningFormat(_VirtualPromptFormat):
    """`PromptTuningConfig` ↔ peft's `PromptTuningConfig`."""

    method = PromptTuningConfig

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Every header of peft's prompt tuning."""
        return header.get("peft_type") == "PROMPT_TUNING"

    def header(self, model: nn.Module, config: VirtualPromptConfig) -> dict[str, Any]:
        """peft's names. Where the table started no longer matters, and peft's "TEXT" would ask for a tokenizer."""
        return super().header(model, config) | {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> PromptTuningConfig:
        """Our names for the settings."""
        start = {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"}
        return PromptTuningConfig(init="random", **self.common_settings(header, model, start))


class PTuningFormat(_VirtualPromptFormat):
    """`PTuningConfig` ↔ peft's `PromptEncoderConfig`, with the encoder in a file of its own."""

    method = PTuningConfig
    extra_file = ENCODER_FILE

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Every header of peft's P-Tuning."""
        return header.get("peft_type") == "P_TUNING"

    def header(self, model: nn.Module, config: VirtualPromptConfig) -> dict[str, Any]:
        """peft's names for the settings."""
        assert isinstance(config, PTuningConfig)
        return super().header(model, config) | {
            "peft_type": "P_TUNING",
            "encoder_reparameterization_type": config.encoder.upper(),
            "encoder_hidden_size": config.hidden or find_body(model)[1].prompt().shape[1],  # type: ignore[operator]
            "encoder_num_layers": config.lstm_layers,
            "encoder_dropout": config.lstm_dropout,
        }

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> PTuningConfig:
        """Our names for the settings."""
        encoder = {f"encoder_{end}" for end in ("reparameterization_type", "hidden_size", "num_layers", "dropout")}
        return PTuningConfig(
            encoder=header["encoder_reparameterization_type"].lower(),
            hidden=header["encoder_hidden_size"],
            lstm_layers=header.get("encoder_num_layers", 2),
            lstm_dropout=header.get("encoder_dropout", 0.0),
            **self.common_settings(header, model, encoder),
        )

    def extra_tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The encoder, its tensors called as in peft's own `PromptEncoder`."""
        return tensors_of(find_body(model)[1].prompt)  # type: ignore[arg-type]

    def without_extra(self, config: PTuningConfig) -> MethodConfig:
        """The table alone is a prompt like any other: it computes the same, and could be trained on as it is."""
        return PromptTuningConfig(
            virtual_tokens=config.virtual_tokens, init="random", pool=config.pool, head=config.head
        )

    def new_encoder(self, config: MethodConfig, model: nn.Module, columns: int) -> nn.Module | None:
        """The encoder, if there is one: without the second file `config` is that of prompt tuning."""
        return PromptEncoder(columns, config) if isinstance(config, PTuningConfig) else None
