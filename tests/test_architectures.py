"""Each row of the table of architectures: its paths exist in every block, and the methods are peft's on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import every_architecture
import pytest
import torch
from every_architecture import METHODS, make_batch, make_tiny, tasks_of
from models import relative
from peft.utils import constants
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from course_utils.methods import (
    HoulsbyConfig,
    IA3Config,
    MethodError,
    ParallelAdapterConfig,
    PfeifferConfig,
    find_targets,
    inject,
)
from course_utils.methods.adapter_layers import in_blocks, is_norm
from course_utils.methods.architecture_row import Architecture
from course_utils.methods.architectures import ARCHITECTURES, HEAD_NAMES, architecture_of
from course_utils.methods.bottleneck import Bottleneck, BottleneckConfig
from course_utils.methods.prefix_body import prefix_shape

NO_DEFAULT = "peft has no default"
#: Families whose default targets are not peft's → why.
NOT_PEFT_S_TARGETS = {
    "phi": "peft adds fc1 and fc2 to query and value",
    "blip-2": "the same layers as a pattern: which of peft's names there are depends on the language model",
    **dict.fromkeys(("camembert", "ernie", "mpnet", "albert", "distilbert", "modernbert", "vit"), NO_DEFAULT),
    **dict.fromkeys(("smollm3", "phi3", "llama4_text", "mbart", "pegasus", "marian"), NO_DEFAULT),
}
#: Families for which peft has a default and transformers no configuration: their code comes with their weights.
NOT_IN_TRANSFORMERS = {"RefinedWeb", "RefinedWebModel", "btlm", "chatglm", "rwkv7"}
#: Linear layers in blocks that no row names, because their blocks are not all alike.
OTHER_LAYERS = {
    "deberta": r"attention\.self\.pos_(q_)?proj",  # of the distances, which other variants share with the words
    "deberta-v2": r"attention\.self\.pos_(query|key)_proj",
    "nemotron_h": r"mixer\.(in_proj|out_proj|up_proj|down_proj|shared_experts\..*)",  # Mamba, experts, plain blocks
    "llama4_text": r"feed_forward\.(router|shared_expert\..*)",
}
#: Models of pictures and text: the row is of their language model.
SEVERAL_PARTS = ("llama4", "gemma4", "blip-2")
#: How often a path is there, where that is not once in each of two blocks.
COUNTS = {"nemotron_h": dict.fromkeys(ARCHITECTURES["nemotron_h"].attention, 1) | {"norm": 4}}

rows = pytest.mark.parametrize("family", ARCHITECTURES)
whole_rows = pytest.mark.parametrize("family", [name for name in ARCHITECTURES if name not in SEVERAL_PARTS])


def linear_paths(row: Architecture) -> set[str]:
    paths = {*row.attention, *(row.cross or ()), *row.up}
    return paths if row.down is None else {*paths, row.down}


def expected_count(family: str, path: str) -> int:
    row = ARCHITECTURES[family]
    if row.cross is None:
        return COUNTS.get(family, {}).get(path, 2)
    return 3 if path in row.cross else 6  # three blocks of the encoder, three of the decoder


@whole_rows
def test_every_path_is_in_every_block_and_none_is_forgotten(family: str) -> None:
    row, model = ARCHITECTURES[family], make_tiny(family)
    assert architecture_of(model) is row
    named: set[str] = set()
    for path in linear_paths(row):
        found = in_blocks(model, path)
        assert len(found) == expected_count(family, path), path
        assert all(isinstance(module, nn.Linear | Conv1D) for module in found.values()), path
        named |= found.keys()
    blocks = {name: module for name, module in model.named_modules() if re.search(r"\.\d+\.", name)}
    linear = {name for name, module in blocks.items() if isinstance(module, nn.Linear | Conv1D)}
    others = re.compile(rf".*\.\d+\.({OTHER_LAYERS.get(family, '(?!)')})")
    assert {name for name in linear - named if not others.fullmatch(name)} == set()
    norms = {name for path in row.norms for name in in_blocks(model, path)}
    others_of_rwkv = {"rwkv.blocks.0.pre_ln"}  # of the embeddings, in the first block
    assert {name for name, module in blocks.items() if is_norm(module)} - norms - others_of_rwkv == set()
    assert all(in_blocks(model, path) for path in row.norms)


@whole_rows
def test_the_facts_of_a_row_are_those_of_the_model(family: str) -> None:
    row, model = ARCHITECTURES[family], make_tiny(family)
    query, *up = (next(iter(in_blocks(model, path).values())) for path in (row.attention.query, *row.up))
    assert row.biased == (query.bias is not None and bool(up) and up[0].bias is not None)
    if row.fused:
        assert row.attention.query == row.attention.key == row.attention.value
    assert set(row.head) <= set(HEAD_NAMES)
    if tasks_of(family)[0] == "classifier":
        assert set(row.head) <= {name for name, _ in model.named_children()}
    for path in (row.adapters or ())[:3]:
        assert path is None or len(in_blocks(model, path)) == expected_count(family, path), path


@pytest.mark.parametrize("family", [name for name, row in ARCHITECTURES.items() if row.fused])
@torch.no_grad()
def test_thirds_are_query_and_key_and_value(family: str) -> None:
    """Queries twice and keys half as large give the same scores; other thirds of the outputs would change them."""
    model = make_tiny(family)
    batch, matrices = make_batch(model), in_blocks(model, ARCHITECTURES[family].attention.query).values()
    untouched = model(**batch).logits
    factors = torch.tensor([2.0, 0.5, 1.0])
    for layer in matrices:
        for parameter in layer.parameters():
            outputs = parameter.T if isinstance(layer, Conv1D) and parameter.ndim == 2 else parameter
            if len(outputs) % 3:  # queries, keys and values are not of one size
                assert not ARCHITECTURES[family].thirds
                return
            outputs.view(len(outputs), -1).mul_(factors.repeat_interleave(len(outputs) // 3)[:, None])
    same = relative(model(**batch).logits, untouched) < 1e-4
    assert same == ARCHITECTURES[family].thirds


@pytest.mark.parametrize("family", [name for name in ARCHITECTURES if "language model" in tasks_of(name)])
def test_the_cached_keys_have_the_shape_that_a_prefix_is_made_for(family: str) -> None:
    if family in ("rwkv", "nemotron_h", "mpt", "codegen"):
        pytest.skip("its cache is no list of keys and values, or a prefix is refused")
    model = make_tiny(family, "language model")
    config = model.get_decoder().config if model.config.is_encoder_decoder else model.config
    layers, heads, size = prefix_shape(config)
    batch = {name: tensor[:1] for name, tensor in make_batch(model, padded=False).items()}
    cache = model(**batch, use_cache=True).past_key_values
    own = getattr(cache, "self_attention_cache", cache)
    assert len(own) == layers
    for layer in own.layers:
        tokens = 5 if model.config.is_encoder_decoder else 7
        assert layer.keys.shape == layer.values.shape == (1, heads, tokens, size)


# --- peft's defaults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", sorted({*ARCHITECTURES, *constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING})
)
def test_default_targets_are_peft_s_or_it_is_said_why_not(family: str) -> None:
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family)
    if family in NOT_IN_TRANSFORMERS:
        with pytest.raises(ValueError, match="Unrecognized model identifier"):
            AutoConfig.for_model(family)
        assert family not in ARCHITECTURES
        return
    ours = ARCHITECTURES[family].lora_targets
    assert (theirs != (ours if isinstance(ours, str) else list(ours))) == (family in NOT_PEFT_S_TARGETS), theirs
    assert (theirs is None) == (NOT_PEFT_S_TARGETS.get(family) == NO_DEFAULT)
    assert find_targets(make_tiny(family), None)


@pytest.mark.parametrize(
    "family", sorted({*ARCHITECTURES, *constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING})
)
def test_peft_s_places_of_ia3(family: str) -> None:
    theirs = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(family)
    inputs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(family)
    if family in NOT_IN_TRANSFORMERS:
        return
    row = ARCHITECTURES[family]
    assert (None if row.peft_ia3 is None else list(row.peft_ia3)) == theirs
    assert (None if row.peft_ia3 is None else list(row.peft_ia3_inputs)) == inputs


@rows
def test_ia3_has_places_or_is_refused(family: str) -> None:
    row = ARCHITECTURES[family]
    if row.ia3_places is None:
        assert row.down is None or (row.fused and not row.thirds)
        with pytest.raises(MethodError, match=f"no default places for a model of type '{family}'"):
            inject(make_tiny(family), IA3Config())
        return
    outputs, inputs = IA3Config(queries=row.thirds).find_layers(make_tiny(family))
    blocks = 2 if row.cross is None else 6
    each = 1 if row.thirds else 2
    assert len(outputs) == each * blocks + (0 if row.cross is None else each * 3) and len(inputs) == blocks


# --- bottleneck adapters --------------------------------------------------------------------------------------------

ADAPTERS: dict[str, type[BottleneckConfig]] = {
    "houlsby": HoulsbyConfig,
    "pfeiffer": PfeifferConfig,
    "parallel": ParallelAdapterConfig,
}
PLACES = [
    (family, method)
    for family, row in ARCHITECTURES.items()
    if row.adapters is not None
    for method in ADAPTERS
    if method == "houlsby" or row.adapters.feed_forward is not None
]


def first(model: nn.Module, path: str) -> Any:
    return next(iter(in_blocks(model, path).values()))


def record(module: nn.Module, into: dict[str, torch.Tensor], key: str) -> None:
    """Keep the input and the output of a module's first run."""

    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(inputs[0], torch.Tensor):
            into.setdefault(f"into {key}", inputs[0].detach().clone())  # Falcon adds in place
        if isinstance(output, torch.Tensor):
            into.setdefault(key, output.detach().clone())

    module.register_forward_hook(keep)


@pytest.mark.parametrize(("family", "method"), PLACES)
@torch.no_grad()
def test_an_adapter_reads_and_adds_where_its_method_says(family: str, method: str) -> None:
    """Seen from outside: what enters the first adapters, and that a constant out of one is a bias of its layer."""
    row = ARCHITECTURES[family]
    assert row.adapters is not None
    end = "mlp" if row.down is None else row.down
    bare, batch = make_tiny(family), make_batch(make_tiny(family))
    seen: dict[str, torch.Tensor] = {}
    record(first(bare, row.attention.output), seen, "attention")
    record(first(bare, end), seen, "h")
    if row.adapters.norm_before is not None and row.adapters.feed_forward is not None:
        name = next(iter(in_blocks(bare, row.adapters.feed_forward))).removesuffix(row.adapters.feed_forward)
        record(bare.get_submodule(name + row.adapters.norm_before), seen, "norm")
    elif method != "houlsby":
        record(first(bare, row.norms[0]), seen, "x")
        record(first(bare, row.norms[1]), seen, "block")
    untuned = bare(**batch).logits

    model = inject(make_tiny(family), ADAPTERS[method](size=5, initial_std=None))
    assert torch.equal(model(**batch).logits, untuned) or relative(model(**batch).logits, untuned) < 1e-6
    if method == "houlsby":
        adapters = [first(model, path).adapter for path in row.adapters[:2]]
    else:
        adapters = [module for module in model.modules() if isinstance(module, Bottleneck)][:1]
    read: dict[str, torch.Tensor] = {}
    for number, adapter in enumerate(adapters):
        record(adapter, read, str(number))
    model(**batch)
    x = seen["into norm"] if "into norm" in seen else seen.get("x", seen["h"])
    expected = {
        "houlsby": [seen["attention"], seen["h"]],
        "pfeiffer": [seen["h"] + x if "into norm" in seen else seen.get("block", x)],
        "parallel": [x],
    }[method]
    for number, z in enumerate(expected):
        assert relative(read[f"into {number}"].view_as(z), z) < 1e-5, number

    # A constant c out of the feed-forward network's adapter is c more in the bias of its last matrix.
    adapter, shift = adapters[-1], torch.linspace(-1, 1, 32)
    adapter.up.bias.copy_(shift / adapter.scaling)
    twin = make_tiny(family)
    first(twin, end).register_forward_hook(lambda *args: args[2] + shift)
    assert relative(model(**batch).logits, twin(**batch).logits) < 1e-5
    assert relative(model(**batch).logits, untuned) > 1e-3


def test_adapters_that_need_a_module_for_the_feed_forward_network_say_so() -> None:
    for family in ("bart", "opt", "bloom", "distilbert", "gptj"):
        for config in (PfeifferConfig(), ParallelAdapterConfig()):
            with pytest.raises(MethodError, match=f"no module of '{family}' takes the one and gives the other"):
                inject(make_tiny(family), config)
    shared = make_tiny("stablelm", use_parallel_residual=True)
    with pytest.raises(MethodError, match="this stablelm has none of its own there"):
        inject(shared, PfeifferConfig())
    inject(shared, HoulsbyConfig())


# --- equal to peft --------------------------------------------------------------------------------------------------

MODELS = [(family, task) for family in ARCHITECTURES for task in tasks_of(family)]
#: For each model one method, in turn, so that each family and each method has its share of `make test`.
SAMPLE = [(*model, list(METHODS)[number % len(METHODS)]) for number, model in enumerate(MODELS)]
LORA = [(*model, "LoRA") for model in MODELS if model[1] != "language model"]
STORED = Path(__file__).with_name("every_architecture.json")


@pytest.mark.parametrize("case", sorted({*SAMPLE, *LORA}), ids=", ".join)
def test_a_method_equals_peft_or_is_refused(case: tuple[str, str, str]) -> None:
    kind, reason = every_architecture.outcome(*case)
    assert kind in ("equal", "holds", "refused"), reason
    stored: dict[str, Any] = json.loads(STORED.read_text("utf-8"))
    refused = {name for names in stored["refused"].values() for name in names}
    assert (kind == "refused") == (", ".join(case) in refused), reason


def test_the_last_run_over_all_of_them_has_no_failure() -> None:
    stored = json.loads(STORED.read_text("utf-8"))
    assert "fails" not in stored["counts"] and "fails" not in stored
    assert stored["families"] == len(ARCHITECTURES) and stored["models"] == len(MODELS)
    assert sum(stored["counts"].values()) == len(MODELS) * len(METHODS)


def test_a_difference_from_peft_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    right = every_architecture.twin_of

    def stronger(*case: Any) -> Any:
        config = right(*case)
        config.lora_alpha = 7.001
        return config

    monkeypatch.setattr(every_architecture, "twin_of", stronger)
    kind, reason = every_architecture.outcome("bert", "classifier", "LoRA")
    assert kind == "fails" and "logits differ" in reason
