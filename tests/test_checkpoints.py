"""Checkpoints go both ways between the course and peft; whatever does not fit is refused and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALL_MODELS, CLASSIFIERS, DEVICE, fill_lora, make, make_batch, noise, relative, rounding
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    IA3Config as PeftIA3Config,
    LoraConfig,
    PeftModel,
    PeftType,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertForSequenceClassification

from course_utils import methods
from course_utils.checkpoints import CheckpointError, load, save
from course_utils.checkpoints.formats import Format
from course_utils.checkpoints.table import EVERY_METHOD, PEFT_FORMATS
from course_utils.methods import (
    AdaLoRAConfig,
    BitFitConfig,
    DoRAConfig,
    FullConfig,
    HeadOnlyConfig,
    IA3Config,
    LastLayersConfig,
    LoRAConfig,
    MethodConfig,
    PiSSAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    count_parameters,
    inject,
    merge,
    trainable_parameters,
)

VARIANTS = [
    LoRAConfig(rank=3, alpha=7),
    LoRAConfig(rank=4, alpha=2.5, dropout=0.1, targets="all-linear", rank_stabilized=True),
]


def trained(kind: str, config: MethodConfig, **settings: Any) -> Any:
    """A model whose trainable weights are far from where they began."""
    model = inject(make(kind, **settings), config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * noise(parameter, generator))
    return model


def logits(model: Any, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**make_batch(kind)).logits


def refused(kind: str, folder: Path, message: str, model: Any = None) -> None:
    """`load` raises with this message and the model stays as it was."""
    model = make(kind) if model is None else model
    before = copy.deepcopy(model.state_dict())
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    tuning = getattr(model, "tuning", None)
    with pytest.raises(CheckpointError, match=message):
        load(model, folder)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert getattr(model, "tuning", None) == tuning


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound LoRA checkpoint of the tiny BERT."""
    return save(trained("bert", LoRAConfig()), tmp_path / "checkpoint")


def edit_header(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# --- both ways ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", VARIANTS, ids=["LoRA", "rsLoRA"])
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ours_loads_in_peft_and_in_ours(kind: str, config: LoRAConfig, tmp_path: Path) -> None:
    model = trained(kind, config)
    save(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors"]
    expected = logits(model, kind)
    assert not torch.allclose(expected, logits(make(kind), kind), rtol=1e-2)
    assert torch.equal(logits(PeftModel.from_pretrained(make(kind), tmp_path), kind), expected)
    again = load(make(kind), tmp_path)
    assert torch.equal(logits(again, kind), expected)
    assert set(trainable_parameters(again)) == set(trainable_parameters(model))
    assert isinstance(again.tuning, LoRAConfig)
    assert (again.tuning.scaling, again.tuning.dropout) == (config.scaling, config.dropout)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_peft_s_loads_in_ours(kind: str, rslora: bool, tmp_path: Path) -> None:
    task = TaskType.SEQ_CLS if kind in CLASSIFIERS else TaskType.CAUSAL_LM
    settings = LoraConfig(r=3, lora_alpha=7, use_rslora=rslora, task_type=task, fan_in_fan_out="gpt2" in kind)
    theirs = get_peft_model(make(kind), settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * noise(parameter, 2))
    theirs.save_pretrained(str(tmp_path))
    ours = load(make(kind), tmp_path)
    assert torch.equal(logits(ours, kind), logits(theirs, kind))
    head = {"bert": 66, "roberta": 32 * 32 + 32 + 66, "gpt2": 64, "llama": 64}.get(kind, 0)
    assert count_parameters(ours).head == head
    assert relative(logits(merge(ours), kind), logits(theirs, kind)) <= rounding()


def test_peft_s_loads_with_a_regex_and_other_trained_modules(tmp_path: Path) -> None:
    settings = LoraConfig(
        target_modules=r".*layer\.1.*\.(query|dense)", modules_to_save=["pooler"], task_type=TaskType.SEQ_CLS
    )
    theirs = get_peft_model(make("bert"), settings)
    fill_lora(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours = load(make("bert"), tmp_path)
    assert torch.equal(logits(ours, "bert"), logits(theirs, "bert"))
    assert {"bert.pooler.dense.weight", "classifier.weight"} < set(trainable_parameters(ours))
    save(ours, tmp_path / "ours")
    assert torch.equal(logits(PeftModel.from_pretrained(make("bert"), tmp_path / "ours"), "bert"), logits(ours, "bert"))


def test_peft_s_without_a_task_leaves_the_head_frozen(tmp_path: Path) -> None:
    theirs = get_peft_model(make("roberta"), LoraConfig(target_modules=["dense"]))  # adapts classifier.dense too
    fill_lora(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours = load(make("roberta"), tmp_path)
    assert torch.equal(logits(ours, "roberta"), logits(theirs, "roberta"))
    assert all("lora_" in name for name in trainable_parameters(ours))


def test_a_short_header_written_by_hand_is_enough(folder: Path) -> None:
    header = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    needed = ("peft_type", "r", "lora_alpha", "target_modules", "modules_to_save")
    (folder / "adapter_config.json").write_text(json.dumps({key: header[key] for key in needed}), encoding="utf-8")
    assert torch.equal(logits(load(make("bert"), folder), "bert"), logits(trained("bert", LoRAConfig()), "bert"))


def distilbert() -> Any:
    """Its head is two layers, `pre_classifier` and `classifier`."""
    config = DistilBertConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40, pad_token_id=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = DistilBertForSequenceClassification(config)
        return model.to(DEVICE).eval()


def distilbert_logits(model: Any) -> torch.Tensor:
    batch = make_batch("bert")
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def moved(model: Any) -> Any:
    """All that is trained, far from where it began."""
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * noise(parameter, 2))
    return model


def test_peft_s_head_of_two_layers_loads_in_ours(tmp_path: Path) -> None:
    theirs = moved(get_peft_model(distilbert(), LoraConfig(target_modules=["q_lin"], task_type=TaskType.SEQ_CLS)))
    theirs.save_pretrained(str(tmp_path))
    ours = load(distilbert(), tmp_path)
    assert torch.equal(distilbert_logits(ours), distilbert_logits(theirs))
    assert {"pre_classifier.weight", "classifier.weight"} < set(trainable_parameters(ours))


@pytest.mark.parametrize(
    "config", [LoRAConfig(head=("classifier",)), PromptTuningConfig(head=("classifier",))], ids=lambda c: c.name
)
def test_what_peft_takes_for_the_head_is_in_the_file_too(config: MethodConfig, tmp_path: Path) -> None:
    """Of "classifier", peft trains `pre_classifier` as well, and needs its weights, which are the backbone's here."""
    ours = moved(inject(distilbert(), config))
    save(ours, tmp_path)
    expected = distilbert_logits(ours)
    assert torch.equal(distilbert_logits(load(distilbert(), tmp_path)), expected)
    if isinstance(config, LoRAConfig):  # peft's prompts read another position, see `VirtualPromptConfig.pool`
        assert torch.equal(distilbert_logits(PeftModel.from_pretrained(distilbert(), tmp_path)), expected)


def test_a_target_that_peft_takes_for_the_head_is_refused(tmp_path: Path) -> None:
    model = inject(distilbert(), LoRAConfig(targets="all-linear", head=("classifier",)))
    with pytest.raises(CheckpointError, match=r"pre_classifier is adapted, and peft takes it for a part of the head"):
        save(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("names", [["norm"], ["embed_tokens", "lm_head"], ["mlp.up_proj", "rotary_emb"]], ids=str)
def test_peft_s_ends_of_names_mean_the_same_in_ours(names: list[str], tmp_path: Path) -> None:
    """ "norm" is the end of `input_layernorm` as well."""
    theirs = get_peft_model(make("llama-lm"), LoraConfig(modules_to_save=names, task_type=TaskType.CAUSAL_LM))
    moved(theirs).save_pretrained(str(tmp_path / "peft"))
    ours = load(make("llama-lm"), tmp_path / "peft")
    assert torch.equal(logits(ours, "llama-lm"), logits(theirs, "llama-lm"))
    assert count_parameters(ours).trainable == count_parameters(theirs).trainable
    save(ours, tmp_path / "ours")
    again = PeftModel.from_pretrained(make("llama-lm"), tmp_path / "ours")
    assert torch.equal(logits(again, "llama-lm"), logits(theirs, "llama-lm"))


# --- tied weights: peft unties what it trains, so the two formats would mean two things ---

TIED = [
    ("gpt2-lm", "transformer.wte"),
    ("gpt2-lm", "lm_head"),
    ("llama-lm", "model.embed_tokens"),
    ("llama-lm", "lm_head"),
]


def tied(kind: str) -> Any:
    model = make(kind, tie_word_embeddings=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return model


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("method", [LoRAConfig, DoRAConfig, PiSSAConfig], ids=lambda method: method.name)
@pytest.mark.parametrize(("kind", "head"), TIED)
def test_a_tied_weight_in_the_head_stays_tied_in_peft_and_in_ours(
    kind: str, head: str, method: Callable[..., MethodConfig], tmp_path: Path
) -> None:
    model = moved(inject(tied(kind), method(head=(head,))))
    save(model, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(tied(kind), str(tmp_path / "ours")).eval()
    assert relative(logits(theirs, kind), logits(model, kind)) < rounding()
    again = load(tied(kind), tmp_path / "ours")
    assert relative(logits(again, kind), logits(model, kind)) < rounding()
    words, output = again.get_input_embeddings(), again.get_output_embeddings()  # type: ignore[operator]
    assert words.weight is output.weight
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours, peft_s = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == peft_s.keys()
    assert all(torch.equal(ours[name], peft_s[name]) for name in ours)


@pytest.mark.parametrize("named", [["lm_head"], ["embedding", "lm_head"]], ids=str)
@pytest.mark.parametrize(("kind", "embedding"), [("gpt2-lm", "wte"), ("llama-lm", "embed_tokens")])
def test_peft_s_tied_weight_loads_where_peft_keeps_it_tied(
    kind: str, embedding: str, named: list[str], tmp_path: Path
) -> None:
    names = [embedding if name == "embedding" else name for name in named]
    settings = LoraConfig(modules_to_save=names, task_type=TaskType.CAUSAL_LM, ensure_weight_tying=True)
    theirs = moved(get_peft_model(tied(kind), settings))
    theirs.save_pretrained(str(tmp_path))
    ours = load(tied(kind), tmp_path)
    assert torch.equal(logits(ours, kind), logits(theirs, kind))
    assert not torch.equal(logits(ours, kind), logits(tied(kind), kind))
    with pytest.raises(CheckpointError, match=r"unexpected lm_head\.weight"):  # two weights there, and only one here
        load(make(kind, tie_word_embeddings=False), tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        AdaLoRAConfig(total_steps=9, initial_steps=2, final_steps=2, head=("lm_head",)),
        IA3Config(head=("lm_head",)),
        PromptTuningConfig(head=("lm_head",)),
        PrefixTuningConfig(head=("lm_head",)),
    ],
    ids=lambda config: config.name,
)
@pytest.mark.parametrize("kind", ["gpt2-lm", "llama-lm"])
def test_a_tied_weight_is_refused_for_methods_that_peft_does_not_tie(
    kind: str, config: MethodConfig, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"is trained and is the same weight as .* \(tied embeddings\)"):
        save(inject(tied(kind), config), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_tied_output_layer_with_a_bias_is_refused(tmp_path: Path) -> None:
    """peft would put a layer without a bias there."""
    config = DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)
    model = inject(DistilBertForMaskedLM(config), LoRAConfig(head=("vocab_projector",)))
    with pytest.raises(CheckpointError, match="and an output layer without a bias"):
        save(model, tmp_path / "x")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(("kind", "head"), TIED)
def test_peft_s_weight_that_it_has_untied_is_not_loaded(kind: str, head: str, tmp_path: Path) -> None:
    settings = LoraConfig(modules_to_save=[head.split(".")[-1]], task_type=TaskType.CAUSAL_LM)
    moved(get_peft_model(tied(kind), settings)).save_pretrained(str(tmp_path))
    refused(kind, tmp_path, r"is trained and is the same weight as .* \(tied embeddings\)", tied(kind))


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`")
def test_peft_s_wish_that_it_did_not_keep_is_not_taken_for_the_deed(tmp_path: Path) -> None:
    """Of GPT-2's "wte" peft does not see that it is tied, and trains it apart in spite of `ensure_weight_tying`."""
    settings = LoraConfig(modules_to_save=["wte"], task_type=TaskType.CAUSAL_LM, ensure_weight_tying=True)
    moved(get_peft_model(tied("gpt2-lm"), settings)).save_pretrained(str(tmp_path))
    refused("gpt2-lm", tmp_path, "peft trains a copy of one and leaves the other as it was", tied("gpt2-lm"))


def test_our_own_format_trains_a_tied_weight(tmp_path: Path) -> None:
    model = moved(inject(tied("gpt2-lm"), HeadOnlyConfig(head=("lm_head",))))
    save(model, tmp_path)
    again = load(tied("gpt2-lm"), tmp_path)
    assert again.lm_head.weight is again.transformer.wte.weight  # type: ignore[union-attr]
    assert torch.equal(logits(again, "gpt2-lm"), logits(model, "gpt2-lm"))


SELECTIVE: list[MethodConfig] = [FullConfig(), HeadOnlyConfig(), LastLayersConfig(layers=2), BitFitConfig()]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, config) for kind in CLASSIFIERS for config in SELECTIVE if (kind, config.name) != ("llama", "BitFit")),
        ("bert", HeadOnlyConfig(head=("bert.pooler",))),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_selective_round_trips(kind: str, config: MethodConfig, tmp_path: Path) -> None:
    model = trained(kind, config)
    save(model, tmp_path)
    again = load(make(kind), tmp_path)
    assert torch.equal(logits(again, kind), logits(model, kind))
    assert again.tuning == config
    assert not torch.equal(logits(again, kind), logits(make(kind), kind))


@pytest.mark.parametrize("config", [FullConfig(), LoRAConfig()], ids=lambda config: config.name)
def test_tied_embeddings_stay_tied_and_are_saved_once(config: MethodConfig, tmp_path: Path) -> None:
    model = trained("gpt2-lm", config)
    save(model, tmp_path)
    again = load(make("gpt2-lm"), tmp_path)
    assert again.lm_head.weight is again.transformer.wte.weight  # type: ignore[union-attr]
    assert torch.equal(logits(again, "gpt2-lm"), logits(model, "gpt2-lm"))


def test_any_module_can_be_loaded_into(tmp_path: Path) -> None:
    """The check for a fit copies the model without memory; it needs no configuration of transformers."""
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = inject(copy.deepcopy(plain), FullConfig())
    nn.init.normal_(model[0].weight)  # type: ignore[index]
    save(model, tmp_path)
    again = load(plain, tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert {p.device.type for p in again.parameters()} == {"cpu"}


def test_loading_takes_no_second_copy_of_the_model(tmp_path: Path) -> None:
    """Peak memory of loading a LoRA checkpoint of 0.1 MB into a model of 215 MB, in a process of its own."""
    script = f"""
import resource, torch
from transformers import BertConfig, BertForSequenceClassification
from course_utils.checkpoints import load, save
from course_utils.methods import LoRAConfig, inject
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def build():
    config = BertConfig(vocab_size=70_000, hidden_size=768, num_hidden_layers=1)
    with torch.device("meta"):
        return BertForSequenceClassification(config).to_empty(device="cpu").requires_grad_(False)
def fill(model):
    for p in model.parameters(): p.data.fill_(0.01)
    return model
model = inject(fill(build()), LoRAConfig()); save(model, {str(tmp_path)!r}); del model
model = fill(build()); before = peak()
load(model, {str(tmp_path)!r})
print(sum(p.numel() for p in model.parameters()) * 4 / 2**20, peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    size, extra = map(float, result.stdout.split())
    assert size > 200
    assert extra < 0.2 * size


class Counting(nn.Module):
    """A head that counts means while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(32), nn.Linear(32, 2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(hidden))


@pytest.mark.parametrize("config", [LoRAConfig(), HeadOnlyConfig(), FullConfig()], ids=lambda config: config.name)
def test_what_a_head_has_counted_is_saved_as_peft_saves_it(config: MethodConfig, tmp_path: Path) -> None:
    def draw() -> Any:
        model = make("bert")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.classifier = Counting().to(DEVICE).eval()
        return model

    def train(model: Any) -> Any:
        moved(model).train()(**make_batch("bert"))  # counts
        return model.eval()

    model = train(inject(draw(), config))
    assert not torch.equal(model.classifier.norm.running_mean, draw().classifier.norm.running_mean)
    save(model, tmp_path / "ours")
    assert torch.equal(logits(load(draw(), tmp_path / "ours"), "bert"), logits(model, "bert"))
    if isinstance(config, LoRAConfig):
        theirs = PeftModel.from_pretrained(draw(), str(tmp_path / "ours"))
        assert relative(logits(theirs, "bert"), logits(model, "bert")) < rounding()
        theirs = train(get_peft_model(draw(), LoraConfig(task_type=TaskType.SEQ_CLS)))
        theirs.save_pretrained(str(tmp_path / "theirs"))
        assert torch.equal(logits(load(draw(), tmp_path / "theirs"), "bert"), logits(theirs, "bert"))


# --- what does not fit ----------------------------------------------------------------------------------------------

PREFIX = "base_model.model."
KEY = PREFIX + "bert.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), r"missing bert\.encoder\.layer\.0\.attention\.self\.query\.lora_A\.weight; Load"),
        (lambda t: t.pop(PREFIX + "classifier.bias"), r"missing classifier\.bias"),
        (lambda t: t.update({PREFIX + "extra.lora_A.weight": t[KEY].clone()}), r"unexpected extra\.lora_A\.weight"),
        (
            lambda t: t.update({"model.query": t.pop(KEY)}),
            r"unexpected key 'model.query': keys of this checkpoint should begin",
        ),
        (
            lambda t: t.update({KEY.replace("query", "key"): t.pop(KEY)}),
            r"missing .*query.lora_A.weight; unexpected .*key.lora_A.weight; Load it into the backbone",
        ),
        (lambda t: t.update({KEY: t[KEY][:4].clone()}), r"has the shape \(4, 32\) in the checkpoint and \(8, 32\)"),
        (lambda t: t.clear(), r"missing .* and 7 more"),
    ],
)
def test_a_wrong_set_of_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
    edit_tensors(folder, change)
    refused("bert", folder, message)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert", {"num_labels": 3}, r"classifier.weight has the shape \(2, 32\) in the checkpoint and \(3, 32\)"),
        ("bert", {"hidden_size": 48}, r"\(8, 32\) in the checkpoint and \(8, 48\) in the model: another backbone"),
        ("bert", {"num_hidden_layers": 3}, r"no linear layer|missing"),
        ("bert", {"num_hidden_layers": 1}, "no linear layer is called 'bert.encoder.layer.1.attention.self.query'"),
        ("roberta", {}, "no linear layer is called 'bert.encoder"),
        ("llama", {}, "no linear layer is called 'bert.encoder"),
    ],
)
def test_another_model(folder: Path, kind: str, settings: dict[str, Any], message: str) -> None:
    if settings == {"num_hidden_layers": 3}:  # our header names each layer, so a deeper model would take it: by pattern
        edit_header(folder, target_modules=["query", "value"])
    refused(kind, folder, message, make(kind, **settings))


def test_another_rank_in_the_header(folder: Path) -> None:
    edit_header(folder, r=4)
    refused("bert", folder, r"has the shape \(8, 32\) in the checkpoint and \(4, 32\) in the model: .*rank")


def test_a_model_that_carries_a_method_already(folder: Path) -> None:
    refused("bert", folder, "already carries head only", inject(make("bert"), HeadOnlyConfig()))


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"rank_pattern": {"query": 4}},
        {"alpha_pattern": {"query": 4}},
        {"layers_to_transform": 0},
        {"layers_to_transform": [1]},
        {"layers_pattern": "layer"},
        {"target_parameters": ["x"]},
        {"trainable_token_indices": [3]},
        {"lora_bias": True},
        {"use_qalora": True},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [5]},
        {"megatron_config": {"x": 1}},
        {"arrow_config": {"top_k": 3}},
        {"use_bdlora": {"nblocks": 2}},
        {"velora_config": {"rank": 1}},
        {"monteclora_config": {"x": 1}},
        {"kasa_config": {"x": 1}},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "lora_ga"},
        {"a_setting_of_the_future": 1},
    ],
    ids=str,
)
def test_an_unsupported_variant_is_refused_by_name(folder: Path, changes: dict[str, Any]) -> None:
    edit_header(folder, **changes)
    refused("bert", folder, f"{next(iter(changes))}=")


def test_every_setting_of_peft_s_is_known_or_off_by_default(folder: Path, tmp_path: Path) -> None:
    """peft's own full header, with each default it writes, loads; so does one with what it calls harmless."""
    theirs = get_peft_model(make("bert"), LoraConfig(task_type=TaskType.SEQ_CLS, init_lora_weights="gaussian"))
    theirs.save_pretrained(str(tmp_path / "peft"))
    header = json.loads((tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert len(header) > 35
    edit_header(folder, **header | {"r": 8, "lora_alpha": 16, "eva_config": None, "revision": "main"})
    assert torch.equal(logits(load(make("bert"), folder), "bert"), logits(trained("bert", LoRAConfig()), "bert"))


def test_every_method_has_a_format() -> None:
    configs = [value for value in map(vars(methods).get, methods.__all__) if isinstance(value, type)]
    every = {config for config in configs if issubclass(config, MethodConfig)} - {MethodConfig}
    rows = [row.method for row in PEFT_FORMATS]
    assert len(rows) == len(set(rows))
    assert set(EVERY_METHOD.values()) == every
    assert set(rows) == {type(row.config) for row in methods.METHODS.values() if row.in_peft}


#: What ours does not implement, by peft's type. A field that a newer peft adds is in none of the lists.
_REFUSED_BY_LORA = {
    *("layers_to_transform", "layers_pattern", "layer_replication", "target_parameters"),
    *("alpha_pattern", "trainable_token_indices", "megatron_config"),
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens"),
    *("velora_config", "monteclora_config", "arrow_config", "kasa_config"),
}
REFUSED = {
    "LORA": _REFUSED_BY_LORA | {"rank_pattern"},
    "ADALORA": _REFUSED_BY_LORA | {"ensure_weight_tying"},
    "VERA": {"layers_to_transform", "layers_pattern"},
    "IA3": {"exclude_modules"},
}
#: Ours alone; peft warns that it does not know them.
OWN_SETTINGS = {"IA3": {"scale_queries"}, "PROMPT_TUNING": {"pool"}, "P_TUNING": {"pool"}}


@pytest.mark.parametrize("row", PEFT_FORMATS, ids=lambda row: row.method.name)
def test_every_setting_of_peft_s_is_read_or_passed_over_for_a_reason_or_refused(row: Format) -> None:
    known = row.known()
    refused = REFUSED.get(row.peft_type, set()) - ({"use_dora"} if row.method.name == "DoRA" else set())
    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(row.peft_type)])}
    assert sorted(known) == sorted(set(known)), "a setting has two meanings"
    assert fields - set(known) == refused
    own = {"prefix_dropout"} if row.method.name == "P-Tuning v2" else OWN_SETTINGS.get(row.peft_type, set())
    assert set(known) - fields == own
    for setting in {*refused, "a_setting_of_the_future"}:
        for value in (True, 0, 0.5, "x", ["x"], {"x": 1}):
            with pytest.raises(CheckpointError, match=f"the checkpoint uses {setting}="):
                row.refuse_the_rest({setting: value})
        row.refuse_the_rest({setting: False})
    for setting in row.only:
        with pytest.raises(CheckpointError, match=f"^{setting}='another' "):
            row.refuse_the_rest({setting: "another"})


def test_dora_and_ia3_as_peft_writes_them(tmp_path: Path) -> None:
    dora = get_peft_model(make("bert"), LoraConfig(use_dora=True, task_type=TaskType.SEQ_CLS))
    dora.save_pretrained(str(tmp_path / "dora"))
    assert torch.equal(logits(load(make("bert"), tmp_path / "dora"), "bert"), logits(dora, "bert"))
    ia3 = get_peft_model(make("bert"), PeftIA3Config(task_type=TaskType.SEQ_CLS))
    ia3.save_pretrained(str(tmp_path / "ia3"))
    count = count_parameters(load(make("bert"), tmp_path / "ia3"))
    # peft's own choice: keys, values, and the inputs of output.dense, of which each block has two
    assert count.trainable - count.head == 2 * (32 + 32 + 48 + 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"r": None}, "rank must be a whole number"),
        ({"lora_alpha": "x"}, "alpha must be a number above 0, got 'x'"),
        ({"lora_alpha": -2}, "alpha must be a number above 0"),
        ({"target_modules": 3}, "has one of a wrong type"),
        ({"target_modules": ["nothing"]}, "no linear layer is called 'nothing'"),
        ({"target_modules": []}, "targets is empty"),
        ({"target_modules": "("}, "is no regular expression"),
        ({"modules_to_save": 5}, "has one of a wrong type"),
        ({"modules_to_save": "classifier"}, "modules_to_save should be a list of names, got 'classifier'"),
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_header(folder, **changes)
    refused("bert", folder, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", b"{", "adapter_config.json cannot be read"),
        ("adapter_config.json", b"[]", "should hold a JSON object, it holds a list"),
        ("adapter_config.json", b"{}", "peft_type is None"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', "lacks a setting"),
        ("adapter_config.json", b"\xff\xfe\x00", "cannot be read"),
        ("adapter_model.safetensors", b"", "missing or damaged"),
        ("adapter_model.safetensors", b"\x80\x04pickle", "missing or damaged"),
    ],
)
def test_damaged_files(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    refused("bert", folder, message)


def test_a_truncated_weights_file(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused("bert", folder, "missing or damaged")
    file.unlink()
    refused("bert", folder, "missing or damaged")


def test_no_checkpoint(tmp_path: Path) -> None:
    refused("bert", tmp_path / "nowhere", "holds neither adapter_config.json nor tuning_config.json")
    refused("bert", tmp_path, "holds neither")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    refused("bert", tmp_path / "file", "holds neither")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'; expected one of LoRA, full fine-tuning, head only"),
        ({"method": None}, "unknown method None"),
        ({"format": 2}, "has the format 2; this version reads 1"),
        ({"settings": {"layers": 9}}, "layers is 9, but the model has only 2 blocks"),
        ({"settings": {"layers": "1"}}, "layers must be a whole number"),
        ({"settings": {"depth": 1}}, "unknown settings for last layers: depth"),
        ({"settings": {"layers": 2}}, "missing .*layer.0"),
        ({"settings": {"head": 3}}, "head must be a tuple of names"),
        ({"settings": None}, "should hold the method's settings by name, got None"),
    ],
    ids=str,
)
def test_our_own_header_is_checked_too(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(trained("bert", LastLayersConfig()), tmp_path)
    file = tmp_path / "tuning_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    refused("bert", tmp_path, message)


# --- writing --------------------------------------------------------------------------------------------------------


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no method is in the model"):
        save(make("bert"), tmp_path / "x")
    with pytest.raises(CheckpointError, match="no method is in the model"):
        save(merge(inject(make("bert"), LoRAConfig())), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_later_checkpoint_of_another_kind_replaces_the_first(folder: Path) -> None:
    model = trained("bert", BitFitConfig())
    save(model, folder)
    assert sorted(os.listdir(folder)) == ["tuning_config.json", "tuning_model.safetensors"]
    assert torch.equal(logits(load(make("bert"), folder), "bert"), logits(model, "bert"))


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="could not write the checkpoint to"):
        save(trained("bert", LoRAConfig()), tmp_path / "file")


def test_no_room_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A process that may write no file above 8 kB: the tensors do not fit."""
    old, new = tmp_path / "old", tmp_path / "new"
    save(trained("bert", HeadOnlyConfig()), old)
    before = {file.name: file.read_bytes() for file in old.iterdir()}
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from models import make
from course_utils.checkpoints import CheckpointError, save
from course_utils.methods import FullConfig, inject
model = inject(make("bert"), FullConfig())
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
for folder in {[str(old), str(new)]!r}:
    try:
        save(model, folder)
    except CheckpointError as error:
        print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("refused: could not write the checkpoint to") == 2
    assert {file.name: file.read_bytes() for file in old.iterdir()} == before
    assert not new.exists()
    load(make("bert"), old)
