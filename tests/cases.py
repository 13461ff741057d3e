"""Every method with small settings: what `test_every_method.py` runs through. A new method is one more line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from models import ALL_MODELS, CLASSIFIERS, make, noise
from torch import nn

from course_utils.methods import (
    AdaLoRAConfig,
    BitFitConfig,
    DoRAConfig,
    FullConfig,
    HeadOnlyConfig,
    HoulsbyConfig,
    IA3Config,
    LastLayersConfig,
    LoRAConfig,
    LoRAPlusConfig,
    MethodConfig,
    ParallelAdapterConfig,
    PfeifferConfig,
    PiSSAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    PTuningV2Config,
    QLoRAConfig,
    VeRAConfig,
    quantize,
    trainable_parameters,
)
from course_utils.methods.targets import find_head


@dataclass(frozen=True)
class Case:
    """One method.

    Args:
        name: for the test's name.
        config: with small settings.
        kinds: the tiny models on which the method is defined, see `models.make`.
        identity: right after `inject` the model computes what it did before, as the paper promises.
        merges: `merge` folds it into the weights; False means that `merge` refuses.
        ejects: `eject` gives the pretrained model back; False means that `eject` refuses.
        checkpointing: works with gradient checkpointing; False means that it refuses.
        exact: a saved and loaded model computes the same bit for bit; False means up to rounding.
        quantized: the model it is put into holds 4-bit weights already, see `Case.make`.
        random: another seed of `inject` gives the method other weights; False means that nothing is drawn.
    """

    name: str
    config: MethodConfig
    kinds: tuple[str, ...] = ALL_MODELS
    identity: bool = True
    merges: bool = True
    ejects: bool = True
    checkpointing: bool = True
    exact: bool = True
    quantized: bool = False
    random: bool = True

    def make(self, kind: str, **settings: Any) -> Any:
        """The tiny model that the method is put into."""
        model = make(kind, **settings)
        return quantize(model) if self.quantized else model


CASES = (
    Case("full", FullConfig(), ejects=False, random=False),
    Case("head-only", HeadOnlyConfig(), kinds=CLASSIFIERS, ejects=False, random=False),
    Case("last-layers", LastLayersConfig(layers=1), ejects=False, random=False),
    Case("bitfit", BitFitConfig(), kinds=("bert", "roberta", "gpt2", "gpt2-lm"), ejects=False, random=False),
    Case("bitfit-two", BitFitConfig(biases="two"), kinds=("bert", "roberta"), ejects=False, random=False),
    Case("ia3", IA3Config(), random=False),
    Case("houlsby", HoulsbyConfig(size=5), identity=False, merges=False),
    Case("pfeiffer", PfeifferConfig(size=5), identity=False, merges=False),
    Case("parallel-adapters", ParallelAdapterConfig(size=5), merges=False),
    Case("lora", LoRAConfig(rank=3, alpha=7, targets="all-linear")),
    Case("rslora", LoRAConfig(rank=5, alpha=4, rank_stabilized=True)),
    Case("vera", VeRAConfig(rank=16, initial_d=1.0, targets="all-linear"), random=False),
    Case("adalora", AdaLoRAConfig(init_rank=4, target_rank=3, total_steps=9, initial_steps=2, final_steps=2, alpha=32)),
    Case("lora-plus", LoRAPlusConfig(rank=4, ratio=8)),
    Case("dora", DoRAConfig(rank=3, alpha=7, targets="all-linear")),
    Case("qlora", QLoRAConfig(rank=3, alpha=7), quantized=True),
    # Saved as a plain LoRA of twice the rank, whose sums round otherwise.
    Case("pissa", PiSSAConfig(rank=3, alpha=7, targets="all-linear"), exact=False, random=False),
    Case("prompt-tuning", PromptTuningConfig(virtual_tokens=3), identity=False, merges=False),
    Case("p-tuning-mlp", PTuningConfig(virtual_tokens=3), identity=False, merges=False),
    Case("p-tuning-lstm", PTuningConfig(virtual_tokens=3, encoder="lstm"), identity=False, merges=False),
    Case("prefix", PrefixTuningConfig(virtual_tokens=3), identity=False, merges=False, checkpointing=False),
    Case(
        "prefix-network",
        PrefixTuningConfig(virtual_tokens=3, reparameterize=True, mid_dim=24),
        identity=False,
        merges=False,
        checkpointing=False,
    ),
    Case("p-tuning-v2", PTuningV2Config(virtual_tokens=3), identity=False, merges=False, checkpointing=False),
)


def move(model: nn.Module, *, seed: int = 1, size: float = 0.1) -> None:
    """Add noise to every trained weight outside the head, so that the method does something. In place."""
    head = tuple(name + "." for name in find_head(model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if not name.startswith(head):
                parameter.add_(size * noise(parameter, generator))
