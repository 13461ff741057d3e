"""An interrupted run goes on: what comes out is number for number what it would have been without the interruption."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair import together
from test_training import collate, copy_of, same, tiny_loader, tiny_model, tiny_rows
from torch import nn
from torch.utils.data import DataLoader

from course_utils.methods import (
    AdaLoRAConfig,
    FullConfig,
    IA3Config,
    LoRAConfig,
    MethodConfig,
    QLoRAConfig,
    inject,
)
from course_utils.training import History, TrainingConfig, TrainingError, fit

#: 48 texts in batches of 8, two batches a step: 3 steps an epoch.
CONFIG = TrainingConfig(learning_rate=5e-3, epochs=3, accumulate=2, device="cpu")
METHODS: dict[str, MethodConfig] = {
    "full": FullConfig(),
    "lora": LoRAConfig(rank=2, dropout=0.2),
    "ia3": IA3Config(),
    "qlora": QLoRAConfig(rank=2),
    "adalora": AdaLoRAConfig(init_rank=4, target_rank=2, total_steps=9, initial_steps=1, final_steps=2, dropout=0.2),
}


class InterruptedRunError(Exception):
    """Stands for Ctrl-C, a full disk, a session that ends."""


def watch_until(step: int, kind: str = "step") -> Callable[[dict[str, Any]], None]:
    """Ends the run when it hears of this step, or of the evaluation after it."""

    def watch(row: dict[str, Any]) -> None:
        if row["step"] == step and ("accuracy" in row) == (kind == "evaluation"):
            raise InterruptedRunError

    return watch


def loaders() -> tuple[DataLoader, DataLoader]:
    return tiny_loader(tiny_rows()), tiny_loader(tiny_rows(16, seed=1), shuffle=False)


def train(
    method: MethodConfig, folder: Path | None = None, config: TrainingConfig = CONFIG, **settings: Any
) -> tuple[History, dict[str, torch.Tensor]]:
    """A run with everything made anew, as in a new process."""
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # in a new process these are anywhere, too
    model = inject(tiny_model(), method)
    texts, validation = settings.pop("loaders", loaders)()
    return fit(model, texts, validation, config, resume=folder, **settings), copy_of(model)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """InterruptedRunError twice: in the middle of an epoch, and again after the last step of the next one."""
    history, weights = train(METHODS[name])
    for step in (2, 6):
        with pytest.raises(InterruptedRunError):
            train(METHODS[name], tmp_path, watch=watch_until(step))
        assert (tmp_path / "state.pt").is_file()
    resumed, resumed_weights = train(METHODS[name], tmp_path)
    assert len(history.steps) == 9 and len(history.evaluations) == 3
    assert resumed == history
    assert same(resumed_weights, weights)


@pytest.mark.parametrize(("step", "kind"), [(3, "evaluation"), (6, "evaluation"), (9, "step"), (9, "evaluation")])
@pytest.mark.parametrize("settings", [{}, {"schedule": "constant", "learning_rate": 5e-2, "patience": 1}])
def test_wherever_it_is_interrupted(step: int, kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = replace(CONFIG, **settings)
    history, weights = train(METHODS["lora"], config=config)
    if step <= len(history.steps):
        with pytest.raises(InterruptedRunError):
            train(METHODS["lora"], tmp_path, config, watch=watch_until(step, kind))
    resumed, resumed_weights = train(METHODS["lora"], tmp_path, config)
    assert resumed == history and same(resumed_weights, weights)


def test_a_run_that_max_steps_cuts_short(tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=4)  # in the middle of the second epoch
    history, weights = train(METHODS["lora"], config=config)
    for kind in ("step", "evaluation"):
        with pytest.raises(InterruptedRunError):
            train(METHODS["lora"], tmp_path, config, watch=watch_until(4, kind))
    resumed, resumed_weights = train(METHODS["lora"], tmp_path, config)
    assert len(resumed.steps) == 4 and resumed == history and same(resumed_weights, weights)


def test_an_interruption_between_two_halves_of_a_step_goes_back_to_the_last_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights have moved and the schedule has not: such a state is not written."""
    history, weights = train(METHODS["lora"])

    def after_step(self: LoRAConfig, model: nn.Module, step: int) -> None:
        if step == 5:
            raise InterruptedRunError

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(LoRAConfig, "after_step", after_step)
        train(METHODS["lora"], tmp_path)
    seen: list[dict[str, Any]] = []
    resumed, resumed_weights = train(METHODS["lora"], tmp_path, watch=seen.append)
    assert [row["step"] for row in seen if "accuracy" not in row] == [4, 5, 6, 7, 8, 9]
    assert resumed == history and same(resumed_weights, weights)


def test_in_one_session_the_same_model_goes_on(tmp_path: Path) -> None:
    """After Ctrl-C in a notebook the cell is run again: the model then holds its best weights, not its first ones."""
    history, weights = train(METHODS["adalora"])
    model, given = inject(tiny_model(), METHODS["adalora"]), loaders()
    with pytest.raises(InterruptedRunError):
        fit(model, *given, CONFIG, resume=tmp_path, watch=watch_until(5))
    assert fit(model, *given, CONFIG, resume=tmp_path) == history
    assert same(copy_of(model), weights)


def test_a_run_that_was_over_is_given_back(tmp_path: Path) -> None:
    history, weights = train(METHODS["lora"], tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    again, same_weights = train(METHODS["lora"], tmp_path, watch=watch_until(1))  # nobody hears of a step
    assert again == history and same(same_weights, weights) and again.seconds > history.seconds / 2
    assert (tmp_path / "state.pt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_without_resume_nothing_is_different(tmp_path: Path) -> None:
    with_state, without = train(METHODS["lora"], tmp_path), train(METHODS["lora"])
    assert with_state[0] == without[0] and same(with_state[1], without[1])


class Noisy(torch.utils.data.Dataset):
    """Changes its texts at random, from three sources of chance."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self.rows[position]
        drawn = [int(torch.randint(0, 64, ())), int(np.random.randint(64)), random.randrange(64)]
        return row | {"input_ids": row["input_ids"][:-3] + drawn}


@pytest.mark.parametrize("own", [False, True], ids=["global", "own"])
def test_any_loader_gives_the_rest_of_its_epoch(own: bool, tmp_path: Path) -> None:
    """PyTorch's own shuffling, with a source of chance of its own or not."""

    def shuffled() -> tuple[DataLoader, DataLoader]:
        chance = torch.Generator().manual_seed(3) if own else None
        rows: Any = tiny_rows()
        train: DataLoader = DataLoader(rows, 8, shuffle=True, generator=chance, collate_fn=collate)
        return train, loaders()[1]

    history, weights = train(METHODS["lora"], loaders=shuffled)
    for step in (2, 4, 6):
        with pytest.raises(InterruptedRunError):
            train(METHODS["lora"], tmp_path, loaders=shuffled, watch=watch_until(step))
    resumed, resumed_weights = train(METHODS["lora"], tmp_path, loaders=shuffled)
    assert resumed == history and same(resumed_weights, weights)


def test_texts_that_change_at_random_are_the_same_texts(tmp_path: Path) -> None:
    """Their checksum does not change with the random state, and taking it does not move that either."""

    def noisy() -> tuple[DataLoader, DataLoader]:
        return DataLoader(Noisy(tiny_rows()), 8, collate_fn=collate), loaders()[1]

    history, weights = train(METHODS["lora"], loaders=noisy)
    with pytest.raises(InterruptedRunError):
        train(METHODS["lora"], tmp_path, loaders=noisy, watch=watch_until(6, "evaluation"))
    resumed, resumed_weights = train(METHODS["lora"], tmp_path, loaders=noisy)
    assert resumed == history and same(resumed_weights, weights)


# --- states that are refused -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run that was interrupted."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(InterruptedRunError):
        train(LoRAConfig(rank=2), folder, watch=watch_until(4))
    return folder


def refused(
    folder: Path, said: str, model: nn.Module | None = None, method: MethodConfig | None = None, **more: Any
) -> None:
    before = (folder / "state.pt").read_bytes()
    model = inject(model or tiny_model(), method or LoRAConfig(rank=2))
    weights = copy_of(model)
    texts, validation = more.pop("loaders", loaders())
    with pytest.raises(TrainingError, match=rf"state\.pt is the state of another run: .*{said}.*name another folder"):
        fit(model, texts, validation, replace(CONFIG, **more), resume=folder)
    assert same(copy_of(model), weights) and (folder / "state.pt").read_bytes() == before


def test_the_state_of_another_run(folder: Path) -> None:
    refused(folder, "config: learning_rate was 0.005 and is 0.1", learning_rate=0.1)
    refused(folder, "config: epochs was 3 and is 5", epochs=5)
    refused(folder, r"method: settings was 'LoRAConfig\(.*and is 'LoRAConfig\(", method=LoRAConfig(rank=2, alpha=3))
    refused(folder, "model: trained parameters differ", method=LoRAConfig(rank=3))
    refused(folder, "model: frozen weights differ", model=tiny_model(seed=1))
    texts, validation = loaders()
    refused(folder, "training texts: rows differ", loaders=(tiny_loader(tiny_rows(seed=5)), validation))
    refused(folder, "validation texts: rows differ", loaders=(texts, tiny_loader(tiny_rows(16, seed=2), shuffle=False)))
    refused(folder, "training texts: batch_size was 8 and is 16", loaders=(tiny_loader(tiny_rows(), 16), validation))
    other = loaders()
    other[0].batch_sampler.seed = 7  # type: ignore[union-attr]
    refused(folder, "training texts: seed was 0 and is 7", loaders=other)


def test_a_quantised_base_of_other_weights(tmp_path: Path) -> None:
    """Its frozen weights are packed, and no parameters any more."""
    with pytest.raises(InterruptedRunError):
        train(METHODS["qlora"], tmp_path, watch=watch_until(1))
    refused(tmp_path, "model: frozen weights differ", model=tiny_model(seed=1), method=METHODS["qlora"])
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.1.output.dense.weight").mul_(-1)
    refused(tmp_path, "model: frozen weights differ", model=model, method=METHODS["qlora"])


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04"])
def test_a_file_that_is_no_state(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="is no state of a run, or is damaged; delete it to begin anew"):
        train(LoRAConfig(), tmp_path)


def test_a_state_that_would_run_commands_is_not_read(tmp_path: Path) -> None:
    torch.save({"origin": os.system, "moments": []}, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="is no state of a run"):
        train(LoRAConfig(), tmp_path)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"resume names a folder for the state of the run, and .*run is a file"):
        train(LoRAConfig(), tmp_path / "run")


def test_a_write_that_fails_leaves_the_state_before_and_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InterruptedRunError):
        train(METHODS["lora"], tmp_path, watch=watch_until(3, "evaluation"))
    before = (tmp_path / "state.pt").read_bytes()
    monkeypatch.setattr(torch, "save", lambda state, file: file.write(b"half") and (_ for _ in ()).throw(OSError))
    model = inject(tiny_model(), METHODS["lora"])
    with pytest.raises(OSError):
        fit(model, *loaders(), CONFIG, resume=tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "state.pt").read_bytes() == before
    history, weights = train(METHODS["lora"])
    resumed, resumed_weights = train(METHODS["lora"], tmp_path)
    assert resumed == history and same(resumed_weights, weights)


# --- several processes -----------------------------------------------------------------------------------------------


def train_in_a_pair(folder: Path) -> None:
    """What each of the two processes does: a whole run, and one that ends after its first evaluation and goes on."""
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    whole = train(METHODS["adalora"], config=replace(CONFIG, accumulate=1))
    written: list[str] = []
    replace_file = os.replace

    def note(source: Any, target: Any) -> None:
        written.append(str(target))
        replace_file(source, target)

    pytest.MonkeyPatch().setattr(os, "replace", note)
    # Each process stops by itself, as all do when a job ends; the second one has no `watch` of its own.
    stop = pytest.MonkeyPatch()
    after_step = AdaLoRAConfig.after_step

    def interrupted(self: AdaLoRAConfig, model: nn.Module, step: int) -> None:
        after_step(self, model, step)
        if step == 5:
            raise InterruptedRunError

    stop.setattr(AdaLoRAConfig, "after_step", interrupted)
    with pytest.raises(InterruptedRunError):
        train(METHODS["adalora"], folder / "run", replace(CONFIG, accumulate=1))
    stop.undo()
    resumed = train(METHODS["adalora"], folder / "run", replace(CONFIG, accumulate=1))
    torch.save(
        {"equal": resumed[0] == whole[0] and same(resumed[1], whole[1]), "steps": len(whole[0].steps),
         "written": len(written)},
        folder / f"{rank}.pt",
    )  # fmt: skip


def test_two_processes_go_on_and_the_first_one_writes(tmp_path: Path) -> None:
    together(train_in_a_pair, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == {"equal": True, "steps": 9, "written": 3}  # after each of the three evaluations
    assert second == {"equal": True, "steps": 9, "written": 0}
