"""(IA)³ equals peft's, number for number, stands where the paper puts it, and goes both ways between the two."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from cases import move
from models import ALL_MODELS, CLASSIFIERS, DEVICE, HIDDEN, LAYERS, Batch, make, make_batch, noise, relative, rounding
from peft import PeftModel, TaskType, get_peft_model
from peft.utils import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.checkpoints.ia3 import PEFT_DEFAULTS
from course_utils.methods import (
    IA3Config,
    IA3Linear,
    MethodError,
    TargetError,
    count_parameters,
    inject,
    merge,
    trainable_parameters,
)

INNER = {"bert": 48, "roberta": 48, "gpt2": 4 * HIDDEN, "llama": 48, "gpt2-lm": 4 * HIDDEN, "llama-lm": 48}
KEYS_AND_VALUES = {kind: HIDDEN if kind.startswith("llama") else 2 * HIDDEN for kind in ALL_MODELS}  # grouped queries

#: Settings to compare on each model: the paper's places, and with GPT-2's query as in peft; a wider choice; one kind.
PLACES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in ALL_MODELS),
    *((kind, {"queries": True}) for kind in ("gpt2", "gpt2-lm")),
    ("bert", {"keys_and_values": ("query", "key", "value"), "feedforward": ("dense",)}),
    ("llama-lm", {"keys_and_values": ("k_proj", "lm_head"), "feedforward": ()}),
    ("gpt2", {"keys_and_values": (), "feedforward": r".*\.c_proj"}),
]


def peft_model(kind: str, config: IA3Config, model: Any = None) -> PeftModel:
    """The same model under peft's own (IA)³ with the same layers."""
    outputs, inputs = config.find_layers(make(kind))
    settings = peft.IA3Config(
        target_modules=[*outputs, *inputs],
        feedforward_modules=list(inputs),
        fan_in_fan_out=kind.startswith("gpt2"),
        task_type=TaskType.SEQ_CLS if kind in CLASSIFIERS else TaskType.CAUSAL_LM,
    )
    return get_peft_model(make(kind) if model is None else model, settings).eval()


def peft_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What peft trains, by our names."""
    found = {}
    for name, parameter in trainable_parameters(model).items():
        plain = name.removeprefix("base_model.model.").removesuffix(".default")
        found[plain.replace(".modules_to_save.default.", ".")] = parameter
    return found


def tail(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """The part of peft's vector that ours has: all, or what follows the query in GPT-2's c_attn."""
    return theirs[theirs.shape[0] - ours.shape[0] :]


def pair(kind: str, config: IA3Config, model: Any = None) -> tuple[nn.Module, PeftModel]:
    """Ours and peft's with the same vectors, far from one, and the same head."""
    base = make(kind) if model is None else model
    ours, theirs = inject(base, config), peft_model(kind, config, make(kind).to(base.dtype))
    move(ours, size=0.4)
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            tail(parameter, mine[name]).copy_(mine[name])
    return ours, theirs


def differences(ours: Any, theirs: Any, batch: Batch) -> list[str]:
    """What is not bit-equal to peft: "logits", "loss", or the names of parameters with another gradient."""
    mine, reference = ours(**batch), theirs(**batch)
    found = [part for part in ("logits", "loss") if not torch.equal(mine[part], reference[part])]
    for model, loss in ((ours, mine.loss), (theirs, reference.loss)):
        model.zero_grad()
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in trainable_parameters(ours).items()}
    for name, parameter in peft_trainable(theirs).items():
        gradient = gradients.pop(name, None)
        assert parameter.grad is not None
        if gradient is None or not torch.equal(gradient, tail(parameter.grad, gradient)):
            found.append(name)
    return found + list(gradients)


def peft_merged(theirs: Any) -> dict[str, torch.Tensor]:
    """All weights after peft's merge. (Its `merge_and_unload` fails on RoBERTa's head, which is no single layer.)"""
    theirs.merge_adapter()
    found = {}
    for name, tensor in theirs.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".original_module." not in plain and ".ia3_l." not in plain:
            found[plain.replace(".modules_to_save.default.", ".")] = tensor
    return found


@torch.no_grad()
def logits(model: Any, kind: str) -> torch.Tensor:
    return model.eval()(**make_batch(kind)).logits


# --- equal to peft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "settings"), PLACES, ids=str)
def test_forward_and_gradients_equal_peft(kind: str, settings: dict[str, Any]) -> None:
    ours, theirs = pair(kind, IA3Config(**settings))
    assert differences(ours, theirs, make_batch(kind)) == []
    assert relative(logits(ours, kind), logits(make(kind), kind)) > 0.01  # the vectors do something


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ten_steps_give_peft_s_weights_bit_for_bit(kind: str) -> None:
    ours, theirs = pair(kind, IA3Config(queries=kind.startswith("gpt2")))
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    for name, parameter in peft_trainable(theirs).items():
        assert torch.equal(trainable_parameters(ours)[name], parameter), name


@pytest.mark.parametrize(("kind", "settings"), PLACES, ids=str)
def test_merge_equals_peft_s(kind: str, settings: dict[str, Any]) -> None:
    ours, theirs = pair(kind, IA3Config(**settings))
    unmerged = logits(ours, kind)
    reference = peft_merged(theirs)
    assert relative(logits(merge(ours), kind), unmerged) <= rounding()
    assert set(reference) == set(ours.state_dict())
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, reference[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_half_precision_equals_peft_and_keeps_the_vectors_in_float32(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(kind, IA3Config(), make(kind).to(dtype))
    assert {m.ia3_l.dtype for m in ours.modules() if isinstance(m, IA3Linear)} == {torch.float32}
    unmerged = logits(ours, kind)
    assert unmerged.dtype == dtype
    assert torch.equal(unmerged, logits(theirs, kind))
    reference = peft_merged(theirs)
    assert relative(logits(merge(ours), kind), unmerged) <= rounding(dtype, terms=1)
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == reference[name].dtype
        assert torch.equal(tensor, reference[name]), name


def layer_of(model: nn.Module, end: str) -> IA3Linear:
    return next(m for n, m in model.named_modules() if n.endswith(end) and isinstance(m, IA3Linear))


def test_the_comparison_catches_the_classic_mistakes() -> None:
    batch = make_batch("bert")
    value, second = "0.attention.self.value", "0.output.dense"

    def broken(name: str, forward: Any) -> list[str]:
        ours, theirs = pair("bert", IA3Config())
        layer = layer_of(ours, name)
        layer.forward = lambda x: forward(layer.base, x, layer.factors())  # type: ignore[method-assign]
        return differences(ours, theirs, batch)

    assert broken(value, lambda base, x, factors: base(x) * factors) == []  # nothing is broken
    assert "logits" in broken(
        value, lambda base, x, factors: nn.functional.linear(x, base.weight) * factors + base.bias
    )
    assert "logits" in broken(value, lambda base, x, factors: base(x * factors))  # the wrong side, of the same width
    lost = broken(second, lambda base, x, factors: base(x * factors.detach()))
    assert lost == [f"bert.encoder.layer.{second}.ia3_l"]

    everywhere = IA3Config(feedforward=("output.dense",))  # peft's default places are not the paper's
    assert len(differences(inject(make("bert"), everywhere), peft_model("bert", IA3Config()), batch)) == LAYERS

    ours, _ = pair("bert", IA3Config())
    unmerged, biases = logits(ours, "bert"), {n: p.clone() for n, p in ours.named_parameters() if n.endswith("bias")}
    merge(ours)
    for name, bias in biases.items():  # a merge that forgets the bias
        ours.get_parameter(name.replace(".base.", ".")).data = bias.data
    assert relative(logits(ours, "bert"), unmerged) > 1e-3


# --- places ---------------------------------------------------------------------------------------------------------


def test_counts_on_bert_base() -> None:
    def count(**settings: Any) -> tuple[int, int]:
        with torch.device("meta"):
            model = BertForSequenceClassification(BertConfig())
        counted = count_parameters(inject(model, IA3Config(**settings)))
        assert counted.total == 109_483_778 + counted.trainable - counted.head
        return counted.trainable - counted.head, counted.head

    assert count() == (12 * (768 + 768 + 3072), 1_538) == (55_296, 1_538)
    assert count(feedforward=("output.dense",)) == (55_296 + 12 * 768, 1_538) == (64_512, 1_538)  # peft's default


@pytest.mark.parametrize(("queries", "expected"), [(False, 12 * (2 * 768 + 3072)), (True, 12 * (3 * 768 + 3072))])
def test_counts_on_gpt2(queries: bool, expected: int) -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    assert count_parameters(inject(model, IA3Config(queries=queries))).trainable == expected
    assert expected in (55_296, 64_512)


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_each_block_has_its_three_vectors_and_they_start_at_one(kind: str) -> None:
    model = inject(make(kind), IA3Config())
    count = count_parameters(model)
    assert count.trainable - count.head == LAYERS * (KEYS_AND_VALUES[kind] + INNER[kind])
    layers = [m for m in model.modules() if isinstance(m, IA3Linear)]
    assert sum(m.feedforward for m in layers) == LAYERS
    assert all((m.ia3_l == 1).all() for m in layers)
    assert torch.equal(logits(model, kind), logits(make(kind), kind))  # x · 1 is x, bit for bit


@pytest.mark.parametrize("kind", ["gpt2", "gpt2-lm"])
def test_gpt2_s_query_is_left_alone_and_needs_no_factor(kind: str) -> None:
    model = inject(make(kind), IA3Config())
    layer = layer_of(model, "0.attn.c_attn")
    nn.init.constant_(layer.ia3_l, 2.0)
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    query, key, value = (layer(x) / layer.base(x)).split(HIDDEN, dim=-1)
    assert (query == 1).all()
    assert ((key == 2) & (value == 2)).all()

    # What peft's factor of the query does, the key's can do alone: the scores see only their product.
    both, alone = inject(make(kind), IA3Config(queries=True)), inject(make(kind), IA3Config())
    move(both, size=0.4)
    for name, parameter in trainable_parameters(both).items():
        if name.endswith("c_attn.ia3_l"):
            query, key, value = parameter.data.split(HIDDEN)
            alone.get_parameter(name).data = torch.cat([query * key, value])
        else:
            alone.get_parameter(name).data = parameter.data
    assert relative(logits(alone, kind), logits(both, kind)) <= rounding()
    assert relative(logits(both, kind), logits(make(kind), kind)) > 0.01


def test_peft_s_choices_are_still_those_of_the_table() -> None:
    for model_type, (targets, feedforward) in PEFT_DEFAULTS.items():
        assert list(targets) == constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[model_type]
        assert list(feedforward) == constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert", {"keys_and_values": (), "feedforward": ()}, "both empty"),
        ("bert", {"queries": 1}, "queries must be True or False, got 1"),
        ("bert", {"queries": True}, "queries=True is for GPT-2"),
        ("gpt2", {"queries": True, "keys_and_values": ("c_fc",)}, "queries=True is for GPT-2"),
        ("bert", {"keys_and_values": "all-linear"}, r"output\.dense is in keys_and_values and in feedforward"),
        ("bert", {"keys_and_values": ("k_proj",)}, "no linear layer is called 'k_proj'"),
        ("llama", {"feedforward": ("score",)}, r"called 'score' \(the head is trained as it is\)"),
        ("bert", {"feedforward": 3}, "targets must be a tuple of names"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    model = make(kind)
    with pytest.raises(MethodError, match=message):
        inject(model, IA3Config(**settings))
    assert not any(isinstance(module, IA3Linear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_architecture_needs_both_places() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(TargetError, match="no default places for a model of type ''"):
        inject(model, IA3Config(keys_and_values=("0",)))
    inject(model, IA3Config(keys_and_values=("0",), feedforward=("2",)))
    assert {n: p.shape for n, p in trainable_parameters(model).items()} == {"0.ia3_l": (6, 1), "2.ia3_l": (1, 6)}


# --- checkpoints ----------------------------------------------------------------------------------------------------


def tuned(kind: str, **settings: Any) -> Any:
    """A model whose vectors and head are far from where they began."""
    model = inject(make(kind), IA3Config(**settings))
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.2 * noise(parameter, 5))
    return model


@pytest.mark.parametrize(("kind", "settings"), PLACES, ids=str)
def test_ours_loads_in_peft_and_in_ours(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = tuned(kind, **settings)
    save(model, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = PeftModel.from_pretrained(make(kind), tmp_path)
    unknown = [str(w.message) for w in caught if "Unexpected keyword" in str(w.message)]
    assert len(unknown) == (kind.startswith("gpt2") and not settings)  # our own setting, for the query left alone
    assert all("['scale_queries']" in message for message in unknown)
    assert torch.equal(logits(theirs, kind), logits(model, kind))
    again = load(make(kind), tmp_path)
    assert torch.equal(logits(again, kind), logits(model, kind))
    for name, parameter in trainable_parameters(model).items():
        assert torch.equal(trainable_parameters(again)[name], parameter), name
    assert len(trainable_parameters(again)) == len(trainable_parameters(model))
    for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        if key.endswith(".ia3_l"):
            assert tensor.ndim == 2
            assert 1 in tensor.shape


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_peft_s_own_choice_loads_in_ours(kind: str, tmp_path: Path) -> None:
    """With peft's default targets, which for BERT and RoBERTa are more than the paper's."""
    task = TaskType.SEQ_CLS if kind in CLASSIFIERS else TaskType.CAUSAL_LM
    theirs = get_peft_model(make(kind), peft.IA3Config(task_type=task, fan_in_fan_out=kind.startswith("gpt2")))
    with torch.no_grad():
        for parameter in peft_trainable(theirs).values():
            parameter.add_(0.2 * noise(parameter, 2))
    theirs.save_pretrained(str(tmp_path))
    ours = load(make(kind), tmp_path)
    assert differences(ours, theirs, make_batch(kind)) == []
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert {n: p.shape for n, p in mine.items()} == {n: p.shape for n, p in reference.items()}

    file = tmp_path / "adapter_config.json"  # and a header that leaves the choice to peft
    short = {key: json.loads(file.read_text(encoding="utf-8"))[key] for key in ("peft_type", "modules_to_save")}
    file.write_text(json.dumps(short), encoding="utf-8")
    assert torch.equal(logits(load(make(kind), tmp_path), kind), logits(theirs, kind))


@pytest.mark.parametrize(
    ("targets", "feedforward"),
    [
        (r".*\.(key|value|output\.dense)", r".*\.\d+\.output\.dense"),
        (["key", "value", "intermediate.dense", "dense"], ["dense"]),
        (["value", "ue"], ["ue"]),  # any ending counts: "value" ends with "ue", so peft scales the input
        (["query", "value"], []),
    ],
    ids=str,
)
def test_peft_s_patterns_and_endings_mean_the_same_in_ours(targets: Any, feedforward: Any, tmp_path: Path) -> None:
    settings = peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type=TaskType.SEQ_CLS)
    theirs = get_peft_model(make("bert"), settings)
    with torch.no_grad():
        for parameter in peft_trainable(theirs).values():
            parameter.add_(0.2 * noise(parameter, 2))
    theirs.save_pretrained(str(tmp_path))
    if targets == ["value", "ue"]:  # our targets are whole words, and every name must match a layer
        with pytest.raises(CheckpointError, match="no linear layer is called 'ue'"):
            load(make("bert"), tmp_path)
        header = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8")) | {
            "target_modules": ["value"]
        }
        (tmp_path / "adapter_config.json").write_text(json.dumps(header), encoding="utf-8")
    assert differences(load(make("bert"), tmp_path), theirs, make_batch("bert")) == []


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"exclude_modules": ["key"]}, "uses exclude_modules="),
        ("bert", {"a_setting_of_the_future": 1}, "uses a_setting_of_the_future=1"),
        ("bert", {"target_modules": 3}, "wrong type"),
        ("bert", {"target_modules": ["nothing"]}, "no linear layer is called 'nothing'"),
        ("bert", {"feedforward_modules": []}, r"output\.dense\.ia3_l has the shape \(1, 48\) .* and \(32, 1\)"),
        ("gpt2", {"scale_queries": True}, None),
        ("gpt2", {"scale_queries": "no"}, "queries must be True or False, got 'no'"),
    ],
    ids=str,
)
def test_headers(kind: str, changes: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    model = tuned(kind)
    file = save(model, tmp_path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    fresh = make(kind)
    if message is None:  # the file's ones for the query are then trained like the rest
        assert torch.equal(logits(load(fresh, tmp_path), kind), logits(model, kind))
        return
    with pytest.raises(CheckpointError, match=message):
        load(fresh, tmp_path)
    assert list(fresh.state_dict()) == list(make(kind).state_dict())


def test_a_query_that_is_scaled_after_all_is_refused(tmp_path: Path) -> None:
    file = save(tuned("gpt2"), tmp_path) / "adapter_model.safetensors"
    sound, key = load_file(file), "base_model.model.transformer.h.0.attn.c_attn.ia3_l"
    assert sound[key].shape == (3 * HIDDEN, 1)
    assert (sound[key][:HIDDEN] == 1).all()
    for wrong in (torch.full((3 * HIDDEN, 1), 0.5), sound[key][HIDDEN:].clone(), torch.ones(())):
        save_file(sound | {key: wrong}, file)
        with pytest.raises(
            CheckpointError, match=r"c_attn.ia3_l should have the shape \(96, 1\) and begin with 32 ones"
        ):
            load(make("gpt2"), tmp_path)
