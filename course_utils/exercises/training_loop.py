"""The checks of chapter 4, the training loop. Each runs the answer on a tiny model or a short list of losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number

_LOOP = "The loop, mended line by line"
_STOPPING = "Early stopping, and the best weights"
_ACCUMULATION = "Gradient accumulation"
_PLATEAU = "ReduceLROnPlateau, and when it can fire"


class _Carried(torch.Tensor):
    """A tensor that remembers whether somebody moved it to a device."""

    moved: list[tuple[Any, ...]]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def to(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.moved.append((*arguments, *options.values()))
        return self.as_subclass(torch.Tensor).to(*arguments, **options)


class _Tiny(nn.Module):
    """A classifier that takes a batch as transformers' do, and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(12, 3, generator=generator))
        self.head = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.modes: list[bool] = []
        self.masked: list[bool] = []
        self.sizes: list[int] = []

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **others: Any,
    ) -> SequenceClassifierOutput:
        self.modes.append(self.training)
        self.masked.append(attention_mask is not None)
        self.sizes.append(len(input_ids))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = mask[..., None].float()
        logits = (self.table[input_ids] * weights).sum(1) / weights.sum(1) @ self.head
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in (self.table, self.head)])


def _batches(sizes: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(11)
    batches = []
    for size in sizes:
        ids = torch.randint(0, 12, (size, 5), generator=generator)
        mask = (torch.arange(5) < torch.randint(2, 6, (size, 1), generator=generator)).long()
        labels = torch.randint(0, 2, (size,), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def _called(answer: Any, *arguments: Any) -> Any:
    """Call the answer; the mistake of the tutorial's loop gets its own sentence."""
    try:
        return call(answer, *arguments, changes=True)
    except TypeError as error:
        if "SequenceClassifierOutput" in str(error):
            raise Wrong(
                "The model returns an object, not a tensor: take its .loss, or give its .logits to the loss function."
            ) from None
        raise


# --- the loop --------------------------------------------------------------------------------------------------------

_CLIP = 0.1


def _train(epoch: Callable[..., Any], sizes: Sequence[int] = (4, 4, 4), clip: float = _CLIP) -> tuple[_Tiny, Any]:
    """The model after an epoch, and what the epoch returned."""
    model = _Tiny().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 6)
    # The same place under another name, to see which was used.
    device = torch.device("cpu", 0) if clip == _CLIP else torch.device("cpu")
    return model, epoch(model, _batches(sizes), optimizer, scheduler, device, clip)


def _train_quietly(epoch: Callable[..., Any]) -> torch.Tensor:
    """The weights; torch's warning about the wrong order belongs to the learner's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _train(epoch)[0].weights()


def _epoch(
    *, zero: bool = True, clip: bool = True, schedule: str = "step", last_only: bool = False
) -> Callable[..., list[float]]:
    """An epoch as it should be, or with a mistake."""

    def run(
        model: nn.Module, loader: Any, optimizer: Any, scheduler: Any, device: Any, clip_norm: float
    ) -> list[float]:
        losses = []
        for number_, batch in enumerate(loader):
            if zero:
                optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            if schedule == "before":
                scheduler.step()
            if not last_only or number_ == 2:
                optimizer.step()
            if schedule == "step":
                scheduler.step()
            losses.append(loss.item())
        return losses

    return run


@exercise(
    "training_loop.epoch",
    points=4,
    passes="Training mode, one device, the mask, a clean gradient, clipping, and a schedule that moves with each step.",
    section=_LOOP,
)
def _train_epoch(answer: Any) -> None:
    model, value = _watched_epoch(answer)
    right, losses = _train(_epoch())
    _epoch_weights(model.weights(), right.weights())
    _epoch_loss(value, losses)
    again = (5, 3, 2, 7), 0.3
    model, _ = _watched_epoch(answer, *again)
    if not equal(model.weights(), _train(_epoch(), *again)[0].weights()):
        raise Wrong("It is right for one loader, or for one clip_norm, only. Use the arguments.")


def _watched_epoch(answer: Any, sizes: Sequence[int] = (4, 4, 4), clip: float = _CLIP) -> tuple[_Tiny, Any]:
    """The model after the answer's epoch and what it returned, once model and batches were handled as they should be."""
    moved: list[tuple[Any, ...]] = []
    devices: list[torch.device] = []

    def watched(model: _Tiny, loader: Any, *others: Any) -> Any:
        carried: list[dict[str, Any]] = []
        devices.append(others[2])
        for batch in loader:
            carried.append({key: value.as_subclass(_Carried) for key, value in batch.items()})
            for value in carried[-1].values():
                value.moved = moved
        return _called(answer, model, carried, *others)

    model, value = _train(watched, sizes, clip)
    if not model.modes:
        raise Wrong("The model was never called. Go through the batches of `loader`.")
    if not all(model.modes):
        raise Wrong("The model was in evaluation mode, so its dropout was off. Begin with model.train().")
    if not all(model.masked):
        raise Wrong(
            "The model got no attention_mask, so it read the padding as if it were text. Pass the whole batch: "
            "model(**batch)."
        )
    if len(moved) < 2 * len(sizes):
        raise Wrong("The batch stays where it was. Move each of its tensors to `device`, or training fails on a GPU.")
    if not all(str(devices[0]) in map(str, to) for to in moved):
        raise Wrong(
            f"The batch was moved to {moved[0][0]}, and the argument `device` is {devices[0]}. Use the argument."
        )
    return model, value


def _epoch_weights(weights: torch.Tensor, right: torch.Tensor) -> None:
    compare(
        weights,
        right,
        [
            (
                _Tiny().weights(),
                "The weights did not change. Look for a missing backward() or step(), or a zero_grad() between the two.",
            ),
            (
                _train_quietly(_epoch(zero=False)),
                "The gradients of all batches pile up: PyTorch adds to .grad. Call optimizer.zero_grad() in each step.",
            ),
            (
                _train_quietly(_epoch(clip=False)),
                "The gradient is not clipped. Call clip_grad_norm_ between backward() and step().",
            ),
            (
                _train_quietly(_epoch(schedule="never")),
                "The learning rate stays the same within the epoch. This schedule counts steps: call scheduler.step() "
                "after each optimizer.step().",
            ),
            (
                _train_quietly(_epoch(schedule="before")),
                "scheduler.step() stands before optimizer.step(), so the first learning rate is skipped.",
            ),
            (
                _train_quietly(_epoch(last_only=True)),
                "The optimiser steps only once. Step in each batch.",
            ),
            (
                _train_quietly(_epoch(clip=False, zero=False)),
                "The gradients pile up and are not clipped. Call zero_grad() first and clip_grad_norm_ before step().",
            ),
        ],
        "After three batches the weights are not those of: zero_grad, forward, backward, clip, step, scheduler.step.",
    )


def _epoch_loss(value: Any, losses: list[float]) -> None:
    mean = sum(losses) / 3
    compare(
        number(value),
        mean,
        [
            (losses[-1], "You return the loss of the last mini-batch. One batch says little: return the mean of all."),
            (losses[0], "You return the loss of the first mini-batch. Return the mean of all."),
            (sum(losses), "You return the sum of the losses. Divide it by the number of batches."),
        ],
        f"The mean loss of the epoch is {mean:.4f}, your function returns {number(value):.4f}.",
    )
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise Wrong("You return a tensor that keeps the whole computation in memory. Collect loss.item().")


# --- early stopping --------------------------------------------------------------------------------------------------


def _stop(
    losses: Sequence[float],
    patience: int,
    change: float = 0.0,
    *,
    reset: bool = True,
    against: str = "best",
    late: int = 0,
) -> tuple[int, int]:
    """Best and last epoch, or what comes out with a mistake."""
    best, best_epoch, waited, lowest, before = math.inf, 0, 0, math.inf, math.inf
    for epoch, loss in enumerate(losses, start=1):
        reference = {"best": best, "previous": before, "lowest": lowest}[against]
        before, lowest = loss, min(loss, lowest)
        if loss < reference - change:
            best, best_epoch = loss, epoch
            waited = 0 if reset else waited
        else:
            waited += 1
        if waited >= patience + late:
            return best_epoch, epoch
    return best_epoch, len(losses)


@exercise(
    "training_loop.early_stopping",
    points=3,
    passes="Patience counts evaluations in a row without improvement, and the best weights come back, not the last.",
    section=_STOPPING,
)
def _early_stopping(answer: Any) -> None:
    _stops_by_patience(answer)
    _needs_a_minimum_change(answer)
    if not equal(_pair(call(answer, [0.7, 0.6, 0.5], 1, 0.0)), _epochs((3, 3))):
        raise Wrong("When every epoch improves, nothing stops: for [0.7, 0.6, 0.5] the best and the last epoch are 3.")
    losses = [0.7, 0.6, 0.65, 0.62, 0.5, 0.55, 0.54, 0.53, 0.4]
    if not equal(_pair(call(answer, list(losses), 3, 0.0)), _epochs(_stop(losses, 3))):
        raise Wrong(f"It is right for patience 2 only: with 3 it is {_stop(losses, 3)} for the losses {losses}.")


def _stops_by_patience(answer: Any) -> None:
    losses = [0.60, 0.50, 0.52, 0.49, 0.53, 0.51, 0.52, 0.48, 0.49, 0.50, 0.46]
    best, last = _stop(losses, 2)
    lowest = losses.index(min(losses)) + 1
    compare(
        _pair(call(answer, list(losses), 2, 0.0)),
        _epochs((best, last)),
        [
            (_epochs((last, best)), "You return the two in the wrong order: the best epoch first, then the last one."),
            (_epochs((best - 1, last - 1)), "You count the epochs from 0. The first epoch is 1."),
            (
                _epochs((last, last)),
                "You keep the weights of the last epoch. Those of the best one are wanted: remember its number.",
            ),
            (_epochs((lowest, len(losses))), "It never stops. Count the evaluations in a row that did not improve."),
            (
                _epochs((lowest, last)),
                "You look at losses that come after the stop. Training never got there.",
            ),
            (
                _epochs(_stop(losses, 2, reset=False)),
                "Your counter is not set back. An improvement starts it at 0 again.",
            ),
            (
                _epochs(_stop(losses, 2, against="previous")),
                "You compare with the epoch before. Compare with the best epoch so far.",
            ),
            (
                _epochs(_stop(losses, 2, late=1)),
                "You stop one epoch too late. With patience 2, the second bad epoch in a row is the last.",
            ),
            (_epochs(_stop(losses, 1)), "You stop at the first bad epoch. The patience is an argument: here it is 2."),
        ],
        f"For the losses {losses} and patience 2 it is {(best, last)}.",
    )


def _needs_a_minimum_change(answer: Any) -> None:
    slow = [0.500, 0.495, 0.489, 0.485, 0.484, 0.483]
    change = 0.01
    compare(
        _pair(call(answer, list(slow), 2, change)),
        _epochs(_stop(slow, 2, change)),
        [
            (_epochs(_stop(slow, 2)), "You do not use minimum_change: a smaller improvement does not count as one."),
            (
                _epochs(_stop(slow, 2, change, against="lowest")),
                "A slow but steady fall counts too: compare with the loss of the last epoch that improved, not with the "
                "lowest loss or with the epoch before.",
            ),
        ],
        f"For the losses {slow}, patience 2 and minimum_change {change} it is {_stop(slow, 2, change)}.",
    )


def _epochs(value: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _pair(value: Any) -> torch.Tensor:
    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        raise Wrong("Expected two numbers, the best epoch and the last epoch.")
    return torch.tensor([number(part) for part in value], dtype=torch.float64)


# --- gradient accumulation -------------------------------------------------------------------------------------------


_UNEQUAL = (4, 4, 2)


def _accumulate(
    weigh: Callable[[int, list[int]], float],
    *,
    fresh: bool = False,
    every: bool = False,
    all_sizes: Sequence[int] = _UNEQUAL,
) -> torch.Tensor:
    """The weights after one step over several batches whose losses are weighted, perhaps wrongly."""
    model, batches = _Tiny().train(), _batches(all_sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for batch in batches:
        if fresh:
            optimizer.zero_grad()
        (model(**batch).loss * weigh(len(batch["labels"]), [len(other["labels"]) for other in batches])).backward()
        if every:
            optimizer.step()
    if not every:
        optimizer.step()
    return model.weights()


@exercise(
    "training_loop.accumulate",
    points=3,
    passes="Several small batches, one step, and the same weights as with one large batch.",
    section=_ACCUMULATION,
)
def _accumulated_step(answer: Any) -> None:
    model, value = _accumulated(answer, _UNEQUAL)
    _accumulated_weights(model.weights())
    _accumulated_loss(value)
    others = (7, 1, 3, 5)
    if not equal(_accumulated(answer, others)[0].weights(), _accumulate(_share, all_sizes=others)):
        raise Wrong("It is right for one list of batches only. Count the batches and texts that are handed over.")


def _accumulated(answer: Any, sizes: Sequence[int]) -> tuple[_Tiny, Any]:
    """The model after the answer's step, and what the answer returned."""
    model, batches = _Tiny().train(), _batches(sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    # Left over from a step before; the answer must clear it.
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    value = _called(answer, model, batches, optimizer)
    _one_by_one(model, max(sizes))
    return model, value


def _one_by_one(model: _Tiny, largest: int) -> None:
    """The model saw each small batch by itself, and its mask."""
    if any(size > largest for size in model.sizes):
        raise Wrong(
            "You put the batches together. That is right, and needs the memory that you wanted to save: call the model "
            "once for each batch."
        )
    if not all(model.masked):
        raise Wrong("The model got no attention_mask. Pass the whole batch: model(**batch).")


def _share(size: int, sizes: list[int]) -> float:
    return size / sum(sizes)


def _accumulated_weights(weights: torch.Tensor) -> None:
    stale = _Tiny()
    with torch.no_grad():
        for parameter in stale.parameters():
            parameter.sub_(1.0)
    leftover = _accumulate(_share) + stale.weights() - _Tiny().weights()
    compare(
        weights,
        _accumulate(_share),
        [
            (_Tiny().weights(), "The weights did not change. Did you call optimizer.step() after the last batch?"),
            (leftover, "A gradient was left over from the step before. Call optimizer.zero_grad() first."),
            (
                _accumulate(lambda size, sizes: 1.0),
                "The losses are added and not divided: the gradient is three times too long. Multiply each loss by "
                "its batch's share of the texts.",
            ),
            (
                _accumulate(lambda size, sizes: 1 / len(sizes)),
                "You divide by the number of batches. That is right for batches of equal size; here the last one is "
                "half as large, and its texts would count double. Take each batch's share of the texts.",
            ),
            (
                _accumulate(_share, fresh=True),
                "zero_grad() stands inside the loop, so only the last batch counts. Call it once, before the loop.",
            ),
            (
                _accumulate(lambda size, sizes: 1.0, fresh=True),
                "zero_grad() stands inside the loop, so only the last batch counts. Call it once, before the loop.",
            ),
            *(
                (
                    _accumulate(weigh, every=True, fresh=fresh),
                    "The optimiser steps after each batch. That is ordinary training with small batches: step once, "
                    "after the last.",
                )
                for weigh in (_share, lambda size, sizes: 1.0, lambda size, sizes: 1 / len(sizes))
                for fresh in (True, False)
            ),
            (
                _accumulate(lambda size, sizes: 1 / sum(sizes)),
                "Each loss is a mean over its batch already. Multiply it by the batch's share of the texts.",
            ),
        ],
        "The weights are not those of one step with all texts in one batch.",
    )


def _accumulated_loss(value: Any) -> None:
    sizes = list(_UNEQUAL)
    losses = [_Tiny()(**batch).loss.item() for batch in _batches(_UNEQUAL)]
    right = sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / sum(sizes)
    compare(
        number(value),
        right,
        [
            (sum(losses), "You return the sum of the losses. Add up the weighted ones: their sum is the mean."),
            (sum(losses) / 3, "You return the mean of the three losses. The last batch is smaller: weigh them."),
            (losses[-1], "You return the loss of the last batch. Add up the weighted ones."),
            (losses[-1] * sizes[-1] / sum(sizes), "You return the last batch's part. Add up all of them."),
        ],
        f"The loss of the large batch is {right:.4f}, your function returns {number(value):.4f}.",
    )


# --- ReduceLROnPlateau -----------------------------------------------------------------------------------------------


def _plateau(losses: Sequence[float], patience: int) -> list[int]:
    """After which epochs torch's scheduler lowers the rate."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", patience=patience)
    found = []
    for epoch, loss in enumerate(losses, start=1):
        before = optimizer.param_groups[0]["lr"]
        scheduler.step(loss)
        if optimizer.param_groups[0]["lr"] < before:
            found.append(epoch)
    return found


def _plateau_by_hand(
    losses: Sequence[float], patience: int, *, needed: int = 1, reset: bool = True, previous: bool = False
) -> list[int]:
    best, bad, found = math.inf, 0, []
    for epoch, loss in enumerate(losses, start=1):
        if loss < best:
            best, bad = loss, 0
        else:
            bad += 1
        if previous:
            best = loss
        if bad >= patience + needed:
            found.append(epoch)
            bad = 0 if reset else bad
    return found


@exercise(
    "training_loop.plateau",
    points=2,
    passes="With patience 3 four bad epochs in a row are needed: not one run of four epochs has them.",
    section=_PLATEAU,
)
def _reductions(answer: Any) -> None:
    losses = [0.60, 0.50, 0.55, 0.52, 0.51, 0.56, 0.53, 0.54, 0.55, 0.56, 0.49, 0.57]

    def epochs(value: Any) -> torch.Tensor:
        if isinstance(value, (int, float)):
            raise Wrong("Expected a list of epochs, got one number. It can be lowered more than once, or never.")
        return torch.tensor([number(part) for part in value], dtype=torch.float64)

    def value(losses: list[float], patience: int) -> torch.Tensor:
        return epochs(call(answer, list(losses), patience))

    right = _plateau(losses, 3)
    compare(
        value(losses, 3),
        epochs(right),
        [
            (
                epochs(_plateau_by_hand(losses, 3, needed=0)),
                "You lower it at the third bad epoch. Three bad epochs are tolerated; the fourth in a row is too much.",
            ),
            (
                epochs(_plateau_by_hand(losses, 3, needed=2)),
                "You lower it one epoch too late: more than 3 bad epochs are 4.",
            ),
            (
                epochs(_plateau_by_hand(losses, 3, reset=False)),
                "After lowering, the counter starts at 0 again. Yours goes on, and lowers the rate in each bad epoch.",
            ),
            (
                epochs(_plateau_by_hand(losses, 3, previous=True)),
                "You compare with the epoch before. A bad epoch is one that does not beat the best so far.",
            ),
            (epochs([epoch - 1 for epoch in right]), "You count the epochs from 0. The first epoch is 1."),
            (epochs(right[:1]), "You found the first time only. It can happen again."),
        ],
        f"For the losses {losses} and patience 3 it is lowered after the epochs {right}.",
    )
    if not equal(value([0.5, 0.6, 0.7, 0.8], 3), epochs([])):
        raise Wrong("In a run of four epochs it can never be lowered with patience 3: the first one always improves.")
    if not equal(value(losses, 1), epochs(_plateau(losses, 1))):
        raise Wrong("It is right for patience 3 only; use the argument.")
