"""One readable training loop for every method, on CPU, GPU or several processes.

`accelerate` decides where the tensors live, how gradients are shared and whether the forward pass runs in bfloat16;
the loop below is otherwise the plain one: forward, loss, backward, clip, step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from course_utils.methods.base import trainable_parameters
from course_utils.metrics import Scores, score

_SCHEDULES = ("linear", "constant")
_PRECISIONS = ("fp32", "bf16")
_DEVICES = ("auto", "cpu", "cuda")


class TrainingError(RuntimeError):
    """Training cannot start or go on. The model keeps the best weights so far."""


@dataclass(frozen=True)
class TrainingConfig:
    """The hyper-parameters of a run.

    Args:
        learning_rate: the highest one, reached after the warm-up.
        epochs: passes over the training data, at most.
        schedule: "linear" falls to 0 at the end; "constant" stays.
        warmup: share of all steps in which the learning rate climbs from 0.
        weight_decay: AdamW's, on matrices only; biases, normalisations and other vectors are left alone.
        clip_norm: the gradient is scaled down to this length when it is longer.
        patience: stop after so many evaluations in a row without improvement; None never stops early.
        minimum_change: what counts as an improvement of the validation loss.
        seed: of dropout and of everything else that draws at random while training. (The order of the texts is the
            loader's.)
        precision: "fp32", or "bf16" for autocast.
        device: "auto", "cpu" or "cuda".
        max_steps: stop after so many steps, for short experiments; None means all epochs.
    """

    learning_rate: float = 5e-4
    epochs: int = 3
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    patience: int | None = None
    minimum_change: float = 0.0
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    max_steps: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate), "learning_rate above 0", self.learning_rate
        )
        _require(self.epochs >= 1, "epochs of at least 1", self.epochs)
        _require(self.schedule in _SCHEDULES, f"schedule out of {_SCHEDULES}", self.schedule)
        _require(0 <= self.warmup < 1, "warmup as a share from 0 to below 1", self.warmup)
        _require(self.weight_decay >= 0, "weight_decay of at least 0", self.weight_decay)
        _require(self.clip_norm > 0, "clip_norm above 0", self.clip_norm)
        _require(self.patience is None or self.patience >= 1, "patience of at least 1, or None", self.patience)
        _require(self.minimum_change >= 0, "minimum_change of at least 0", self.minimum_change)
        _require(self.precision in _PRECISIONS, f"precision out of {_PRECISIONS}", self.precision)
        _require(self.device in _DEVICES, f"device out of {_DEVICES}", self.device)
        _require(self.max_steps is None or self.max_steps >= 1, "max_steps of at least 1, or None", self.max_steps)


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise TrainingError(f"expected {expected}, got {got!r}")


@dataclass
class History:
    """What happened in a run.

    Args:
        steps: one row a step: `step`, `epoch`, `loss`, `learning_rate`, `gradient_norm` (before clipping).
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
        return pd.DataFrame(self.steps)

    def evaluations_frame(self) -> pd.DataFrame:
        """The evaluations as a table."""
        return pd.DataFrame(self.evaluations)


def fit(model: nn.Module, train: DataLoader, validation: DataLoader, config: TrainingConfig | None = None) -> History:
    """Train what is trainable in `model`; at the end it holds the weights of its best epoch.

    Best means the lowest loss on `validation`. Two runs with the same model, loaders, seed and machine give the same
    history, number for number.

    Args:
        model: with at least one trainable parameter; it takes a batch as keywords and returns `.loss` and `.logits`.
        train: the loader to learn from, see `make_loader(..., shuffle=True)`.
        validation: the loader to choose the best epoch by. Never pass the test split.
        config: the hyper-parameters.

    Returns:
        The history, for plots and tables.

    Raises:
        TrainingError: nothing is trainable, CUDA was asked for and is absent, a label is out of range, or the loss
            became infinite or NaN. The model then holds the best weights so far.
    """
    config = config or TrainingConfig()
    trained = trainable_parameters(model)
    if not trained:
        raise TrainingError(
            "no parameter of the model is trainable; inject a method first, for example inject(model, LoRAConfig())"
        )
    _check_labels(model, train)
    _check_labels(model, validation)

    accelerator = _accelerator(config)
    set_seed(config.seed)
    _restart(train)
    optimizer = torch.optim.AdamW(_groups(trained, config.weight_decay), lr=config.learning_rate)
    wrapped, optimizer, train, validation = accelerator.prepare(model, optimizer, train, validation)
    total = min(config.epochs * len(train), config.max_steps or math.inf)
    scheduler = _schedule(config, optimizer, int(total))

    history, started = History(), time.perf_counter()
    best, best_loss, waited = _copy(trained), math.inf, 0
    # Not `disable=False` for the main process: that would overrule the variable TQDM_DISABLE.
    silent: dict[str, Any] = {} if accelerator.is_main_process else {"disable": True}
    bar = tqdm(total=int(total), unit="step", desc="training", **silent)
    try:
        for epoch in range(1, config.epochs + 1):
            wrapped.train()
            losses = []
            for batch in train:
                with accelerator.autocast():
                    loss = wrapped(**batch).loss
                optimizer.zero_grad()
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(trained.values(), config.clip_norm)
                losses.append(accelerator.reduce(loss.detach(), "mean").item())
                step = len(history.steps) + 1
                _stop_if_not_finite(losses[-1], cast(torch.Tensor, norm).item(), step, config)
                row = {"step": step, "epoch": epoch, "loss": losses[-1]}
                row |= {"learning_rate": scheduler.get_last_lr()[0], "gradient_norm": cast(torch.Tensor, norm).item()}
                history.steps.append(row)
                optimizer.step()
                scheduler.step()
                bar.update()
                if step == total:
                    break

            labels, logits, validation_loss = _predict(wrapped, validation, accelerator)
            _stop_if_not_finite(validation_loss, 0.0, step, config)
            history.evaluations.append(
                {"step": len(history.steps), "epoch": epoch, "train_loss": float(np.mean(losses))}
                | {"loss": validation_loss}
                | score(labels, logits).as_dict()
            )
            bar.set_postfix(validation_loss=f"{validation_loss:.3f}", refresh=False)
            if validation_loss < best_loss - config.minimum_change:
                best, best_loss, waited = _copy(trained), validation_loss, 0
                history.best_epoch = epoch
            else:
                waited += 1
            if config.patience is not None and waited >= config.patience:
                history.stopped_early = True
                break
            if len(history.steps) == total:
                break
    finally:
        bar.close()
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # else bf16 would stay in the model's forward
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(best[name])
        optimizer.zero_grad()
        history.seconds = time.perf_counter() - started
    return history


@torch.no_grad()
def predict(model: nn.Module, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and logits (n, classes) for every text of a loader, in the loader's order.

    The model's mode is restored afterwards.
    """
    labels, logits, _ = _predict(model, loader, None)
    return labels, logits


def evaluate(model: nn.Module, loader: DataLoader) -> Scores:
    """The model's scores on a loader."""
    return score(*predict(model, loader))


@torch.no_grad()
def _predict(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator | None
) -> tuple[np.ndarray, np.ndarray, float]:
    device = next(model.parameters()).device
    labels, logits = [], []
    with _evaluating(model):
        for batch in loader:
            batch = {key: value.to(device) for key, value in batch.items()}
            if accelerator is None:
                output = model(**batch).logits
                truth = batch["labels"]
            else:
                with accelerator.autocast():
                    output = model(**batch).logits
                output, truth = accelerator.gather_for_metrics((output, batch["labels"]))
            labels.append(truth.cpu())
            logits.append(output.float().cpu())
    all_labels, all_logits = torch.cat(labels), torch.cat(logits)
    loss = nn.functional.cross_entropy(all_logits, all_labels).item()
    return all_labels.numpy(), all_logits.numpy(), loss


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the model's own mode again after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _accelerator(config: TrainingConfig) -> Accelerator:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device='cuda' was asked for, but torch sees no CUDA device. Use device='auto' (takes what there is) or "
            "'cpu'; on Colab choose Runtime → Change runtime type → GPU."
        )
    # accelerate allows one precision and one device a process; a notebook may well compare two. The state below it,
    # which knows the device, also knows the other processes, and must stay when there are some.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    precision = "bf16" if config.precision == "bf16" else "no"
    return Accelerator(mixed_precision=precision, cpu=config.device == "cpu")


def _groups(trained: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and leave vectors alone: pulling a bias or a normalisation's gain to zero helps nobody."""
    matrices = [p for p in trained.values() if p.ndim >= 2]
    vectors = [p for p in trained.values() if p.ndim < 2]
    return [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0))
        if parameters
    ]


def _schedule(
    config: TrainingConfig, optimizer: torch.optim.Optimizer, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    # accelerate hands back a wrapper of the optimizer; the schedule belongs to the optimizer inside.
    inner = getattr(optimizer, "optimizer", optimizer)
    warmup = int(config.warmup * total)
    if config.schedule == "constant":
        return get_constant_schedule_with_warmup(inner, warmup)
    return get_linear_schedule_with_warmup(inner, warmup, total)


def _copy(trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def _restart(loader: DataLoader) -> None:
    """Begin at the sampler's first epoch, so that a second run with the same loader repeats the first."""
    if hasattr(loader.batch_sampler, "epoch"):
        loader.batch_sampler.epoch = 0  # type: ignore[union-attr]


def _check_labels(model: nn.Module, loader: DataLoader) -> None:
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    if classes is None or not isinstance(loader.dataset, Sized):
        return
    for position in range(len(loader.dataset)):
        label = loader.dataset[position].get("labels")
        if not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
            raise TrainingError(
                f"text {position} has the label {label!r}, but the model has {classes} classes: labels must be whole "
                f"numbers from 0 to {classes - 1}"
            )


def _stop_if_not_finite(loss: float, norm: float, step: int, config: TrainingConfig) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise TrainingError(
        f"the loss is {loss} and the gradient's length {norm} at step {step}: training cannot go on, and the model was "
        f"put back to its best weights. Most often the learning rate ({config.learning_rate:g}) is too high: try a "
        "tenth of it. Else look for fp16 weights, or inputs that are not numbers."
    )
