"""The learning rate of each step: warm up, then stay or fall.

With N steps, w of them warm-up, and the highest rate η, step k (the first is k = 0) uses η times::

    k / w                  while k < w
    1                      afterwards, schedule "constant"
    (N − k) / (N − w)      afterwards, schedule "linear"

Number for number what transformers' `get_linear_schedule_with_warmup` and `get_constant_schedule_with_warmup` give,
without importing the half of transformers that stands behind them.
"""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR

from course_utils.training.config import TrainingConfig


def make_schedule(config: TrainingConfig, optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
    """A scheduler whose `step()` is called after each step of the optimiser.

    Args:
        config: its `schedule` and `warmup` are read.
        optimizer: each of its groups has a highest rate of its own.
        total: steps of the run, N.
    """
    warmup = int(config.warmup * total)

    def linear(step: int) -> float:
        return step / warmup if step < warmup else max(0.0, (total - step) / (total - warmup))

    def constant(step: int) -> float:
        return step / warmup if step < warmup else 1.0

    return LambdaLR(optimizer, {"linear": linear, "constant": constant}[config.schedule])


def learning_rates(config: TrainingConfig, total: int) -> list[float]:
    """The learning rate of each of `total` steps, in order; nothing is trained.

    Args:
        config: its `learning_rate`, `schedule` and `warmup` are read.
        total: steps of the run.

    >>> learning_rates(TrainingConfig(learning_rate=1.0, warmup=0.5), 4)
    [0.0, 0.5, 1.0, 0.5]
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    scheduler = make_schedule(config, optimizer, total)
    rates = []
    for _ in range(total):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates
