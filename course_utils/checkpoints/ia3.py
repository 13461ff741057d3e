"""(IA)³ in peft's format."""

from __future__ import annotations

import re
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
)
from course_utils.methods import IA3Config, IA3Linear, find_targets
from course_utils.methods.ia3 import query_width

#: Our own setting in the header, written where a layer makes query, key and value and the query is not scaled. peft
#: warns that it does not know it, and computes the same, because the file holds ones for the query.
QUERIES = "scale_queries"
READ = {"target_modules", "feedforward_modules", "modules_to_save", QUERIES}
#: How peft stores a matrix (we see that in the model), and where its vectors began.
HARMLESS = {"fan_in_fan_out", "init_ia3_weights"}
#: What peft takes where a header names no modules: all that is scaled, and which of it on the input. For BERT and
#: RoBERTa that is more than the paper scales: "output.dense" is also the end of attention.output.dense.
PEFT_DEFAULTS = {
    "bert": (("key", "value", "output.dense"), ("output.dense",)),
    "roberta": (("key", "value", "output.dense"), ("output.dense",)),
    "gpt2": (("c_attn", "mlp.c_proj"), ("mlp.c_proj",)),
    "llama": (("k_proj", "v_proj", "down_proj"), ("down_proj",)),
    "mistral": (("k_proj", "v_proj", "down_proj"), ("down_proj",)),
    "qwen2": (("q_proj", "v_proj", "down_proj"), ("down_proj",)),
}


class IA3Format(PeftFormat):
    """`IA3Config` ↔ peft's `IA3Config`."""

    method = IA3Config

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Every header of peft's (IA)³."""
        return header.get("peft_type") == "IA3"

    def header(self, model: nn.Module, config: IA3Config) -> dict[str, Any]:
        """peft's names for the settings; each layer in full, so that peft's endings match nothing else."""
        wrapped = {name: module for name, module in model.named_modules() if isinstance(module, IA3Linear)}
        header = {
            "peft_type": "IA3",
            "target_modules": sorted(wrapped),
            "feedforward_modules": sorted(name for name, module in wrapped.items() if module.feedforward),
            "fan_in_fan_out": any(isinstance(module.base, Conv1D) for module in wrapped.values()),
        }
        return header | ({QUERIES: False} if any(module.skip for module in wrapped.values()) else {})

    def settings(self, header: Mapping[str, Any], model: nn.Module) -> IA3Config:
        """Our names for the settings, with every layer in full."""
        refuse_other_settings(header, READ | HARMLESS)
        head = head_from_peft(header, model)
        targets, feedforward = self._modules(header, model)
        layers = find_targets(model, targets, head)
        inputs = tuple(name for name in layers if _is_feedforward(name, feedforward))
        outputs = tuple(name for name in layers if name not in inputs)
        fused = any(query_width(name, layers[name]) for name in outputs)
        return IA3Config(
            keys_and_values=outputs,
            feedforward=inputs,
            queries=fused and header.get(QUERIES, True),
            head=head,
        )

    @staticmethod
    def _modules(header: Mapping[str, Any], model: nn.Module) -> tuple[Any, Any]:
        """peft's targets and which of them are scaled on the input: a pattern or a tuple of endings each."""
        model_type = getattr(getattr(model, "config", None), "model_type", "")
        modules = []
        for place, setting in enumerate(("target_modules", "feedforward_modules")):
            given = header.get(setting)
            if given is None and model_type not in PEFT_DEFAULTS:
                raise CheckpointError(f"{setting} is not given, and peft's choice for {model_type!r} is not known here")
            default = PEFT_DEFAULTS[model_type][place] if given is None else given
            modules.append(default if isinstance(default, str) else tuple(default))
        return modules[0], modules[1]

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """peft has a factor for every output: those that ours skips are ones."""
        skipping = {f"{n}.ia3_l": m.skip for n, m in model.named_modules() if isinstance(m, IA3Linear) and m.skip}
        padded = {name: torch.cat([tensors[name].new_ones(skip, 1), tensors[name]]) for name, skip in skipping.items()}
        return super().to_peft({**tensors, **padded}, model)

    def from_peft(self, tensors: Tensors, model: nn.Module, config: IA3Config) -> dict[str, torch.Tensor]:
        """Drop the ones again."""
        ours = super().from_peft(tensors, model, config)
        for layer_name, layer in config.find_layers(model)[0].items():
            skip, name = 0 if config.queries else query_width(layer_name, layer), f"{layer_name}.ia3_l"
            if skip and name in ours:
                if ours[name].shape != (3 * skip, 1) or not (ours[name][:skip] == 1).all():
                    raise CheckpointError(
                        f"{name} should have the shape {(3 * skip, 1)} and begin with {skip} ones, because the header "
                        f"says {QUERIES}=false: the query is not scaled"
                    )
                ours[name] = ours[name][skip:]
        return ours


def _is_feedforward(name: str, modules: str | tuple[str, ...]) -> bool:
    """peft's rule, which differs from the one for targets: any ending counts, also in the middle of a word."""
    return bool(re.fullmatch(modules, name)) if isinstance(modules, str) else name.endswith(modules)
