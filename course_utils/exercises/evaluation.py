"""The checks of chapter 5, Evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from scipy.stats import binomtest, chi2, norm
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from torch import nn

from course_utils.evaluation.intervals import accuracy_interval, mcnemar
from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number

_F1 = "Accuracy, precision, recall and F1"
_CODE = "Metric code, taken apart"
_INTERVAL = "How sure can we be: intervals"
_PAIR = "Two models on the same texts"
_CALIBRATION = "Is it as sure as it should be: calibration"


@exercise(
    "evaluation.f1",
    points=3,
    passes="Each class counts the same, so the rare one cannot hide behind the common one.",
    section=_F1,
)
def _f1(answer: Any) -> None:
    labels = [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    predicted = [1, 1, 1, 1, 1, 1, 0, 1, 1, 0]
    options: dict[str, Any] = {"zero_division": 0}
    precision, recall, f1 = (
        metric(labels, predicted, average=None, **options) for metric in (precision_score, recall_score, f1_score)
    )
    right = float(f1.mean())
    p, r = float(precision.mean()), float(recall.mean())
    value = number(call(answer, list(labels), list(predicted)))
    compare(
        value,
        right,
        [
            (0.7, "That is the accuracy, which is micro F1 here. Compute F1 for each class apart, then take the mean."),
            (
                float((f1 * [3, 7]).sum() / 10),
                "You weighted each class with its number of texts: that is weighted F1. Macro is the plain mean.",
            ),
            (float(f1[1]), "That is the F1 of class 1 alone. Compute it for class 0 too, and take the mean."),
            (float(f1[0]), "That is the F1 of class 0 alone. Compute it for class 1 too, and take the mean."),
            (p, "That is the mean precision. F1 puts precision and recall together."),
            (r, "That is the mean recall. F1 puts precision and recall together."),
            (
                2 * p * r / (p + r),
                "You averaged precision and recall over the classes first. Compute F1 for each class, and average last.",
            ),
            (
                float(((precision + recall) / 2).mean()),
                "You took the plain mean of precision and recall. F1 is their harmonic mean, 2 P R / (P + R).",
            ),
            (right / 2, "The factor 2 is missing: F1 = 2 P R / (P + R)."),
            (2 * right, "You added the F1 of the classes. Divide by the number of classes."),
        ],
        f"With the labels {labels} and the answers {predicted} it is {right:.4f}, your function returns {value:g}.",
    )
    never = number(call(answer, [1, 1, 1, 0], [1, 1, 1, 1]))
    if not equal(never, 3 / 7):
        raise Wrong(
            "Class 0 is never answered here (labels 1 1 1 0, answers 1 1 1 1). Its F1 is 0 and it still counts: "
            f"(0 + 6/7) / 2 = 3/7; your function returns {never:g}."
        )
    three = ([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 0, 0])
    value = number(call(answer, *three))
    if not equal(value, float(f1_score(*three, average="macro"))):
        raise Wrong("It is right for two classes and wrong for three. Go through all classes that the labels name.")


class _Judged(nn.Module):
    """A small classifier that notes how it is called; it answers badly while dropout is on."""

    def __init__(self) -> None:
        super().__init__()
        # Chosen so that each mistake leads to a number of its own.
        self.table = torch.tensor(
            [[1.0, 2.0], [3.0, 2.5], [0.0, 0.4], [2.0, 0.3], [0.2, 1.9], [1.5, 1.8], [4.0, 4.1], [0.1, 0.0], [0.6, 2.2],
             [1.1, 0.7], [0.9, 1.1], [2.4, 2.9]]
        )  # fmt: skip
        self.dropout = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, labels: Any = None) -> SimpleNamespace:
        self.calls.append((self.training, torch.is_grad_enabled()))
        logits = self.weight * self.dropout(self.table[input_ids[:, 0]])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


_TRUTH = [1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 0, 1]
_SIZES = (5, 5, 2)
_OTHER_SIZES = (3, 4)


def _loader(sizes: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    positions = torch.arange(sum(sizes)).split(sizes)
    return [
        {
            "input_ids": rows[:, None],
            "attention_mask": torch.ones_like(rows)[:, None],
            "labels": torch.tensor(_TRUTH)[rows],
        }
        for rows in positions
    ]


@exercise(
    "evaluation.mend",
    points=3,
    passes="All texts, no dropout, no gradients, answers for accuracy and F1, and scores for ROC-AUC.",
    section=_CODE,
)
def _mend(answer: Any) -> None:
    model = _Judged().train()
    accuracy, f1, auc = (number(value) for value in _three(answer, model, _SIZES))
    truth, logits = torch.tensor(_TRUTH), model.table
    predicted = logits.argmax(1)
    _accuracy(accuracy, truth, predicted)
    _macro_f1(f1, truth, predicted, accuracy)
    _roc_auc(auc, truth, logits)
    again = [number(value) for value in _three(answer, model.train(), _OTHER_SIZES)]
    n = sum(_OTHER_SIZES)
    truth, logits, predicted = truth[:n], logits[:n], predicted[:n]
    scores = roc_auc_score(truth, logits[:, 1] - logits[:, 0])
    wanted = [float((predicted == truth).float().mean()), f1_score(truth, predicted, average="macro"), scores]
    if not equal(torch.tensor(again), torch.tensor([float(one) for one in wanted])):
        raise Wrong("It is right for one loader only. Judge the texts that are handed over.")


def _three(answer: Any, model: _Judged, sizes: tuple[int, ...]) -> Sequence[Any]:
    """What the answer returns, once the model was called as one calls it to predict."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.calls.clear()
        result = call(answer, model, _loader(sizes))
    if isinstance(result, dict):
        result = tuple(result.values())
    if not isinstance(result, (tuple, list)) or len(result) != 3:
        raise Wrong("Return three numbers: accuracy, macro F1 and ROC-AUC.")
    if not model.calls:
        raise Wrong("The model was never called. Predictions come from model(**batch).logits.")
    if any(training for training, _ in model.calls):
        raise Wrong(
            "The model is still in training mode, so dropout changes its answers at random. Call model.eval() first."
        )
    if any(gradient for _, gradient in model.calls):
        raise Wrong(
            "Gradients are recorded while you predict, which costs memory for nothing. Predict inside torch.no_grad()."
        )
    if len(model.calls) < len(sizes):
        raise Wrong(f"The loader has {len(sizes)} batches and you used {len(model.calls)}. Judge all texts.")
    return result


def _accuracy(value: float, truth: torch.Tensor, predicted: torch.Tensor) -> None:
    right = float((predicted == truth).double().mean())
    hits = [(a == b).double().mean() for a, b in zip(predicted.split(_SIZES), truth.split(_SIZES), strict=True)]
    compare(
        value,
        right,
        [
            (
                float(torch.stack(hits).mean()),
                "Your accuracy is the mean of the batches' accuracies. The last batch is smaller, so its texts count more "
                "than the others. Collect all answers first, then count once.",
            ),
            (float(hits[-1]), "Your accuracy is that of the last batch. Collect the answers of all batches."),
            (
                float((predicted == truth).sum()),
                "Your accuracy is a number of texts. Divide by how many there are.",
            ),
        ],
        f"The first number should be the accuracy, {right:.4f}, and is {value:g}.",
    )


def _macro_f1(value: float, truth: torch.Tensor, predicted: torch.Tensor, accuracy: float) -> None:
    right = float(f1_score(truth, predicted, average="macro"))
    batches = [
        f1_score(a, b, average="macro") for a, b in zip(truth.split(_SIZES), predicted.split(_SIZES), strict=True)
    ]
    compare(
        value,
        right,
        [
            (
                float(f1_score(truth, predicted)),
                "Your F1 is that of the class “positive” alone, which is what scikit-learn does if you do not say "
                'average="macro".',
            ),
            (accuracy, "Your F1 equals the accuracy: it is micro F1. Macro F1 gives each class the same weight."),
            (float(f1_score(truth, predicted, average="weighted")), "That is weighted F1; macro F1 was asked for."),
            (
                sum(batches) / len(batches),
                "Your F1 is the mean of the batches' F1. F1 is no mean over texts: collect all answers, then compute it once.",
            ),
        ],
        f"The second number should be macro F1, {right:.4f}, and is {value:g}.",
    )


def _roc_auc(value: float, truth: torch.Tensor, logits: torch.Tensor) -> None:
    right = float(roc_auc_score(truth, logits[:, 1] - logits[:, 0]))
    compare(
        value,
        right,
        [
            (
                float(roc_auc_score(truth, logits.argmax(1))),
                "Your ROC-AUC is computed from answers (0 or 1). It needs scores: the probability of class 1, or the "
                "difference of the two logits.",
            ),
            (
                float(roc_auc_score(truth, logits[:, 1])),
                "You took the logit of class 1 alone. A logit means something only beside the other: take the softmax, or "
                "the difference.",
            ),
            (1 - right, "Your scores are those of class 0, so the order is upside down. Take class 1."),
            (float(roc_auc_score(truth, logits[:, 0])), "You took the logit of class 0."),
        ],
        f"The third number should be ROC-AUC from scores, {right:.4f}, and is {value:g}.",
    )


@exercise(
    "evaluation.wilson",
    points=2,
    passes="It never leaves the range from 0 to 1, and works for small tests too.",
    section=_INTERVAL,
)
def _wilson(answer: Any) -> None:
    correct, n, z = 45, 50, norm.ppf(0.975)
    p = correct / n
    low, high = _two(call(answer, correct, n))
    error = math.sqrt(p * (1 - p) / n)
    root = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    middle, divisor = p + z**2 / (2 * n), 1 + z**2 / n
    off_root = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n))
    right = accuracy_interval(correct, n)
    mistakes = [
        (
            (p - z * error, p + z * error),
            "That is the plain interval p ± 1.96 √(p(1 − p)/n). Near 100% it is too short and can pass 100%. "
            "Wilson's has z² terms.",
        ),
        ((p - error, p + error), "That is one standard error either way, which holds the truth 68% of the time."),
        ((middle - root, middle + root), "You forgot to divide by 1 + z²/n."),
        (
            ((p - root) / divisor, (p + root) / divisor),
            "The centre lacks its z²/2n: the interval is not symmetric around p.",
        ),
        (
            (p - root / divisor, p + root / divisor),
            "The interval must lie around (p + z²/2n) / (1 + z²/n), not around p.",
        ),
        (
            ((middle - off_root) / divisor, (middle + off_root) / divisor),
            "Under the root stands z²/4n², and you have z²/4n.",
        ),
        ((right[1], right[0]), "It is upside down: the lower end comes first."),
        ((100 * right[0], 100 * right[1]), "That is in percent. Return shares between 0 and 1."),
    ]
    # Whether z is 1.96 or 1.959964 makes no difference here.
    compare(
        _rounded(low, high),
        _rounded(*right),
        [(_rounded(*wrong), message) for wrong, message in mistakes],
        f"For {correct} of {n} the interval goes from {right[0]:.4f} to {right[1]:.4f}; yours from {low:g} to {high:g}.",
    )
    for correct, n in ((10, 10), (828, 872)):
        low, high = _two(call(answer, correct, n))
        if not equal(_rounded(low, high), _rounded(*accuracy_interval(correct, n))):
            raise Wrong(f"It is right for 45 of 50 and wrong for {correct} of {n}; use the arguments.")


def _two(result: Any) -> tuple[float, float]:
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong("Return two numbers, the lower and the upper end.")
    return number(result[0]), number(result[1])


def _rounded(low: float, high: float) -> torch.Tensor:
    return torch.tensor([low, high], dtype=torch.float64).round(decimals=3)


@exercise(
    "evaluation.mcnemar",
    points=2,
    passes="Only the texts on which one of the two is right can tell them apart.",
    section=_PAIR,
)
def _mcnemar(answer: Any) -> None:
    # Three classes, so that both can be wrong and yet differ. 9 texts only the first gets right, 2 only the second.
    labels = [0] * 30
    first = [0] * 12 + [0] * 9 + [1] * 2 + [1] * 4 + [1] * 3
    second = [0] * 12 + [1] * 9 + [0] * 2 + [2] * 4 + [1] * 3
    right = mcnemar(labels, first, second)
    b, c, n = 9, 2, 30
    statistic, corrected = (b - c) ** 2 / (b + c), (abs(b - c) - 1) ** 2 / (b + c)
    p, q = 21 / n, 14 / n
    mean = (p + q) / 2
    pooled = abs(p - q) / math.sqrt(2 * mean * (1 - mean) / n)
    exactly_c = math.comb(11, 2) / 2**11
    value = number(call(answer, list(labels), list(first), list(second)))
    compare(
        value,
        right,
        [
            (right / 2, "That is one side only. The other model could have been ahead as well: take it twice."),
            (
                float(binomtest(9, 15).pvalue),
                "You counted every text on which the answers differ. Where both are wrong in different ways nobody is ahead: "
                "count the texts that exactly one gets right.",
            ),
            (
                float(chi2.sf(statistic, 1)),
                "That is the approximation by χ². It is for large numbers; with 11 texts compute the coin exactly.",
            ),
            (
                float(chi2.sf(corrected, 1)),
                "That is the approximation by χ² with continuity correction. With 11 texts compute the coin exactly.",
            ),
            (
                2 * float(norm.sf(pooled)),
                "You compared two accuracies as if they came from different texts. Both models saw the same texts: use that.",
            ),
            (
                2 * exactly_c,
                "That is the chance of exactly this result. Add up all that are as far from half, or farther.",
            ),
            (exactly_c, "That is the chance of exactly this result. Add up all that are as far from half, or farther."),
            (1 - right, "That is 1 − p. A small p speaks against a coin."),
            (statistic, "That is McNemar's statistic. Return the p-value."),
        ],
        f"Nine texts only the first gets right and two only the second: p is {right:.4f}, yours is {value:g}.",
    )
    value = number(call(answer, [0] * 4, [0, 0, 1, 1], [1, 1, 0, 0]))
    if not equal(value, 1.0):
        raise Wrong(f"Two against two speaks for no difference: p is 1, yours is {value:g}. A chance is never above 1.")
    if not equal(number(call(answer, [0, 1], [0, 1], [0, 1])), 1.0):
        raise Wrong("Two models that never differ cannot be told apart: p is 1.")
    if not equal(number(call(answer, labels, second, first)), right):
        raise Wrong("Swapped, the two models should have the same p: neither is the better one beforehand.")


@exercise(
    "evaluation.ece",
    points=3,
    passes="Being right and being honest about one's chances are two things, and this measures the second.",
    section=_CALIBRATION,
)
def _ece(answer: Any) -> None:
    right = [1, 1, 1, 0, 1, 0, 1, 0, 1, 0]
    confidence = [0.97, 0.95, 0.93, 0.94, 0.85, 0.86, 0.62, 0.65, 0.66, 0.55]
    gaps = []  # (n, mean confidence - accuracy) of each bin
    for low in (0.5, 0.6, 0.8, 0.9):
        rows = [i for i, value in enumerate(confidence) if low < value <= low + 0.1]
        gaps.append((len(rows), sum(confidence[i] - right[i] for i in rows) / len(rows)))
    expected = sum(n * abs(gap) for n, gap in gaps) / 10
    cancelled = (
        "The absolute value of each bin's gap is missing (or there are no bins): too sure and too shy cancel out."
    )
    value = number(call(answer, list(right), list(confidence)))
    compare(
        value,
        expected,
        [
            (
                sum(abs(gap) for _, gap in gaps) / len(gaps),
                "Every bin counts the same in your mean. Weight each with its share of the texts, n_k / n.",
            ),
            (
                sum(abs(gap) for _, gap in gaps) / 10,
                "You divided by the number of bins. Weight each bin with its share of the texts, n_k / n.",
            ),
            (sum(n * gap for n, gap in gaps) / 10, cancelled),
            (-sum(n * gap for n, gap in gaps) / 10, cancelled),
            (max(abs(gap) for _, gap in gaps), "That is the largest gap of a bin. ECE is the weighted mean."),
            (
                sum(n * gap**2 for n, gap in gaps) / 10,
                "You squared the gaps. The calibration error takes absolute values.",
            ),
            (
                sum(abs(c - r) for c, r in zip(confidence, right, strict=True)) / 10,
                "You took the gap of each text. A single text is right or wrong; only a group has an accuracy to compare.",
            ),
            (sum(n * abs(gap) for n, gap in gaps), "Divide by the number of texts."),
        ],
        f"For the bins of width 0.1 it is {expected:.4f}, your function returns {value:g}.",
    )
    sure = number(call(answer, [0, 1], [1.0, 0.92]))
    if not equal(sure, 0.46):
        raise Wrong(
            "A confidence of exactly 1 belongs to the last bin, together with 0.92; "
            f"with one of the two right the error is 0.46, yours is {sure:g}."
        )
