"""The invariants hold for our methods, and each classic mistake breaks one and is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from models import make, make_batch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils import checkpoints
from course_utils.evaluation.invariants import Report, check_invariants
from course_utils.methods import BitFitConfig, HeadOnlyConfig, LoRAConfig, LoRALinear, inject
from course_utils.methods.targets import Matrix


# A merge of QLoRA leaves no 4-bit layers, so not the parameters of before; test_qlora.py looks at that.
@pytest.mark.parametrize("case", [case for case in CASES if not case.quantized], ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_every_method_keeps_the_invariants(kind: str, case: Case) -> None:
    if kind in case.kinds:
        report = check_invariants(lambda: make(kind), case.config, make_batch(kind), identity=case.identity)
        assert report.ok, str(report)
        assert str(report).count("holds") == len(report.properties) == 8 + case.identity
        assert ("the method says that it cannot be merged" in str(report)) == (not case.merges)


def test_a_method_that_does_not_fit_is_reported() -> None:
    report = check_invariants(lambda: make("llama"), BitFitConfig(), make_batch("llama"))
    assert [p.name for p in report.failures] == ["inject"]
    assert "Llama family leaves them out" in str(report)


def test_a_wrong_count_is_reported() -> None:
    def check(expected: int) -> Report:
        return check_invariants(
            lambda: make("bert"), HeadOnlyConfig(), make_batch("bert"), expected_parameters=expected
        )

    assert check(66).ok
    assert [p.name for p in check(67).failures] == ["parameter count"]
    assert "expected 67 trained parameters, but 66 of" in str(check(67))


def test_a_model_that_differs_each_time_is_refused() -> None:
    seeds = iter(range(9))
    with pytest.raises(ValueError, match="set the seed inside it"):
        check_invariants(lambda: make("bert", seed=next(seeds)), HeadOnlyConfig(), make_batch("bert"))


# --- classic mistakes, each planted ---------------------------------------------------------------------------------


class NoDivision(LoRALinear):
    """The factor is alpha, not alpha / rank."""

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        self.scaling = config.alpha


class BothRandom(LoRALinear):
    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        nn.init.normal_(self.lora_B.weight)


class BothZero(LoRALinear):
    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        nn.init.zeros_(self.lora_A.weight)


class BaseNotFrozen(LoRALinear):
    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base.requires_grad_(True), config)


class Detached(LoRALinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x).detach()) * self.scaling


class MergeTransposed(LoRALinear):
    def merged(self) -> nn.Module:
        self.base.weight.data += self.delta() if isinstance(self.base, Conv1D) else self.delta().T
        return self.base


class MergeUnscaled(LoRALinear):
    def merged(self) -> nn.Module:
        self.base.weight.data += self.lora_B.weight @ self.lora_A.weight
        return self.base


class MergeForgotten(LoRALinear):
    def merged(self) -> nn.Module:
        return self


class Swapped(LoRALinear):
    """A and B have each other's name: it computes the right thing, and nobody else can read its checkpoint."""

    def __init__(self, base: Matrix, config: LoRAConfig) -> None:
        super().__init__(base, config)
        self.lora_A, self.lora_B = self.lora_B, self.lora_A

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_A(self.lora_B(x)) * self.scaling

    def delta(self) -> torch.Tensor:
        return self.lora_A.weight @ self.lora_B.weight * self.scaling


@dataclass(frozen=True)
class Planted(LoRAConfig):
    """LoRA with another layer."""

    layer: type[LoRALinear] = LoRALinear

    def make_layer(self, base: Matrix) -> LoRALinear:
        return self.layer(base, self)


def save_as_lora(model: nn.Module, folder: Path) -> None:
    """Others will read it with an implementation of LoRA that is sound: ours."""
    planted: LoRAConfig = model.tuning  # type: ignore[assignment]
    model.tuning = LoRAConfig(rank=planted.rank, alpha=planted.alpha, targets=planted.targets)  # type: ignore[assignment]
    checkpoints.save(model, folder)
    model.tuning = planted  # type: ignore[assignment]


def check(layer: type[LoRALinear], kind: str = "bert", **settings: Any) -> Report:
    config = Planted(layer=layer, **{"rank": 4, "alpha": 8} | settings)
    return check_invariants(lambda: make(kind), config, make_batch(kind), save=save_as_lora)


@pytest.mark.parametrize(
    ("layer", "property_name", "hint"),
    [
        (NoDivision, "save and load", "alpha / rank, not alpha"),
        (BothRandom, "identity at initialisation", "B is zero and only A is random"),
        (BothZero, "trained weights change", "both start at zero"),
        (BaseNotFrozen, "only the intended parameters get gradients", "Was the base model frozen"),
        (BaseNotFrozen, "frozen weights stay", "Was the base model frozen"),
        (Detached, "inject", "lora_A.weight"),  # `inject` itself finds that no path leads to it
        (MergeTransposed, "merged equals unmerged", "the right way round"),
        (MergeUnscaled, "merged equals unmerged", "scaled in the merge as in the forward"),
        (MergeForgotten, "merged equals unmerged", "the merge left or lost parameters"),
        (Swapped, "save and load", "query.lora_A.weight has the shape"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_planted_mistake_is_named(layer: type[LoRALinear], property_name: str, hint: str) -> None:
    report = check(layer)
    words = {p.name: p.words for p in report.failures}
    assert property_name in words, str(report)
    assert hint in words[property_name]


def test_the_same_layer_without_a_mistake_is_clean() -> None:
    assert check(LoRALinear).ok, str(check(LoRALinear))


@pytest.mark.parametrize("targets", ["all-linear", None])
def test_a_transposed_merge_of_a_matrix_that_is_not_square_is_reported_too(targets: str | None) -> None:
    report = check(MergeTransposed, "gpt2", targets=targets)
    assert [p.name for p in report.failures] == ["merged equals unmerged"]
    assert "nn.Linear holds its weight as (out, in), Conv1D as (in, out)" in str(report)


def test_a_head_that_is_not_saved_is_named() -> None:
    def save(model: nn.Module, folder: Path) -> None:
        checkpoints.save(model, folder)
        file = folder / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file)

    def load(model: nn.Module, folder: Path) -> None:  # as careless as many a script: strict=False
        inject(model, LoRAConfig())
        tensors = load_file(folder / "adapter_model.safetensors")
        model.load_state_dict({k.removeprefix("base_model.model."): v for k, v in tensors.items()}, strict=False)

    report = check_invariants(lambda: make("bert"), LoRAConfig(), make_batch("bert"), save=save, load=load)
    assert [p.name for p in report.failures] == ["save and load", "an incomplete checkpoint is refused"]
    assert "these did not come back: classifier.weight, classifier.bias" in str(report)
    assert "the head too" in str(report)
    strict = check_invariants(lambda: make("bert"), LoRAConfig(), make_batch("bert"), save=save)
    assert "missing classifier.bias, classifier.weight" in str(strict)
