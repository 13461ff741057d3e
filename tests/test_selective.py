"""Full, head only, last layers, BitFit: which parameters are trained, how many, and with what gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import ALL_MODELS, CLASSIFIERS, make, make_batch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

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
        (BitFitConfig(), 102_912, 1_538),  # the paper counts the head's own bias too: 102,914
        (HeadOnlyConfig(head=("classifier", "bert.pooler")), 590_592, 1_538),
    ],
    ids=lambda value: value.name if isinstance(value, MethodConfig) else str(value),
)
def test_counts_on_bert_base(config: MethodConfig, method: int, head: int) -> None:
    count = count_parameters(inject(bert_base(), config))
    assert (count.trainable - count.head, count.head) == (method, head)
    assert count.total == 109_483_778


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
    ],
)
def test_last_layers_trains_the_top_block_and_what_follows(kind: str, prefixes: tuple[str, ...]) -> None:
    names = set(trainable_parameters(inject(make(kind), LastLayersConfig(layers=1))))
    assert names == {name for name, _ in make(kind).named_parameters() if name.startswith(prefixes)}
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in names), prefix


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


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_bitfit_s_gradients_are_those_of_full_fine_tuning(kind: str) -> None:
    batch = make_batch(kind)
    models = [inject(make(kind), config) for config in (BitFitConfig(), FullConfig())]
    for model in models:
        model(**batch).loss.backward()
    bitfit, full = (trainable_parameters(model) for model in models)
    biases = {name for name in full if name.endswith(".bias")}
    head = {name for name in full if name.startswith(("classifier.", "score."))}
    assert set(bitfit) == biases | head
    assert any("LayerNorm.bias" in name or "ln_1.bias" in name for name in biases)
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


@pytest.mark.parametrize("config", [FullConfig(), HeadOnlyConfig(), LastLayersConfig(), BitFitConfig()])
@pytest.mark.parametrize("kind", CLASSIFIERS[:3])
def test_nothing_else_changes(kind: str, config: MethodConfig) -> None:
    model = inject(make(kind), config)
    fresh = make(kind)
    assert model.tuning == config
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert merge(model).tuning is None


def test_a_model_without_a_head_has_nothing_to_train_head_only() -> None:
    model = inject(BertModel(make("bert").config), HeadOnlyConfig())
    assert not trainable_parameters(model)
