"""One readable training loop for every method, on CPU, GPU or several processes.

`accelerate` decides where the tensors live, how gradients are shared and whether the forward pass runs in bfloat16;
the loop below is otherwise the plain one: forward, loss, backward, clip, step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
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

from course_utils.distributed import batch_size, share
from course_utils.methods.base import MethodConfig
from course_utils.methods.counting import trainable_parameters
from course_utils.methods.selective import FullConfig
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
        clip_norm: the gradient is scaled down to this length when it is longer; `math.inf` never clips.
        accumulate: the optimiser steps once every so many batches, as if they were one large batch. What is left over
            at the end of an epoch makes a smaller one.
        patience: stop after so many evaluations in a row without improvement; None never stops early.
        minimum_change: what counts as an improvement of the validation loss.
        seed: of dropout and of everything else that draws at random while training. (The order of the texts is the
            loader's.)
        precision: "fp32", or "bf16" for autocast.
        device: "auto", "cpu" or "cuda".
        max_steps: stop after so many steps of the optimiser, for short experiments; None means all epochs.
        split_batches: for several processes. False: each process reads batches of its own, so that a step takes as
            many texts as all of them together hold. True: each batch is shared among the processes, so that a step
            takes the texts that it would take in one process.
    """

    learning_rate: float = 5e-4
    epochs: int = 3
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    patience: int | None = None
    minimum_change: float = 0.0
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    max_steps: int | None = None
    split_batches: bool = False

    def __post_init__(self) -> None:
        _require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate), "learning_rate above 0", self.learning_rate
        )
        _require(self.epochs >= 1, "epochs of at least 1", self.epochs)
        _require(self.schedule in _SCHEDULES, f"schedule out of {_SCHEDULES}", self.schedule)
        _require(0 <= self.warmup < 1, "warmup as a share from 0 to below 1", self.warmup)
        _require(self.weight_decay >= 0, "weight_decay of at least 0", self.weight_decay)
        _require(self.clip_norm > 0, "clip_norm above 0", self.clip_norm)
        _require(self.accumulate >= 1, "accumulate of at least 1", self.accumulate)
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
        return pd.DataFrame(self.steps)

    def evaluations_frame(self) -> pd.DataFrame:
        """The evaluations as a table."""
        return pd.DataFrame(self.evaluations)


def fit(
    model: nn.Module,
    train: DataLoader,
    validation: DataLoader,
    config: TrainingConfig | None = None,
    *,
    watch: Callable[[dict[str, Any]], None] | None = None,
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

    Returns:
        The history, for plots and tables.

    Raises:
        TrainingError: nothing is trainable, CUDA was asked for and is absent, a label is out of range, or the loss
            became infinite or NaN. The model then holds the best weights so far.
        SharingError: with `split_batches`, a batch holds fewer texts than there are processes.
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
    set_seed(config.seed, device_specific=True)  # each process drops out other numbers; the first keeps the seed
    _restart(train)
    method: MethodConfig = getattr(model, "tuning", None) or FullConfig()
    optimizer = torch.optim.AdamW(_groups(trained, method, config))
    texts = (batch_size(train) or 1) * config.accumulate * (1 if config.split_batches else accelerator.num_processes)
    said = f"training on {accelerator.device.type}, {config.precision}, {texts} texts a step"
    train = share(train, accelerator) if config.split_batches else accelerator.prepare(train)
    places = {parameter.device for parameter in model.parameters()}
    if len(places) == 1:
        model.to(accelerator.device)  # accelerate would move it the first time only
    wrapped, optimizer, validation = accelerator.prepare(model, optimizer, validation)
    total = int(min(config.epochs * math.ceil(len(train) / config.accumulate), config.max_steps or math.inf))
    scheduler = _schedule(config, optimizer, total)
    tell = watch if watch is not None and accelerator.is_main_process else _tell_nobody

    history, best, started = History(), _Best(trained), time.perf_counter()
    # Not `disable=False` for the main process: that would overrule the variable TQDM_DISABLE.
    silent: dict[str, Any] = {} if accelerator.is_main_process else {"disable": True}
    bar = tqdm(total=total, unit="step", desc=said, **silent)
    try:
        for epoch in range(1, config.epochs + 1):
            wrapped.train()
            for batches in _grouped(train, config.accumulate):
                step = len(history.steps) + 1
                optimizer.zero_grad()
                loss = _backward(wrapped, batches, lambda: method.penalty(model), accelerator)
                norm = cast(torch.Tensor, accelerator.clip_grad_norm_(trained.values(), config.clip_norm)).item()
                _stop_if_not_finite(loss, norm, step, config)
                row: dict[str, Any] = {"step": step, "epoch": epoch, "loss": loss}
                row |= {"learning_rate": scheduler.get_last_lr()[0], "gradient_norm": norm}
                history.steps.append(row)
                optimizer.step()
                method.after_step(model, step)
                scheduler.step()
                tell(dict(row))
                bar.update()
                if step == total:
                    break

            row = _evaluation(wrapped, validation, history, accelerator)
            _stop_if_not_finite(row["loss"], 0.0, len(history.steps), config)
            history.evaluations.append(row)
            tell(dict(row))
            bar.set_postfix(validation_loss=f"{row['loss']:.3f}", refresh=False)
            if not method.finished(len(history.steps)):
                best.keep_last()
                history.best_epoch = epoch
            elif best.take_if_better(row["loss"], config.minimum_change):
                history.best_epoch = epoch
            history.stopped_early = config.patience is not None and best.waited >= config.patience
            if history.stopped_early or len(history.steps) == total:
                break
    finally:
        bar.close()
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # else bf16 would stay in the model's forward
        best.restore()
        optimizer.zero_grad()
        if len(places) == 1:  # a model that is spread over several devices was not moved
            model.to(places.pop())
        history.seconds = time.perf_counter() - started
    return history


def learning_rates(config: TrainingConfig, total: int) -> list[float]:
    """The learning rate of each of `total` steps, in order; nothing is trained.

    Args:
        config: its `learning_rate`, `schedule` and `warmup` are read.
        total: steps of the run.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    scheduler = _schedule(config, optimizer, total)
    rates = []
    for _ in range(total):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` batches in a row; the last list may be shorter."""
    remaining = iter(batches)
    while group := list(islice(remaining, size)):
        yield group


def _backward(
    model: nn.Module,
    batches: list[dict[str, torch.Tensor]],
    penalty: Callable[[], torch.Tensor | None],
    accelerator: Accelerator,
) -> float:
    """Add up the gradients of some batches as if they were one large batch; return the large batch's loss."""
    processes = accelerator.num_processes
    own = torch.tensor(sum(len(batch["labels"]) for batch in batches), device=accelerator.device)
    texts = int(accelerator.reduce(own, "sum"))  # those of all processes
    total = 0.0
    for batch in batches:
        with accelerator.autocast():
            loss = model(**batch).loss  # the mean over this batch's texts
        extra = penalty()
        if extra is not None:
            loss = loss + extra
        # Without this line the gradient is several times too long. Those of the processes are averaged.
        loss = loss * (processes * len(batch["labels"]) / texts)
        accelerator.backward(loss)
        total += accelerator.reduce(loss.detach(), "mean").item()
    return total


class _Best:
    """The weights of the best evaluation so far, and how many evaluations ago it was."""

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


def _tell_nobody(row: dict[str, Any]) -> None:
    """Stands for a `watch` that was not given."""


@torch.no_grad()
def predict(model: nn.Module, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and logits (n, classes) for every text of a loader, in the loader's order.

    The model's mode is restored afterwards.
    """
    labels, logits, _ = _predict(model, loader, None)
    return labels, logits


def predict_in_order(model: nn.Module, loader: DataLoader) -> np.ndarray:
    """Logits (n, classes) in the order of the dataset, for a loader of `make_loader`, which serves texts by length."""
    _, served = predict(model, loader)
    order = [row for batch in loader.batch_sampler for row in batch]  # type: ignore[union-attr]
    logits = np.empty_like(served)
    logits[order] = served
    return logits


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


def _evaluation(model: nn.Module, validation: DataLoader, history: History, accelerator: Accelerator) -> dict[str, Any]:
    """The row of an evaluation after the last step of an epoch."""
    epoch = history.steps[-1]["epoch"]
    losses = [row["loss"] for row in history.steps if row["epoch"] == epoch]
    labels, logits, loss = _predict(model, validation, accelerator)
    row: dict[str, Any] = {"step": len(history.steps), "epoch": epoch, "train_loss": float(np.mean(losses))}
    if not math.isfinite(loss):  # the scores of broken logits would raise another error
        return row | {"loss": loss}
    return row | {"loss": loss} | score(labels, logits).as_dict()


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
    # Several processes find each other on a processor only when accelerate is told that it is one.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    return Accelerator(mixed_precision=precision, cpu=cpu)


def _groups(trained: dict[str, nn.Parameter], method: MethodConfig, config: TrainingConfig) -> list[dict[str, Any]]:
    """Decay matrices and leave vectors alone: pulling a bias or a normalisation's gain to zero helps nobody.

    A vector may be stored as one row or one column, as the factors of (IA)³ are. The parameters of one group share
    their learning rate, which the method may set apart (LoRA+).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        is_vector = sum(size > 1 for size in parameter.shape) < 2
        decay = 0.0 if is_vector else config.weight_decay
        groups.setdefault((method.rate_factor(name), decay), []).append(parameter)
    return [
        {"params": parameters, "lr": factor * config.learning_rate, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _schedule(
    config: TrainingConfig, optimizer: torch.optim.Optimizer, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    # accelerate hands back a wrapper of the optimiser; the schedule belongs to the optimiser inside.
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
