"""Adapters of any method side by side on one base: each gives what a fresh model with its checkpoint gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from models import ALL_MODELS, make, make_batch
from peft import PeftModel
from test_every_method import assert_unchanged, logits, snapshot, train, tuned
from torch import nn

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    BitFitConfig,
    FullConfig,
    HeadOnlyConfig,
    LoRAConfig,
    MethodError,
    count_parameters,
    eject,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.serving.switching import Adapters

LORA = Case("lora", LoRAConfig(rank=3, alpha=7, targets="all-linear"))
OTHER_LORA = Case("other lora", LoRAConfig(rank=5, alpha=4, rank_stabilized=True))
BITFIT = Case("bitfit", BitFitConfig())
HEAD_ONLY = Case("head only", HeadOnlyConfig())


def trained(case: Case, kind: str, folder: Path, seed: int = 0) -> Path:
    return save(tuned(case, kind, seed), folder / case.name)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def memory(model: nn.Module) -> set[int]:
    return {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_all_methods_side_by_side(kind: str, tmp_path: Path) -> None:
    """Back and forth, each is bit-equal to a fresh model with its checkpoint, and the base stays what it was."""
    batch, model = make_batch(kind), make(kind)
    expected: dict[str | None, torch.Tensor] = {None: logits(model, batch)}
    before, base = weights(model), memory(model)
    adapters = Adapters(model)
    for seed, case in enumerate(case for case in CASES if kind in case.kinds and not case.quantized):
        folder = trained(case, kind, tmp_path, seed)
        expected[case.name] = logits(load(make(kind), folder), batch)
        adapters.add(case.name, folder)
        assert adapters.active == case.name
        assert torch.equal(logits(model, batch), expected[case.name])
    assert adapters.names == tuple(name for name in expected if name is not None)
    assert len({tensor.sum().item() for tensor in expected.values()}) == len(expected)  # no two compute the same
    order = [*reversed(expected), *expected, *list(expected)[::2], *list(expected)[1::2]]
    for name in order:
        adapters.use(name)
        assert torch.equal(logits(model, batch), expected[name]), name
        assert {p.data_ptr() for p in model.parameters() if not p.requires_grad} <= base
    adapters.use(None)
    assert memory(model) == base
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "tuning") or model.tuning is None
    assert not trainable_parameters(model)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-lm"])
def test_no_weight_of_the_base_is_copied(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    base = memory(model)
    adapters = Adapters(model)
    for case in (LORA, OTHER_LORA):
        adapters.add(case.name, trained(case, kind, tmp_path))
        own = {p.data_ptr() for p in trainable_parameters(model).values()}
        assert not own & base  # each has weights of its own, head included
        assert memory(model) - own <= base  # and beside them nothing but the base's
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        assert frozen == sum(p.numel() for p in make(kind).parameters()) - count_parameters(model).head


def test_training_one_adapter_touches_nothing_else(tmp_path: Path) -> None:
    batch, model = make_batch("bert"), make("bert")
    base = logits(model, batch)
    adapters = Adapters(model)
    adapters.add("lora", trained(LORA, "bert", tmp_path))
    lora = logits(model, batch)
    for name, config in {"new lora": LoRAConfig(rank=2), "biases": BitFitConfig(), "head": HeadOnlyConfig()}.items():
        adapters.add(name, config)
        assert torch.equal(logits(model, batch), base)  # fresh, with a copy of the base's own head
        train(model, "bert", steps=3)
        now = logits(model, batch)
        assert not torch.equal(now, base)
        adapters.use(None)
        assert torch.equal(logits(model, batch), base)
        adapters.use("lora")
        assert torch.equal(logits(model, batch), lora)
        adapters.use(name)
        assert torch.equal(logits(model, batch), now)
        save(model, tmp_path / name)
        assert torch.equal(logits(load(make("bert"), tmp_path / name), batch), now)


def test_modes_and_tied_weights_are_kept() -> None:
    model = make("gpt2-lm")
    adapters = Adapters(model)
    adapters.add("full", FullConfig())
    assert model.lm_head.weight is model.transformer.wte.weight
    adapters.add("lora", LoRAConfig(dropout=0.5))
    adapters.use(None)
    model.train()
    adapters.use("lora")
    assert all(module.training for module in model.modules())
    adapters.use("full")
    model.eval()
    adapters.use("lora")
    assert not any(module.training for module in model.modules())
    adapters.use(None)
    assert model.lm_head.weight is model.transformer.wte.weight


# --- keeping what is in the model -----------------------------------------------------------------------------------


def test_keep_takes_over_what_was_trained() -> None:
    batch, model = make_batch("bert"), inject(make("bert"), LORA.config)
    body = weights(make("bert"))
    train(model, "bert", steps=3)
    expected, head = logits(model, batch), weights(model)["classifier.weight"]
    adapters = Adapters(model)
    adapters.keep("mine")
    assert (adapters.names, adapters.active) == (("mine",), "mine")
    adapters.use(None)
    now = weights(model)
    assert torch.equal(now["classifier.weight"], head)  # as it was trained, as after eject
    assert all(torch.equal(now[name], body[name]) for name in body if not name.startswith("classifier"))
    assert list(now) == list(body)
    adapters.add("biases", BitFitConfig())
    train(model, "bert", steps=3)
    adapters.use("mine")
    assert torch.equal(logits(model, batch), expected)
    train(model, "bert", steps=1)  # it can be trained on, and the base does not notice
    adapters.use(None)
    assert torch.equal(model.classifier.weight, head)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    "case", [case for case in CASES if "bert" in case.kinds and not case.quantized], ids=lambda case: case.name
)
def test_keep_takes_whatever_eject_takes_out(case: Case) -> None:
    batch, model = make_batch("bert"), tuned(case, "bert")
    expected, adapters = logits(model, batch), Adapters(model)
    if not case.ejects and case.name != "head-only":
        with pytest.raises(MethodError, match="trained the model's own weights in place"):
            adapters.keep("mine")
        return
    adapters.keep("mine")
    adapters.use(None)
    bare = eject(tuned(case, "bert")) if case.ejects else tuned(case, "bert")
    assert torch.equal(logits(model, batch), logits(bare, batch))
    assert list(model.state_dict()) == list(make("bert").state_dict())
    adapters.use("mine")
    assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "nothing to keep: inject a method"),
        (BitFitConfig(), "BitFit trained the model's own weights in place, so no base is left"),
        (FullConfig(), "full fine-tuning trained the model's own weights"),
    ],
)
def test_what_cannot_be_kept(config: Any, message: str) -> None:
    model = make("bert")
    if config is not None:
        inject(model, config)
    before, adapters = snapshot(model), Adapters(model)
    with pytest.raises(MethodError, match=message):
        adapters.keep("mine")
    assert_unchanged(model, before)
    assert (adapters.names, adapters.active) == ((), None)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_change_nothing(tmp_path: Path) -> None:
    model = make("bert")
    adapters = Adapters(model)
    with pytest.raises(MethodError, match="no adapter 'lora'; there are none yet"):
        adapters.use("lora")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        adapters.add("gpt2", trained(LORA, "gpt2", tmp_path / "gpt2"))
    assert all(p.requires_grad for p in model.parameters())  # not even frozen
    adapters.add("lora", trained(LORA, "bert", tmp_path))
    adapters.add("biases", trained(BITFIT, "bert", tmp_path))
    before = snapshot(model)
    for wrong in (
        lambda: adapters.use("loar"),
        lambda: adapters.add("lora", trained(OTHER_LORA, "bert", tmp_path)),
        lambda: adapters.add("", HeadOnlyConfig()),
        lambda: adapters.keep("again"),
        lambda: adapters.add("llama", trained(LORA, "llama", tmp_path / "llama")),
        lambda: adapters.add("nowhere", tmp_path / "nowhere"),
        lambda: adapters.add("misfit", LoRAConfig(targets=("q_proj",))),
    ):
        with pytest.raises((MethodError, CheckpointError)):
            wrong()
        assert_unchanged(model, before)
        assert (adapters.names, adapters.active) == (("lora", "biases"), "biases")
    with pytest.raises(MethodError, match="no adapter 'loar'; there are lora, biases"):
        adapters.use("loar")
    with pytest.raises(MethodError, match="needs a new name, got 'lora'; taken are lora, biases"):
        adapters.add("lora", HeadOnlyConfig())


@pytest.mark.parametrize("change", [merge, eject, lambda model: inject(merge(model), HeadOnlyConfig())])
def test_a_change_from_outside_is_noticed(change: Any) -> None:
    model = make("bert")
    adapters = Adapters(model)
    adapters.add("lora", LoRAConfig())
    change(model)
    for act in (lambda: adapters.use(None), lambda: adapters.add("next", HeadOnlyConfig())):
        with pytest.raises(MethodError, match=r"does not hold what was in use \(lora\)"):
            act()
    assert adapters.names == ("lora",)


# --- beside peft ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-lm"])
def test_switching_gives_what_peft_s_set_adapter_gives(kind: str, tmp_path: Path) -> None:
    batch = make_batch(kind)
    first, second = trained(LORA, kind, tmp_path), trained(OTHER_LORA, kind, tmp_path)
    theirs = PeftModel.from_pretrained(make(kind), first, adapter_name="first")
    theirs.load_adapter(second, adapter_name="second")
    ours = Adapters(make(kind))
    ours.add("first", first)
    ours.add("second", second)
    seen = []
    for name in ("first", "second", "first"):
        ours.use(name)
        theirs.set_adapter(name)
        seen.append(logits(ours.model, batch))
        assert torch.equal(seen[-1], logits(theirs, batch)), name
    assert not torch.equal(seen[0], seen[1])
