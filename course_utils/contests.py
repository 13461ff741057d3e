"""Who meets whom in the bench: each method, the same one in peft, and how both are built. See `bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from course_utils.backbones import load_classifier
from course_utils.methods import (
    AdaLoRAConfig,
    DoRAConfig,
    IA3Config,
    LoRAConfig,
    MethodConfig,
    PiSSAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    QLoRAConfig,
    VeRAConfig,
    find_targets,
    inject,
)
from course_utils.methods.targets import replace_module

_STEPS_OF_ADALORA = 1000  # far more than are timed, so that every timed step ranks and cuts
_QUERY_VALUE = ["query", "value"]


@dataclass(frozen=True)
class Place:
    """Where both sides compute, and in what type the pretrained weights are held."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def results(self) -> str:
        """The name of the result file."""
        return "bench" if self == Place() else f"bench_{self.device}_{self._type}"

    @property
    def flags(self) -> list[str]:
        """How the command line says it."""
        return [] if self == Place() else ["--device", self.device, "--dtype", self._type]

    @property
    def _type(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def load_pretrained(place: Place) -> nn.Module:
    """The default classifier."""
    model: nn.Module = load_classifier(dtype=place.dtype)[0]
    return model.to(place.device)


@dataclass(frozen=True)
class Contest:
    """Our method and the same one in the reference library.

    Args:
        title: how the book calls it.
        ours: our settings.
        theirs: the class of peft's settings, and its arguments.
        load: the model that both sides begin with.
    """

    title: str
    ours: MethodConfig
    theirs: tuple[str, dict[str, Any]]
    load: Callable[[Place], nn.Module] = load_pretrained


def _lora(**more: Any) -> tuple[str, dict[str, Any]]:
    return "LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": _QUERY_VALUE} | more


#: A new method is one more line here. QLoRA's reference also needs bitsandbytes.
CONTESTS: dict[str, Contest] = {
    "lora": Contest("LoRA", LoRAConfig(rank=8, alpha=16), _lora()),
    "dora": Contest("DoRA", DoRAConfig(rank=8, alpha=16), _lora(use_dora=True)),
    "pissa": Contest("PiSSA", PiSSAConfig(rank=8, alpha=16), _lora(init_lora_weights="pissa")),
    "adalora": Contest(
        "AdaLoRA",
        AdaLoRAConfig(init_rank=12, target_rank=8, alpha=16, total_steps=_STEPS_OF_ADALORA),
        (
            "AdaLoraConfig",
            {"init_r": 12, "target_r": 8, "lora_alpha": 16, "total_step": _STEPS_OF_ADALORA}
            | {"target_modules": _QUERY_VALUE},
        ),
    ),
    "vera": Contest("VeRA", VeRAConfig(rank=256), ("VeraConfig", {"r": 256, "target_modules": _QUERY_VALUE})),
    "ia3": Contest(
        "(IA)³",
        IA3Config(),
        (
            "IA3Config",
            {
                "target_modules": r".*(key|value|layer\.\d+\.output\.dense)",
                "feedforward_modules": r".*layer\.\d+\.output\.dense",
            },
        ),
    ),
    "prompt": Contest(
        "prompt tuning",
        PromptTuningConfig(virtual_tokens=20, pool="peft"),
        ("PromptTuningConfig", {"num_virtual_tokens": 20}),
    ),
    "p_tuning": Contest(
        "P-Tuning",
        PTuningConfig(virtual_tokens=20, pool="peft"),
        ("PromptEncoderConfig", {"num_virtual_tokens": 20, "encoder_hidden_size": 384}),
    ),
    "prefix": Contest(
        "prefix tuning", PrefixTuningConfig(virtual_tokens=20), ("PrefixTuningConfig", {"num_virtual_tokens": 20})
    ),
    "qlora": Contest("QLoRA", QLoRAConfig(rank=8, alpha=16), _lora(target_modules="all-linear")),
}


def build_ours(contest: Contest, place: Place) -> nn.Module:
    """Our side: the model with the method in it."""
    return inject(contest.load(place), contest.ours)


def build_theirs(contest: Contest, place: Place) -> nn.Module:
    """The same in the reference library."""
    import peft

    model: Any = contest.load(place)
    if isinstance(contest.ours, QLoRAConfig):
        _quantize_with_bitsandbytes(model, place.device)
    settings, arguments = contest.theirs
    task = "CAUSAL_LM" if model.get_output_embeddings() is not None else "SEQ_CLS"
    return peft.get_peft_model(model, getattr(peft, settings)(task_type=task, **arguments))


SIDES: dict[str, Callable[[Contest, Place], nn.Module]] = {"ours": build_ours, "theirs": build_theirs}


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
