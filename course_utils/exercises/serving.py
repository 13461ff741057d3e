"""The checks of chapter 24, serving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number, random_tensors, tensor

_LATENCY = "Measure it rightly"
_MIXED = "The formula, beside the code"
_MEMORY = "What it costs"
_VIRTUAL = "Virtual tokens cost in every request"
_BASE = "The right base"


# --- latency ---------------------------------------------------------------------------------------------------------

_COLD_SECONDS = 0.7


class _Server(nn.Module):
    """A model whose answers take a known time; it keeps the clock, and sees in which state it is asked."""

    def __init__(self, cold: int) -> None:
        super().__init__()
        self.cold = cold  # so many calls are slow
        self.calls, self.reads, self.now, self.faults = 0, 0, 0.0, set[str]()

    def clock(self) -> float:
        self.reads += 1
        return self.now

    def forward(self, seconds: float) -> float:
        self.faults |= {"training"} if self.training else set()
        self.faults |= {"gradients"} if torch.is_grad_enabled() else set()
        self.now += seconds + _COLD_SECONDS * (self.calls < self.cold)
        self.calls += 1
        return seconds


@exercise(
    "serving.latency",
    points=3,
    passes="Warm, without dropout and gradients, and the slow requests are not hidden in a mean.",
    section=_LATENCY,
)
def _latency(answer: Any) -> None:
    for cold, number_of_requests in ((3, 41), (5, 61)):
        drawn = random_tensors((number_of_requests,))[0].abs()
        requests = (0.01 + 0.005 * drawn).tolist()
        requests[17], requests[30] = 0.09, 0.4
        _latency_of(answer, _Server(cold), requests)


def _latency_of(answer: Any, server: _Server, requests: list[float]) -> None:
    server.train()
    result = call(answer, server, list(requests), server.cold, server.clock)
    if not isinstance(result, (tuple, list, np.ndarray, torch.Tensor)) or len(result) != 2:
        raise Wrong("Expected two numbers, the 50th and the 95th percentile.")
    value = torch.tensor([number(one) for one in result], dtype=torch.float64)
    _refuse_bad_states(server, len(requests))
    cold = [seconds + _COLD_SECONDS * (place < server.cold) for place, seconds in enumerate(requests)]
    p50, p95 = _percentiles(requests)
    mean, most = 1000 * float(np.mean(requests)), 1000 * max(requests)
    late = _percentiles(requests[server.cold :])
    mistakes = [
        (_pair(p50 / 1000, p95 / 1000), "These are seconds. Multiply by 1000 for milliseconds."),
        (_pair(p95, p50), "They come the other way round: first the 50th, then the 95th percentile."),
        (_pair(mean, p95), "The first number is the mean. The few slow requests pull it up; take the median."),
        (_pair(mean, mean), "That is the mean twice. A mean hides the slow requests."),
        (_pair(p50, most), "The second number is the slowest request, which one accident decides. Take percentile 95."),
        (
            _pair(*_percentiles(cold)),
            "The first calls are in your times, and they are slow: warm up before you measure.",
        ),
        (_pair(*late), "You left the first requests out. Send them once to warm up, and then time all requests."),
    ]
    compare(value, _pair(p50, p95), mistakes, f"Expected {p50:.3f} and {p95:.3f} ms, got {value.tolist()}.")
    if server.calls < len(requests) + server.cold:
        raise Wrong(
            f"The model was asked {server.calls} times: {server.cold} to warm up and {len(requests)} timed are needed."
        )


def _refuse_bad_states(server: _Server, requests: int) -> None:
    if "training" in server.faults:
        raise Wrong(
            "The model was in training mode: dropout is on, which changes the answers and takes time. model.eval()"
        )
    if "gradients" in server.faults:
        raise Wrong("Gradients were recorded, which costs time and memory. Ask the model under torch.no_grad().")
    if server.reads == 0:
        raise Wrong("Read the time from the argument `clock`, before and after each request.")
    if server.reads < requests:
        raise Wrong(
            f"The clock was read {server.reads} times for {requests} requests. Time each request by itself: from the "
            "time of all together nobody can tell how slow the slow ones are."
        )


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(1000 * np.array(seconds), (50, 95))
    return float(p50), float(p95)


def _pair(one: float, other: float) -> torch.Tensor:
    return torch.tensor([one, other], dtype=torch.float64)


# --- a mixed batch ---------------------------------------------------------------------------------------------------


@exercise(
    "serving.mixed",
    points=3,
    passes="One large product for all texts, and a thin one for each text's own adapter.",
    section=_MIXED,
)
def _mixed(answer: Any) -> None:
    # As many adapters as texts, and square: what is mixed up here gives a number and no error, and can be named.
    x, W, A, B, s = random_tensors((4, 3, 7), (7, 7), (4, 2, 7), (4, 7, 2), (4,))
    which = torch.tensor([2, 0, 2, 3])
    value = tensor(call(answer, x, W, A, B, s, which), (4, 3, 7), "the result, (texts, tokens, out),")
    h, order, first = x @ W.T, torch.arange(4), which[:1].expand(4)
    mistakes = [
        (h, "That is the base alone; the adapters are missing."),
        (_path(x, A, B, s, which), "The frozen path x Wᵀ is missing."),
        (h + _path(x, A, B, s, order), "Text n got adapter n. It wants adapter which[n]: gather A[which]."),
        (h + _path(x, A, B, s, first), "Every text got the adapter of the first text."),
        (h + _path(x, A, B, s, which.sort().values), "The adapters were sorted and the texts were not."),
        (
            h + _path(x, A, B, torch.ones(4), which),
            "The scaling is missing: each adapter has its own alpha / rank.",
        ),
        (
            h + s[:, None, None] * _raw(x, A[which], B[which]),
            "The scaling is that of adapter n, not of adapter which[n].",
        ),
        (h + s[which][:, None, None] * _raw(x, A[which], B), "A was gathered by `which`, and B was not."),
        (h + s[which][:, None, None] * _raw(x, A, B[which]), "B was gathered by `which`, and A was not."),
        (h + sum(_path(x, A, B, s, torch.full((4,), a)) for a in range(4)), "Every text got the sum of all adapters."),
        (
            s[which][:, None, None] * (h + _raw(x, A[which], B[which])),
            "The frozen path is scaled too. Only the update is.",
        ),
    ]
    compare(
        value,
        h + _path(x, A, B, s, which),
        mistakes,
        "Text n should get x[n] Wᵀ + s[a] · x[n] A[a]ᵀ B[a]ᵀ with a = which[n].",
    )
    x, W, A, B, s = random_tensors((5, 13, 11), (7, 11), (4, 3, 11), (4, 7, 3), (4,))
    which = torch.tensor([1, 3, 0, 1, 2])
    value = tensor(call(answer, x, W, A, B, s, which), (5, 13, 7), "the result for four adapters and five texts,")
    if not equal(value, x @ W.T + _path(x, A, B, s, which)):
        raise Wrong("It is right for square layers, or for one number of adapters, only.")


def _raw(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return x @ A.mT @ B.mT


def _path(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, s: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return s[which][:, None, None] * _raw(x, A[which], B[which])


# --- memory ----------------------------------------------------------------------------------------------------------


@exercise(
    "serving.memory",
    points=2,
    passes="Merged, each task costs a model. Not merged, each task costs an adapter.",
    section=_MEMORY,
)
def _memory(answer: Any) -> None:
    base, shapes, rank, head, n = 1000, [(10, 6), (8, 4)], 2, 14, 5
    value = _pair(*(number(call(answer, base, list(shapes), rank, head, n, merged)) for merged in (False, True)))
    lora = rank * sum(o + i for o, i in shapes)
    apart, merged = 4 * (base + n * (lora + head)), 4 * n * (base + head)
    full = rank * sum(o * i for o, i in shapes)
    mistakes = [
        (_pair(apart / 4, merged / 4), "These are numbers of weights. A weight in float32 takes 4 bytes."),
        (
            _pair(apart, 4 * n * (base + lora + head)),
            "A merged model holds no A and B any more: they went into its weights.",
        ),
        (_pair(apart, apart), "`merged` changes nothing. One base cannot hold several merged adapters at a time."),
        (_pair(merged, apart), "The two cases are swapped."),
        (_pair(apart, 4 * (base + head)), "One merged model serves one task; there are more."),
        (_pair(4 * n * (base + lora + head), merged), "Not merged, all adapters share one base. Count it once."),
        (_pair(4 * (base + n * lora), 4 * n * base), "The heads are missing: each task has trained its own."),
        (_pair(4 * (base + n * lora + head), merged), "Each adapter brings its own head; you counted one for all."),
        (_pair(4 * (base + lora + head), merged), "That is one adapter; there are more."),
        (
            _pair(4 * (base + n * (full + head)), merged),
            "A and B are thin: rank · (out + in) numbers, not rank · out · in.",
        ),
    ]
    compare(value, _pair(apart, merged), mistakes, f"Expected {apart} and {merged} bytes, got {value.tolist()}.")
    if number(call(answer, 50, [(3, 2)], 1, 0, 2, False)) != 240:
        raise Wrong("It is right for one rank or one number of adapters only.")


# --- virtual tokens --------------------------------------------------------------------------------------------------


@exercise(
    "serving.cost",
    points=2,
    passes="A prompt passes through every layer; a prefix is only looked at; a merged LoRA is free.",
    section=_VIRTUAL,
)
def _cost(answer: Any) -> None:
    n, d, k = 10, 8, 4
    kinds = ("merged", "prefix", "prompt")
    value = torch.tensor([number(call(answer, n, d, k, kind)) for kind in kinds], dtype=torch.float64)
    plain, prefix, prompt = _block(n, n, d), _block(n, n + k, d), _block(n + k, n + k, d)
    mistakes = [
        ((plain, prompt, prompt), "A prefix has no rows of its own: it is n rows that look at n + k positions."),
        ((plain, prefix, prefix), "The positions of a prompt go through the layer like words: n + k rows."),
        ((plain, plain, prompt), "Each row looks at the prefix, too: n + k positions in the attention."),
        ((plain, prefix, plain), "The prompt is missing: it makes the text longer."),
        ((prompt, prefix, prompt), "A merged LoRA adds nothing, and no virtual token."),
        ((plain, prefix, _block(n + k, n, d)), "A prompt is looked at as well: n + k rows and n + k positions."),
        (
            [_block(*one, d, attention=1) for one in _rows(n, k)],
            "Attention multiplies twice: scores, and the mean of the values.",
        ),
        (
            [_block(*one, d, weights=4) for one in _rows(n, k)],
            "The feed-forward part is missing: 8 d² more for each row.",
        ),
        (
            [_block(*one, d, attention=0) for one in _rows(n, k)],
            "The attention itself is missing: 2 · rows · positions · d.",
        ),
    ]
    compare(
        value,
        torch.tensor([plain, prefix, prompt]).double(),
        [(torch.tensor(wrong).double(), message) for wrong, message in mistakes],
        f"For {', '.join(kinds)} expected {plain}, {prefix} and {prompt}, got {value.tolist()}.",
    )
    if number(call(answer, 3, 2, 5, "prefix")) != _block(3, 8, 2):
        raise Wrong("It is right for one width or one number of virtual tokens only.")


def _rows(n: int, k: int) -> tuple[tuple[int, int], ...]:
    return (n, n), (n, n + k), (n + k, n + k)


def _block(rows: int, positions: int, d: int, weights: int = 12, attention: int = 2) -> int:
    return weights * rows * d * d + attention * rows * positions * d


# --- the right base --------------------------------------------------------------------------------------------------


@exercise(
    "serving.fingerprint",
    points=3,
    passes="Another base of the same shape is found out, before it answers.",
    section=_BASE,
)
def _fingerprint(answer: Any) -> None:
    large, one, other, head = random_tensors((60, 60), (3, 4), (3, 4), (2, 4))
    large = torch.round(large * 64) / 64  # then a sum is exact, and does not notice in which order it was added
    weights = {"b.weight": large, "a.weight": one, "a.other": other, "classifier.weight": head}

    def of(**changes: torch.Tensor) -> Any:
        return call(answer, {name: tensor.clone() for name, tensor in {**weights, **changes}.items()})

    print_ = of()
    if not isinstance(print_, str) or not re.fullmatch(r"[0-9a-f]{32,}", print_):
        raise Wrong(
            "Expected the hexadecimal text of a digest, such as hashlib.sha256(...).hexdigest(). Python's own hash() gives "
            "another number in each process, and a sum is the same for many models."
        )
    middle, swapped = large.clone(), large.clone()
    middle[30, 30] += 1e-3
    swapped[30, [20, 40]] = large[30, [40, 20]]
    if of() != print_:
        raise Wrong("The same weights give another fingerprint in another place of the memory. Hash the numbers.")
    if call(answer, dict(reversed([(name, one.clone()) for name, one in weights.items()]))) != print_:
        raise Wrong("It depends on the order of the dictionary. Go through the names in sorted order.")
    if of(**{"classifier.weight": head + 1}) != print_:
        raise Wrong(
            "The head is in it. Each task trains its own, so it says nothing about the base: leave out `classifier`."
        )
    if of(**{"b.weight": large + 1}) == print_:
        raise Wrong("Other numbers of the same shape give the same fingerprint. Names and shapes are not enough.")
    if of(**{"b.weight": middle}) == print_:
        raise Wrong(
            "A change in the middle of a large matrix goes unseen. Perhaps you hashed its printed form, which shows the "
            "corners only. Hash all bytes: tensor.numpy().tobytes()."
        )
    if of(**{"b.weight": swapped}) == print_:
        raise Wrong("Two numbers changed places and nothing was seen. A sum does not know where its numbers stood.")
    if call(answer, {("a.v" if name == "a.weight" else name): w for name, w in weights.items()}) == print_:
        raise Wrong("A matrix under another name gives the same fingerprint. Put the name into the digest, too.")
    if of(**{"b.weight": large.view(30, 120)}) == print_:
        raise Wrong("The same numbers in another shape give the same fingerprint. Put the shape into the digest, too.")
