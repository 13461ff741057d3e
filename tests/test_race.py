"""The race against `Trainer`: its bookkeeping, its steps, and each way once on a few tweets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from datasets import DatasetDict

from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.methods import LoRAConfig, inject
from course_utils.models.backbones import load_classifier
from course_utils.training.needless import without_drawing
from course_utils.workshop.experiments import race, race_steps
from course_utils.workshop.experiments.race import ARRIVED, SEEDS, WAYS, race_on, summarize


def invented(way: str, seed: int, pace: float, accuracies: tuple[float, ...]) -> dict[str, Any]:
    """A run with three looks, `pace` seconds apart."""
    seconds = [pace * (look + 1) for look in range(3)]
    looks = {"step": [6, 12, 18], "seconds": seconds, "processor_seconds": [2 * s for s in seconds]}
    return {
        "way": way, "seed": seed, "steps": 18, "seconds": seconds[-1], "processor_seconds": 2 * seconds[-1],
        "memory_mb": 100.0 * pace, "in_use_mb": 90.0, "accuracy": accuracies[-1],
        "looks": looks | {"accuracy": list(accuracies)},
    }  # fmt: skip


def test_arrived_is_the_first_look_at_the_share_of_the_recipes_end() -> None:
    paces = {"course": 8.0, "best": 4.0, "fit": 3.0, "quick": 2.0}
    curves = {"course": (0.7, 0.94, 0.9), "best": (0.7, 0.8, 0.9), "fit": (0.86, 0.9, 0.9), "quick": (0.7, 0.8, 0.8)}
    runs = [invented(way, seed, paces[way], curves[way]) for way in WAYS for seed in SEEDS]
    summary = summarize(runs)
    assert summary["target"] == pytest.approx(ARRIVED * 0.9)
    rows = summary["ways"]
    assert [rows[way]["arrived_seconds"] for way in WAYS] == [16, 12, 3, 6]
    assert [rows[way]["reached"] for way in WAYS] == [True, True, True, False]
    assert (rows["quick"]["course_seconds"], rows["quick"]["best_seconds"]) == (4.0, 2.0)
    assert (rows["fit"]["course_arrived_seconds"], rows["course"]["course_seconds"]) == (5.33, 1.0)
    assert all("arrived" not in run for run in runs)
    assert "ways" not in summarize(runs[1:])


def test_the_clock_stands_while_a_run_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(race.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(race.time, "process_time", lambda: now[0] / 2)
    monkeypatch.setattr(race.Track, "prepare", lambda self: None)
    track = race.Track({}, seed=0)
    now[0] = 3.0
    state = torch.get_rng_state()
    with track.paused():
        now[0] = 10.0
        torch.rand(1)
    now[0] = 11.0
    with track.paused():
        pass
    assert (track.wall, track.processor) == (4.0, 2.0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("way", WAYS)
def test_each_way_runs_on_a_few_tweets(way: str) -> None:
    few = DatasetDict({split: rows.select(range(40)) for split, rows in load_sentiment().items()})
    row = race_on(few, way, seed=0, every=1)
    assert row["steps"] == 2 and row["looks"]["step"] == (1, 2, 2)
    assert 0.3 < row["accuracy"] < 1
    assert 0 < row["looks"]["seconds"][0] < row["looks"]["seconds"][1] < row["seconds"]


def test_the_ladder_takes_one_choice_more_each_time() -> None:
    ladder, others = race_steps.choices()
    cuts = [set(choice.short_cuts) for choice in ladder.values()]
    assert all(one <= other for one, other in pairwise(cuts))
    assert not ladder["random"].sorted_ and cuts[0] == set()
    assert {cut.__name__ for cut in cuts[-1]} >= {"without_drawing", "first_token_only"}
    assert {"packed", "fused_adamw"} <= others.keys()


def test_packed_texts_have_the_loss_of_padded_ones() -> None:
    model, tokenizer = load_classifier()
    inject(model, LoRAConfig())
    batch: Any = dict(tokenizer(["good", "a bad day for all of us", "so so"], padding=True, return_tensors="pt"))
    batch["labels"] = torch.tensor([1, 0, 1])
    with without_drawing(model):
        assert torch.allclose(race_steps.packed_loss(model, batch), race_steps.usual_loss(model, batch), atol=1e-5)


def test_the_result_file_is_whole() -> None:
    stored = results.read("race")
    assert {(run["way"], run["seed"]) for run in stored["runs"]} >= {(way, seed) for way in WAYS for seed in SEEDS}
    assert set(stored["ways"]) == set(WAYS)
    for row in stored["choices"].values():
        assert (
            0 < row["arithmetic"] < 1.2
        )  # above 1: a step's larger products ran nearer to the limit than the one alone
        assert sum(row["parts"].values()) == pytest.approx(1, abs=0.01)
