"""The result files keep what the book promises, and the study's bookkeeping is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils.evaluation import rates, results
from course_utils.methods.registry import Method, studied
from course_utils.plots.map_of_peft import FAMILIES
from course_utils.training import whole_run
from course_utils.training.memory import SHAPES, training_memory
from course_utils.workshop.experiments import bench_large, costs, quality
from course_utils.workshop.experiments.pairs import BUILDERS, PAIRS, Setting


def test_the_goals_on_the_tweets_are_met() -> None:
    stored = results.read("quality")
    methods, majority = stored["methods"], stored["baselines"]["majority"]
    lora, full, head = (methods[name]["accuracy"]["mean"] for name in ("lora", "full", "head_only"))
    assert stored["command"] == quality.COMMAND and stored["seeds"] == [0, 1, 2, 3, 4]
    assert lora >= 0.945 and methods["lora"]["share"] <= 0.0035
    assert lora >= full - 0.015
    assert majority + 0.02 < head < lora - 0.05
    assert methods["lora"]["seconds"]["fastest"] <= 60
    assert stored["texts"]["test"] > 800


def test_every_method_reaches_what_the_book_says_of_it() -> None:
    quality = results.read("quality")
    mean = {name: row["accuracy"]["mean"] for name, row in quality["methods"].items()}
    for near_full in ("lora", "lora_all", "dora", "ia3", "qlora"):
        assert mean[near_full] >= mean["full"] - 0.01, near_full
    assert mean["bitfit"] >= 0.93 and mean["prefix"] >= 0.91 and mean["p_tuning_v2"] >= 0.91
    majority = quality["baselines"]["majority"]
    assert mean["prompt"] > majority + 0.15 and mean["p_tuning"] > majority + 0.05


@pytest.mark.parametrize("method", sorted(results.read("bench")["methods"]))
def test_a_method_costs_no_more_than_its_reference(method: str) -> None:
    row = results.read("bench")["methods"][method]
    assert method in PAIRS
    assert row["step"]["ratio"] <= 1.05
    assert row["memory"]["ratio"] <= 1.05
    if method in ("dora", "qlora"):  # here the reference is wasteful: it forms BA, and dequantises block by block
        assert row["step"]["ratio"] < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_a_method_costs_no_more_than_its_reference(dtype: str) -> None:
    stored = results.read(f"bench_cuda_{dtype}")
    assert stored["machine"]["device"].startswith("NVIDIA")
    assert sorted(stored["methods"]) == sorted(PAIRS)
    for method, row in stored["methods"].items():
        assert row["memory"]["ratio"] <= 1.05 and row["step"]["ratio"] <= 1.05, method
    assert stored["methods"]["qlora"]["step"]["ratio"] < 1


def test_seven_billion_weights_cost_what_the_calculator_says() -> None:
    stored = results.read(bench_large.RESULT)
    for method, precision in (("lora", "mixed"), ("qlora", "nf4")):
        row = stored["methods"][method]
        shape = {"batch": stored["size"]["texts"], "length": stored["size"]["tokens"], "rank": stored["rank"]}
        predicted = training_memory(SHAPES["llama-2-7b"], "lora-all", precision, checkpointing=True, **shape).total
        for side in BUILDERS:
            assert predicted == pytest.approx(row[side]["peak_mb"] * 2**20, rel=0.15)
        assert row["ours"]["peak_mb"] <= 1.05 * row["theirs"]["peak_mb"] and row["step"]["ratio"] <= 1.05
    assert stored["methods"]["qlora"]["other_codes"]["differing"] == 0


def test_the_large_bench_can_be_tried_on_a_processor(capsys: pytest.CaptureFixture[str]) -> None:
    before = results.read(bench_large.RESULT)
    assert bench_large.main(["--size", "tiny", "--device", "cpu"]) == 0
    assert "'differing': 0" in capsys.readouterr().out
    assert results.read(bench_large.RESULT) == before
    with pytest.raises(SystemExit):
        bench_large.main(["--device", "cpu"])
    assert "on the processor use --size tiny" in capsys.readouterr().err


def test_every_pair_was_measured() -> None:
    assert list(results.read("bench")["methods"]) == list(PAIRS)


@pytest.mark.parametrize("method", sorted(PAIRS))
def test_both_sides_of_a_pair_train_the_same(method: str) -> None:
    batch = {key: value[:4] for key, value in costs.prepare_batches(1)[0].items()}
    trained, losses = [], []
    for build in BUILDERS.values():
        model = build(PAIRS[method], Setting())
        costs.train(model, [batch])
        trained.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        logits = model.eval()(**batch).logits
        losses.append(torch.nn.functional.cross_entropy(logits, batch["labels"]).item())
    assert trained[0] == trained[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)  # each drew its own random start


REAL = results.read("quality")


def _run(rate: float, seed: int, validation_loss: float) -> dict[str, Any]:
    return {"method": "lora", "learning_rate": rate, "seed": seed, "validation_loss": validation_loss}


def test_the_two_best_rates_of_the_first_seed_are_compared_over_all_seeds() -> None:
    runs = [_run(1e-3, 0, 0.2), _run(2e-3, 0, 0.1), _run(3e-3, 0, float("nan")), _run(4e-3, 0, 0.5)]
    assert rates.finalists(runs, "lora") == [2e-3, 1e-3]
    assert rates.best_rate(runs, "lora") is None  # the other seeds are missing
    lucky = [_run(2e-3, seed, 0.6) for seed in rates.SEEDS[1:]]  # the first seed was good by chance
    steady = [_run(1e-3, seed, 0.2) for seed in rates.SEEDS[1:]]
    assert rates.best_rate([*runs, *lucky, *steady], "lora") == 1e-3
    assert rates.best_rate([*runs, *lucky], "lora") is None
    assert rates.best_rate([], "lora") is None


def test_a_killed_study_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs themselves are stored ones, so that nothing trains here."""
    stored = {quality.RUNS.key(run): run for run in quality.RUNS.rows()}
    ran: list[tuple[float, int]] = []
    killed_after = [4]  # runs; empty: nobody kills it

    def run_once(tweets: Any, method: Method, learning_rate: float, seed: int) -> dict[str, Any]:
        if len(ran) in killed_after:
            raise KeyboardInterrupt
        ran.append((learning_rate, seed))
        return stored["lora", learning_rate, seed]

    monkeypatch.setattr(results, "FOLDER", tmp_path / "book" / "results")
    monkeypatch.setattr(whole_run, "train_once", run_once)
    with pytest.raises(KeyboardInterrupt):
        quality.main(["lora"])
    assert [seed for _, seed in ran] == [0, 0, 0, 1]
    assert len(quality.RUNS.rows()) == 4 and "lora" not in results.read("quality")["methods"]
    ran.clear()
    killed_after.clear()
    assert quality.main(["lora"]) == 0
    assert len(ran) == 7  # two finalists with four more seeds each, and one of these runs was there already
    assert results.read("quality")["methods"]["lora"]["seeds"] == REAL["methods"]["lora"]["seeds"]
    assert results.read("quality")["commit"] is None  # the folder is in no repository
    ran.clear()
    assert quality.main(["lora", "--jobs", "2"]) == 0 and not ran
    with pytest.raises(SystemExit):
        quality.main(["--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err


def test_the_summary_needs_every_seed() -> None:
    stored = results.read("quality")
    rate = stored["methods"]["lora"]["learning_rate"]
    runs = [run for run in stored["runs"] if (run["method"], run["learning_rate"], run["seed"]) != ("lora", rate, 2)]
    assert "lora" not in quality.summarize(runs, 843) and "full" in quality.summarize(runs, 843)
    assert quality.summarize(stored["runs"], stored["texts"]["test"]) == stored["methods"]


def test_the_main_figure_shows_every_method_but_the_one_from_scratch() -> None:
    shown = [key for keys in FAMILIES.values() for key in keys]
    assert sorted([*shown, "scratch"]) == sorted(studied())


def test_every_method_was_measured() -> None:
    stored = results.read("quality")
    assert list(stored["methods"]) == list(studied())
    for method, rows in stored["rates"].items():
        assert {row["learning_rate"] for row in rows} == set(studied()[method].rates)


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
