"""LoRA equals peft's, number for number, and does what its documentation says."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from models import ALL_MODELS, CLASSIFIERS, DEVICE, HIDDEN, Batch, fill_lora, make, make_batch, relative, rounding
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from course_utils.methods import (
    LoRAConfig,
    LoRALinear,
    MethodError,
    TargetError,
    count_parameters,
    find_targets,
    inject,
    merge,
    trainable_parameters,
)

SCALINGS: list[dict[str, Any]] = [
    {"rank": 4, "alpha": 8},
    {"rank": 3, "alpha": 7},  # the factor is no power of two: the order of the products shows in the last bit
    {"rank": 5, "alpha": 4, "rank_stabilized": True},
]


def peft_model(kind: str, config: LoRAConfig, model: Any = None) -> PeftModel:
    """The same model under peft's own LoRA."""
    targets = list(config.targets) if isinstance(config.targets, tuple) else config.targets
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft takes fractions too
        lora_dropout=config.dropout,
        use_rslora=config.rank_stabilized,
        target_modules=targets,
        task_type="SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM",
        fan_in_fan_out=kind.startswith("gpt2"),
    )
    return get_peft_model(make(kind) if model is None else model, settings).eval()


def plain_name(peft_name: str) -> str:
    """peft's name of a parameter → ours."""
    name = peft_name.removeprefix("base_model.model.").replace(".base_layer.", ".base.")
    return name.replace(".default.", ".").replace(".modules_to_save.", ".")


def peft_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {plain_name(name): parameter for name, parameter in trainable_parameters(model).items()}


def pair(kind: str, config: LoRAConfig) -> tuple[nn.Module, PeftModel]:
    """Ours and peft's with the same A and B, both far from zero."""
    ours, theirs = inject(make(kind), config), peft_model(kind, config)
    fill_lora(ours)
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])
    return ours, theirs


def explain_difference(ours: nn.Module, theirs: PeftModel, batch: Batch) -> str:
    """What differs between ours and peft's with the same A and B: "" if nothing, else the likely mistake."""
    reference = {plain_name(n): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    for name, module in ours.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        x = torch.randn(3, module.lora_A.in_features, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        mine, expected = module(x) - module.base(x), reference[name](x) - reference[name].base_layer(x)
        factor = (mine * expected).sum() / expected.square().sum()
        if not torch.allclose(mine, expected, rtol=1e-3, atol=1e-5):
            parallel = torch.allclose(mine, factor * expected, rtol=1e-3, atol=1e-4)
            return f"{name}: the update is {factor:.3g} times peft's" if parallel else f"{name}: another update"
    return "" if torch.equal(ours(**batch).logits, theirs(**batch).logits) else "the logits differ in the last bits"


# --- equal to peft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SCALINGS, ids=str)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_forward_and_gradients_equal_peft(kind: str, settings: dict[str, Any]) -> None:
    ours, theirs = pair(kind, LoRAConfig(**settings, targets="all-linear"))
    batch = make_batch(kind)
    assert explain_difference(ours, theirs, batch) == ""
    mine, reference = ours(**batch), theirs(**batch)
    assert torch.equal(mine.loss, reference.loss)
    assert not torch.allclose(mine.logits, make(kind)(**batch).logits, rtol=1e-2)  # LoRA does do something
    mine.loss.backward()
    reference.loss.backward()
    for name, parameter in peft_trainable(theirs).items():
        gradient = trainable_parameters(ours)[name].grad
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(gradient, parameter.grad), name


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ten_steps_give_peft_s_weights_bit_for_bit(kind: str) -> None:
    ours, theirs = pair(kind, LoRAConfig(rank=3, alpha=7, targets="all-linear"))
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    for name, parameter in peft_trainable(theirs).items():
        assert torch.equal(trainable_parameters(ours)[name], parameter), name
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, start[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-lm"])
def test_dropout_equals_peft_under_one_seed(kind: str) -> None:
    ours, theirs = pair(kind, LoRAConfig(dropout=0.3, targets="all-linear"))
    batch = make_batch(kind)
    logits = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(5)
        logits.append(model(**batch).logits)
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], ours(**batch).logits)  # another draw
    assert torch.equal(ours.eval()(**batch).logits, ours(**batch).logits)


def test_the_parity_check_names_a_wrong_factor_and_a_wrong_matrix() -> None:
    ours, theirs = pair("bert", LoRAConfig(rank=4, alpha=8))
    batch = make_batch("bert")
    layers = [m for m in ours.modules() if isinstance(m, LoRALinear)]
    layers[0].scaling = 8.0  # alpha, not alpha / rank
    assert explain_difference(ours, theirs, batch).endswith("the update is 4 times peft's")
    layers[0].scaling = 2.0
    assert explain_difference(ours, theirs, batch) == ""
    weight = layers[1].lora_A.weight
    weight.data = weight.data.flip(0)
    assert explain_difference(ours, theirs, batch).endswith("value: another update")


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_merged_equals_unmerged_and_peft(kind: str) -> None:
    ours, theirs = pair(kind, LoRAConfig(rank=4, alpha=8, targets="all-linear"))
    batch = make_batch(kind)
    with torch.no_grad():
        unmerged = ours(**batch).logits
        merged = merge(ours)(**batch).logits
        assert relative(merged, unmerged) <= rounding()
        assert torch.equal(merged, theirs.merge_and_unload()(**batch).logits)
    assert list(ours.state_dict()) == list(make(kind).state_dict())
    assert not any(isinstance(m, LoRALinear) for m in ours.modules())
    with pytest.raises(MethodError, match="nothing to merge"):
        merge(ours)
    assert ours.tuning is None
    inject(ours, LoRAConfig())  # and it takes the next method


@pytest.mark.parametrize(("dtype", "gate"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_merge_in_half_precision(kind: str, dtype: torch.dtype, gate: float) -> None:
    config = LoRAConfig(rank=4, alpha=8, targets="all-linear")
    ours, theirs = inject(make(kind).to(dtype), config), peft_model(kind, config, make(kind).to(dtype))
    assert {p.dtype for n, p in ours.named_parameters() if "lora_" in n} == {torch.float32}  # as in peft
    fill_lora(ours)
    fill_lora(theirs)
    layer = next(m for m in ours.modules() if isinstance(m, LoRALinear))
    x = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    batch = make_batch(kind)
    with torch.no_grad():
        assert ours(**batch).logits.dtype == dtype
        assert torch.equal(ours(**batch).logits, theirs(**batch).logits)
        unmerged = layer(x).float()
        assert relative(layer.merged()(x).float(), unmerged) <= gate
    ours, theirs = inject(make(kind).to(dtype), config), peft_model(kind, config, make(kind).to(dtype))
    fill_lora(ours)
    fill_lora(theirs)
    reference = theirs.merge_and_unload().state_dict()
    for name, tensor in merge(ours).state_dict().items():
        assert tensor.dtype == reference[name].dtype
        assert torch.equal(tensor, reference[name]), name


def test_everything_in_bfloat16_still_computes_and_merges() -> None:
    ours = inject(make("bert"), LoRAConfig(targets="all-linear"))
    fill_lora(ours)
    batch = make_batch("bert")
    with torch.no_grad():
        full = ours(**batch).logits
        ours.to(torch.bfloat16)
        assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
        half = ours(**batch).logits.float()
        assert relative(half, full) < 0.05
        assert relative(merge(ours)(**batch).logits.float(), full) < 0.05


def test_merging_a_tied_output_layer_is_refused_and_changes_nothing() -> None:
    model = inject(make("gpt2-lm"), LoRAConfig(targets=("c_attn", "lm_head")))
    fill_lora(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MethodError, match="lm_head shares its weight"):
        merge(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.tuning is not None


# --- what is inserted -----------------------------------------------------------------------------------------------


def test_parameter_count_on_bert_base() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    count = count_parameters(inject(model, LoRAConfig(rank=8)))
    assert (count.trainable - count.head, count.head) == (294_912, 1_538)
    assert 294_912 == 12 * 2 * 8 * (768 + 768)  # layers, matrices, rank, in + out
    assert count.total == 109_483_778 + 294_912
    assert str(count) == (
        "296,450 of 109,778,690 parameters are trained (0.27%): 294,912 by the method, 1,538 in the head"
    )


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_fresh_lora_changes_nothing_and_draws_a_as_peft_does(kind: str) -> None:
    model = inject(make(kind), LoRAConfig(targets="all-linear"))
    batch = make_batch(kind)
    assert torch.equal(model(**batch).logits, make(kind)(**batch).logits)
    for layer in (m for m in model.modules() if isinstance(m, LoRALinear)):
        bound = 1 / math.sqrt(layer.lora_A.in_features)
        assert layer.lora_A.weight.abs().max() <= bound
        assert layer.lora_A.weight.abs().max() > 0.9 * bound
        assert not layer.lora_B.weight.any()
    same = inject(make(kind), LoRAConfig(targets="all-linear"))
    other = inject(make(kind), LoRAConfig(targets="all-linear"), seed=1)
    a, b, c = (next(p for n, p in m.named_parameters() if "lora_A" in n) for m in (model, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_only_lora_and_the_head_are_trainable() -> None:
    names = set(trainable_parameters(inject(make("bert"), LoRAConfig())))
    assert {n for n in names if "lora_" not in n} == {"classifier.weight", "classifier.bias"}
    assert len(names) == 2 + 2 * 2 * 2
    frozen_head = inject(make("bert"), LoRAConfig(head=()))
    assert all("lora_" in n for n in trainable_parameters(frozen_head))
    with_pooler = inject(make("bert"), LoRAConfig(targets="all-linear", head=("classifier", "bert.pooler")))
    assert "bert.pooler.dense.weight" in trainable_parameters(with_pooler)  # trained as it is, so not wrapped
    with pytest.raises(TargetError, match=r"no module 'pooler'; the model has bert, dropout, classifier"):
        inject(make("bert"), LoRAConfig(head=("pooler",)))


# --- targets --------------------------------------------------------------------------------------------------------

TARGETS: list[tuple[str, Any]] = [
    ("bert", None),
    ("bert", "all-linear"),  # with pooler.dense
    ("bert", ("query", "key", "value")),
    ("bert", ("dense",)),
    ("bert", ("attention.output.dense",)),
    ("bert", ("bert.encoder.layer.1.output.dense",)),
    ("bert", r".*\.layer\.1\.attention\.self\.(query|value)"),
    ("roberta", None),
    ("roberta", "all-linear"),
    ("roberta", ("dense",)),  # not classifier.dense: the head is trained as it is
    ("gpt2", None),
    ("gpt2", "all-linear"),
    ("gpt2", ("c_attn", "c_proj", "c_fc")),
    ("gpt2", ("mlp.c_proj",)),
    ("llama", None),
    ("llama", "all-linear"),
    ("llama", ("k_proj", "down_proj")),
    ("gpt2-lm", "all-linear"),
    ("llama-lm", "all-linear"),
    ("llama-lm", ("q_proj", "lm_head")),
]


@pytest.mark.parametrize(("kind", "targets"), TARGETS, ids=str)
def test_targets_are_those_of_peft(kind: str, targets: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft_model(kind, LoRAConfig(targets=targets))
    expected = [plain_name(name) for name, m in theirs.named_modules() if hasattr(m, "lora_A")]
    assert list(find_targets(make(kind), targets)) == expected
    assert expected


def test_all_linear_on_bert_takes_the_pooler_and_not_the_head() -> None:
    names = find_targets(make("bert"), "all-linear")
    assert "bert.pooler.dense" in names
    assert "classifier" not in names
    assert "lm_head" not in find_targets(make("llama-lm"), "all-linear")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ("query", "q_proj"),
            r"no linear layer is called 'q_proj'.*called dense, key, query, value \(one in full: bert\.",
        ),
        (("uery",), "no linear layer is called 'uery'"),
        (("classifier",), r"called 'classifier' \(the head is trained as it is\)"),
        (("LayerNorm",), "no linear layer is called 'LayerNorm'"),
        (
            "query",
            r"matches the whole dotted name of no linear layer. For a list of names, write a tuple: \('query',\)",
        ),
        ("(query", "is no regular expression: missing"),
        ((), "targets is empty"),
    ],
    ids=str,
)
def test_targets_that_match_nothing_change_nothing(targets: Any, message: str) -> None:
    model = make("bert")
    model.bert.embeddings.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(TargetError, match=message):
        inject(model, LoRAConfig(targets=targets))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert not hasattr(model, "tuning")
    assert torch.equal(model(**make_batch("bert")).logits, make("bert")(**make_batch("bert")).logits)


def test_an_unknown_architecture_needs_targets() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(TargetError, match=r"no default targets for a model of type ''.*called 0, 2"):
        inject(model, LoRAConfig())
    assert all(p.requires_grad for p in model.parameters())
    inject(model, LoRAConfig(rank=2, targets=("0",)))
    assert set(trainable_parameters(model)) == {"0.lora_A.weight", "0.lora_B.weight"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.5}, "rank must be a whole number of at least 1, got 2.5"),
        ({"rank": True}, "rank must be a whole number"),
        ({"alpha": -1}, "alpha must be a number above 0, got -1"),
        ({"alpha": 0}, "alpha must be a number above 0, got 0"),
        ({"alpha": math.nan}, "alpha must be a number above 0, got nan"),
        ({"alpha": math.inf}, "alpha must be a number above 0, got inf"),
        ({"alpha": "16"}, "alpha must be a number above 0, got '16'"),
        ({"dropout": 1}, "dropout is a share from 0 to below 1, got 1"),
        ({"dropout": -0.1}, "dropout is a share from 0 to below 1, got -0.1"),
        ({"dropout": math.nan}, "dropout is a share"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        LoRAConfig(**settings)
