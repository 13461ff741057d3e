"""The studies of chapters 19 and 20: what was promised, and the bookkeeping of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils.distillation import NO_LABEL
from course_utils.evaluation import results
from course_utils.models.backbones import load_classifier
from course_utils.workshop.experiments import (
    distillation as study_distillation,
    few_shot_distillation as study_few_shot,
)
from course_utils.workshop.experiments.store import Runs
from course_utils.workshop.experiments.student_speed import SPEED

WORDS = "bert.embeddings.word_embeddings.weight"
STUDIES: dict[str, Any] = {"distillation": study_distillation, "few_shot_distillation": study_few_shot}


# --- what the book promises -------------------------------------------------------------------------------------------


def test_a_student_of_a_third_of_the_encoder_keeps_97_percent_and_is_twice_as_fast() -> None:
    stored = results.read("distillation")
    two = stored["speed"]["two"]
    assert stored["seeds"] == [0, 1, 2] and stored["texts"]["test"] > 800
    assert two["encoder_share"] <= 0.34 and two["batch_times"] >= 2 and two["single_times"] >= 2
    assert stored["arms"]["soft"]["kept"]["mean"] >= 0.97
    assert stored["arms"]["soft"]["encoder"] == two["encoder"]


def test_every_arm_was_run_with_every_seed() -> None:
    stored = results.read("distillation")
    assert set(stored["arms"]) == set(study_distillation.ARMS)
    assert {run["arm"] for run in stored["runs"]} == set(study_distillation.ARMS) | set(SPEED)
    few = results.read("few_shot_distillation")
    for sizes, arms in study_few_shot.EXPERIMENTS.values():
        for arm in arms:
            assert {str(size) for size in sizes} <= set(few["arms"][arm])
            assert all(row["seeds"] == len(study_few_shot.SEEDS) for row in few["arms"][arm].values())


def test_with_64_labels_distillation_wins_by_five_points_and_with_more_labels_by_less() -> None:
    arms = results.read("few_shot_distillation")["arms"]
    gains = [arms["reviews"][str(size)]["gain"]["mean"] for size in study_few_shot.SIZES]
    assert gains[2] >= 5
    assert gains[0] > gains[2] > gains[4]
    assert arms["reviews_50"]["64"]["accuracy"]["mean"] < arms["labels"]["64"]["accuracy"]["mean"]


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_the_summary_comes_from_the_runs(name: str) -> None:
    stored, study = results.read(name), STUDIES[name]
    assert stored["command"] == study.COMMAND
    again = study.summarize(stored["runs"])
    assert {key: stored[key] for key in again} == again
    fewer = [run for run in stored["runs"] if (run["arm"], run["seed"]) != ("labels", 1)]
    assert "labels" not in study.summarize(fewer)["arms"]


# --- the parts --------------------------------------------------------------------------------------------------------


def test_students_start_where_their_arm_says() -> None:
    query = "bert.encoder.layer.0.attention.self.query.weight"
    teacher, _ = load_classifier()
    with torch.no_grad():
        teacher.get_parameter(query).zero_()
    for name, from_teacher in (("soft", True), ("pretrained_soft", False)):
        student = study_distillation.build(study_distillation.ARMS[name], teacher, 0)
        first = student.get_parameter(query)
        assert bool((first == 0).all()) == from_teacher
        assert not student.get_parameter(WORDS).requires_grad and first.requires_grad
    tiny = study_distillation.build(study_distillation.ARMS["tiny_soft"], teacher, 0)
    assert tiny.config.hidden_size == 128 and tiny.get_parameter(WORDS).requires_grad


def test_few_labels_are_the_same_for_every_arm_of_a_seed() -> None:
    train = study_distillation.tweets()["train"]
    rows = study_few_shot.draw_labels(train, 64, 3)
    assert rows == study_few_shot.draw_labels(train, 64, 3)
    kept = study_few_shot.without_labels(train, rows)["label"]
    assert sum(label != NO_LABEL for label in kept) == 64


# --- the bookkeeping --------------------------------------------------------------------------------------------------


def test_a_stopped_study_goes_on_and_again_starts_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []
    row = dict.fromkeys((*study_distillation.MEASURED, "parameters", "encoder"), 0.9)

    def train_once(arm: study_distillation.Arm, seed: int) -> dict[str, Any]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(arm.title)
        return dict(row)

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(study_distillation, "train_once", train_once)
    with pytest.raises(KeyboardInterrupt):
        study_distillation.main(["layers", "--seeds", "0"])
    assert {run["arm"] for run in results.read("distillation")["runs"]} == {"soft", "layers_1_6"}
    ran.clear()
    assert study_distillation.main(["layers", "--seeds", "0"]) == 0
    assert ran == ["layers 3 and 6", "layers 5 and 6"]
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        study_distillation.main(["layers", "--seeds", "0", "--again"])
    assert len(results.read("distillation")["runs"]) == 2


def test_runs_of_other_processes_stay_and_an_older_one_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    one, other = (Runs("shared", "command", ("arm", "seed"), lambda rows: {"count": len(rows)}) for _ in range(2))
    one.add({"arm": "a", "seed": 0, "accuracy": 0.1})
    other.add({"arm": "b", "seed": 0, "accuracy": 0.2})
    one.add({"arm": "a", "seed": 0, "accuracy": 0.3})
    assert [(run["arm"], run["accuracy"]) for run in one.rows()] == [("a", 0.3), ("b", 0.2)]
    assert results.read("shared")["count"] == 2 and one.has({"arm": "b", "seed": 0})
    one.drop(lambda row: row["arm"] == "b" and row["seed"] == 0)
    assert not one.has({"arm": "b", "seed": 0})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["knids"], "unknown experiment knids; choose from"),
        (["--seeds", "9"], "unknown seed 9; choose from 0, 1, 2"),
    ],
)
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_bad_arguments_are_explained(
    name: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        STUDIES[name].main(arguments)
    assert said in capsys.readouterr().err
