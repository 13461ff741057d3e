"""Each row of the table of architectures: its paths exist in every block, and LoRA and (IA)³ are peft's on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import DEVICE, HIDDEN, PAD, VOCABULARY, noise
from peft.utils import constants
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from course_utils.checkpoints import load, save
from course_utils.methods import (
    IA3Config,
    LoRAConfig,
    MethodConfig,
    MethodError,
    find_targets,
    inject,
    trainable_parameters,
)
from course_utils.methods.adapter_layers import in_blocks, is_norm
from course_utils.methods.architecture_row import Architecture
from course_utils.methods.architectures import ARCHITECTURES, HEAD_NAMES, architecture_of
from course_utils.methods.prefix_body import prefix_shape

#: What a configuration needs beside `_COMMON`, so that the model is tiny and each setting of the row shows.
_SHARED_KEYS = {"num_key_value_heads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": HIDDEN, "num_hidden_groups": 2},
    "distilbert": {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": HIDDEN},
    "gemma": _SHARED_KEYS | {"head_dim": 16},
    "gemma2": _SHARED_KEYS | {"head_dim": 16},
    "gemma3_text": _SHARED_KEYS | {"head_dim": 16},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_inner": 48, "rotary_dim": 4},
    "llama": _SHARED_KEYS,
    "mistral": _SHARED_KEYS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
    "phi3": _SHARED_KEYS,
    "qwen2": _SHARED_KEYS,
    "qwen3": _SHARED_KEYS | {"head_dim": 16},
    "smollm3": _SHARED_KEYS,
    "stablelm": _SHARED_KEYS,
}
_COMMON: dict[str, Any] = (
    {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 48, "max_position_embeddings": 40, "initializer_range": 0.1}
    | {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
)

#: Families whose default targets are not peft's → why.
NOT_PEFT_S_TARGETS = {
    "phi": "peft adds fc1 and fc2 to query and value",
    **dict.fromkeys(("camembert", "ernie", "mpnet", "albert", "distilbert", "smollm3", "phi3"), "peft has no default"),
}

rows = pytest.mark.parametrize("family", ARCHITECTURES)


def make_tiny(family: str) -> Any:
    """A random classifier of this family, two blocks, hidden size 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **_COMMON | SETTINGS.get(family, {}))
        model: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():  # biases and normalisations start at 0 and 1: a mistake there would hide
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(DEVICE).eval()


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, VOCABULARY, (2, 7), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    batch = {"input_ids": tokens.masked_fill(mask == 0, PAD), "attention_mask": mask, "labels": torch.tensor([0, 1])}
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def linear_paths(row: Architecture) -> set[str]:
    return {*row.attention, *row.up, row.down}


@rows
def test_every_path_is_in_every_block_and_none_is_forgotten(family: str) -> None:
    row, model = ARCHITECTURES[family], make_tiny(family)
    assert architecture_of(model) is row
    blocks = len(in_blocks(model, row.down))
    assert blocks == 2
    for path in linear_paths(row):
        found = in_blocks(model, path)
        assert len(found) == blocks, path
        assert all(isinstance(module, nn.Linear | Conv1D) for module in found.values()), path
    stem = next(iter(in_blocks(model, row.down))).removesuffix(row.down)
    block = model.get_submodule(stem.removesuffix("."))
    assert {name for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)} == linear_paths(
        row
    )
    assert tuple(sorted(name for name, module in block.named_modules() if is_norm(module))) == tuple(sorted(row.norms))


@rows
def test_the_facts_of_a_row_are_those_of_the_model(family: str) -> None:
    row, model = ARCHITECTURES[family], make_tiny(family)
    query, up = (next(iter(in_blocks(model, path).values())) for path in (row.attention.query, row.up[0]))
    assert row.biased == (query.bias is not None and up.bias is not None)
    if row.fused:
        assert row.attention.query == row.attention.key == row.attention.value
    assert row.thirds == isinstance(query, Conv1D)
    assert set(row.head) <= set(HEAD_NAMES) & {name for name, _ in model.named_children()}
    if row.adapters is not None:
        for path in row.adapters:
            assert path is None or len(in_blocks(model, path)) == 2, path
        assert row.adapters.norm_before in (None, row.norms[-1])


@rows
def test_the_cached_keys_have_the_shape_that_a_prefix_is_made_for(family: str) -> None:
    model = make_tiny(family)
    if "classifier" in ARCHITECTURES[family].head:
        return  # an encoder keeps no cache; its prefix is as wide as its attention, which test_prefix proves
    layers, heads, size = prefix_shape(model.config)
    tokens = make_batch()["input_ids"][:1]
    cache = model.base_model(input_ids=tokens, use_cache=True).past_key_values
    assert len(cache) == layers
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (1, heads, 7, size)


# --- peft's defaults ------------------------------------------------------------------------------------------------


@rows
def test_default_targets_are_peft_s_or_it_is_said_why_not(family: str) -> None:
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family)
    ours = ARCHITECTURES[family].query_and_value
    assert (theirs != list(ours)) == (family in NOT_PEFT_S_TARGETS), theirs
    assert (theirs is None) == (NOT_PEFT_S_TARGETS.get(family) == "peft has no default")


@rows
def test_peft_s_places_of_ia3(family: str) -> None:
    theirs = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(family)
    inputs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(family)
    ours = ARCHITECTURES[family].peft_ia3
    assert (None if ours is None else list(ours)) == theirs
    assert (None if ours is None else list(ours[-1:])) == inputs


# --- equal to peft --------------------------------------------------------------------------------------------------


def plain_name(peft_name: str) -> str:
    name = peft_name.removeprefix("base_model.model.").replace(".base_layer.", ".base.")
    return name.replace(".default", "").replace(".modules_to_save.", ".")


def assert_equal_to_peft(family: str, config: MethodConfig, theirs: peft.PeftConfig) -> None:
    """Same trained names; same loss, logits and gradients with the same numbers in them, bit for bit."""
    ours, reference = inject(make_tiny(family), config), peft.get_peft_model(make_tiny(family), theirs).eval()
    untuned = make_tiny(family)(**make_batch()).logits
    mine = trainable_parameters(ours)
    his = {plain_name(name): parameter for name, parameter in trainable_parameters(reference).items()}
    assert set(mine) == set(his)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.add_(0.1 * noise(parameter, generator))
            his[name].copy_(parameter)
    outputs = [model(**make_batch()) for model in (ours, reference)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert not torch.allclose(outputs[0].logits, untuned, rtol=1e-2)
    for output in outputs:
        output.loss.backward()
    for name, parameter in mine.items():
        gradient = his[name].grad
        assert parameter.grad is not None and gradient is not None, name
        assert torch.equal(parameter.grad, gradient), name


@rows
@pytest.mark.parametrize("targets", [None, "all-linear"], ids=["default", "all"])
def test_lora_equals_peft(family: str, targets: str | None) -> None:
    theirs: Any = targets
    if targets is None and family in NOT_PEFT_S_TARGETS:
        theirs = list(ARCHITECTURES[family].query_and_value)
    if targets == "all-linear" and family == "distilbert":  # peft would wrap pre_classifier, which it also trains
        theirs = list(find_targets(make_tiny(family), targets))
    config: Any = peft.LoraConfig(
        r=3, lora_alpha=7, fan_in_fan_out=family == "gpt2", target_modules=theirs, task_type="SEQ_CLS"
    )
    assert_equal_to_peft(family, LoRAConfig(rank=3, alpha=7, targets=targets), config)


@rows
def test_ia3_equals_peft_or_is_refused(family: str) -> None:
    row = ARCHITECTURES[family]
    if row.ia3_places is None:
        with pytest.raises(MethodError, match=f"no default places for a model of type '{family}'"):
            inject(make_tiny(family), IA3Config())
        return
    config = IA3Config(queries=row.thirds)
    outputs, inputs = config.find_layers(make_tiny(family))
    assert len(outputs) == (2 if row.thirds else 4) and len(inputs) == 2
    theirs = peft.IA3Config(
        target_modules=[*outputs, *inputs],
        feedforward_modules=list(inputs),
        fan_in_fan_out=family == "gpt2",
        modules_to_save=list(row.head),
    )
    assert_equal_to_peft(family, config, theirs)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@rows
def test_a_checkpoint_goes_to_peft_and_comes_back(family: str, tmp_path: Path) -> None:
    model, batch = inject(make_tiny(family), LoRAConfig(rank=3, alpha=7)), make_batch()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * noise(parameter, generator))
    expected = model(**batch).logits
    folder = save(model, tmp_path / "ours")
    reference = peft.PeftModel.from_pretrained(make_tiny(family), folder).eval()
    assert torch.equal(reference(**batch).logits, expected)
    assert torch.equal(load(make_tiny(family), folder)(**batch).logits, expected)
    assert not torch.allclose(make_tiny(family)(**batch).logits, expected, rtol=1e-2)
    reference.save_pretrained(str(tmp_path / "theirs"))
    assert torch.equal(load(make_tiny(family), tmp_path / "theirs")(**batch).logits, expected)
