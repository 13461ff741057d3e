"""Answers to the exercises of chapter 23: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]


def _contiguous(batch: Any, rank: int, processes: int) -> Any:
    return batch[len(batch) * rank // processes : len(batch) * (rank + 1) // processes]


def _cut_off(batch: Any, rank: int, processes: int) -> Any:
    size = len(batch) // processes
    return batch[rank * size : (rank + 1) * size]


def _filled_up(batch: Any, rank: int, processes: int) -> Any:
    size = -(-len(batch) // processes)
    return (batch + batch)[rank * size : (rank + 1) * size]


def _last_gets_all(batch: Any, rank: int, processes: int) -> Any:
    size = len(batch) // processes
    return batch[rank * size :] if rank == processes - 1 else batch[rank * size : (rank + 1) * size]


def _taken_away(batch: Any, rank: int, processes: int) -> Any:
    share = batch[rank::processes]
    batch.clear()
    return share


def _weighted(gradients: Any, counts: Any) -> Any:
    return sum(n * g for n, g in zip(counts, gradients, strict=True)) / sum(counts)


def _in_place(gradients: Any, counts: Any) -> Any:
    for n, g in zip(counts, gradients, strict=True):
        g *= n
    return sum(gradients) / sum(counts)


def _stacked(gradients: Any, counts: Any) -> Any:
    weights = torch.tensor(counts, dtype=torch.float32)
    return torch.stack(gradients).T @ (weights / weights.sum())


def _stages(optimizer: float, order: tuple[int, int, int]) -> Function:
    """The bytes with another size of the optimiser's state, or the three parts divided in another order."""
    sizes = (optimizer, 2, 2)

    def zero(weights: int, processes: int, stage: int) -> float:
        divided = [order.index(part) < stage for part in range(3)]
        return weights * sum(size / processes if cut else size for size, cut in zip(sizes, divided, strict=True))

    return zero


def _right_save(rank: int, save: Function, wait: Function) -> None:
    if rank == 0:
        save()
    wait()


def _wait_alone(rank: int, save: Function, wait: Function) -> None:
    if rank == 0:
        save()
        wait()


def _wait_first(rank: int, save: Function, wait: Function) -> None:
    wait()
    if rank == 0:
        save()


def _early_return(rank: int, save: Function, wait: Function) -> None:
    if rank > 0:
        wait()
        return
    save()
    wait()


def _twice(rank: int, save: Function, wait: Function) -> None:
    if rank == 0:
        save()
        wait()
    wait()


def _everybody(rank: int, save: Function, wait: Function) -> None:
    save()
    wait()


def _nobody_waits(rank: int, save: Function, wait: Function) -> None:
    if rank == 0:
        save()


def _not_called(rank: int, save: Function, wait: Function) -> None:
    wait()


def _last_one(rank: int, save: Function, wait: Function) -> None:
    if rank == 2:
        save()
    wait()


WRONG: dict[str, list[tuple[Function, str]]] = {
    "scaling_out.shares": [
        (lambda batch, rank, processes: batch, "whole batch"),
        (lambda batch, rank, processes: batch[::processes], "Use the rank"),
        (_cut_off, "belong to nobody"),
        (_filled_up, "comes twice"),
        (_last_gets_all, "differ by one"),
        (_taken_away, "`batch`"),
        (lambda batch, rank, processes: list(range(rank, len(batch), processes)), "positions"),
    ],
    "scaling_out.all_reduce": [
        (lambda gradients, counts: sum(gradients) / len(gradients), "plain mean"),
        (lambda gradients, counts: sum(gradients), "only added"),
        (lambda gradients, counts: sum(counts) * _weighted(gradients, counts), "Divide by the number of texts"),
        (lambda gradients, counts: sum(counts) * _weighted(gradients, counts) / 3, "number of processes"),
        (lambda gradients, counts: sum(g / n for n, g in zip(counts, gradients, strict=True)), "*Multiply*"),
        (lambda gradients, counts: gradients[0], "first process alone"),
        (_in_place, "in place"),
    ],
    "scaling_out.loss_factor": [
        (lambda own, whole, processes: own / whole, "averaged twice"),
        (lambda own, whole, processes: 1, "factor 1"),
        (lambda own, whole, processes: processes, "Where are the shares"),
        (lambda own, whole, processes: whole / (own * processes), "upside down"),
        (lambda own, whole, processes: own / (whole * processes), "Do not divide again"),
        (lambda own, whole, processes: own / processes, "whole batch"),
    ],
    "scaling_out.traffic": [
        (lambda trained, processes: (processes - 1) / processes * 4 * trained / 1, "one of the two rounds"),
        (lambda trained, processes: 2 * (processes - 1) / processes * trained, "count numbers"),
        (lambda trained, processes: 8 * trained, "sends to itself"),
        (lambda trained, processes: 2 * (processes - 1) * 4 * trained, "sends parts"),
        (lambda trained, processes: 8 * (processes - 1) * trained * 3, "It is not 2"),
    ],
    "scaling_out.zero": [
        (lambda weights, processes, stage: 16 * weights / processes, "not everything is divided"),
        (lambda weights, processes, stage: 16 * weights, "something is divided"),
        (_stages(8, (0, 1, 2)), "12 bytes"),
        (_stages(12, (1, 0, 2)), "Stage 1 on 8"),
        (lambda weights, processes, stage: _stages(12, (0, 1, 2))(weights, processes, stage) / 1e9, "bytes, not GB"),
        (lambda weights, processes, stage: _stages(12, (0, 1, 2))(weights, processes, stage + 1), "one stage ahead"),
    ],
    "scaling_out.save_once": [
        (_everybody, "Several processes"),
        (_nobody_waits, "Nobody waits"),
        (_wait_alone, "wait for ever"),
        (_wait_first, "Save first"),
        (_not_called, "Nobody saves"),
        (_last_one, "rank other than 0"),
        (_twice, "called twice"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "scaling_out.shares": [
        _contiguous,
        lambda batch, rank, processes: [text for place, text in enumerate(batch) if place % processes == rank],
    ],
    "scaling_out.all_reduce": [_weighted, _stacked],
    "scaling_out.loss_factor": [lambda own, whole, processes: own / (whole / processes)],
    "scaling_out.traffic": [lambda trained, processes: 8 * trained - 8 * trained / processes],
    "scaling_out.zero": [_stages(12, (0, 1, 2))],
    "scaling_out.save_once": [_right_save, _early_return],
}
