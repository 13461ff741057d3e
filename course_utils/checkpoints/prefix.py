"""Prefix tuning and P-Tuning v2 in peft's format: all keys and values as one table, see `virtual_tokens`.

peft does not have P-Tuning v2's dropout on the prefix, so the header tells it in one setting more, `prefix_dropout`.
peft warns that it does not know this setting, and computes the same: nothing is dropped after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from course_utils.checkpoints.formats import CheckpointError, head_from_peft, refuse_other_settings
from course_utils.checkpoints.virtual_tokens import ENCODER_FILE, VirtualTokensFormat, tensors_of
from course_utils.methods.prefix import PrefixEncoder, PrefixTuningConfig, PTuningV2Config
from course_utils.methods.prefix_body import prefix_shape
from course_utils.methods.targets import find_body

_DROPOUT = "prefix_dropout"
_READ = {
    *("num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_attention_heads", "num_layers"),
    *("prefix_projection", "encoder_hidden_size", "init_weights", "modules_to_save"),
}


class PrefixFormat(VirtualTokensFormat):
    """`PrefixTuningConfig` ↔ peft's, with the network in a file of its own."""

    method = PrefixTuningConfig
    part = "prefix"
    extra_file = ENCODER_FILE

    def compute(self, module: Any) -> torch.Tensor:
        """The keys and values, (k, 2 · layers · width)."""
        table: torch.Tensor = module()
        return table

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Every header of peft's prefix tuning that has no dropout."""
        return header.get("peft_type") == "PREFIX_TUNING" and _DROPOUT not in header

    def header(self, model: nn.Module, config: PrefixTuningConfig) -> dict[str, Any]:
        """peft's names for the settings, and the sizes of the model."""
        sizes = _sizes(model)
        return sizes | {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": config.virtual_tokens,
            "prefix_projection": config.reparameterize,
            "encoder_hidden_size": config.mid_dim or sizes["token_dim"],
            "init_weights": "zero" if config.init == "zero" else None,
        }

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> PrefixTuningConfig:
        """Our names for the settings; the sizes must be those of the model."""
        refuse_other_settings(header, _READ)
        for setting, size in _sizes(model).items():
            if header.get(setting) not in (None, size):
                raise CheckpointError(f"{setting} is {header[setting]} in the checkpoint and {size} in the model")
        reparameterize = header.get("prefix_projection", False)
        return PrefixTuningConfig(
            virtual_tokens=header["num_virtual_tokens"],
            reparameterize=reparameterize,
            mid_dim=header.get("encoder_hidden_size") if reparameterize else None,
            init=header.get("init_weights") or "normal",
            head=head_from_peft(header, model),
        )

    def extra_tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The network, its tensors called as in peft's own `PrefixEncoder`; nothing if the table is trained itself."""
        prefix: Any = find_body(model)[1].prefix
        if len(prefix.transform) == 0:
            return {}
        return tensors_of(prefix)

    def without_extra(self, config: PrefixTuningConfig) -> PrefixTuningConfig:
        """The table alone computes the same, and can be trained on as it is."""
        return replace(config, reparameterize=False, mid_dim=None)

    def new_encoder(self, config: PrefixTuningConfig, model: nn.Module, columns: int) -> nn.Module | None:
        """The network, if there is one; its size is the model's."""
        if not config.reparameterize:
            return None
        layers, heads, head_size = prefix_shape(find_body(model)[1].config)  # type: ignore[arg-type]
        return PrefixEncoder(config, 2 * layers * heads * head_size, heads * head_size)


class PTuningV2Format(PrefixFormat):
    """`PTuningV2Config` → peft's prefix tuning with one setting more."""

    method = PTuningV2Config

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Headers that the course wrote: peft's prefix tuning with a dropout."""
        return header.get("peft_type") == "PREFIX_TUNING" and _DROPOUT in header

    def header(self, model: nn.Module, config: PrefixTuningConfig) -> dict[str, Any]:
        """That of prefix tuning, with the dropout."""
        assert isinstance(config, PTuningV2Config)
        return super().header(model, config) | {_DROPOUT: config.dropout}

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> PTuningV2Config:
        """Those of prefix tuning, with the dropout."""
        others = {setting: value for setting, value in header.items() if setting != _DROPOUT}
        return PTuningV2Config(**vars(super().settings(others, model)), dropout=header[_DROPOUT])


def _sizes(model: nn.Module) -> dict[str, int]:
    """The model's shape as peft names it: with grouped queries, token_dim is the width of the keys."""
    layers, heads, head_size = prefix_shape(find_body(model)[1].config)  # type: ignore[arg-type]
    return {
        "num_layers": layers,
        "num_attention_heads": heads,
        "token_dim": heads * head_size,
        "num_transformer_submodules": 1,
    }
