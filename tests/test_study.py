"""The result files keep what the book promises, and the study's bookkeeping is right."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from course_utils import bench, results, study


def test_the_goals_on_the_tweets_are_met() -> None:
    quality = results.read("quality")
    methods, majority = quality["methods"], quality["baselines"]["majority"]
    lora, full, head = (methods[name]["accuracy"]["mean"] for name in ("lora", "full", "head_only"))
    assert quality["command"] == study.COMMAND and quality["seeds"] == [0, 1, 2]
    assert lora >= 0.945 and methods["lora"]["share"] <= 0.0035
    assert lora >= full - 0.015
    assert majority + 0.02 < head < lora - 0.05
    assert methods["lora"]["seconds"]["max"] <= 60
    assert quality["texts"]["test"] > 800


@pytest.mark.parametrize("method", sorted(results.read("bench")["methods"]))
def test_a_method_costs_no_more_than_its_reference(method: str) -> None:
    row = results.read("bench")["methods"][method]
    assert method in bench.CONTESTS
    assert row["step"]["ratio"] <= 1.05
    assert row["memory"]["ratio"] <= 1.05


@pytest.mark.parametrize("method", sorted(bench.CONTESTS))
def test_both_sides_of_a_contest_train_the_same(method: str) -> None:
    contest = bench.CONTESTS[method]
    batch = {key: value[:4] for key, value in bench._batches(1)[0].items()}
    trained, losses = [], []
    for build in bench.SIDES.values():
        model = build(contest).train()
        bench._step(model, bench._optimizer(model), batch, 1)
        trained.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        logits = model.eval()(**batch).logits
        losses.append(torch.nn.functional.cross_entropy(logits, batch["labels"]).item())
    assert trained[0] == trained[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)  # each drew its own random start


def test_the_rate_is_chosen_on_validation_with_the_first_seed() -> None:
    def run(rate: float, seed: int, validation_loss: float) -> dict[str, float | str]:
        return {"method": "lora", "learning_rate": rate, "seed": seed, "validation_loss": validation_loss}

    runs = [run(1e-3, 0, 0.2), run(2e-3, 0, 0.1), run(3e-3, 0, float("nan")), run(1e-3, 1, 0.01)]
    assert study.best_rate(runs, "lora") == 2e-3


def test_the_summary_needs_every_seed() -> None:
    stored = results.read("quality")
    runs = [run for run in stored["runs"] if not (run["method"] == "lora" and run["seed"] == 2)]
    assert "lora" not in study.summarize(runs, 843) and "full" in study.summarize(runs, 843)
    assert study.summarize(stored["runs"], stored["texts"]["test"]) == stored["methods"]


@pytest.mark.parametrize("command", ["study", "bench"])
def test_the_command_line_explains_bad_arguments(command: str) -> None:
    bad = ["lroa"] if command == "study" else ["--steps", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", command, *bad], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and ("unknown method lroa" in done.stderr or "at least 1" in done.stderr)


def test_unknown_results_name_those_that_exist() -> None:
    with pytest.raises(FileNotFoundError, match="quality"):
        results.read("nothing")
