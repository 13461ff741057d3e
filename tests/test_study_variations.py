"""The tables of variations: what was run is what is planned, and a stopped run goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from course_utils.evaluation import results
from course_utils.methods import PfeifferConfig
from course_utils.methods.registry import METHODS, Method
from course_utils.training import whole_run
from course_utils.workshop.experiments import quality, variations as study_variations


@pytest.fixture(scope="module")
def planned() -> dict[str, list[study_variations.Variation]]:
    return study_variations.tables()


@pytest.mark.parametrize(
    "name", ["ranks", "prompt_starts", "prompt_lengths", "p_tuning_encoders", "bottlenecks", "lora_grid"]
)
def test_every_variation_was_run(name: str, planned: dict[str, list[study_variations.Variation]]) -> None:
    rows = results.read(name)["rows"]
    wanted = [{**variation.fields, "learning_rate": variation.learning_rate} for variation in planned[name]]
    assert [{key: row[key] for key in keys} for row, keys in zip(rows, wanted, strict=True)] == wanted
    for row in rows:
        assert row["low"] < row["accuracy"] < row["high"]


def test_the_variations_of_lora_and_adapters_run_at_the_rate_that_the_study_chose(
    planned: dict[str, list[study_variations.Variation]],
) -> None:
    methods = results.read("quality")["methods"]
    for name, method in (("ranks", "lora"), ("bottlenecks", "pfeiffer")):
        assert {variation.learning_rate for variation in planned[name]} == {methods[method]["learning_rate"]}


def test_a_stopped_run_goes_on_and_again_starts_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[dict[str, Any]] = []

    def run_once(tweets: Any, method: Method, learning_rate: float, seed: int) -> dict[str, Any]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append({"learning_rate": learning_rate, "accuracy": 0.9})
        return ran[-1]

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(whole_run, "train_once", run_once)
    with pytest.raises(KeyboardInterrupt):
        study_variations.main(["bottlenecks"])
    assert [row["size"] for row in results.read("bottlenecks")["rows"]] == [1, 4]
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        study_variations.main(["bottlenecks", "--again"])
    assert len(results.read("bottlenecks")["rows"]) == 2
    ran.clear()
    assert study_variations.main(["bottlenecks"]) == 0
    assert [row["size"] for row in results.read("bottlenecks")["rows"]] == [1, 4, 24, 96]


def test_the_more_numbers_move_the_lower_is_the_best_rate() -> None:
    """What chapter 9 says of its grid."""
    rows = results.read("lora_grid")["rows"]
    for targets in ("query and value", "all linear layers"):
        best = [
            min(
                (row for row in rows if (row["targets"], row["rank"]) == (targets, rank)),
                key=lambda r: r["validation_loss"],
            )
            for rank in (2, 8, 32)
        ]
        rates, losses = ([row[key] for row in best] for key in ("learning_rate", "validation_loss"))
        assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]
        assert max(losses) - min(losses) < 0.02
    worst = max(rows, key=lambda row: row["validation_loss"])
    assert (worst["targets"], worst["rank"]) == ("all linear layers", 32)
    assert worst["accuracy"] == results.read("quality")["baselines"]["majority"]


def test_what_the_study_has_run_is_not_run_again() -> None:
    size_24 = study_variations.Variation({"size": 24}, METHODS["pfeiffer"].config, 3e-3)
    run = study_variations._in_the_study(size_24)
    assert run in [{k: v for k, v in run.items() if k != "method"} for run in quality.RUNS.rows()]
    assert run is not None and run["seed"] == study_variations.SEED
    other = study_variations.Variation({"size": 25}, PfeifferConfig(size=25), 3e-3)
    assert study_variations._in_the_study(other) is None


def test_an_unknown_table_is_refused_with_the_names_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study_variations.main(["rnaks"])
    assert "unknown table rnaks; choose from ranks, prompt_starts" in capsys.readouterr().err
