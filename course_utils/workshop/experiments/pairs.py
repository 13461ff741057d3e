"""The pairs of the bench: each method and the same one in peft, and how both are built. See `bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from course_utils.methods import MethodConfig, QLoRAConfig, find_targets, inject
from course_utils.methods.registry import METHODS, Twin
from course_utils.methods.targets import replace_module
from course_utils.models.backbones import load_classifier


@dataclass(frozen=True)
class Setting:
    """On which device a model computes, and in what type its pretrained weights are held."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def results(self) -> str:
        """The name of the result file."""
        return "bench" if self == Setting() else f"bench_{self.device}_{self._type}"

    @property
    def flags(self) -> list[str]:
        """How the command line says it."""
        return [] if self == Setting() else ["--device", self.device, "--dtype", self._type]

    @property
    def _type(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def load_pretrained(setting: Setting) -> nn.Module:
    """The default classifier."""
    model: nn.Module = load_classifier(dtype=setting.dtype)[0]
    return model.to(setting.device)


@dataclass(frozen=True)
class Pair:
    """Our method and the same one in the reference library.

    Args:
        title: how the book calls it.
        ours: our settings.
        theirs: the class of peft's settings, and its arguments.
        load: makes the model that both begin with.
    """

    title: str
    ours: MethodConfig
    theirs: tuple[str, dict[str, Any]]
    load: Callable[[Setting], nn.Module] = load_pretrained


#: The rows of the registry that peft has too; a new method is one more line there. QLoRA also needs bitsandbytes.
PAIRS: dict[str, Pair] = {
    name: Pair(row.title, row.twin.ours or row.config, (row.twin.config, dict(row.twin.arguments)))
    for name, row in METHODS.items()
    if isinstance(row.twin, Twin)
}


def build_ours(pair: Pair, setting: Setting) -> nn.Module:
    """The model with our method in it."""
    return inject(pair.load(setting), pair.ours)


def build_theirs(pair: Pair, setting: Setting) -> nn.Module:
    """The model with the same method of the reference library."""
    import peft

    model: Any = pair.load(setting)
    if isinstance(pair.ours, QLoRAConfig):
        _quantize_with_bitsandbytes(model, setting.device)
    settings, arguments = pair.theirs
    task = "CAUSAL_LM" if model.get_output_embeddings() is not None else "SEQ_CLS"
    return peft.get_peft_model(model, getattr(peft, settings)(task_type=task, **arguments))


#: The sides of a pair, and who builds each.
BUILDERS: dict[str, Callable[[Pair, Setting], nn.Module]] = {"ours": build_ours, "theirs": build_theirs}


def _quantize_with_bitsandbytes(model: Any, device: str) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in find_targets(model, "all-linear").items():
        with torch.device("meta"):  # its weight comes below
            packed = Linear4bit(layer.in_features, layer.out_features, quant_type="nf4", compress_statistics=True)
        packed.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        packed.bias = layer.bias
        packed.support_avx512bf16_for_cpu = False  # else it repacks its weights and computes in bfloat16
        replace_module(model, name, packed.to(device))
    model.is_loaded_in_4bit = True  # peft then takes the layers that it has for bitsandbytes
