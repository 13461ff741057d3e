"""A Llama of the size of Llama-2-7B beside peft: `python -m course_utils bench-large` (on a GPU with 40 GB or more).

The weights are random: memory and time do not depend on what they are, and nothing is downloaded. LoRA is on all linear
layers, with the base in bfloat16 (LoRA) and in NF4 with double quantisation (QLoRA; peft uses bitsandbytes). Both sides
train with gradient checkpointing on the same random tokens, in turn; see `costs.step_times`.

For each side: what the model holds when it is built, and the most that it held in a training step, both in bytes that
torch counts on the GPU. For QLoRA also whether the stored codes are those of bitsandbytes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from course_utils.methods import LoRAConfig, NF4Linear, QLoRAConfig, count_parameters
from course_utils.workshop.experiments import store
from course_utils.workshop.experiments.bench import compare_steps
from course_utils.workshop.experiments.costs import Batch, Build, gpu_memory
from course_utils.workshop.experiments.pairs import BUILDERS, Pair, Setting

COMMAND = "python -m course_utils bench-large"
RESULT = "bench_large"
_RANK, _ALPHA = 16, 32


@dataclass(frozen=True)
class Size:
    """A Llama, and the batches that it is trained on.

    Args:
        layers: blocks.
        width: numbers per token between the blocks.
        inner: numbers per token inside the feed-forward part.
        heads: of each attention.
        vocabulary: known tokens.
        texts: in a batch.
        tokens: in a text.
        steps: timed steps of each side.
    """

    layers: int = 32
    width: int = 4096
    inner: int = 11008
    heads: int = 32
    vocabulary: int = 32000
    texts: int = 4
    tokens: int = 512
    steps: int = 8


SIZES = {"7b": Size(), "tiny": Size(layers=2, width=64, inner=128, heads=4, vocabulary=256, tokens=16, steps=3)}


def main(arguments: list[str]) -> int:
    """Measure LoRA and QLoRA, print, and write the result file."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="7b", help="'tiny' tries the command out and writes no file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="where to compute (default cuda)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; to try the command: --device cpu --size tiny")
    if options.device == "cpu" and options.size != "tiny":
        parser.error("7 billion weights are for a GPU; on the processor use --size tiny")
    size, setting = SIZES[options.size], Setting(options.device, torch.bfloat16)
    methods = {name: measure(pair, size, setting) for name, pair in pairs(size).items()}
    if options.size == "7b":
        store.write(RESULT, COMMAND, {"size": vars(size), "rank": _RANK, "methods": methods})
    for row in methods.values():
        print(row)
    return 0


def pairs(size: Size) -> dict[str, Pair]:
    """LoRA and QLoRA on a Llama of this size."""
    theirs = ("LoraConfig", {"r": _RANK, "lora_alpha": _ALPHA, "target_modules": "all-linear"})
    settings: dict[str, Any] = {"rank": _RANK, "alpha": _ALPHA, "targets": "all-linear"}
    load = partial(load_llama, size)
    return {
        "lora": Pair("LoRA", LoRAConfig(**settings), theirs, load),
        "qlora": Pair("QLoRA", QLoRAConfig(**settings), theirs, load),
    }


def load_llama(size: Size, setting: Setting) -> nn.Module:
    """The model with random weights, the same ones each time, made where it is to stand."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(setting.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
    # Else each layer's activations wait for the backward pass: most of the memory.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def measure(pair: Pair, size: Size, setting: Setting) -> dict[str, Any]:
    """Memory of each side alone, then both in turn."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(size.steps):
        tokens = torch.randint(size.vocabulary, (size.texts, size.tokens), generator=generator).to(setting.device)
        batches.append({"input_ids": tokens, "labels": tokens})
    row: dict[str, Any] = {"title": pair.title}
    builds = {side: partial(build, pair, setting) for side, build in BUILDERS.items()}
    for side, build in builds.items():
        row[side] = _memory(build, batches[0], setting.device)
    models = {side: build() for side, build in builds.items()}
    row["trainable"] = count_parameters(models["ours"]).trainable
    row["total"] = count_parameters(models["ours"]).total
    row["step"] = compare_steps(models, batches)
    if isinstance(pair.ours, QLoRAConfig):
        row["other_codes"] = _other_codes(models["ours"], models["theirs"])
    return row


def _memory(build: Build, batch: Batch, device: str) -> dict[str, float | None]:
    """Megabytes that a built model holds, and the most that it held in a step; None where torch does not count."""
    if device != "cuda":
        return {"held_mb": None, "peak_mb": None}
    memory = gpu_memory(build, [batch, batch])
    return {"held_mb": round(memory.held, 1), "peak_mb": round(memory.training, 1)}


def _other_codes(ours: nn.Module, theirs: nn.Module) -> dict[str, int]:
    """How many of the stored bytes, two codes each, differ from those of bitsandbytes, and how many there are."""
    from bitsandbytes.nn import Linear4bit

    mine = [module.codes for module in ours.modules() if isinstance(module, NF4Linear)]
    reference = [module.weight.data.flatten() for module in theirs.modules() if isinstance(module, Linear4bit)]
    differing = sum(int((one != other).sum()) for one, other in zip(mine, reference, strict=True))
    return {"bytes": sum(one.numel() for one in mine), "differing": differing}
