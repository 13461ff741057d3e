"""LoRA+ gives B the learning rate that peft's optimizer gives it, and is plain LoRA in all else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALL_MODELS, LANGUAGE_MODELS, fill_lora, make, make_batch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from test_lora import peft_trainable
from test_training import tiny_loader, tiny_model, tiny_rows
from torch import nn

from course_utils.checkpoints import load, save
from course_utils.methods import LoRAConfig, LoRAPlusConfig, MethodError, inject, trainable_parameters
from course_utils.training import TrainingConfig, fit, parameter_groups

RATE, RATIO, DECAY = 2e-3, 16.0, 0.1


def pair(kind: str, config: LoRAPlusConfig) -> tuple[nn.Module, PeftModel]:
    """Ours and peft's, with the same A and B, both far from zero; the head is trained if ours trains it."""
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=config.targets,  # type: ignore[arg-type]
        task_type="SEQ_CLS" if config.head is None and kind not in LANGUAGE_MODELS else None,
        fan_in_fan_out="gpt2" in kind,
    )
    ours, theirs = inject(make(kind), config), get_peft_model(make(kind), settings)
    fill_lora(ours)
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])
    return ours, theirs


def optimizers(ours: nn.Module, theirs: PeftModel) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """The training loop's and peft's."""
    training = TrainingConfig(learning_rate=RATE, weight_decay=DECAY)
    mine = torch.optim.AdamW(parameter_groups(trainable_parameters(ours), ours.tuning, training))  # type: ignore[arg-type]
    reference = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY
    )
    return mine, reference


def rates(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, tuple[float, float]]:
    """Name → learning rate and weight decay."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


def differing(kind: str, config: LoRAPlusConfig) -> set[str]:
    """The parameters that are not bit-equal after ten steps with the two optimizers."""
    ours, theirs = pair(kind, config)
    for model, optimizer in zip((ours, theirs), optimizers(ours, theirs), strict=True):
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    mine = trainable_parameters(ours)
    return {name for name, parameter in peft_trainable(theirs).items() if not torch.equal(mine[name], parameter)}


# --- equal to peft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_rates_are_peft_s_but_for_vectors(kind: str) -> None:
    """The one deviation: peft's rule is "B, and whatever has one dimension", the paper's is "B"."""
    ours, theirs = pair(kind, LoRAPlusConfig(targets="all-linear"))
    mine, reference = optimizers(ours, theirs)
    got, expected = rates(mine, trainable_parameters(ours)), rates(reference, peft_trainable(theirs))
    vectors = {name for name, p in trainable_parameters(ours).items() if p.ndim == 1}
    assert {name for name in got if got[name] != expected[name]} == vectors
    assert all((got[name], expected[name]) == ((RATE, 0.0), (RATIO * RATE, 0.0)) for name in vectors)
    assert len(vectors) == {"bert": 1, "roberta": 2}.get(kind, 0)
    assert {rate for name, rate in got.items() if "lora_A" in name} == {(RATE, DECAY)}
    assert {rate for name, rate in got.items() if "lora_B" in name} == {(RATIO * RATE, DECAY)}


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ten_steps_give_peft_s_weights_bit_for_bit(kind: str) -> None:
    # The heads of BERT and RoBERTa have biases, on which the two disagree, so these heads stay frozen here.
    head = () if kind in ("bert", "roberta") else None
    assert differing(kind, LoRAPlusConfig(rank=3, alpha=7, targets="all-linear", head=head)) == set()


class FastA(LoRAPlusConfig):
    """The classic mistake: the two matrices are confused."""

    def rate_factor(self, parameter: str) -> float:
        return self.ratio if parameter.endswith("lora_A.weight") else 1.0


@pytest.mark.parametrize("config", [FastA(head=()), LoRAPlusConfig(ratio=8, head=()), LoRAConfig(head=())], ids=str)
def test_other_rates_are_found(config: Any) -> None:
    assert len(differing("bert", config)) == 8  # each A and each B: two layers, query and value


# --- in the training loop -------------------------------------------------------------------------------------------


def train(config: LoRAConfig, **settings: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The history's rows and how far each trained parameter has moved."""
    model = inject(tiny_model(dropout=0.0), config)
    before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    training = TrainingConfig(learning_rate=1e-4, device="cpu", warmup=0, clip_norm=1e9, weight_decay=0.0, **settings)
    loader = tiny_loader(tiny_rows())
    history = fit(model, loader, loader, training)
    return history.steps, {name: p.detach() - before[name] for name, p in trainable_parameters(model).items()}


def test_the_first_step_moves_b_by_the_ratio_and_all_else_as_lora_does() -> None:
    (_, plain), (_, plus) = train(LoRAConfig(), max_steps=1), train(LoRAPlusConfig(ratio=RATIO), max_steps=1)
    assert set(plain) == set(plus)
    for name, moved in plain.items():
        if name.endswith("lora_B.weight"):
            assert moved.any()
            assert torch.allclose(plus[name], RATIO * moved, rtol=1e-5), name
        else:  # at first B is zero, so A has no gradient yet and stays
            assert torch.equal(plus[name], moved), name
            assert moved.any() == ("lora_A" not in name)


def test_a_ratio_of_one_is_lora_and_the_history_shows_the_rate_of_a() -> None:
    plain, one, plus = train(LoRAConfig()), train(LoRAPlusConfig(ratio=1)), train(LoRAPlusConfig())
    assert one[0] == plain[0]
    assert all(torch.equal(moved, plain[1][name]) for name, moved in one[1].items())
    assert plus[0] != plain[0]
    assert [row["learning_rate"] for row in plus[0]] == [row["learning_rate"] for row in plain[0]]


# --- checkpoints and settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_checkpoint_is_plain_lora(kind: str, tmp_path: Path) -> None:
    plus, plain = inject(make(kind), LoRAPlusConfig(rank=3, alpha=7)), inject(make(kind), LoRAConfig(rank=3, alpha=7))
    for model, folder in ((plus, "plus"), (plain, "plain")):
        fill_lora(model)
        save(model, tmp_path / folder)
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "plus" / file.name).read_bytes()
    again = load(make(kind), tmp_path / "plus")
    assert type(again.tuning) is LoRAConfig
    with torch.no_grad():
        expected = plus(**make_batch(kind)).logits
        assert torch.equal(again(**make_batch(kind)).logits, expected)
        theirs = PeftModel.from_pretrained(make(kind), tmp_path / "plus")
        assert torch.equal(theirs(**make_batch(kind)).logits, expected)


@pytest.mark.parametrize("ratio", [0.5, 0, -16, math.nan, math.inf, "16", True, None])
def test_a_ratio_that_makes_no_sense_is_refused(ratio: Any) -> None:
    with pytest.raises(MethodError, match="ratio must be a number of at least 1, got"):
        LoRAPlusConfig(ratio=ratio)


def test_the_settings_of_lora_are_checked_too() -> None:
    with pytest.raises(MethodError, match="rank must be a whole number of at least 1, got 0"):
        LoRAPlusConfig(rank=0)
