"""What a run needs before its first step, and what it leaves in order after the last one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from course_utils.methods.base import MethodConfig
from course_utils.methods.counting import trainable_parameters
from course_utils.methods.selective import FullConfig
from course_utils.training import precision
from course_utils.training.checks import check_labels, check_steps, check_trainable
from course_utils.training.config import TrainingConfig, TrainingError
from course_utils.training.distributed import batch_size, share
from course_utils.training.groups import parameter_groups
from course_utils.training.history import BestWeights, History
from course_utils.training.resuming import Savepoint, describe_origin
from course_utils.training.schedule import make_schedule

Watch = Callable[[dict[str, Any]], None]


@dataclass
class Run:
    """Everything that the loop works with.

    Args:
        config: the hyper-parameters.
        model: the model as it was given.
        wrapped: the same model as `accelerate` wraps it: its forward pass shares gradients among the processes.
        method: which tuning method is in the model.
        trained: name → parameter of all that is trained.
        train, validation: loaders whose batches stand on the device.
        optimizer, scheduler: AdamW, and what sets its learning rate.
        accelerator: knows device, precision and the other processes.
        total: steps of the run, if it is not stopped early.
        bar: the bar on the screen.
        watch: is told each row of the history.
        home: where all of the model stood before; None for a model that is spread over several devices.
        history, best: what is known so far, and the best weights so far.
        savepoint: where the run stands, for one that goes on later.
    """

    config: TrainingConfig
    model: nn.Module
    wrapped: nn.Module
    method: MethodConfig
    trained: dict[str, nn.Parameter]
    train: DataLoader
    validation: DataLoader
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    accelerator: Accelerator
    total: int
    bar: tqdm
    watch: Watch
    home: torch.device | None
    history: History
    best: BestWeights
    savepoint: Savepoint
    started: float = field(default_factory=time.perf_counter)

    @property
    def over(self) -> bool:
        """Whether patience or the planned steps have run out, and the last of them have been judged."""
        evaluations = self.history.evaluations
        planned = len(evaluations) == self.config.epochs or (evaluations and evaluations[-1]["step"] == self.total)
        return self.history.stopped_early or bool(planned)


def start(
    model: nn.Module,
    train: DataLoader,
    validation: DataLoader,
    config: TrainingConfig,
    watch: Watch | None = None,
    resume: str | Path | None = None,
) -> Run:
    """Check everything, then bring model and batches to the device; what is refused has moved nothing."""
    trained = trainable_parameters(model)
    check_trainable(trained)
    check_labels(model, train)
    check_labels(model, validation)
    accelerator = _accelerator(config)
    if accelerator.device.type == "cpu":
        precision.warn_if_emulated(model)
    method: MethodConfig = getattr(model, "tuning", None) or FullConfig()
    given = {"training texts": train, "validation texts": validation}
    origin = {} if resume is None else describe_origin(model, trained, method, config, given, accelerator)
    savepoint = Savepoint(resume, train, origin)
    set_seed(config.seed, device_specific=True)  # each process drops out other numbers; the first keeps the seed
    _restart(train)
    title = _title(train, config, accelerator)
    train = share(train, accelerator) if config.split_batches else accelerator.prepare(train)
    total = int(min(config.epochs * math.ceil(len(train) / config.accumulate), config.max_steps or math.inf))
    check_steps(method, total)

    optimizer = torch.optim.AdamW(parameter_groups(trained, method, config))
    scheduler = make_schedule(config, optimizer, total)
    home = _move(model, accelerator.device)
    wrapped, prepared, validation = accelerator.prepare(model, optimizer, validation)
    first = accelerator.is_main_process
    # Not `disable=False` for the first process: that would overrule the variable TQDM_DISABLE.
    silent: dict[str, Any] = {} if first else {"disable": True}
    bar = tqdm(total=total, unit="step", desc=title, **silent)
    run = Run(
        config=config,
        model=model,
        wrapped=wrapped,
        method=method,
        trained=trained,
        train=train,
        validation=validation,
        optimizer=prepared,
        scheduler=scheduler,
        accelerator=accelerator,
        total=total,
        bar=bar,
        watch=watch if watch is not None and first else _tell_nobody,
        home=home,
        history=History(),
        best=BestWeights(trained),
        savepoint=savepoint,
    )
    savepoint.restore(run)
    return run


def finish(run: Run) -> None:
    """However a run ends: the best weights are in the model, and the model is where it was, as it was."""
    try:
        if (
            run.accelerator.num_processes == 1
        ):  # several write together, and one that failed would keep the rest waiting
            run.savepoint.write(run)
    finally:
        run.bar.close()
        run.accelerator.unwrap_model(
            run.wrapped, keep_fp32_wrapper=False
        )  # else bf16 would stay in the model's forward
        run.best.restore()
        run.optimizer.zero_grad()
        if run.home is not None:
            run.model.to(run.home)
        run.history.seconds = time.perf_counter() - run.started


def _accelerator(config: TrainingConfig) -> Accelerator:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device='cuda' was asked for, but torch sees no CUDA device. Use device='auto' (takes what there is) or "
            "'cpu'; on Colab choose Runtime → Change runtime type → GPU."
        )
    # accelerate allows one precision and one device a process; a notebook may well compare two. The state below it,
    # which knows the device, also knows the other processes, and must stay when there are some.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    # Several processes find each other on a processor only when accelerate is told that it is one.
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    device = "cpu" if cpu else torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    PartialState(cpu=cpu)  # the processes have found each other before one of them speaks for all
    # Each process measures for itself, and on the edge they may differ: the first one's choice counts.
    chosen = broadcast_object_list([precision.choose(config.precision, device)])[0]
    return Accelerator(mixed_precision="bf16" if chosen == "bf16" else "no", cpu=cpu)


def _title(train: DataLoader, config: TrainingConfig, accelerator: Accelerator) -> str:
    """What stands before the bar: device, precision (with its measured reason where it was a choice), texts a step."""
    device, processes = accelerator.device.type, accelerator.num_processes
    chosen = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    if device == "cpu" and config.precision != "fp32":
        chosen += f" ({precision.describe(precision.bf16_factor())})"
    texts = (batch_size(train) or 1) * config.accumulate * (1 if config.split_batches else processes)
    return f"training on {device}, {chosen}, {texts} texts a step"


def _restart(loader: DataLoader) -> None:
    """Begin at the sampler's first epoch, so that a second run with the same loader repeats the first."""
    if hasattr(loader.batch_sampler, "epoch"):
        loader.batch_sampler.epoch = 0  # type: ignore[union-attr]


def _move(model: nn.Module, device: torch.device) -> torch.device | None:
    """Bring a model that stands in one place to the device (accelerate does it the first time only); where it stood."""
    places = {parameter.device for parameter in model.parameters()}
    if len(places) != 1:
        return None
    model.to(device)
    return places.pop()


def _tell_nobody(row: dict[str, Any]) -> None:
    """Stands for a `watch` that was not given."""
