"""Several processes do what one does: shares, curves, checkpoints, every method with DDP and FSDP2, and memory."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from pair import IN_PAIRS, together
from patience import PATIENCE
from peft import PeftModel
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from course_utils.data.batching import LengthBucketedSampler
from course_utils.evaluation import results
from course_utils.methods.registry import studied
from course_utils.models.backbones import load_classifier
from course_utils.training import command_line, distributed, processes
from course_utils.training.config import TrainingConfig
from course_utils.training.distributed import SharedBatches, SharingError, share
from course_utils.training.memory import SHAPES, Shape, peak_memory, training_memory
from course_utils.training.tiny import BATCH, TEXTS, tiny_loader, tiny_model
from course_utils.workshop.experiments import parallel, scaling_out as study_scaling
from course_utils.workshop.experiments.parallel import STEPS, configs, difference, train_by_fit

ROOT = Path(__file__).parents[1]


class Processes:
    """As many processes as one likes, as far as `share` can see."""

    def __init__(self, rank: int, processes: int) -> None:
        self.process_index, self.num_processes, self.device = rank, processes, torch.device("cpu")


def loader(texts: int, batch_size: int) -> DataLoader:
    rows = [{"input_ids": torch.tensor([number])} for number in range(texts)]
    sampler = LengthBucketedSampler([1] * texts, batch_size)
    return DataLoader(rows, batch_sampler=sampler)  # type: ignore[arg-type]


# --- shares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_shares_are_the_batch(processes: int) -> None:
    """In every epoch, and the order of the epochs differs."""
    whole = LengthBucketedSampler([1] * 23, 9)
    shares = [SharedBatches(LengthBucketedSampler([1] * 23, 9), rank, processes) for rank in range(processes)]
    epochs = []
    for _ in range(2):
        batches = list(whole)
        parts = [list(own) for own in shares]
        assert {len(part) for part in parts} == {len(batches)} == {len(shares[0])}
        for number, batch in enumerate(batches):
            got = [part[number] for part in parts]
            assert sorted(text for own in got for text in own) == sorted(batch)
            assert max(map(len, got)) - min(map(len, got)) <= 1
        epochs.append(batches)
    assert epochs[0] != epochs[1]


def test_share_reads_the_rows_of_its_process() -> None:
    seen = [[int(i) for batch in share(loader(11, 4), Processes(rank, 2)) for i in batch["input_ids"]]
            for rank in range(2)]  # fmt: skip
    assert sorted(seen[0] + seen[1]) == list(range(11))


@pytest.mark.parametrize(("texts", "size", "processes"), [(9, 4, 2), (3, 8, 4), (8, 2, 3)])
def test_a_batch_too_small_for_all_is_refused(texts: int, size: int, processes: int) -> None:
    with pytest.raises(
        SharingError, match=rf"a batch of \d, too few for {processes} processes: each needs a text\. Use"
    ):
        share(loader(texts, size), Processes(0, processes))


def test_a_rank_that_is_none_and_a_loader_without_batches_are_refused() -> None:
    with pytest.raises(SharingError, match="got rank 2 of 2 processes"):
        SharedBatches([], 2, 2)
    with pytest.raises(SharingError, match="cuts no batches"):
        share(DataLoader([1, 2], batch_size=None), Processes(0, 1))  # type: ignore[arg-type]


def test_a_plain_loader_can_be_shared() -> None:
    rows = [{"input_ids": torch.tensor([number])} for number in range(6)]
    plain: DataLoader = DataLoader(rows, batch_sampler=BatchSampler(SequentialSampler(rows), 4, False))  # type: ignore[arg-type]
    AcceleratorState._reset_state(reset_partial_state=True)
    own = share(plain, Accelerator(cpu=True))
    assert [batch["input_ids"].flatten().tolist() for batch in own] == [[0, 1, 2, 3], [4, 5]]


# --- for real -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every method in one pair of processes."""
    folder = tmp_path_factory.mktemp("pair")
    out = folder / "rows.json"
    together(parallel.main, [str(out)], folder=folder)
    rows: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return rows


@IN_PAIRS
@pytest.mark.parametrize("name", configs())
def test_a_method_in_two_processes_is_that_in_one(name: str, two_processes: dict[str, Any]) -> None:
    row = two_processes[name]
    losses, weights, untouched = train_by_fit(configs()[name])
    assert len(losses) == STEPS and TEXTS % BATCH == 5  # shares of 3 and 2 in the last batch of each epoch
    assert row["losses"] == pytest.approx(losses, abs=1e-6)
    spread = {key: torch.tensor(value).view_as(weights[key]) for key, value in row["weights"].items()}
    assert difference(weights, spread) < 2e-6
    assert row["ranks_equal"] and row["frozen_unchanged"] and untouched
    if name == "adalora":
        assert "DTensor" in row["fsdp_error"]
    else:
        assert row["fsdp_difference"] < 2e-6
        assert row["fsdp_losses"] == pytest.approx(losses, abs=1e-6)
    assert 0.5 < row["fsdp_share"] < 0.75


def test_the_plain_mean_would_not_do() -> None:
    """Else the tests above could not fail: without the weights of the shares the last batch comes out wrong."""
    weights = [3 / 5, 2 / 5]

    def gradient(texts: list[int]) -> torch.Tensor:
        model = tiny_model(configs()["lora"])
        model(**tiny_loader().collate_fn([tiny_loader().dataset[text] for text in texts])).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, parts = gradient([0, 1, 2, 3, 4]), [gradient([0, 2, 4]), gradient([1, 3])]
    assert torch.allclose(weights[0] * parts[0] + weights[1] * parts[1], whole, atol=1e-6)
    assert ((parts[0] + parts[1]) / 2 - whole).norm() > 0.05 * whole.norm()


def test_accelerate_launch_trains_as_one_process_and_saves_once(tmp_path: Path) -> None:
    """The page's command: MiniLM, a last batch of 8 texts; and peft loads what was saved."""
    few = ["lora", "--texts", "24", "--batch-size", "16", "--no-dropout", "--device", "cpu"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, "-m", "course_utils", "train", *few, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved in") == 1  # one process tells, and one saves
    PartialState._reset_state()
    assert command_line.main([*few, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "history.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert [row["loss"] for row in two["steps"]] == pytest.approx([row["loss"] for row in one["steps"]], abs=1e-5)
    assert two["evaluations"][0]["n"] == one["evaluations"][0]["n"] == 64

    stored, same = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert difference(stored, same) < 1e-5
    loaded = PeftModel.from_pretrained(load_classifier("minilm")[0], str(tmp_path / "two"))
    inside = loaded.state_dict()["base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.default.weight"]
    key = next(key for key in stored if "layer.0.attention.self.query.lora_B" in key)
    assert torch.equal(inside, stored[key]) and inside.any()


# --- the command's errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lara", "--out", "new"], "invalid choice: 'lara'"),
        (["lora"], "the following arguments are required: --out"),
        (["lora", "--out", "new", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["lora", "--out", "."], "exists already; name a new folder"),
        (["lora", "--out", "new", "--rank", "two"], "argument --rank: invalid int value: 'two'"),
        (["ia3", "--out", "new", "--rank", "2"], "unrecognized arguments: --rank 2"),
        (["--texts", "9", "lora", "--out", "new"], "the method comes first"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command_line.main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--texts", "99999"], r"there are \d+ training texts; --texts asks for 99999"),
        (["--learning-rate", "-1"], "expected learning_rate above 0, got -1.0"),
        (["--steps", "0"], "expected max_steps of at least 1"),
        (["--epochs", "0"], "expected epochs of at least 1, got 0"),
        (["--precision", "fp8"], r"expected precision out of \(.*\), got 'fp8'"),
        (["--rank", "0"], "rank must be a whole number of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_train(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["lora", "--out", str(tmp_path / "new"), *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", studied())
def test_every_setting_of_a_method_and_of_the_training_is_an_option(name: str, capsys: pytest.CaptureFixture) -> None:
    """An option for each field, with what its docstring says; those that no command line can say are named here."""
    with pytest.raises(SystemExit):
        command_line.main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    unsayable = {"ranks", "compute_dtype"}  # a mapping, and a type of torch
    for kind in (TrainingConfig, type(studied()[name].config)):
        for one in dataclasses.fields(kind):
            assert (f"--{one.name.replace('_', '-')}" in shown) != (one.name in unsayable), one.name
    assert "passes over the training data, at most. (default: 1)" in shown
    if name == "lora":
        assert "columns of B and rows of A, often written r; at least 1. (default: 8)" in shown
        assert "(default: 0.002)" in shown  # the rate that the study chose


@pytest.mark.parametrize("name", studied())
def test_options_become_the_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing given: the settings of the study. Each setting given: that one, and no other, differs."""
    trained: list[tuple[Any, TrainingConfig]] = []
    monkeypatch.setattr(command_line, "_train", lambda method, config, _: trained.append((method.config, config)))
    other = {
        "head": ["classifier"], "targets": ["key", "value"], "rank_stabilized": [], "no_double": [], "epochs": ["2"],
        "precision": ["bf16"], "virtual_tokens": ["5"], "rank": ["3"], "size": ["7"],
    }  # fmt: skip
    row = studied()[name]
    known = {one.name for kind in (row.config, TrainingConfig) for one in dataclasses.fields(kind)}
    given = {key: words for key, words in other.items() if key.removeprefix("no_") in known}
    words = [word for key, values in given.items() for word in (f"--{key.replace('_', '-')}", *values)]
    assert command_line.main([name, "--out", "new"]) == 0
    assert command_line.main([name, "--out", "new", *words]) == 0
    (plain, usual), (config, training) = trained
    assert plain == row.config and usual.epochs == 1 and usual.split_batches
    assert usual.learning_rate == results.read("quality")["methods"][name]["learning_rate"]
    expected = {"head": ("classifier",), "targets": ("key", "value"), "rank_stabilized": True, "double": False,
                "virtual_tokens": 5, "rank": 3, "size": 7}  # fmt: skip
    changed = {key: value for key, value in expected.items() if key in known}
    assert config == dataclasses.replace(plain, **changed)
    assert training == dataclasses.replace(usual, epochs=2, precision="bf16")


def test_one_word_stays_a_word_where_a_setting_may_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(command_line, "_train", lambda method, config, _: trained.append(method.config))
    assert command_line.main(["lora", "--out", "new", "--targets", "all-linear"]) == 0
    assert trained[0].targets == "all-linear"


def test_a_process_that_fails_is_told_about() -> None:
    with pytest.raises(RuntimeError, match="no_such_module"):
        processes.launch(1, "course_utils.no_such_module")


def test_without_dropout() -> None:
    model = distributed.without_dropout(torch.nn.Sequential(torch.nn.Dropout(0.5)))
    assert torch.equal(model.train()(torch.ones(99)), torch.ones(99))


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator must be told to give memory back")
def test_the_rule_predicts_the_peak_within_15_percent() -> None:
    row = study_scaling.memory_row("lora-qv", 8, checkpointing=False)
    assert 0.85 < row["ratio"] < 1.15, row


def test_every_stored_row_is_within_15_percent() -> None:
    memory = results.read("scaling")["memory"]
    assert len(memory["rows"]) == 12
    assert memory["worst"] < 0.15
    for row in memory["rows"]:
        rule = peak_memory(SHAPES["minilm"], row["method"], row["batch"], 128, checkpointing=row["checkpointing"]) / 1e6
        assert row["rule_mb"] == pytest.approx(rule, abs=0.06)  # of today's code


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "ia3"}, "knows full, lora-all, lora-qv, not 'ia3'"),
        ({"device": "tpu"}, "'cpu' or 'cuda', got 'tpu'"),
        ({"batch": 0}, "batch and length"),
    ],
)
def test_peak_memory_refuses(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        peak_memory(SHAPES["minilm"], **settings)


def test_peak_memory_by_hand() -> None:
    """One layer, one token: LoRA keeps 7 widths and one inner number, and on a processor two masks of four bytes."""
    shape = Shape("tiny", 1, 10, 30, 3000)
    fixed = training_memory(shape, "lora-qv", "float32", 1, 1)
    got = peak_memory(shape, "lora-qv", 1, 1) - fixed.weights - fixed.optimizer
    lora = fixed.gradients
    assert got == max(4 * (7 * 10 + 30) + 4 * 2 * 10 + 2 * 4 * 30, lora)
    assert peak_memory(shape, "lora-qv", 100, 1) - peak_memory(shape, "lora-qv", 100, 1, device="cuda") == 100 * 60
