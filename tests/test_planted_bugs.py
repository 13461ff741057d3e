"""The classic bugs of the field, planted one by one, and what catches each: the invariants, the tests of all methods.

More of them stand in `test_invariants.py` (a wrong factor, a detached update, a transposed merge, a head that is not
saved ...), in `test_lora.py`, and beside each method.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_every_method as every_method
import torch
from cases import Case
from models import make, make_batch
from safetensors.torch import load_file
from test_invariants import BaseNotFrozen, BothRandom, MergeForgotten, MergeTransposed, Planted, check
from torch import nn
from torch.nn import functional

from course_utils.evaluation.invariants import Batch, check_invariants
from course_utils.methods import LoRAConfig, LoRALinear, inject, trainable_parameters
from course_utils.methods.targets import Matrix

# --- in the layer ---------------------------------------------------------------------------------------------------


class DropoutInEvaluation(LoRALinear):
    """`functional.dropout` is on unless it is told otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(functional.dropout(x, 0.5))) * self.scaling


class AddedTwice(LoRALinear):
    """A layer that is wrapped twice, or a hook beside the wrapper: the update comes on top of itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.lora_B(self.lora_A(x)) * self.scaling


class MergesWhileTraining(LoRALinear):
    """Meant to fold the update in for speed, and does so in each step again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.base.weight.data += self.delta().detach()
        return super().forward(x)


class HalfPrecision(LoRALinear):
    """The new weights have the type of the model's."""

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        self.to(base.weight.dtype)


class FrozenWithTheBase(LoRALinear):
    """The model is frozen after the adapter was put in."""

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        self.requires_grad_(False)


class NotRegistered(LoRALinear):
    """In a plain list: `parameters()` does not see the weights, so no optimiser and no checkpoint does."""

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        self.pair = [self.lora_A, self.lora_B]
        del self.lora_A, self.lora_B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.pair[1](self.pair[0](x)) * self.scaling


class MixesRows(LoRALinear):
    """A normalisation over the wrong dimension: a text's answer depends on the others in its batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x - x.mean(0, keepdim=True))) * self.scaling


class MergesWhenTakenOut(LoRALinear):
    def removed(self) -> nn.Module:
        return self.merged()


class OwnSeed(LoRALinear):
    """A seed inside the method: whoever repeats the experiment with another seed repeats the same one."""

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        torch.manual_seed(0)
        super().__init__(base, config)


@pytest.mark.parametrize(
    ("layer", "property_name", "hint"),
    [
        (DropoutInEvaluation, "evaluation is repeatable", "Is dropout on in eval mode too"),
        (AddedTwice, "merged equals unmerged", "the logits differ by"),
        (MergesWhileTraining, "frozen weights stay", "pretrained weights changed while training"),
        (HalfPrecision, "new weights in full precision", "smaller than fp16 or bf16 can add"),
        (FrozenWithTheBase, "only the intended parameters get gradients", "own weights are frozen too"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_invariants_name_a_bug_in_the_layer(layer: type[LoRALinear], property_name: str, hint: str) -> None:
    report = check(layer)
    words = {p.name: p.words for p in report.failures}
    assert property_name in words, str(report)
    assert hint in words[property_name]


def test_weights_that_are_not_registered_are_missing_in_the_count() -> None:
    """Nothing else can tell: what no module knows of is not trained, not saved, and does nothing."""
    config = Planted(layer=NotRegistered, rank=4)
    expected = 2 * 2 * 4 * (32 + 32) + 66  # layers, matrices, rank, in + out; and the head
    report = check_invariants(lambda: make("bert"), config, make_batch("bert"), expected_parameters=expected)
    words = {p.name: p.words for p in report.failures}
    assert "expected 1,090 trained parameters, but 66 of" in words["parameter count"]
    sound = check_invariants(lambda: make("bert"), LoRAConfig(rank=4), make_batch("bert"), expected_parameters=expected)
    assert sound.ok, str(sound)


# --- in the training loop -------------------------------------------------------------------------------------------


def steps(model: Any, batch: Batch, parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**batch).loss.backward()
        optimizer.step()


def optimiser_of_the_head_only(model: Any, batch: Batch) -> None:
    """What an optimiser knows that was made before `inject`."""
    steps(model, batch, list(model.classifier.parameters()))


def all_unfrozen(model: Any, batch: Batch) -> None:
    """`model.requires_grad_(True)`, or an optimiser's own unfreezing: full fine-tuning under the name of LoRA."""
    steps(model, batch, list(model.requires_grad_(True).parameters()))


def fixed(model: Any, batch: Batch) -> None:
    steps(model, batch, list(trainable_parameters(model).values()))


@pytest.mark.parametrize(
    ("train", "failure"),
    [
        (optimiser_of_the_head_only, "trained weights change"),
        (all_unfrozen, "frozen weights stay"),
        (fixed, None),
    ],
)
def test_the_invariants_name_a_bug_in_the_training_loop(train: Callable[..., None], failure: str | None) -> None:
    report = check_invariants(lambda: make("bert"), LoRAConfig(), make_batch("bert"), train=train)
    words = {p.name: p.words for p in report.failures}
    assert (failure in words) if failure else report.ok, str(report)


def test_why_new_weights_are_kept_in_float32() -> None:
    """A step of 0.001 from 1.0 is lost in bfloat16, whose next number is 0.996; a hundred such steps are lost too."""
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = nn.Parameter(torch.ones(1, dtype=dtype))
        optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[dtype] = 1 - weight.item()
    assert moved[torch.bfloat16] == 0
    assert moved[torch.float32] == pytest.approx(0.1, rel=1e-3)


# --- in the loader --------------------------------------------------------------------------------------------------


def takes_what_it_finds(model: nn.Module, folder: Path) -> None:
    inject(model, LoRAConfig())
    tensors = load_file(folder / "adapter_model.safetensors")
    model.load_state_dict({k.removeprefix("base_model.model."): v for k, v in tensors.items()}, strict=False)


def forgets_the_prefix(model: nn.Module, folder: Path) -> None:
    inject(model, LoRAConfig())
    model.load_state_dict(load_file(folder / "adapter_model.safetensors"), strict=False)


@pytest.mark.parametrize(
    ("load", "failure", "hint"),
    [
        (
            takes_what_it_finds,
            "an incomplete checkpoint is refused",
            r"was loaded without a word. load_state_dict with",
        ),
        (forgets_the_prefix, "save and load", "these did not come back"),
    ],
)
def test_the_invariants_name_a_careless_loader(load: Callable[..., None], failure: str, hint: str) -> None:
    report = check_invariants(lambda: make("bert"), LoRAConfig(), make_batch("bert"), load=load)
    words = {p.name: p.words for p in report.failures}
    assert failure in words, str(report)
    assert hint in words[failure]


# --- the tests of all methods fail too ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "test"),
    [
        (BothRandom, every_method.test_inject),
        (OwnSeed, every_method.test_inject),
        (NotRegistered, every_method.test_inject),
        (FrozenWithTheBase, every_method.test_inject),
        (BaseNotFrozen, every_method.test_training_moves_what_is_trained_and_eject_takes_it_out),
        (MergesWhileTraining, every_method.test_training_moves_what_is_trained_and_eject_takes_it_out),
        (MergesWhenTakenOut, every_method.test_training_moves_what_is_trained_and_eject_takes_it_out),
        (MergeTransposed, every_method.test_merged_equals_unmerged),
        (MergeForgotten, every_method.test_merged_equals_unmerged),
        (AddedTwice, every_method.test_merged_equals_unmerged),
        (DropoutInEvaluation, every_method.test_copies_and_half_precision),
        (HalfPrecision, every_method.test_copies_and_half_precision),
        (MixesRows, every_method.test_padding_changes_nothing),
    ],
    ids=lambda value: value.__name__,
)
def test_the_tests_of_every_method_catch_it(layer: type[LoRALinear], test: Callable[[Case, str], None]) -> None:
    test(Case("sound", Planted(rank=4, alpha=8)), "bert")
    with pytest.raises(AssertionError):
        test(Case("planted", Planted(layer=layer, rank=4, alpha=8)), "bert")


@pytest.mark.parametrize(
    ("load", "test"),
    [
        (forgets_the_prefix, every_method.test_a_checkpoint_comes_back),
        (takes_what_it_finds, every_method.test_a_damaged_checkpoint_is_refused),
    ],
)
def test_the_tests_of_checkpoints_catch_it(
    load: Callable[..., None], test: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def planted(model: nn.Module, folder: Path) -> nn.Module:
        load(model, folder)
        return model

    test(Case("sound", LoRAConfig()), "bert", tmp_path / "sound")
    monkeypatch.setattr(every_method, "load", planted)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(Case("planted", LoRAConfig()), "bert", tmp_path / "planted")
