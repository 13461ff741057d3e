"""The checks of chapter 23, Scaling out."""

from __future__ import annotations

from typing import Any

import torch

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number, random_tensors, tensor
from course_utils.exercises.outcomes import same

_FORMULA = "The formula, beside the code"


# --- shares ---------------------------------------------------------------------------------------------------------


@exercise(
    "scaling_out.shares",
    points=2,
    passes="Every text once, and no process has more than one text more than another.",
    section=_FORMULA,
)
def _shares(answer: Any) -> None:
    for texts, processes in ((8, 2), (7, 2), (11, 4)):
        batch = [10 * number_ + 3 for number_ in range(texts)]
        shares = [_list(call(answer, list(batch), rank, processes)) for rank in range(processes)]
        _judge_shares(batch, shares)


def _list(share: Any) -> list[int]:
    if not isinstance(share, (list, tuple)):
        raise Wrong(f"Expected a list of texts, got {type(share).__name__}.")
    return list(share)


def _judge_shares(batch: list[int], shares: list[list[int]]) -> None:
    processes, together = len(shares), sorted(text for share in shares for text in share)
    if all(sorted(share) == batch for share in shares):
        raise Wrong("Every process has the whole batch: all compute the same, and nothing is gained.")
    if all(share == shares[0] for share in shares[1:]):
        raise Wrong("All processes have the same texts. Use the rank.")
    if unknown := set(together) - set(batch):
        raise Wrong(f"{sorted(unknown)[0]} is no text of the batch. Are these positions? Return the texts themselves.")
    if missing := set(batch) - set(together):
        raise Wrong(
            f"{len(batch)} texts among {processes} processes: {len(missing)} of them belong to nobody. A batch need "
            "not divide evenly; no text may be lost."
        )
    if len(together) > len(batch):
        raise Wrong("A text comes twice. Filling up with texts seen before counts them twice in the gradient.")
    sizes = [len(share) for share in shares]
    if max(sizes) - min(sizes) > 1:
        raise Wrong(f"The shares have the sizes {sizes}: all wait for the largest. Let them differ by one at most.")


# --- the gradient ---------------------------------------------------------------------------------------------------


@exercise(
    "scaling_out.all_reduce",
    points=3,
    passes="It is the gradient of the whole batch, also when the shares are unequal.",
    section=_FORMULA,
)
def _all_reduce(answer: Any) -> None:
    X, y = random_tensors((7, 3), (7,))
    w = torch.tensor([0.5, -1.0, 2.0])
    parts = (slice(0, 4), slice(4, 6), slice(6, 7))
    gradients, counts = [_gradient(w, X[part], y[part]) for part in parts], [4, 2, 1]
    got = tensor(call(answer, gradients, counts), (3,), "the gradient")
    total = sum(n * g for n, g in zip(counts, gradients, strict=True))
    inverse = sum(g / n for n, g in zip(counts, gradients, strict=True))
    compare(
        got,
        _gradient(w, X, y),
        [
            (
                sum(gradients) / 3,
                "That is the plain mean. A process with few texts then counts as much as one with many.",
            ),
            (
                sum(gradients),
                "The gradients are only added. Each is a mean already: the sum is several times too long.",
            ),
            (total, "Divide by the number of texts of all processes."),
            (total / 3, "You divide by the number of processes. Divide by the number of texts."),
            (inverse, "You divide each gradient by its texts, and it is a mean already. *Multiply* by the texts."),
            (gradients[0], "That is the gradient of the first process alone."),
        ],
        "It is not the gradient of the whole batch. Weigh each gradient by its share of the texts.",
    )
    others = random_tensors((5,), (5,))
    if not equal(tensor(call(answer, others, [9, 2]), (5,), "the gradient"), (9 * others[0] + 2 * others[1]) / 11):
        raise Wrong("It is right for one set of processes only. Take gradients and counts from what you are given.")


def _gradient(w: torch.Tensor, X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the mean squared error of a linear model."""
    return 2 * X.T @ (X @ w - y) / len(y)


@exercise(
    "scaling_out.loss_factor",
    points=2,
    passes="DDP's plain mean now gives the gradient of the whole batch.",
    section=_FORMULA,
)
def _loss_factor(answer: Any) -> None:
    for own, whole, processes in ((3, 5, 2), (1, 12, 4), (5, 10, 2)):
        compare(
            number(call(answer, own, whole, processes)),
            processes * own / whole,
            [
                (own / whole, "DDP divides by the number of processes. With own / whole alone it is averaged twice."),
                (1.0, "With the factor 1, a process with few texts counts as much as one with many."),
                (processes, "Where are the shares? The factor depends on how many texts this process has."),
                (whole / own / processes, "It is upside down: a process with more texts must count more."),
                (own / whole / processes, "DDP divides by the number of processes. Do not divide again: multiply."),
                (own / processes, "Divide by the texts of the whole batch."),
            ],
            f"For {own} of {whole} texts and {processes} processes it should be {processes * own / whole:g}.",
        )


# --- bytes ----------------------------------------------------------------------------------------------------------


@exercise(
    "scaling_out.traffic",
    points=2,
    passes="Each process sends about twice the bytes of the gradients, however many processes there are.",
    section="What is sent",
)
def _traffic(answer: Any) -> None:
    for trained, processes in ((22_713_986, 8), (74_498, 3)):
        right = 2 * (processes - 1) / processes * 4 * trained
        compare(
            number(call(answer, trained, processes)),
            right,
            [
                (right / 2, "That is one of the two rounds. First the sums are formed, then they are handed round."),
                (right / 4, "You count numbers, not bytes: a float32 has four."),
                (8 * trained, "Nobody sends to itself: it is (R - 1) / R of twice the bytes."),
                (4 * trained, "That is the size of the gradients. How often does each part travel?"),
                (
                    right * processes,
                    "That is what all processes together send. One of them sends parts: divide by the processes.",
                ),
            ],
            "It is not 2 · (R - 1) / R · bytes.",
        )


@exercise(
    "scaling_out.zero",
    points=3,
    passes="Each stage divides one thing more; the third divides all.",
    section="A model that does not fit",
)
def _zero(answer: Any) -> None:
    same(
        [number(call(answer, *case)) for case in _ZERO],
        _ZERO,
        _held,
        [
            (
                lambda weights, processes, stage: 16 * weights / processes,
                "You divide everything in each stage. In stage 3 that is so; before it, not everything is divided.",
            ),
            (
                lambda weights, processes, stage: 16 * weights,
                "In each stage but 0 something is divided among the processes.",
            ),
            (
                lambda *case: _held(*case, optimiser=8),
                "The optimiser keeps 12 bytes a weight in mixed precision: two moments, and the weight in 32 bits.",
            ),
            (
                lambda weights, processes, stage: _held(weights, processes, stage + 1),
                "You are one stage ahead: in stage 0 nothing is divided. What you give for it is stage 1.",
            ),
            (
                lambda weights, processes, stage: _held(weights, processes, max(stage - 1, 0)),
                "You are one stage behind: stage 1 divides the optimiser's 12 bytes already.",
            ),
            (
                lambda weights, processes, stage: _held(weights, processes, stage) * processes,
                "That is the sum over all processes. How much does one hold?",
            ),
            (lambda *case: _held(*case) / 1e9, "Return bytes, not GB."),
            (lambda *case: _held(*case) / case[0], "That is for one weight. Multiply by their number."),
        ],
        lambda case, wanted, outcome: (
            f"Stage {case[2]} on {case[1]} processes is not right: {wanted / case[0]:.4g} bytes a weight, yours are "
            f"{outcome / case[0]:.4g}."
        ),
    )


_ZERO = [(weights, n, stage) for weights, n in ((7_000_000_000, 8), (1_300_000_000, 3)) for stage in range(4)]


def _held(weights: int, processes: int, stage: int, *, optimiser: int = 12) -> float:
    """Bytes in one process: optimiser, gradients and weights are divided in this order, one more in each stage."""
    parts = [optimiser, 2, 2]
    return weights * sum(part / processes if place < stage else part for place, part in enumerate(parts))


# --- saving ---------------------------------------------------------------------------------------------------------


@exercise(
    "scaling_out.save_once",
    points=2,
    passes="One process writes, and nobody goes on before it has.",
    section="What goes wrong in practice",
)
def _save_once(answer: Any) -> None:
    by_rank = {rank: _calls(answer, rank) for rank in (2, 0, 1)}
    calls = [by_rank[rank] for rank in sorted(by_rank)]
    savers = [rank for rank, done in enumerate(calls) if "save" in done]
    waiters = [rank for rank, done in enumerate(calls) if "wait" in done]
    if not savers:
        raise Wrong("Nobody saves. `save` is a function: did you call it, `save()`?")
    if len(savers) > 1:
        raise Wrong("Several processes write the same file at the same time, and may destroy it. Let rank 0 do it.")
    if savers != [0]:
        raise Wrong("There need not be a rank other than 0. Let rank 0 save, then it works in one process, too.")
    if not waiters:
        raise Wrong("Nobody waits: the others may load the file, or end the job, before it is written.")
    if len(waiters) < 3:
        raise Wrong("Only some processes wait. `wait` returns when *all* have called it: these wait for ever.")
    if calls[0].index("wait") < calls[0].index("save"):
        raise Wrong("Rank 0 waits before it saves, so the others go on while it writes. Save first.")
    if any(len(done) != len(set(done)) for done in calls):
        raise Wrong("Something is called twice. A second `wait` in one process alone waits for ever.")


def _calls(answer: Any, rank: int) -> list[str]:
    done: list[str] = []
    call(answer, rank, lambda: done.append("save"), lambda: done.append("wait"), returns=False)
    return done
