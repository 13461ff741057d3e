"""What a run leaves behind: a row for each step and each evaluation, and the weights of the best epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class History:
    """What happened in a run.

    Args:
        steps: one row a step of the optimiser: `step`, `epoch`, `loss`, `learning_rate`, `gradient_norm` (before
            clipping).
        evaluations: one row an epoch: `step`, `epoch`, `train_loss` (its mean), `loss` (validation), `accuracy`,
            `f1_macro`, `roc_auc`, `n`.
        best_epoch: whose weights the model has now.
        stopped_early: whether patience ran out.
        seconds: of the whole run, evaluations included. Not compared by `==`.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    stopped_early: bool = False
    seconds: float = field(default=0.0, compare=False)

    def steps_frame(self) -> pd.DataFrame:
        """The steps as a table."""
        import pandas as pd  # half a second that most runs never need

        return pd.DataFrame(self.steps)

    def evaluations_frame(self) -> pd.DataFrame:
        """The evaluations as a table."""
        import pandas as pd

        return pd.DataFrame(self.evaluations)


class BestWeights:
    """The weights of the best evaluation so far, and how many evaluations ago it was.

    Args:
        trained: name → parameter of all that is trained. Before the first evaluation these are the best.
    """

    def __init__(self, trained: dict[str, nn.Parameter]) -> None:
        self.trained, self.loss, self.waited = trained, math.inf, 0
        self.weights = _copy(trained)

    def take_if_better(self, loss: float, minimum_change: float) -> bool:
        """Note the loss of an evaluation; keep the weights if it is lower than the best by more than the change."""
        if loss < self.loss - minimum_change:
            self.weights, self.loss, self.waited = _copy(self.trained), loss, 0
            return True
        self.waited += 1
        return False

    def keep_last(self) -> None:
        """Keep the weights as they are, but let any later evaluation be better."""
        self.weights = _copy(self.trained)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights back into the model."""
        for name, parameter in self.trained.items():
            parameter.copy_(self.weights[name])


def _copy(trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained.items()}
