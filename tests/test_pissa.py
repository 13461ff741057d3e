"""PiSSA splits each weight as peft does, trains as peft's, and its checkpoints are plain LoRA."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALL_MODELS, CLASSIFIERS, DEPTH, agree, make, make_batch, noise, relative, rounding
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_lora import peft_trainable, plain_name
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    LoRAConfig,
    MethodError,
    PiSSAConfig,
    PiSSALinear,
    count_parameters,
    eject,
    inject,
    merge,
    pissa as module,
    trainable_parameters,
)

CONFIG = PiSSAConfig(rank=3, alpha=7, targets="all-linear")
#: Both decompose the same numbers, but multiply the parts in another order.
GATE = rounding()


def peft_model(kind: str, config: LoRAConfig, model: Any = None, **settings: Any) -> PeftModel:
    """The same model under peft's own PiSSA."""
    defaults: dict[str, Any] = {"init_lora_weights": "pissa", "r": config.rank, "lora_alpha": config.alpha}
    defaults |= {"use_rslora": config.rank_stabilized, "target_modules": config.targets}
    defaults |= {"task_type": "SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM", "fan_in_fan_out": "gpt2" in kind}
    return get_peft_model(make(kind) if model is None else model, LoraConfig(**defaults | settings)).eval()


def layers(model: nn.Module) -> dict[str, PiSSALinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PiSSALinear)}


def move(model: nn.Module, *, seed: int = 1) -> None:
    """Add the same noise to the trained weights, under whoever's names. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05 * noise(parameter, generator))


def pair(kind: str, config: PiSSAConfig = CONFIG) -> tuple[nn.Module, PeftModel]:
    """Ours and peft's, each with its own decomposition; A and B copied only to undo another sign."""
    ours, theirs = inject(make(kind), config), peft_model(kind, config)
    assert split_differences(ours, theirs) == ""
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])
    return ours, theirs


def split_differences(ours: nn.Module, theirs: PeftModel) -> str:
    """Where the split of a weight into A, B and R is not peft's: "" if nowhere. Right after `inject`."""
    reference = {plain_name(name): layer for name, layer in theirs.named_modules() if hasattr(layer, "lora_A")}
    for name, layer in layers(ours).items():
        peft_a, peft_b = (getattr(reference[name], key).default.weight for key in ("lora_A", "lora_B"))
        # The signs of a singular vector and its partner are free: take those of peft.
        sign = torch.sign((layer.lora_A.weight * peft_a).sum(dim=1))
        for what, mine, expected in (
            ("R", layer.residual, reference[name].base_layer.weight),
            ("A", layer.lora_A.weight * sign[:, None], peft_a),
            ("B", layer.lora_B.weight * sign, peft_b),
        ):
            if not torch.allclose(mine, expected, rtol=0, atol=GATE):
                return f"{name}: {what} is {relative(mine, expected):.3g} away from peft's"
    return ""


def logits(model: Any, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**make_batch(kind)).logits


# --- the split ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, PiSSAConfig(rank=5, alpha=4, rank_stabilized=True)], ids=str)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_the_split_is_peft_s_and_gives_the_weight_back(kind: str, config: PiSSAConfig) -> None:
    ours = inject(make(kind), config)
    assert split_differences(ours, peft_model(kind, config)) == ""
    assert relative(logits(ours, kind), logits(make(kind), kind)) <= GATE
    for layer in layers(ours).values():
        weight = module.turned(layer.base, layer.base.weight)
        residual = module.turned(layer.base, layer.residual)
        assert relative(residual + layer.delta(), weight) <= GATE
        values = torch.linalg.svdvals(weight)
        # The trained part has the largest singular values, and the rest has the others.
        assert torch.allclose(torch.linalg.svdvals(layer.delta())[: config.rank], values[: config.rank], rtol=1e-4)
        assert torch.allclose(torch.linalg.svdvals(residual)[: -config.rank], values[config.rank :], atol=1e-5)
        assert relative(layer.lora_A.weight @ layer.lora_A.weight.T, layer.lora_B.weight.T @ layer.lora_B.weight) < 1e-5


def smallest_values(weight: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    root = torch.sqrt(s[-rank:] / scaling)
    return root[:, None] * vt[-rank:], u[:, -rank:] * root


def no_scaling(weight: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    root = torch.sqrt(s[:rank])
    return root[:, None] * vt[:rank], u[:, :rank] * root


def all_in_b(weight: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    return vt[:rank], u[:, :rank] * (s[:rank] / scaling)


@pytest.mark.parametrize(
    ("mistake", "what"),
    [(smallest_values, "R"), (no_scaling, "R"), (all_in_b, "A")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_comparison_finds_a_wrong_split(
    mistake: Callable[..., Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them computes what the model did before, so that no look at the logits would find it."""
    monkeypatch.setattr(module, "principal_factors", mistake)
    ours = inject(make("bert"), CONFIG)
    assert relative(logits(ours, "bert"), logits(make("bert"), "bert")) <= GATE
    assert f": {what} is " in split_differences(ours, peft_model("bert", CONFIG))


# --- training and merging -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_forward_gradients_and_merge_equal_peft(kind: str) -> None:
    ours, theirs = pair(kind)
    move(ours)
    move(theirs)
    batch = make_batch(kind)
    mine, reference = ours(**batch), theirs(**batch)
    assert relative(mine.logits, reference.logits) <= GATE
    assert relative(mine.logits, make(kind)(**batch).logits) > 1e-2
    mine.loss.backward()
    reference.loss.backward()
    for name, parameter in peft_trainable(theirs).items():
        gradient = trainable_parameters(ours)[name].grad
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=GATE), name
    unmerged = mine.logits.detach()
    merged = logits(merge(ours), kind)
    assert relative(merged, unmerged) <= GATE
    assert relative(merged, logits(theirs.merge_and_unload(), kind)) <= GATE


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ten_steps_give_peft_s_weights(kind: str) -> None:
    ours, theirs = pair(kind)
    start = {name: p.detach().clone() for name, p in trainable_parameters(ours).items()}
    for model in (ours, theirs):
        # Not AdamW: it divides by the gradient's size, and would blow up the last bits of a gradient near zero. Nor a
        # higher rate: on Llama the loss then jumps, and the last bits of the two decompositions with it.
        optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=2e-2, momentum=0.9)
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    for name, parameter in peft_trainable(theirs).items():
        mine = trainable_parameters(ours)[name]
        assert relative(mine, parameter) <= rounding(depth=10 * 2 * DEPTH), name
        if mine.ndim == 2:
            assert not torch.allclose(mine, start[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_half_precision(kind: str) -> None:
    """R is rounded to the base's type; A and B stay in float32, where peft rounds them too at the start."""
    half = make(kind).to(torch.bfloat16)
    expected = logits(half, kind)
    inject(half, CONFIG)
    assert relative(logits(half, kind), expected) < 2e-2
    for layer in layers(half).values():
        assert layer.residual.dtype == torch.bfloat16
        assert layer.lora_A.weight.dtype == layer.lora_B.weight.dtype == torch.float32
        assert (
            relative(
                module.turned(layer.base, layer.residual) + layer.delta(), module.turned(layer.base, layer.base.weight)
            )
            < 2**-8
        )
    for name, layer in peft_model(kind, CONFIG, make(kind).to(torch.bfloat16)).named_modules():
        if hasattr(layer, "lora_A"):
            mine = layers(half)[plain_name(name)]
            assert agree(mine.residual, layer.base_layer.weight, 2**-8)
            assert (
                0
                < relative(mine.initial_b @ mine.initial_a, layer.lora_B.default.weight @ layer.lora_A.default.weight)
                < 2**-7
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_the_pretrained_weights_come_back_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    pretrained = dict(make(kind).to(dtype).named_parameters())
    model = inject(make(kind).to(dtype), CONFIG)
    with torch.no_grad():
        for layer in layers(model).values():
            layer.lora_A.weight.mul_(1.5)
    assert relative(logits(model, kind), logits(make(kind).to(dtype), kind)) > 1e-2
    for name, parameter in eject(model).named_parameters():
        assert torch.equal(parameter, pretrained[name]), name
    assert torch.equal(logits(model, kind), logits(make(kind).to(dtype), kind))


def test_a_tied_output_layer_leaves_the_embeddings_alone() -> None:
    model: Any = inject(make("gpt2-lm"), PiSSAConfig(targets=("lm_head",)))
    assert torch.equal(model.transformer.wte.weight, make("gpt2-lm").transformer.wte.weight)
    assert relative(logits(model, "gpt2-lm"), logits(make("gpt2-lm"), "gpt2-lm")) <= GATE
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MethodError, match="lm_head shares its weight"):
        merge(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# --- what is inserted -----------------------------------------------------------------------------------------------


def test_parameter_count_on_bert_base() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    count = count_parameters(inject(model, PiSSAConfig(rank=8)))
    assert count.trainable - count.head == 294_912
    assert count.total == 109_483_778 + 294_912


def test_what_cannot_be_split_is_refused_and_nothing_changes() -> None:
    with pytest.raises(
        MethodError, match="rank is 17, but a weight with 32 inputs and 16 outputs has only 16 singular"
    ):
        inject(make("llama"), PiSSAConfig(rank=17))
    assert inject(make("llama"), PiSSAConfig(rank=16)).tuning
    model = make("bert")
    model.bert.encoder.layer[1].attention.self.value.weight.data[3, 3] = math.nan
    with pytest.raises(MethodError, match="singular values of a weight cannot be computed"):
        inject(model, PiSSAConfig())
    assert layers(model) == {}
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(MethodError, match="alpha must be a number above 0"):
        PiSSAConfig(alpha=0)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, PiSSAConfig(rank=5, alpha=4, rank_stabilized=True)], ids=str)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_checkpoint_is_a_plain_lora_for_the_untouched_model(kind: str, config: PiSSAConfig, tmp_path: Path) -> None:
    model = inject(make(kind), config)
    move(model)
    save(model, tmp_path)
    expected = logits(model, kind)
    ours, theirs = load(make(kind), tmp_path), PeftModel.from_pretrained(make(kind), tmp_path)
    assert relative(logits(ours, kind), expected) <= GATE
    assert torch.equal(logits(theirs, kind), logits(ours, kind))
    assert type(ours.tuning) is LoRAConfig
    assert ours.tuning.rank == 2 * config.rank
    assert ours.tuning.scaling == pytest.approx(config.scaling, rel=1e-12)
    for name, parameter in model.named_parameters():  # saving changed nothing
        assert parameter.dtype == torch.float32, name
    assert torch.equal(logits(model, kind), expected)


@pytest.mark.parametrize("kind", ["bert", "gpt2-lm"])
def test_the_conversion_is_peft_s_but_for_the_head_that_peft_forgets(kind: str, tmp_path: Path) -> None:
    ours, theirs = pair(kind, PiSSAConfig(rank=4, alpha=6))
    header: Any = theirs.peft_config["default"]
    header.init_lora_weights = True  # as peft asks for before it saves the start
    theirs.save_pretrained(str(tmp_path / "start"))
    header.init_lora_weights = "pissa"
    move(ours)
    move(theirs)
    theirs.save_pretrained(str(tmp_path / "peft"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    save(ours, tmp_path / "ours")
    mine, reference = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "peft"))
    written, expected = (
        json.loads((tmp_path / folder / "adapter_config.json").read_text(encoding="utf-8"))
        for folder in ("ours", "peft")
    )
    assert all(written[key] == expected[key] for key in ("r", "lora_alpha", "use_rslora"))
    head = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} if kind == "bert" else set()
    assert set(mine) - set(reference) == head
    for name, tensor in reference.items():
        assert torch.allclose(mine[name], tensor, rtol=0, atol=GATE), name
    if head:
        with pytest.raises(CheckpointError, match=r"missing classifier\.bias, classifier\.weight"):
            load(make(kind), tmp_path / "peft")
    else:
        assert relative(logits(load(make(kind), tmp_path / "peft"), kind), logits(ours, kind)) <= GATE


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_checkpoint_of_peft_s_that_was_not_converted(kind: str, tmp_path: Path) -> None:
    theirs = peft_model(kind, CONFIG)
    move(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours = load(make(kind), tmp_path)
    assert isinstance(ours.tuning, PiSSAConfig)
    assert relative(logits(ours, kind), logits(theirs, kind)) <= GATE
    assert relative(logits(ours, kind), logits(make(kind), kind)) > 1e-2


def test_a_decomposition_at_random_cannot_be_repeated(tmp_path: Path) -> None:
    peft_model("bert", CONFIG, init_lora_weights="pissa_niter_4").save_pretrained(str(tmp_path))
    model = make("bert")
    with pytest.raises(CheckpointError, match="init_lora_weights='pissa_niter_4' also changes the pretrained weights"):
        load(model, tmp_path)
    assert list(model.state_dict()) == list(make("bert").state_dict())
