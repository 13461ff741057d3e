"""The stored evaluation follows from the stored logits, and says what the chapter says about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from course_utils.evaluation import results
from course_utils.workshop.experiments import evaluation as study_evaluation

STORED = results.read("evaluation")


def test_everything_is_computed_from_the_stored_logits() -> None:
    again = study_evaluation.judge(STORED["labels"], STORED["logits"])
    for key in ("n", "pairs", "sizes", "best_of"):
        assert_close(again[key], STORED[key])
    for name, row in again["models"].items():
        assert_close(row, STORED["models"][name])


def assert_close(ours: Any, stored: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == stored.keys()
        for key in ours:
            assert_close(ours[key], stored[key])
    elif isinstance(ours, list):
        assert len(ours) == len(stored)
        for one, other in zip(ours, stored, strict=True):
            assert_close(one, other)
    else:
        assert ours == (stored if isinstance(ours, str) else pytest.approx(stored, rel=1e-3, abs=1e-3))


def test_the_runs_are_those_of_the_study() -> None:
    quality = results.read("quality")
    assert STORED["command"] == study_evaluation.COMMAND
    for method in ("lora", "head_only"):
        run = next(
            row
            for row in quality["runs"]
            if (row["method"], row["seed"], row["learning_rate"]) == (method, 0, STORED["rates"][method])
        )
        assert STORED["rates"][method] == quality["methods"][method]["learning_rate"]
        assert STORED["models"][method]["accuracy"]["value"] == pytest.approx(run["accuracy"], abs=0.01)
    assert STORED["n"] == {split: quality["texts"][split] for split in ("validation", "test")}
    assert STORED["models"]["words"]["accuracy"]["value"] == pytest.approx(quality["baselines"]["tfidf"])
    assert STORED["models"]["majority"]["accuracy"]["value"] == quality["baselines"]["majority"]


def test_the_chapter_says_what_the_results_say() -> None:
    """Each line is a sentence of the page. When one fails, mend the page."""
    models, quality = STORED["models"], results.read("quality")["methods"]
    lora, head, slow, words = (models[name] for name in ("lora", "head_only", "head_only_slow", "words"))
    assert models["majority"]["f1"]["macro"] < 0.5 < 0.68 < models["majority"]["accuracy"]["value"] < 0.69
    assert head["classes"][0]["recall"] < 0.7 < head["accuracy"]["value"]
    # Two models on the same texts
    assert head["accuracy"]["low"] < slow["accuracy"]["high"]  # the intervals overlap ...
    assert STORED["pairs"][1]["p"] < 0.05 < 0.5 < STORED["pairs"][2]["p"]  # ... and there is a difference
    assert abs(head["accuracy"]["value"] - words["accuracy"]["value"]) < 0.01
    # One seed decides nothing
    full, ours = (quality[name]["seeds"] for name in ("full", "lora"))
    scratch = results.read("quality")["rates"]["scratch"][1]["seeds"]
    assert full[0] > ours[0] and full[1] < ours[1] and min(scratch[1:]) < 0.7 < scratch[0]
    # Calibration
    gap = {name: row["calibration"]["before"]["error"] for name, row in models.items()}
    cooled = {name: row["calibration"]["after"]["error"] for name, row in models.items()}
    chance = {name: row["calibration"]["before"]["by_chance"]["high"] for name, row in models.items()}
    assert gap["majority"] < 0.01 and gap["head_only"] < chance["head_only"] and gap["head_only"] < cooled["head_only"]
    assert gap["head_only_slow"] > chance["head_only_slow"] > cooled["head_only_slow"] and slow["temperature"] < 1
    assert gap["lora"] > chance["lora"] and lora["calibration"]["before"]["confidence"] > lora["accuracy"]["value"]
    assert cooled["lora"] > gap["lora"] and lora["validation_accuracy"] > lora["accuracy"]["value"] + 0.01
    # Thresholds
    for row in (words, head, lora):
        found = row["threshold"]
        assert found["chosen"] > 0.5 and found["test_default"] < found["test_chosen"] <= found["test_cheated"]


def test_the_threshold_that_cheats_is_the_best_on_the_test() -> None:
    truth = np.array(STORED["labels"]["test"])
    for name in ("words", "head_only", "lora"):
        margin = np.diff(np.array(STORED["logits"][name]["test"]), axis=1)[:, 0]
        assert len(margin) == len(truth)
        best = STORED["models"][name]["threshold"]["test_cheated"]
        for threshold in (-1.0, 0.0, 0.5, 1.0, 2.0):
            assert study_evaluation.f1_average(truth, margin > threshold, "macro") <= best + 1e-9
