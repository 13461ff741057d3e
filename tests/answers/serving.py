"""Answers to the exercises of chapter 24: wrong ones with words of the message, and right ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

Function = Callable[..., Any]


def _timed(model: Any, requests: Any, clock: Any) -> Any:
    times = []
    for request in requests:
        started = clock()
        model(request)
        times.append(1000 * (clock() - started))
    return times


def _latency(report: Function = lambda times: np.percentile(times, (50, 95)), **mistakes: Any) -> Function:
    """A right measurement but for what `mistakes` says."""

    def latency(model: Any, requests: Any, warm_up: int, clock: Any) -> Any:
        if mistakes.get("eval", True):
            model.eval()
        with torch.set_grad_enabled(mistakes.get("gradients", False)):
            if mistakes.get("warm", True):
                for request in requests[:warm_up]:
                    model(request)
            timed = requests[warm_up:] if mistakes.get("skip") else requests
            return report(_timed(model, timed, mistakes.get("clock", clock)))

    return latency


def _all_together(model: Any, requests: Any, warm_up: int, clock: Any) -> Any:
    model.eval()
    with torch.inference_mode():
        for request in requests[:warm_up]:
            model(request)
        started = clock()
        for request in requests:
            model(request)
        mean = 1000 * (clock() - started) / len(requests)
    return mean, mean


@torch.inference_mode()
def _by_hand(model: Any, requests: Any, warm_up: int, clock: Any) -> Any:
    model.train(False)
    for place in range(warm_up):
        model(requests[place])
    times = sorted(_timed(model, requests, clock))
    return [median(times), times[round(0.95 * (len(times) - 1))]]


def _mixed(x: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    return x @ W.T + s[which][:, None, None] * (x @ A[which].mT @ B[which].mT)


def _inplace(x: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    B *= s[:, None, None]
    return x @ W.T + x @ A[which].mT @ B[which].mT


def _one_by_one(x: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    rows = [x[n] @ W.T + s[a] * (x[n] @ A[a].T) @ B[a].T for n, a in enumerate(which.tolist())]
    return torch.stack(rows)


def _square_only(x: Any, W: Any, A: Any, B: Any, s: Any, which: Any) -> Any:
    return _mixed(x, W, A, B, s, which) if W.shape[0] == W.shape[1] else x @ W.T


def _bytes(base: int, shapes: Any, rank: int, head: int, n: int, merged: bool) -> int:
    adapter = rank * sum(o + i for o, i in shapes)
    return 4 * (n * (base + head) if merged else base + n * (adapter + head))


def _block(rows: int, positions: int, d: int) -> int:
    return 12 * rows * d * d + 2 * rows * positions * d


def _cost(n: int, d: int, k: int, kind: str) -> int:
    rows = n + k if kind == "prompt" else n
    return _block(rows, n if kind == "merged" else n + k, d)


def _digest(
    weights: Any, *, names: bool = True, shapes: bool = True, numbers: Function = lambda w: w.numpy().tobytes()
) -> Any:
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not name.startswith("classifier"):
            digest.update(name.encode() if names else b"")
            digest.update(str(tuple(weights[name].shape)).encode() if shapes else b"")
            digest.update(numbers(weights[name]))
    return digest.hexdigest()


def _blake(weights: Any) -> str:
    rest = {name: w for name, w in weights.items() if "classifier" not in name}
    return hashlib.blake2b(repr([(n, w.shape, w.tolist()) for n, w in sorted(rest.items())]).encode()).hexdigest()


def _unsorted(weights: Any) -> str:
    parts = [f"{name}{weights[name].tolist()}" for name in weights if not name.startswith("classifier")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


WRONG: dict[str, list[tuple[Function, str]]] = {
    "serving.latency": [
        (_latency(eval=False), "training mode"),
        (_latency(gradients=True), "Gradients were recorded"),
        (_latency(warm=False), "first calls are in your times"),
        (_latency(skip=True), "left the first requests out"),
        (_latency(clock=time.perf_counter), "argument `clock`"),
        (_all_together, "Time each request by itself"),
        (_latency(lambda times: np.percentile(times, (50, 95)) / 1000), "seconds"),
        (_latency(lambda times: np.percentile(times, (95, 50))), "other way round"),
        (_latency(lambda times: (np.mean(times), np.percentile(times, 95))), "is the mean"),
        (_latency(lambda times: (np.mean(times), np.mean(times))), "mean twice"),
        (_latency(lambda times: (np.median(times), max(times))), "slowest request"),
        (_latency(lambda times: np.percentile(times, (50, 99))), "Expected"),
        (_latency(np.median), "two numbers"),
    ],
    "serving.mixed": [
        (lambda x, W, A, B, s, which: x @ W.T, "base alone"),
        (lambda x, W, A, B, s, which: _mixed(x, W, A, B, s, which) - x @ W.T, "frozen path"),
        (lambda x, W, A, B, s, which: _mixed(x, W, A, B, s, torch.arange(len(x))), "Text n got adapter n"),
        (lambda x, W, A, B, s, which: _mixed(x, W, A, B, s, which[:1].expand(len(x))), "the first text"),
        (lambda x, W, A, B, s, which: _mixed(x, W, A, B, s, which.sort().values), "sorted"),
        (lambda x, W, A, B, s, which: _mixed(x, W, A, B, torch.ones_like(s), which), "scaling is missing"),
        (lambda x, W, A, B, s, which: x @ W.T + s[:, None, None] * (x @ A[which].mT @ B[which].mT), "of adapter n"),
        (lambda x, W, A, B, s, which: x @ W.T + s[which][:, None, None] * (x @ A[which].mT @ B.mT), "B was not"),
        (lambda x, W, A, B, s, which: x @ W.T + s[which][:, None, None] * (x @ A.mT @ B[which].mT), "A was not"),
        (
            lambda x, W, A, B, s, which: s[which][:, None, None] * (x @ W.T + x @ A[which].mT @ B[which].mT),
            "scaled too",
        ),
        (_inplace, "in place"),
        (_square_only, "square layers"),
    ],
    "serving.memory": [
        (lambda *given: _bytes(*given) // 4, "4 bytes"),
        (
            lambda b, shapes, r, h, n, m: n * _bytes(b, shapes, r, h, 1, False) if m else _bytes(b, shapes, r, h, n, m),
            "A and B",
        ),
        (lambda b, shapes, r, h, n, m: _bytes(b, shapes, r, h, n, False), "changes nothing"),
        (lambda b, shapes, r, h, n, m: _bytes(b, shapes, r, h, n, not m), "swapped"),
        (lambda b, shapes, r, h, n, m: _bytes(b, shapes, r, h, 1 if m else n, m), "serves one task"),
        (
            lambda b, shapes, r, h, n, m: _bytes(b, shapes, r, h, n, m) if m else n * _bytes(b, shapes, r, h, 1, m),
            "share one base",
        ),
        (lambda b, shapes, r, h, n, m: _bytes(b, shapes, r, 0, n, m), "heads are missing"),
        (
            lambda b, shapes, r, h, n, m: _bytes(b, shapes, r, h, n, m) if m else _bytes(b + h, shapes, r, 0, n, m),
            "its own head",
        ),
        (lambda b, shapes, r, h, n, m: _bytes(b, shapes, r, h, n if m else 1, m), "one adapter"),
        (lambda *given: 20280 if given[-1] else 5400, "one rank"),
    ],
    "serving.cost": [
        (lambda n, d, k, kind: _cost(n, d, k, "merged" if kind == "merged" else "prompt"), "no rows of its own"),
        (lambda n, d, k, kind: _cost(n, d, k, "merged" if kind == "merged" else "prefix"), "go through the layer"),
        (lambda n, d, k, kind: _cost(n, d, k, "prompt" if kind == "prompt" else "merged"), "looks at the prefix"),
        (lambda n, d, k, kind: _cost(n, d, k, "prefix" if kind == "prefix" else "merged"), "prompt is missing"),
        (lambda n, d, k, kind: _cost(n, d, k, "prompt" if kind == "merged" else kind), "merged LoRA"),
        (lambda n, d, k, kind: _cost(n, d, k, kind) - 8 * d * d * (n + k * (kind == "prompt")), "feed-forward"),
        (lambda n, d, k, kind: 12 * d * d * (n + k * (kind == "prompt")), "attention itself"),
        (lambda n, d, k, kind: {"merged": 9280, "prefix": 9920, "prompt": 13888}[kind], "one width"),
    ],
    "serving.fingerprint": [
        (lambda weights: str(hash(tuple(weights))), "hexadecimal"),
        (lambda weights: hashlib.sha256(str(sorted(map(id, weights.values()))).encode()).hexdigest(), "same weights"),
        (_unsorted, "order of the dictionary"),
        (lambda weights: _digest({name.replace("classifier", "c"): w for name, w in weights.items()}), "head is in it"),
        (lambda weights: _digest(weights, numbers=lambda w: b""), "Names and shapes"),
        (lambda weights: _digest(weights, numbers=lambda w: str(w).encode()), "printed form"),
        (lambda weights: _digest(weights, numbers=lambda w: f"{w.sum():.9f}".encode()), "changed places"),
        (lambda weights: _digest(weights, names=False), "under another name"),
        (lambda weights: _digest(weights, shapes=False), "another shape"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "serving.latency": [_latency(), _by_hand],
    "serving.mixed": [
        _one_by_one,
        lambda x, W, A, B, s, which: torch.einsum("nti,noi->nto", x, W + s[which][:, None, None] * B[which] @ A[which]),
    ],
    "serving.memory": [_bytes],
    "serving.cost": [_cost],
    "serving.fingerprint": [_digest, _blake],
}
