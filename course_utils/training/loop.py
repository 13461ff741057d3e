"""One readable training loop for every method, on CPU, GPU or several processes.

`accelerate` decides where the tensors live, how gradients are shared and whether the forward pass runs in bfloat16;
the loop below is otherwise the plain one: forward, loss, backward, clip, step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from course_utils.evaluation.metrics import score
from course_utils.evaluation.prediction import gather_predictions
from course_utils.training.checks import check_finite
from course_utils.training.config import TrainingConfig
from course_utils.training.history import History
from course_utils.training.run import Run, Watch, finish, start


def fit(
    model: nn.Module,
    train: DataLoader,
    validation: DataLoader,
    config: TrainingConfig | None = None,
    *,
    watch: Watch | None = None,
    resume: str | Path | None = None,
) -> History:
    """Train what is trainable in `model`; at the end it holds the weights of its best epoch.

    It computes where `config.device` says, and brings the model back to where it stood: a model from the processor is
    there again, so that it takes the next batch as before. Best means the lowest loss on `validation`. Two runs with
    the same model, loaders, seed and machine give the same history, number for number.

    Args:
        model: with at least one trainable parameter; it takes a batch as keywords and returns `.loss` and `.logits`.
        train: the loader to learn from, see `make_loader(..., shuffle=True)`.
        validation: the loader to choose the best epoch by. Never pass the test split.
        config: the hyper-parameters.
        watch: is called with each new row of the history, for TensorBoard or `print`. Rows of evaluations hold
            `accuracy`, rows of steps do not. With several processes, only the first one calls it.
        resume: a folder for the state of the run, written after each evaluation and when the run ends early (with
            several processes after evaluations alone, by the first one). Called again with the same model, method,
            loaders and config, `fit` goes on from there, and gives number for number what it would have given without
            the interruption; a run that was over is given back as it was. None writes nothing.

    Returns:
        The history, for plots and tables.

    Raises:
        TrainingError: nothing is trainable, CUDA was asked for and is absent, a label is out of range, the run is too
            short for what the method plans, `resume` holds the state of another run, or the loss became infinite or
            NaN. The model then holds the best weights so far.
        SharingError: with `split_batches`, a batch holds fewer texts than there are processes.
    """
    config = config or TrainingConfig()
    run = start(model, train, validation, config, watch, resume)
    try:
        while not run.over:
            epoch = len(run.history.evaluations) + 1
            train_epoch(run, epoch)
            evaluate_epoch(run, epoch)
            run.savepoint.write(run)
    finally:
        finish(run)
    return run.history


def train_epoch(run: Run, epoch: int) -> None:
    """See each training text once; an epoch that the planned steps cut short sees fewer."""
    run.wrapped.train()
    for batches in run.savepoint.groups(run, in_groups(run.train, run.config.accumulate), epoch):
        step, rate = len(run.history.steps) + 1, run.scheduler.get_last_lr()[0]
        run.optimizer.zero_grad()
        loss = backward(run, batches)
        norm = clip(run)
        check_finite(loss, norm, step, run.config, run.model)
        row: dict[str, Any] = {"step": step, "epoch": epoch, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
        with run.savepoint.in_one_piece():
            run.optimizer.step()
            run.method.after_step(run.model, step)
            run.scheduler.step()
            run.history.steps.append(row)
        run.watch(dict(row))
        run.bar.update()


def backward(run: Run, batches: list[dict[str, torch.Tensor]]) -> float:
    """Add up the gradients of some batches as if they were one large batch; return the large batch's loss."""
    accelerator, processes = run.accelerator, run.accelerator.num_processes
    own = torch.tensor(sum(len(batch["labels"]) for batch in batches), device=accelerator.device)
    texts = int(accelerator.reduce(own, "sum"))  # those of all processes
    total = 0.0
    for batch in batches:
        with accelerator.autocast():
            loss = run.wrapped(**batch).loss  # the mean over this batch's texts
        extra = run.method.penalty(run.model)
        if extra is not None:
            loss = loss + extra
        # Without this line the gradient is several times too long. Those of the processes are averaged.
        loss = loss * (processes * len(batch["labels"]) / texts)
        accelerator.backward(loss)
        total += accelerator.reduce(loss.detach(), "mean").item()
    return total


def clip(run: Run) -> float:
    """Scale the gradient down to `clip_norm` where it is longer; return its length before."""
    norm = run.accelerator.clip_grad_norm_(run.trained.values(), run.config.clip_norm)
    return cast(torch.Tensor, norm).item()


def evaluate_epoch(run: Run, epoch: int) -> None:
    """Judge the model on the validation split, keep its weights if they are the best, and look at the patience."""
    history, config = run.history, run.config
    row = _evaluation(run, epoch)
    check_finite(row["loss"], 0.0, len(history.steps), config, run.model)
    with run.savepoint.in_one_piece():
        history.evaluations.append(row)
        if not run.method.finished(len(history.steps)):
            run.best.keep_last()
            history.best_epoch = epoch
        elif run.best.take_if_better(row["loss"], config.minimum_change):
            history.best_epoch = epoch
        history.stopped_early = config.patience is not None and run.best.waited >= config.patience
    run.watch(dict(row))
    run.bar.set_postfix(validation_loss=f"{row['loss']:.3f}", refresh=False)


def _evaluation(run: Run, epoch: int) -> dict[str, Any]:
    """The row of an evaluation after the last step of an epoch."""
    losses = [row["loss"] for row in run.history.steps if row["epoch"] == epoch]
    labels, logits = gather_predictions(run.wrapped, run.validation, run.accelerator)
    loss = nn.functional.cross_entropy(logits, labels).item()
    row = {"step": len(run.history.steps), "epoch": epoch, "train_loss": float(np.mean(losses)), "loss": loss}
    if not math.isfinite(loss):  # the scores of broken logits would raise another error
        return row
    return row | score(labels.numpy(), logits.numpy()).as_dict()


def in_groups(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` batches in a row; the last list may be shorter."""
    remaining = iter(batches)
    while group := list(islice(remaining, size)):
        yield group
