"""Full, head only, last layers, BitFit: which parameters are trained, how many, and with what gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALL_MODELS, CLASSIFIERS, DEVICE, LAYERS, make, make_batch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    BitFitConfig,
    FullConfig,
    HeadOnlyConfig,
    LastLayersConfig,
    MethodConfig,
    MethodError,
    count_parameters,
    inject,
    merge,
    trainable_parameters,
)


def bert_base() -> nn.Module:
    """BERT-base's shapes without its memory."""
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig())


@pytest.mark.parametrize(
    ("config", "method", "head"),
    [
        (FullConfig(), 109_482_240, 1_538),
        (HeadOnlyConfig(), 0, 1_538),
        (LastLayersConfig(layers=1), 7_087_872 + 590_592, 1_538),  # one block and the pooler
        (LastLayersConfig(layers=12), 12 * 7_087_872 + 590_592, 1_538),
        (BitFitConfig(), 102_912, 1_538),
        (BitFitConfig(biases="two"), 12 * (768 + 3072), 1_538),
        (HeadOnlyConfig(head=("classifier", "bert.pooler")), 590_592, 1_538),
    ],
    ids=lambda value: value.name if isinstance(value, MethodConfig) else str(value),
)
def test_counts_on_bert_base(config: MethodConfig, method: int, head: int) -> None:
    count = count_parameters(inject(bert_base(), config))
    assert (count.trainable - count.head, count.head) == (method, head)
    assert count.total == 109_483_778


def test_the_biases_of_bert_base_by_formula() -> None:
    """102,914 is all that is called bias: embeddings, blocks, pooler, and the 2 of the head (not its 1,536 weights)."""
    query_key_value, attention_output, inner, second, normalisations = 3 * 768, 768, 3072, 768, 2 * 768
    block = query_key_value + attention_output + inner + second + normalisations
    embeddings = pooler = 768
    assert embeddings + 12 * block + pooler == 102_912
    trained = trainable_parameters(inject(bert_base(), BitFitConfig()))
    assert sum(p.numel() for name, p in trained.items() if name.endswith("bias")) == 102_912 + 2 == 102_914
    assert {name for name in trained if not name.endswith("bias")} == {"classifier.weight"}
    two = count_parameters(inject(bert_base(), BitFitConfig(biases="two")))
    assert two.trainable - two.head == 46_080


def test_share() -> None:
    count = count_parameters(inject(bert_base(), BitFitConfig()))
    assert count.share == (102_912 + 1_538) / 109_483_778
    assert "(0.10%): 102,912 by the method, 1,538 in the head" in str(count)


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_full_trains_everything_and_counts_tied_weights_once(kind: str) -> None:
    model = inject(make(kind), FullConfig())
    count = count_parameters(model)
    assert count.trainable == count.total == sum(p.numel() for p in set(make(kind).parameters()))


@pytest.mark.parametrize(("kind", "head"), [("bert", "classifier"), ("roberta", "classifier"), ("gpt2", "score")])
def test_head_only_trains_the_head(kind: str, head: str) -> None:
    names = set(trainable_parameters(inject(make(kind), HeadOnlyConfig())))
    assert names == {name for name, _ in make(kind).named_parameters() if name.startswith(head + ".")}
    assert names


@pytest.mark.parametrize(
    ("kind", "prefixes"),
    [
        ("bert", ("bert.encoder.layer.1.", "bert.pooler.", "classifier.")),
        ("roberta", ("roberta.encoder.layer.1.", "classifier.")),
        ("gpt2", ("transformer.h.1.", "transformer.ln_f.", "score.")),
        ("llama", ("model.layers.1.", "model.norm.", "score.")),
        ("gpt2-lm", ("transformer.h.1.", "transformer.ln_f.")),  # its output layer is the embedding table: frozen
        ("llama-lm", ("model.layers.1.", "model.norm.", "lm_head.")),
    ],
)
def test_last_layers_trains_the_top_block_and_what_follows(kind: str, prefixes: tuple[str, ...]) -> None:
    """With the gradients of full fine-tuning, which in the blocks below are not even computed."""
    models = [inject(make(kind), config) for config in (LastLayersConfig(layers=1), FullConfig())]
    for model in models:
        model(**make_batch(kind)).loss.backward()
    top, full = (trainable_parameters(model) for model in models)
    assert set(top) == {name for name in full if name.startswith(prefixes)}
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in top), prefix
    for name, parameter in top.items():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, full[name].grad), name  # type: ignore[arg-type]
    assert all((p.grad is not None) == p.requires_grad for p in models[0].parameters())


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_all_layers_leave_only_the_embeddings_frozen(kind: str) -> None:
    model = inject(make(kind), LastLayersConfig(layers=LAYERS))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if "embeddings." in name or name.split(".")[-2] in ("wte", "wpe", "embed_tokens")
    }


def test_last_layers_of_a_language_model_leaves_the_tied_embeddings_alone() -> None:
    names = set(trainable_parameters(inject(make("gpt2-lm"), LastLayersConfig())))
    assert "transformer.wte.weight" not in names
    assert "transformer.ln_f.weight" in names


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (3, "layers is 3, but the model has only 2 blocks"),
        (0, "layers must be a whole number of at least 1, got 0"),
        (1.0, "layers must be a whole number of at least 1, got 1.0"),
    ],
)
def test_layers_that_do_not_exist(layers: Any, message: str) -> None:
    model = make("bert")
    with pytest.raises(MethodError, match=message):
        inject(model, LastLayersConfig(layers=layers))
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "tuning")


def test_last_layers_needs_blocks() -> None:
    with pytest.raises(MethodError, match="no list of blocks"):
        inject(nn.Sequential(nn.Linear(2, 2)), LastLayersConfig())


BITFIT: list[tuple[str, dict[str, Any], tuple[str, ...], int]] = [
    # model, its settings, how the trained biases end, how many in the two blocks and around them
    ("bert", {}, (".bias",), 2 * 8 + 2),
    ("roberta", {}, (".bias",), 2 * 8 + 1),
    ("gpt2", {}, (".bias",), 2 * 6 + 1),
    ("gpt2-lm", {}, (".bias",), 2 * 6 + 1),
    ("llama", {"attention_bias": True}, ("q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias"), 2 * 4),
    ("llama-lm", {"attention_bias": True, "mlp_bias": True}, ("_proj.bias",), 2 * 7),
    ("bert", {"biases": "two"}, ("self.query.bias", "intermediate.dense.bias"), 2 * 2),
    ("roberta", {"biases": "two"}, ("self.query.bias", "intermediate.dense.bias"), 2 * 2),
]


@pytest.mark.parametrize(("kind", "settings", "ends", "number"), BITFIT, ids=str)
def test_bitfit_s_gradients_are_those_of_full_fine_tuning(
    kind: str, settings: dict[str, Any], ends: tuple[str, ...], number: int
) -> None:
    batch = make_batch(kind)
    model_settings = {key: value for key, value in settings.items() if key != "biases"}
    configs = (BitFitConfig(biases=settings.get("biases", "all")), FullConfig())
    models = [inject(make(kind, **model_settings), config) for config in configs]
    for model in models:
        model(**batch).loss.backward()
    bitfit, full = (trainable_parameters(model) for model in models)
    head = {name for name in full if name.startswith(("classifier.", "score."))}
    biases = {name for name in full if name.endswith(ends)} - head
    assert len(biases) == number
    assert set(bitfit) == biases | head
    for name in bitfit:
        assert bitfit[name].grad is not None
        assert torch.equal(bitfit[name].grad, full[name].grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "llama-lm"])
def test_bitfit_on_llama_explains_that_there_are_no_biases(kind: str) -> None:
    model = make(kind)
    with pytest.raises(MethodError, match=r"this model \(llama\) has none: the Llama family leaves them out"):
        inject(model, BitFitConfig())
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "tuning")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("gpt2", {}, r"query, key and value in one parameter, c_attn.bias.*Use biases='all'"),
        ("gpt2-lm", {}, "query, key and value in one parameter"),
        ("llama", {}, r"this model \(llama\) has none"),
        ("llama", {"attention_bias": True}, r"biases='two' is not defined for this model \(llama\), only for bert"),
    ],
    ids=str,
)
def test_the_two_biases_where_they_are_not_defined(kind: str, settings: dict[str, Any], message: str) -> None:
    model = make(kind, **settings)
    with pytest.raises(MethodError, match=message):
        inject(model, BitFitConfig(biases="two"))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("biases", ["query", None, ("two",), True])
def test_other_biases_are_refused(biases: Any) -> None:
    with pytest.raises(MethodError, match="biases must be 'all' or 'two'"):
        BitFitConfig(biases=biases)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_the_key_s_bias_does_nothing(kind: str) -> None:
    model, batch = make(kind).double(), make_batch(kind)
    model(**batch).loss.backward()
    name = "c_attn.bias" if kind == "gpt2" else "self.key.bias"
    key_biases = [p for n, p in model.named_parameters() if n.endswith(name)]
    part = slice(32, 64) if kind == "gpt2" else slice(None)
    assert all(bias.grad[part].norm() < 1e-12 for bias in key_biases)
    others = [p.grad.norm() for n, p in model.named_parameters() if n.endswith("bias") and not n.endswith(name)]
    assert min(others) > 1e-6
    before = model(**batch).logits
    for bias in key_biases:
        bias.data[part] += torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE)
    assert torch.allclose(model(**batch).logits, before, rtol=1e-9, atol=1e-12)


def test_bitfit_s_checkpoint_keeps_the_choice_of_biases(tmp_path: Path) -> None:
    model, batch = inject(make("bert"), BitFitConfig(biases="two")), make_batch("bert")
    for parameter in trainable_parameters(model).values():
        parameter.data += 0.1
    save(model, tmp_path)
    again = load(make("bert"), tmp_path)
    assert again.tuning == BitFitConfig(biases="two")
    assert set(trainable_parameters(again)) == set(trainable_parameters(model))
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert torch.equal(merge(again)(**batch).logits, model(**batch).logits)
    assert not torch.equal(model(**batch).logits, make("bert")(**batch).logits)
    header = tmp_path / "tuning_config.json"
    written = header.read_text(encoding="utf-8")
    header.write_text(written.replace('"two"', '"all"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"does not fit the model: missing"):
        load(make("bert"), tmp_path)
    header.write_text(written.replace('"two"', '"few"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="biases must be 'all' or 'two'"):
        load(make("bert"), tmp_path)


@pytest.mark.parametrize("config", [FullConfig(), HeadOnlyConfig(), LastLayersConfig(), BitFitConfig()])
@pytest.mark.parametrize("kind", CLASSIFIERS[:3])
def test_nothing_else_changes(kind: str, config: MethodConfig) -> None:
    model = inject(make(kind), config)
    fresh = make(kind)
    assert model.tuning == config
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert merge(model).tuning is None


def test_head_only_needs_a_head() -> None:
    model = BertModel(make("bert").config)
    with pytest.raises(MethodError, match="BertModel has no new head to train"):
        inject(model, HeadOnlyConfig())
    assert all(parameter.requires_grad for parameter in model.parameters())
