"""Answers to the exercises of chapter 4: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Function = Callable[..., Any]


def _epoch(
    *,
    train: bool = True,
    mask: bool = True,
    move: bool = True,
    zero: bool = True,
    clip: bool = True,
    schedule: str = "step",
    loss: str = "own",
    give: Callable[[list[Any]], Any] = lambda losses: sum(losses) / len(losses),
) -> Function:
    def epoch(model: Any, loader: Any, optimizer: Any, scheduler: Any, device: Any, clip_norm: float) -> Any:
        if train:
            model.train()
        losses = []
        for batch in loader:
            if move:
                batch = {key: value.to(device) for key, value in batch.items()}
            if not mask:
                batch.pop("attention_mask")
            if zero:
                optimizer.zero_grad()
            output = model(**batch)
            if loss == "own":
                value = output.loss
            else:
                value = nn.functional.cross_entropy(output if loss == "output" else output.logits, batch["labels"])
            value.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            if schedule == "before":
                scheduler.step()
            optimizer.step()
            if schedule == "step":
                scheduler.step()
            losses.append(value.item())
        if schedule == "epoch":
            scheduler.step()
        return give(losses)

    return epoch


def _clip_too_late(model: Any, loader: Any, optimizer: Any, scheduler: Any, device: Any, clip_norm: float) -> Any:
    model.train()
    losses = []
    for batch in loader:
        batch = {key: value.to(device) for key, value in batch.items()}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def _zero_too_late(model: Any, loader: Any, optimizer: Any, scheduler: Any, device: Any, clip_norm: float) -> Any:
    model.train()
    losses = []
    for batch in loader:
        loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def _stop(
    *, reset: bool = True, previous: bool = False, change: bool = True, late: int = 0, lowest: bool = False
) -> Function:
    def early_stopping(losses: list[float], patience: int, minimum_change: float) -> tuple[int, int]:
        best, best_epoch, waited, least, before = math.inf, 0, 0, math.inf, math.inf
        for epoch, loss in enumerate(losses, start=1):
            reference = before if previous else least if lowest else best
            before, least = loss, min(least, loss)
            if loss < reference - (minimum_change if change else 0):
                best, best_epoch, waited = loss, epoch, 0 if reset else waited
            else:
                waited += 1
            if waited >= patience + late:
                return best_epoch, epoch
        return best_epoch, len(losses)

    return early_stopping


def _accumulate(
    weigh: Callable[[int, int, int], float] = lambda size, total, count: size / total,
    *,
    before: bool = True,
    inside: bool = False,
    each: bool = False,
    give: str = "weighted",
) -> Function:
    def step(model: Any, batches: list[Any], optimizer: Any) -> Any:
        total = sum(len(batch["labels"]) for batch in batches)
        if before:
            optimizer.zero_grad()
        weighted, plain = 0.0, 0.0
        for batch in batches:
            if inside:
                optimizer.zero_grad()
            size = len(batch["labels"])
            loss = model(**batch).loss
            (loss * weigh(size, total, len(batches))).backward()
            weighted += loss.item() * size / total
            plain += loss.item()
            if each:
                optimizer.step()
        if not each:
            optimizer.step()
        return {"weighted": weighted, "sum": plain, "mean": plain / len(batches)}[give]

    return step


def _one_large_batch(model: Any, batches: list[Any], optimizer: Any) -> float:
    optimizer.zero_grad()
    loss = model(**{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}).loss
    loss.backward()
    optimizer.step()
    return float(loss.item())


def _sum_of_texts(model: Any, batches: list[Any], optimizer: Any) -> Any:
    """The other right way: sum the losses of the texts, then divide the gradients once."""
    optimizer.zero_grad()
    count = sum(len(batch["labels"]) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = nn.functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="sum")
        loss.backward()
        total += loss.item()
    for parameter in model.parameters():
        parameter.grad /= count
    optimizer.step()
    return total / count


def _no_step(model: Any, batches: list[Any], optimizer: Any) -> float:
    optimizer.zero_grad()
    total = sum(len(batch["labels"]) for batch in batches)
    losses = [model(**batch).loss * len(batch["labels"]) / total for batch in batches]
    torch.stack(losses).sum().backward()
    return float(sum(loss.item() for loss in losses))


def _plateau(*, needed: int = 1, reset: bool = True, previous: bool = False, start: int = 1) -> Function:
    def reductions(losses: list[float], patience: int) -> list[int]:
        best, bad, found = math.inf, 0, []
        for epoch, loss in enumerate(losses, start=start):
            bad = 0 if loss < best else bad + 1
            best = loss if previous else min(best, loss)
            if bad >= patience + needed:
                found.append(epoch)
                bad = 0 if reset else bad
        return found

    return reductions


def _torch_plateau(losses: list[float], patience: int) -> list[int]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=patience)
    rates = [1.0]
    for loss in losses:
        scheduler.step(loss)
        rates.append(float(scheduler.get_last_lr()[0]))
    return [epoch for epoch in range(1, len(rates)) if rates[epoch] < rates[epoch - 1]]


WRONG: dict[str, list[tuple[Function, str]]] = {
    "training_loop.epoch": [
        (_epoch(train=False), "model.train()"),
        (_epoch(mask=False), "attention_mask"),
        (_epoch(move=False), "Move each of its tensors"),
        (_epoch(zero=False), "pile up"),
        (_epoch(clip=False), "not clipped"),
        (_clip_too_late, "not clipped"),
        (_zero_too_late, "did not change"),
        (_epoch(schedule="epoch"), "counts steps"),
        (_epoch(schedule="before"), "stands before optimizer.step()"),
        (_epoch(loss="output"), "returns an object"),
        (_epoch(give=lambda losses: losses[-1]), "last mini-batch"),
        (_epoch(give=sum), "sum of the losses"),
        (_epoch(give=lambda losses: None), "return"),
        (lambda model, loader, optimizer, scheduler, device, clip_norm: 0.5, "never called"),
    ],
    "training_loop.early_stopping": [
        (_stop(reset=False), "not set back"),
        (_stop(previous=True), "epoch before"),
        (_stop(change=False), "minimum_change"),
        (_stop(late=1), "too late"),
        (_stop(lowest=True), "slow but steady"),
        (lambda losses, patience, change: _stop()(losses, patience, change)[::-1], "wrong order"),
        (lambda losses, patience, change: (_stop()(losses, patience, change)[1],) * 2, "weights of the last epoch"),
        (lambda losses, patience, change: (losses.index(min(losses)) + 1, len(losses)), "never stops"),
        (
            lambda losses, patience, change: (losses.index(min(losses)) + 1, _stop()(losses, patience, change)[1]),
            "come after the stop",
        ),
        (lambda losses, patience, change: tuple(e - 1 for e in _stop()(losses, patience, change)), "from 0"),
        (lambda losses, patience, change: _stop()(losses, 1, change), "first bad epoch"),
        (lambda losses, patience, change: _stop()(losses, patience, change)[0], "two numbers"),
    ],
    "training_loop.accumulate": [
        (_accumulate(lambda size, total, count: 1.0), "not divided"),
        (_accumulate(lambda size, total, count: 1 / count), "number of batches"),
        (_accumulate(lambda size, total, count: 1 / total), "a mean over its batch already"),
        (_accumulate(inside=True), "inside the loop"),
        (_accumulate(each=True), "after each batch"),
        (_accumulate(before=False), "left over"),
        (_accumulate(give="sum"), "sum of the losses"),
        (_accumulate(give="mean"), "mean of the three losses"),
        (_one_large_batch, "put the batches together"),
        (_no_step, "did not change"),
    ],
    "training_loop.plateau": [
        (_plateau(needed=0), "third bad epoch"),
        (_plateau(needed=2), "one epoch too late"),
        (_plateau(reset=False), "starts at 0 again"),
        (_plateau(previous=True), "epoch before"),
        (_plateau(start=0), "from 0"),
        (lambda losses, patience: _torch_plateau(losses, patience)[:1], "first time only"),
        (lambda losses, patience: 6, "a list of epochs"),
        (lambda losses, patience: _torch_plateau(losses, 3), "patience 3 only"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "training_loop.epoch": [_epoch(), _epoch(loss="logits"), _epoch(give=lambda losses: torch.tensor(losses).mean())],
    "training_loop.early_stopping": [_stop(), lambda *arguments: list(_stop()(*arguments))],
    "training_loop.accumulate": [_accumulate(), _sum_of_texts],
    "training_loop.plateau": [_torch_plateau, _plateau(), lambda *a: tuple(_plateau()(*a))],
}
