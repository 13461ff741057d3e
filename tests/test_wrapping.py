"""What a new method costs: a layer that only says its `delta` goes in, computes, trains, merges and comes out."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from models import agree, fill_lora, make, make_batch, relative
from torch import nn

from course_utils import methods
from course_utils.errors import CourseError
from course_utils.methods import LoRAConfig, LoRALinear, MethodConfig, MethodError, TargetError, eject, inject, merge
from course_utils.methods.base import AdaptedLayer
from course_utils.methods.errors import check_choice, check_share, check_strength, check_switch, check_whole_number
from course_utils.methods.targets import Matrix, layer_shape
from course_utils.methods.wrapping import AdditiveLayer, TargetsConfig

KINDS = ("bert", "gpt2", "llama-lm")


class DeltaLinear(AdditiveLayer):
    """LoRA again, of which only ΔW is said."""

    def __init__(self, base: Matrix, rank: int) -> None:
        super().__init__(base)
        inputs, outputs = layer_shape(base)
        like = base.weight
        self.lora_A = nn.Linear(inputs, rank, bias=False, device=like.device, dtype=like.dtype)
        self.lora_B = nn.Linear(rank, outputs, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.lora_B.weight)

    def delta(self) -> torch.Tensor:
        return self.lora_B.weight @ self.lora_A.weight


@dataclass(frozen=True)
class DeltaConfig(TargetsConfig):
    name: ClassVar[str] = "delta"

    def make_layer(self, base: Matrix) -> DeltaLinear:
        return DeltaLinear(base, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_says_its_delta_does_the_rest(kind: str) -> None:
    batch, untuned = make_batch(kind), make(kind)(**make_batch(kind)).logits
    ours = inject(make(kind).double(), DeltaConfig(targets="all-linear"))
    lora = inject(make(kind).double(), LoRAConfig(rank=3, alpha=3, targets="all-linear"))
    for model in (ours, lora):
        fill_lora(model)
    mine, reference = ours(**batch), lora(**batch)
    assert relative(mine.logits, reference.logits) < 1e-12
    assert relative(mine.logits, untuned) > 1e-2
    for output in (mine, reference):
        output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in lora.named_parameters() if "lora_" in name}
    assert gradients
    for name, expected in gradients.items():
        found = ours.get_parameter(name).grad
        assert found is not None and expected is not None
        assert relative(found, expected) < 1e-9, name
    assert relative(merge(ours)(**batch).logits, reference.logits) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_out_again(kind: str) -> None:
    model, batch = make(kind), make_batch(kind)
    untuned = model(**batch).logits
    fill_lora(inject(model, DeltaConfig()))
    assert not torch.equal(model(**batch).logits, untuned)
    assert agree(eject(model)(**batch).logits, untuned)


def test_an_error_in_a_later_layer_leaves_the_model_as_it_was() -> None:
    @dataclass(frozen=True)
    class Failing(DeltaConfig):
        def make_layer(self, base: Matrix) -> DeltaLinear:
            if layer_shape(base)[1] == 48:  # the third of a block: two wrappers are made already
                raise MethodError("no")
            return super().make_layer(base)

    model = make("bert")
    before = list(model.named_modules())
    with pytest.raises(MethodError, match="no"):
        inject(model, Failing(targets="all-linear"))
    assert list(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_method_without_a_layer_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="TargetsConfig needs make_layer, or wrap"):
        inject(make("bert"), TargetsConfig())


def test_one_merge_serves_every_layer_with_a_delta() -> None:
    own = {"DoRALinear", "PiSSALinear"}  # a length around the sum; another matrix in the place of W
    layers = {cls for cls in _subclasses(AdditiveLayer) if cls.__module__.startswith(methods.__name__)}
    assert LoRALinear in layers
    assert {cls.__name__ for cls in layers if "merged" in vars(cls) and cls is not AdditiveLayer} == own


def _subclasses(cls: type[AdaptedLayer]) -> set[type[AdaptedLayer]]:
    return {cls}.union(*(_subclasses(child) for child in cls.__subclasses__()))


def test_wrappers_are_put_in_place_by_one_loop() -> None:
    """A method says what shall stand where; only `wrapping`, `merging` and what (de)quantises put it there."""
    folder = Path(methods.__path__[0])
    putting = {path.stem for path in folder.glob("*.py") if "  replace_module(model" in path.read_text("utf-8")}
    assert putting == {"wrapping", "merging", "qlora"}
    applying = {cls.__name__ for cls in _configurations(MethodConfig) if "apply" in vars(cls)} - {"MethodConfig"}
    assert applying == {
        "WrappingConfig",
        "FullConfig",
        "HeadOnlyConfig",
        "LastLayersConfig",
        "BitFitConfig",
        "QLoRAConfig",
    }


def _configurations(cls: Any) -> set[type[MethodConfig]]:
    found = {cls}.union(*(_configurations(child) for child in cls.__subclasses__()))
    return {cls for cls in found if cls.__module__.startswith(methods.__name__)}


def test_no_two_modules_of_the_package_need_each_other() -> None:
    """Types count too: whoever reads the one would have to read the other first."""
    folder = Path(methods.__path__[0])
    needs = {path.stem: _imports(path) for path in folder.glob("*.py") if path.stem != "__init__"}
    while ready := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in ready:
            del needs[name]
    assert not needs, f"a circle among {sorted(needs)}"


def _imports(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {module.removeprefix(f"{methods.__name__}.") for module in modules}


# --- settings and errors --------------------------------------------------------------------------------------------


def test_errors_of_methods_are_the_course_s() -> None:
    assert issubclass(TargetError, MethodError) and issubclass(MethodError, CourseError)
    assert issubclass(MethodError, ValueError)  # whoever caught that before still does


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None])
def test_whole_numbers(value: object) -> None:
    with pytest.raises(MethodError, match=r"rank must be a whole number of at least 1, got "):
        check_whole_number(value, "rank")
    check_whole_number(1, "rank")
    check_whole_number(0, "seed", least=0)


@pytest.mark.parametrize("value", [1, 1.5, -0.1, True, "0.1", None, float("nan")])
def test_shares(value: object) -> None:
    with pytest.raises(MethodError, match="dropout is a share from 0 to below 1, got "):
        check_share(value, "dropout")
    check_share(0, "dropout")
    check_share(0.99, "dropout")


@pytest.mark.parametrize("value", [0, -1, True, "16", None, float("inf"), float("nan")])
def test_strengths(value: object) -> None:
    with pytest.raises(MethodError, match="alpha must be a number above 0, got "):
        check_strength(value, "alpha")
    check_strength(0.5, "alpha")


def test_switches_and_choices() -> None:
    with pytest.raises(MethodError, match="queries must be True or False, got 1"):
        check_switch(1, "queries")
    check_switch(False, "queries")
    with pytest.raises(MethodError, match="pool must be one of 'text', 'peft', got 'cls'"):
        check_choice("cls", "pool", ("text", "peft"))
    check_choice("text", "pool", ("text", "peft"))
