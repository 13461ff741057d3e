"""Which learning rate of a method is best, by the validation loss over seeds."""

from __future__ import annotations

import math
from typing import Any

SEEDS = (0, 1, 2, 3, 4)


def finalists(runs: list[dict[str, Any]], method: str) -> list[float]:
    """The two learning rates with the lowest validation loss among the runs with the first seed, the best one first."""
    ranked = sorted(runs_of(runs, method, seed=SEEDS[0]), key=lambda run: _finite(run["validation_loss"]))
    return [float(run["learning_rate"]) for run in ranked[:2]]


def best_rate(runs: list[dict[str, Any]], method: str) -> float | None:
    """The finalist with the lowest mean validation loss over all seeds; None while runs of a finalist are missing."""
    losses = {}
    for rate in finalists(runs, method):
        mine = runs_of(runs, method, rate=rate)
        if {run["seed"] for run in mine} != set(SEEDS):
            return None
        losses[rate] = sum(_finite(run["validation_loss"]) for run in mine)
    return min(losses, key=losses.__getitem__, default=None)


def runs_of(
    runs: list[dict[str, Any]], method: str, *, rate: float | None = None, seed: int | None = None
) -> list[dict[str, Any]]:
    """The runs of a method, of all rates and seeds or of one."""
    return [
        run
        for run in runs
        if run["method"] == method and rate in (None, run["learning_rate"]) and seed in (None, run["seed"])
    ]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
