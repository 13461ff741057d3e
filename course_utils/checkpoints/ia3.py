"""(IA)³ in peft's format: two lists of layers, and in GPT-2 a query that ours leaves alone."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from course_utils.checkpoints.errors import CheckpointError
from course_utils.checkpoints.formats import Format, Header, Tensors
from course_utils.methods import find_targets
from course_utils.methods.architectures import ARCHITECTURES
from course_utils.methods.ia3 import query_width

#: Our own setting in the header, written where a layer makes query, key and value and the query is not scaled. peft
#: warns that it does not know it, and computes the same, because the file holds ones for the query.
QUERIES = "scale_queries"
#: What peft takes where a header names no modules: all that is scaled, and which of it on the input. For BERT and
#: RoBERTa that is more than the paper scales: "output.dense" is also the end of attention.output.dense.
PEFT_DEFAULTS = {kind: (row.peft_ia3, row.peft_ia3_inputs) for kind, row in ARCHITECTURES.items() if row.peft_ia3}


class IA3Format(Format):
    """What a row cannot say of (IA)³: on which side a layer is scaled, and how much of it."""

    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """The layers that are scaled on the input, and whether a query is left out."""
        wrapped = self.layers(model)
        inputs = sorted(name for name, layer in wrapped.items() if layer.feedforward)
        queries = {QUERIES: False} if any(layer.skip for layer in wrapped.values()) else {}
        return super().header(model, config) | {"feedforward_modules": inputs} | queries

    def places(self, header: Header, model: nn.Module, head: tuple[str, ...]) -> dict[str, Any]:
        """Every layer in full: those that are scaled on the output and on the input."""
        targets, feedforward = (_modules(header, model, s) for s in ("target_modules", "feedforward_modules"))
        layers = find_targets(model, targets, head)
        inputs = tuple(name for name in layers if _is_feedforward(name, feedforward))
        outputs = tuple(name for name in layers if name not in inputs)
        fused = any(query_width(name, layers[name]) for name in outputs)
        return {
            "keys_and_values": outputs,
            "feedforward": inputs,
            "queries": fused and header.get(QUERIES, True),
        }

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """peft has a factor for every output: those that ours skips are ones."""
        skipping = {f"{name}.ia3_l": layer.skip for name, layer in self.layers(model).items() if layer.skip}
        padded = {name: torch.cat([tensors[name].new_ones(skip, 1), tensors[name]]) for name, skip in skipping.items()}
        return super().to_peft({**tensors, **padded}, model)

    def from_peft(self, tensors: Tensors, model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
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


def _modules(header: Header, model: nn.Module, setting: str) -> str | tuple[str, ...]:
    """peft's choice of modules, a pattern or endings: what the header says, or else peft's default."""
    given = header.get(setting)
    if given is None:
        model_type = getattr(getattr(model, "config", None), "model_type", "")
        if model_type not in PEFT_DEFAULTS:
            raise CheckpointError(f"{setting} is not given, and peft's choice for {model_type!r} is not known here")
        return PEFT_DEFAULTS[model_type][setting == "feedforward_modules"]
    return given if isinstance(given, str) else tuple(given)


def _is_feedforward(name: str, modules: str | tuple[str, ...]) -> bool:
    """peft's rule, which differs from the one for targets: any ending counts, also in the middle of a word."""
    return bool(re.fullmatch(modules, name)) if isinstance(modules, str) else name.endswith(modules)
