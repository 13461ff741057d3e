"""Hyper-parameter search with Optuna: few trials, bad ones stopped early, and everything kept on disk.

Optuna's TPE sampler proposes settings that look promising after the trials so far (Bergstra et al. 2011). After each
epoch a trial reports its validation loss, and the median pruner stops it if the loss is worse than the median of the
finished trials at the same epoch (Akiba et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from datasets import DatasetDict
from optuna.trial import FrozenTrial, TrialState

from course_utils.errors import CourseError
from course_utils.methods import LoRAConfig
from course_utils.models.backbones import DEFAULT_BACKBONE
from course_utils.training.recipes import Recipe, trained

#: How many trials; stated before the first of them.
BUDGET = 8
#: So many trials run to their end before any may be stopped.
STARTUP = 4
RATES = (5e-4, 1e-2)
RANKS = (2, 4, 8)  # rank 8 on query and value trains 0.33% of MiniLM; more would break the limit of 0.35%
SCALES = (1.0, 2.0, 4.0)
#: The study's setting for LoRA: the search has to beat it, so it is the first trial.
KNOWN = {"learning_rate": 2e-3, "rank": 8, "scale": 2.0}
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class SearchError(CourseError, ValueError):
    """The search cannot run as asked."""


def recipe(parameters: Mapping[str, Any], backbone: str = DEFAULT_BACKBONE) -> Recipe:
    """The recipe for what a trial proposes.

    Args:
        parameters: `learning_rate`, `rank`, and `scale` = alpha / rank.
        backbone: see `Recipe`.

    Raises:
        SearchError: one of the three is missing.
    """
    if missing := set(KNOWN) - set(parameters):
        raise SearchError(f"expected {', '.join(KNOWN)}; missing: {', '.join(sorted(missing))}")
    rank = int(parameters["rank"])
    return Recipe(LoRAConfig(rank=rank, alpha=rank * parameters["scale"]), parameters["learning_rate"], backbone)


def open_study(storage: Path, name: str = "lora") -> optuna.Study:
    """The study in an SQLite file, new or as an earlier process left it.

    Raises:
        SearchError: the folder does not exist or the file is no study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not storage.parent.is_dir():
        raise SearchError(f"the folder {storage.parent} does not exist; create it, or name another file")
    try:
        study = optuna.create_study(
            study_name=name, storage=f"sqlite:///{storage}", direction="minimize", load_if_exists=True
        )
    except Exception as error:  # SQLAlchemy has a dozen of them
        raise SearchError(f"{storage} cannot be used as Optuna's storage: {str(error).splitlines()[0]}") from error
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # a killed process left it behind
    study.enqueue_trial(KNOWN, skip_if_exists=True)
    return study


def search(
    tweets: DatasetDict, storage: Path, trials: int = BUDGET, backbone: str = DEFAULT_BACKBONE
) -> list[FrozenTrial]:
    """Run trials until `trials` of them are finished, and return these.

    Args:
        tweets: the three splits; test is not read.
        storage: Optuna's SQLite file. A second call with the same file goes on where the first one stopped.
        trials: finished or pruned trials in all.
        backbone: see `Recipe`.

    Raises:
        SearchError: fewer than one trial, or a storage that cannot be used.
    """
    if trials < 1:
        raise SearchError(f"a search needs at least one trial, got {trials}")
    study = open_study(storage, f"lora on {backbone}")

    def objective(trial: optuna.Trial) -> float:
        proposed = {
            "learning_rate": trial.suggest_float("learning_rate", *RATES, log=True),
            "rank": trial.suggest_categorical("rank", RANKS),
            "scale": trial.suggest_categorical("scale", SCALES),
        }

        def report(row: dict[str, Any]) -> None:
            if "accuracy" not in row:  # a step; only epochs are judged
                return
            trial.report(row["loss"], row["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

        _, _, facts = trained(recipe(proposed, backbone), tweets, seed=0, watch=report)
        trial.set_user_attr("validation_accuracy", facts["validation_accuracy"])
        return float(facts["validation_loss"])

    while len(done := study.get_trials(states=_DONE)) < trials:
        # A new seed each time: after a restart the sampler must not propose the same settings again.
        study.sampler = optuna.samplers.TPESampler(seed=len(done), n_startup_trials=STARTUP)
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
        study.optimize(objective, n_trials=1)
        trial = study.get_trials(deepcopy=False)[-1]
        print(f"trial {trial.number}: {trial.params}, {trial.state.name}, {trial.value}", flush=True)
    return done


def finalists(trials: list[FrozenTrial], count: int = 2) -> list[FrozenTrial]:
    """The finished trials with the lowest validation loss, best first, each setting once."""
    complete = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value or 0.0)
    different = {str(trial.params): trial for trial in reversed(complete)}
    return sorted(different.values(), key=lambda t: t.value or 0.0)[:count]


def table(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """One row a trial, for the result file."""
    rows = []
    for trial in trials:
        started, ended = trial.datetime_start, trial.datetime_complete
        rows.append(
            {
                "number": trial.number,
                **trial.params,
                "alpha": trial.params["rank"] * trial.params["scale"],
                "state": "stopped early" if trial.state == TrialState.PRUNED else "finished",
                "epochs": len(trial.intermediate_values),
                "losses": [round(loss, 4) for _, loss in sorted(trial.intermediate_values.items())],
                "best_loss": min(trial.intermediate_values.values()),
                "seconds": round((ended - started).total_seconds(), 1) if started and ended else None,
            }
        )
    return rows
