"""Answers to the exercises of chapter 5: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, chi2
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, roc_auc_score

from course_utils.evaluation.intervals import accuracy_interval, mcnemar
from course_utils.evaluation.metrics import class_scores, score
from course_utils.evaluation.prediction import predict

Function = Callable[..., Any]


def _mean_first(labels: Any, predicted: Any) -> float:
    p, r, _, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    return float(2 * p * r / (p + r))


def _plain_mean(labels: Any, predicted: Any) -> float:
    return sum((row.precision + row.recall) / 2 for row in class_scores(labels, predicted)) / 2


def _two_classes(labels: Any, predicted: Any) -> float:
    return float(f1_score(labels, predicted, labels=[0, 1], average="macro"))


def _never_divides(labels: Any, predicted: Any) -> float:
    rows = [row for row in class_scores(labels, predicted) if row.f1]
    return sum(row.f1 for row in rows) / len(rows)


def _judge(
    model: Any,
    loader: Any,
    *,
    evaluating: bool = True,
    recording: bool = False,
    batches: int | None = None,
    average: str = "macro",
    scores: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits.softmax(1)[:, 1],
) -> tuple[float, float, float]:
    model.train(not evaluating)
    with torch.set_grad_enabled(recording):
        rows = [(batch["labels"], model(**batch).logits) for batch in list(loader)[:batches]]
    labels, logits = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]).detach()
    predicted = logits.argmax(1)
    f1 = f1_score(labels, predicted, average=average)
    return accuracy_score(labels, predicted), f1, roc_auc_score(labels, scores(logits))


def _mean_of_batches(model: Any, loader: Any) -> tuple[float, float, float]:
    _, f1, auc = _judge(model, loader)
    with torch.no_grad():
        hits = [(model(**batch).logits.argmax(1) == batch["labels"]).double().mean().item() for batch in loader]
    return sum(hits) / len(hits), f1, auc


def _mean_f1_of_batches(model: Any, loader: Any) -> tuple[float, float, float]:
    accuracy, _, auc = _judge(model, loader)
    with torch.no_grad():
        f1 = [f1_score(b["labels"], model(**b).logits.argmax(1), average="macro") for b in loader]
    return accuracy, sum(f1) / len(f1), auc


def _by_predict(model: Any, loader: Any) -> tuple[Any, ...]:
    scores = score(*predict(model, loader))
    return scores.accuracy, scores.f1_macro, scores.roc_auc


def _wald(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    p = correct / n
    half = z * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def _wilson_parts(correct: int, n: int, z: float = 1.96) -> tuple[float, float, float]:
    p = correct / n
    return p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)), 1 + z**2 / n


def _undivided(correct: int, n: int) -> tuple[float, float]:
    middle, root, _ = _wilson_parts(correct, n)
    return middle - root, middle + root


def _wrong_root(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    p, (middle, _, divisor) = correct / n, _wilson_parts(correct, n)
    root = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n))
    return (middle - root) / divisor, (middle + root) / divisor


def _around_p(correct: int, n: int) -> tuple[float, float]:
    _, root, divisor = _wilson_parts(correct, n)
    return correct / n - root / divisor, correct / n + root / divisor


def _exact_z(correct: int, n: int, z: float = 1.959963984540054) -> list[float]:
    middle, root, divisor = _wilson_parts(correct, n, z)
    return [(middle - root) / divisor, (middle + root) / divisor]


def _counts(labels: Any, first: Any, second: Any) -> tuple[int, int]:
    pairs = list(zip(labels, first, second, strict=True))
    return sum(a == y != b for y, a, b in pairs), sum(b == y != a for y, a, b in pairs)


def _one_sided(labels: Any, first: Any, second: Any) -> float:
    b, c = _counts(labels, first, second)
    return sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)


def _every_difference(labels: Any, first: Any, second: Any) -> float:
    b, _ = _counts(labels, first, second)
    return float(binomtest(b, sum(a != c for a, c in zip(first, second, strict=True))).pvalue)


def _chi2(labels: Any, first: Any, second: Any, correction: int = 0) -> float:
    b, c = _counts(labels, first, second)
    return float(chi2.sf((abs(b - c) - correction) ** 2 / (b + c), 1))


def _coin(labels: Any, first: Any, second: Any) -> float:
    b, c = _counts(labels, first, second)
    return min(1.0, 2 * sum(math.comb(b + c, k) for k in range(max(b, c), b + c + 1)) / 2 ** (b + c))


def _gaps(right: Any, confidence: Any, bins: int) -> list[tuple[int, float]]:
    rows: dict[int, list[int]] = {}
    for i, value in enumerate(confidence):
        rows.setdefault(min(int(value * bins), bins - 1), []).append(i)
    return [(len(some), sum(confidence[i] - right[i] for i in some) / len(some)) for some in rows.values()]


def _unweighted(right: Any, confidence: Any, bins: int = 10) -> float:
    gaps = _gaps(right, confidence, bins)
    return sum(abs(gap) for _, gap in gaps) / len(gaps)


def _signed(right: Any, confidence: Any, bins: int = 10) -> float:
    return sum(n * gap for n, gap in _gaps(right, confidence, bins)) / len(right)


def _largest(right: Any, confidence: Any, bins: int = 10) -> float:
    return max(abs(gap) for _, gap in _gaps(right, confidence, bins))


def _extra_bin(right: Any, confidence: Any, bins: int = 10) -> float:
    rows: dict[int, list[float]] = {}
    for one, value in zip(right, confidence, strict=True):
        rows.setdefault(int(value * bins), []).append(value - one)
    return sum(abs(sum(gaps)) for gaps in rows.values()) / len(right)


def _by_numpy(right: Any, confidence: Any, bins: int = 10) -> float:
    right, confidence = np.array(right), np.array(confidence)
    position = np.ceil(confidence * bins)
    return float(sum(abs((confidence - right)[position == k].sum()) for k in range(1, bins + 1)) / len(right))


WRONG: dict[str, list[tuple[Function, str]]] = {
    "evaluation.f1": [
        (lambda y, p: sum(a == b for a, b in zip(y, p, strict=True)) / len(y), "micro F1"),
        (lambda y, p: f1_score(y, p, average="weighted"), "weighted F1"),
        (lambda y, p: f1_score(y, p), "F1 of class 1 alone"),
        (lambda y, p: f1_score(y, p, pos_label=0), "F1 of class 0 alone"),
        (_mean_first, "average last"),
        (_plain_mean, "harmonic mean"),
        (_never_divides, "Its F1 is 0 and it still counts"),
        (_two_classes, "wrong for three"),
    ],
    "evaluation.mend": [
        (lambda m, d: _judge(m, d, evaluating=False), "training mode"),
        (lambda m, d: _judge(m, d, recording=True), "torch.no_grad"),
        (lambda m, d: _judge(m, d, batches=1), "Judge all texts"),
        (lambda m, d: _judge(m, d, average="binary"), "alone"),
        (lambda m, d: _judge(m, d, average="micro"), "micro F1"),
        (lambda m, d: _judge(m, d, scores=lambda logits: logits.argmax(1)), "computed from answers"),
        (lambda m, d: _judge(m, d, scores=lambda logits: logits[:, 1]), "logit of class 1 alone"),
        (lambda m, d: _judge(m, d, scores=lambda logits: logits.softmax(1)[:, 0]), "upside down"),
        (_mean_of_batches, "mean of the batches' accuracies"),
        (_mean_f1_of_batches, "mean of the batches' F1"),
        (lambda m, d: (0.5, 0.5, 0.5), "never called"),
        (lambda m, d: 0.75, "three numbers"),
    ],
    "evaluation.wilson": [
        (_wald, "plain interval"),
        (lambda correct, n: _wald(correct, n, 1.0), "one standard error"),
        (_undivided, "divide by 1 + z²/n"),
        (_wrong_root, "z²/4n²"),
        (_around_p, "not around p"),
        (lambda correct, n: accuracy_interval(correct, n)[::-1], "upside down"),
        (lambda correct, n: 0.08, "two numbers"),
        (lambda correct, n: accuracy_interval(45, 50), "use the arguments"),
    ],
    "evaluation.mcnemar": [
        (_one_sided, "one side only"),
        (_every_difference, "both are wrong in different ways"),
        (_chi2, "approximation by χ²"),
        (lambda y, a, b: _chi2(y, a, b, 1), "continuity correction"),
        (lambda y, a, b: 1 - mcnemar(y, a, b), "1 − p"),
        (lambda y, a, b: 2 * _one_sided(y, a, b), "never above 1"),
        (lambda y, a, b: mcnemar(y, a, b) if a != b else 0.0, "never differ"),
        (lambda y, a, b: 1.0 if a[0] == 1 or _counts(y, a, b)[0] < _counts(y, a, b)[1] else _coin(y, a, b), "Swapped"),
    ],
    "evaluation.ece": [
        (_unweighted, "Weight each"),
        (_signed, "absolute value of each bin"),
        (_largest, "largest gap"),
        (lambda r, c, bins=10: abs(sum(c) - sum(r)) / len(r), "cancel out"),
        (lambda r, c, bins=10: sum(abs(x - y) for x, y in zip(r, c, strict=True)) / len(r), "gap of each text"),
        (_extra_bin, "exactly 1"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "evaluation.f1": [
        lambda y, p: f1_score(y, p, average="macro"),
        lambda y, p: np.mean([row.f1 for row in class_scores(y, p)]),
    ],
    "evaluation.mend": [_judge, _by_predict, lambda m, d: list(_judge(m, d, scores=lambda z: z[:, 1] - z[:, 0]))],
    "evaluation.wilson": [_exact_z, accuracy_interval],
    "evaluation.mcnemar": [mcnemar, _coin],
    "evaluation.ece": [
        lambda r, c, bins=10: sum(n * abs(gap) for n, gap in _gaps(r, c, bins)) / len(r),
        _by_numpy,
    ],
}
