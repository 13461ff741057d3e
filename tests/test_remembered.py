"""What lab and solution train alike is trained once: the second time leaves the same behind, bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import remembered
import torch
from models import make
from torch import nn
from torch.utils.data import DataLoader

from course_utils.data.batching import LengthBucketedSampler
from course_utils.methods.adalora import AdaLoRAConfig
from course_utils.methods.base import inject
from course_utils.methods.lora import LoRAConfig
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit


class Counting:
    """`fit`, with the number of real trainings."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, *args: Any, **others: Any) -> Any:
        self.times += 1
        return fit(*args, **others)


def loader(texts: int = 16, first: int = 5) -> DataLoader:
    rows = [{"input_ids": torch.tensor([first + n % 7, 3, 4]), "labels": torch.tensor(n % 2)} for n in range(texts)]
    sampler = LengthBucketedSampler([3] * texts, 8, True, 0)

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}

    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


def outcome(model: nn.Module, history: Any) -> Any:
    """All that a training leaves behind."""
    numbers = random.random(), np.random.rand(), torch.rand(1).item()
    flags = [module.training for module in model.modules()]
    return history, {name: value.clone() for name, value in model.state_dict().items()}, numbers, flags


def alike(one: Any, two: Any) -> bool:
    weights = one[1].keys() == two[1].keys() and all(torch.equal(one[1][name], two[1][name]) for name in one[1])
    return weights and one[0] == two[0] and one[2:] == two[2:]


def model(method: Any = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return inject(make("bert"), method or LoRAConfig(rank=2))


SETTINGS = TrainingConfig(learning_rate=1e-2, epochs=2)


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Counting, Any]:
    really = Counting()
    return really, remembered.remember(really, tmp_path)


@pytest.mark.parametrize(
    "method", [LoRAConfig(rank=2, dropout=0.1), AdaLoRAConfig(init_rank=4, target_rank=2, total_steps=4, final_steps=1)]
)
def test_the_second_time_leaves_behind_the_same_bit_for_bit(counted: tuple[Counting, Any], method: Any) -> None:
    really, remembering = counted
    fit(model(), loader(), loader(), SETTINGS)  # in a new process the first run imports, and that draws a number
    first = model(method)
    one = outcome(first, remembering(first, loader(), loader(), SETTINGS))
    random.seed(3), torch.manual_seed(5)
    second, train = model(method), loader()
    two = outcome(second, remembering(second, train, loader(), SETTINGS))
    assert really.times == 1 and alike(one, two)
    assert vars(first).keys() == vars(second).keys() and first.config.to_dict() == second.config.to_dict()
    again = model(method)
    plain = loader()
    assert alike(outcome(again, fit(again, plain, loader(), SETTINGS)), two)
    assert train.batch_sampler.epoch == plain.batch_sampler.epoch  # type: ignore[union-attr]


def test_it_goes_on_from_there_as_it_would_have(counted: tuple[Counting, Any]) -> None:
    really, remembering = counted
    results = []
    for _ in range(2):
        tuned, train = model(), loader()
        remembering(tuned, train, loader(), SETTINGS)
        results.append(outcome(tuned, remembering(tuned, train, loader(), SETTINGS)))
    assert really.times == 2 and alike(*results)


class Doubling(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "change",
    ["a weight", "frozen", "a setting", "a method's setting", "a batch", "fewer texts", "dropout", "a class"],
)
def test_whatever_decides_the_result_is_trained_anew(counted: tuple[Counting, Any], change: str) -> None:
    really, remembering = counted
    remembering(model(), loader(), loader(), SETTINGS)
    other, train, settings = model(), loader(), SETTINGS
    trained = next(parameter for parameter in other.parameters() if parameter.requires_grad)
    if change == "a weight":
        with torch.no_grad():
            trained.view(-1)[0] += 1e-6
    elif change == "frozen":
        trained.requires_grad = False
    elif change == "a setting":
        settings = TrainingConfig(learning_rate=1.0000001e-2, epochs=2)
    elif change == "a method's setting":
        other = model(LoRAConfig(rank=2, alpha=17))
    elif change == "a batch":
        train = loader(first=6)
    elif change == "fewer texts":
        train = loader(texts=15)
    elif change == "dropout":
        next(m for m in other.modules() if isinstance(m, nn.Dropout)).p = 0.11
    else:
        next(m for m in other.modules() if type(m) is nn.Linear).__class__ = Doubling
    remembering(other, train, loader(), settings)
    assert really.times == 2


def test_the_code_of_a_notebooks_class_counts() -> None:
    looks = [remembered._look(_with_code(factor)) for factor in (2, 2, 3)]
    assert looks[0] and repr(looks[0]) == repr(looks[1]) and repr(looks[0]) != repr(looks[2])


def _with_code(factor: int) -> nn.Module:
    space: dict[str, Any] = {"nn": nn, "__name__": "__main__"}
    exec(f"class Head(nn.Linear):\n    def forward(self, x):\n        return {factor} * x @ self.weight.T\n", space)
    torch.manual_seed(0)
    return space["Head"](3, 2)


def test_what_is_watched_or_changes_more_than_numbers_is_trained_each_time(tmp_path: Path) -> None:
    really = Counting()
    watching = remembered.remember(really, tmp_path)
    for _ in range(2):
        watching(model(), loader(), loader(), SETTINGS, watch=lambda row: None)

    def fit_that_leaves_a_note(tuned: Any, *others: Any) -> Any:
        tuned.note = really.times
        return really(tuned, *others)

    noting = remembered.remember(fit_that_leaves_a_note, tmp_path)
    for _ in range(2):
        noting(model(), loader(), loader(), SETTINGS)
    assert really.times == 4 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [True, False])
def test_only_a_kernel_of_a_run_of_the_tests_meets_it(tmp_path: Path, asked: bool) -> None:
    remembered.prepare(tmp_path)
    names = {"IPYTHONDIR": str(tmp_path)} | ({remembered.FOLDER: str(tmp_path)} if asked else {})
    code = "from course_utils.training import fit; print(hasattr(fit, '__wrapped__'), fit.__name__)"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "-c", code],
        env=os.environ | names,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{asked} fit"), done.stdout
