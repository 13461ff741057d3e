"""The study of the training loop: its bookkeeping, and what Adam without decay has to do with AdamW."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from course_utils.workshop.experiments import training_loop as study_training
from course_utils.workshop.experiments.training_loop import RECIPES, SETTINGS, summarize


def run(setting: str, seed: int, accuracies: tuple[float, ...], losses: tuple[float, ...]) -> dict[str, Any]:
    evaluations = [
        {"step": 16 * epoch, "epoch": epoch, "train_loss": 0.1, "loss": loss, "accuracy": accuracy}
        for epoch, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), start=1)
    ]
    return {
        "setting": setting, "seed": seed, "best_epoch": losses.index(min(losses)) + 1, "seconds": 1.0, "steps": 32,
        "longest_gradient": 2.0 + seed, "clipped": 0.5, "losses": [], "evaluations": evaluations,
    }  # fmt: skip


def test_the_summary_takes_the_last_epoch_and_needs_every_seed() -> None:
    runs = [run("course", seed, (0.9, 0.6 + seed / 10), (0.2, 0.3)) for seed in (2, 0, 1)]
    row = summarize(runs)["recipes"]["course"]
    assert row["accuracy"]["seeds"] == pytest.approx([0.6, 0.7, 0.8])
    assert (row["accuracy"]["mean"], row["loss"]["mean"]) == pytest.approx((0.7, 0.3))
    assert (row["longest_gradient"], row["clipped"]) == (4.0, 0.5)
    assert summarize(runs[:2])["recipes"] == {}


def test_the_curves_of_the_overfitting_name_their_best_epoch() -> None:
    row = summarize([run("few", 0, (0.7, 0.8, 0.8), (0.6, 0.3, 0.5))])["overfitting"]["few"]
    assert row["best_epoch"] == 2
    assert (row["best"]["loss"], row["last"]["loss"]) == (0.3, 0.5)


def test_the_tutorials_recipe_is_plain_adam() -> None:
    config = RECIPES["article"].training
    assert (config.schedule, config.warmup, config.weight_decay, config.clip_norm) == ("constant", 0, 0, float("inf"))
    weights = []
    for optimiser in (torch.optim.Adam, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.ones(3))
        stepper = optimiser([weight], lr=1e-3, weight_decay=0.0)
        for factor in (1.0, -2.0, 0.5):
            weight.grad = factor * torch.arange(3.0)
            stepper.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_overfitting_settings_take_as_many_steps() -> None:
    settings = [SETTINGS[name] for name in study_training.OVERFITTING]
    steps = {setting.training.epochs * -(-setting.texts // setting.batch_size) for setting in settings}
    assert len(steps) == 1


def test_an_unknown_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study_training.main(["curse"])
    assert "unknown setting curse" in capsys.readouterr().err
