"""The checks of chapter 13, P-Tuning. Each compares with plain tensors; square layers, so that mistakes get a name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from course_utils.exercises.checking import (
    Wrong,
    call,
    compare,
    equal,
    exercise,
    number,
    random_tensors,
    reaches,
    tensor,
    trained_tensors,
)

_FORMULA = "The formula, beside the code"
_PAPER = "In the paper: a cloze with trained places"
_STORED = "Trained is not stored"


@exercise(
    "p_tuning.encoder",
    points=3,
    passes="Each row of T goes through the same network, so every weight of it has a part in every virtual token.",
    section=_FORMULA,
)
def _encoder(answer: Any) -> None:
    # Square layers, so that a transposed weight does not stop at a shape error and can be named.
    T, W1, b1, W2, b2, W3, b3 = trained_tensors((3, 5), (5, 5), (5,), (5, 5), (5,), (5, 5), (5,))
    value = tensor(call(answer, T, W1, b1, W2, b2, W3, b3), (3, 5), "P, (k, hidden),")
    relu = torch.relu
    first = T @ W1.T + b1
    second = relu(first) @ W2.T + b2
    right = relu(second) @ W3.T + b3
    compare(
        value,
        right,
        [
            (relu(right), "There is a ReLU behind the third layer. Then no number of P can be negative; leave it out."),
            (
                (first @ W2.T + b2) @ W3.T + b3,
                "Both ReLUs are missing. Three linear layers in a row are one linear layer.",
            ),
            (relu(first @ W2.T + b2) @ W3.T + b3, "The ReLU behind the first layer is missing."),
            (second @ W3.T + b3, "The ReLU behind the second layer is missing."),
            (
                torch.tanh(torch.tanh(first) @ W2.T + b2) @ W3.T + b3,
                "That is tanh. P-Tuning's encoder has ReLU; tanh belongs to prefix tuning's.",
            ),
            (relu(relu(T @ W1 + b1) @ W2 + b2) @ W3 + b3, "The weights are transposed: for rows a layer is t Wᵀ + b."),
            (relu(relu(T @ W1.T) @ W2.T) @ W3.T, "The biases are missing."),
            (relu(second) @ W3.T, "The bias of the third layer is missing."),
            (relu(first) @ W3.T + b3, "The second layer is missing."),
            (right + T, "T is added to the result. The encoder has no such short cut: P is the output alone."),
            (
                right.mean(0, keepdim=True).expand(3, -1),
                "All rows are the mean. Each virtual token has a row of its own.",
            ),
            (T, "That is T itself. P is what the network makes of it."),
        ],
        "The result is not W3 ReLU(W2 ReLU(W1 t + b1) + b2) + b3 for each row t of T.",
    )
    reaches(value, T, W1, b1, W2, b2, W3, b3)
    T, W1, b1, W2, b2, W3, b3 = random_tensors((4, 3), (7, 3), (7,), (2, 7), (2,), (5, 2), (5,))
    value = tensor(call(answer, T, W1, b1, W2, b2, W3, b3), (4, 5), "for layers 3 → 7 → 2 → 5 and k = 4, P")
    if not equal(value, relu(relu(T @ W1.T + b1) @ W2.T + b2) @ W3.T + b3):
        raise Wrong("It is right for one size only.")


@exercise(
    "p_tuning.insert",
    points=3,
    passes="The vectors stand where the pattern wants them; the words around them are as the model knows them.",
    section=_PAPER,
)
def _insert(answer: Any) -> None:
    marker = 9
    # The marked places differ from text to text, and no text begins with all of them.
    ids = torch.tensor([[1, 9, 4, 9, 9, 2, 8], [9, 5, 9, 3, 7, 9, 8], [1, 6, 6, 9, 9, 9, 8]])
    E, P = random_tensors((3, 7, 5), (3, 5))
    P.requires_grad_()
    value = call(answer, E, ids, marker, P)
    if isinstance(value, torch.Tensor) and tuple(value.shape) == (3, 10, 5):
        raise Wrong("The text has k rows more. Here the places are in the pattern already: replace rows, add none.")
    value = tensor(value, (3, 7, 5), "the result, (batch, tokens, hidden),")
    marked = ids == marker
    compare(
        value,
        _filled(E, marked, P.repeat(3, 1)),
        [
            (E, "Nothing was replaced: the marked places still hold the embedding of the marker."),
            (_filled(E, marked, P.flip(0).repeat(3, 1)), "The rows of P are in reverse order."),
            (
                _filled(E, marked, P.repeat_interleave(3, dim=0)),
                "Each text gets one row of P, three times. Each text gets all k rows, in order.",
            ),
            (
                _filled(E, marked, P[:1].expand(9, -1)),
                "Every place gets the first row of P. The places get rows 0, 1, 2.",
            ),
            (
                _filled(E, marked, P.mean(0, keepdim=True).expand(9, -1)),
                "Every place gets the mean of P. The places get rows 0, 1, 2.",
            ),
            (_filled(E, marked, 0 * P.repeat(3, 1)), "The marked places are zeros. They should be the rows of P."),
            (
                torch.cat((P.expand(3, -1, -1), E[:, 3:]), dim=1),
                "You replaced the first k places. Look where the marker is.",
            ),
            (
                _filled(E, marked, E[marked] + P.repeat(3, 1)),
                "P is added to the embedding of the marker. Replace it: the marker is only a sign for the place.",
            ),
        ],
        "The marked places of each text are not rows 0 to k − 1 of P, in order, with all else as it was.",
    )
    reaches(value, P)
    E, P = random_tensors((2, 4, 3), (1, 3))
    ids = torch.tensor([[5, 2, 8, 2], [2, 2, 2, 5]])
    value = tensor(call(answer, E, ids, 5, P), (2, 4, 3), "for k = 1 and two texts of four tokens, the result")
    if not equal(value, _filled(E, ids == 5, P.repeat(2, 1))):
        raise Wrong("It is right for one case only. Use the arguments `marker` and `P`, not their values.")


def _filled(embedded: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A copy with these rows at the places, one after the other."""
    filled = embedded.clone()
    filled[places] = rows.detach()[: int(places.sum())].to(filled.dtype)
    return filled


class _Encoder(nn.Module):
    """An encoder with dropout, which makes another P at each call while it trains."""

    def __init__(self, k: int, width: int) -> None:
        super().__init__()
        table, weight = random_tensors((k, width), (width, width))
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.weight = nn.Parameter(weight)
        self.dropout = nn.Dropout(0.5)

    def forward(self) -> torch.Tensor:
        return self.dropout(self.embedding.weight @ self.weight)


@exercise(
    "p_tuning.finish",
    points=2,
    passes="k · hidden numbers are left; the encoder has done its work and can go.",
    section=_STORED,
)
def _finish(answer: Any) -> None:
    for k, width in ((4, 7), (5, 3)):
        _finished(answer, _Encoder(k, width).train())


def _finished(answer: Any, encoder: nn.Module) -> None:
    assert isinstance(encoder, _Encoder)
    table = encoder.embedding.weight.detach().clone()
    right = (table @ encoder.weight).detach()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the dropout, if it is not switched off
        value = tensor(call(answer, encoder), tuple(table.shape), "the table, (k, hidden),")
    if value.requires_grad:
        if equal(value, right):
            raise Wrong("The numbers are right, but they still hang on the encoder. Compute them without a gradient.")
        raise Wrong("The result still hangs on a gradient; and switch the encoder to evaluation before you call it.")
    zeros = float((value == 0).float().mean())
    compare(
        value,
        right,
        [
            (table, "That is T, the encoder's own table. Without the encoder it means nothing: store P, its output."),
            (value if 0 < zeros < 1 else right, "Dropout was on: some numbers are zero. Call `encoder.eval()` first."),
        ],
        "The result is not what the encoder computes when it is called without dropout.",
    )
    with torch.no_grad():
        encoder.weight.mul_(2)
        encoder.embedding.weight.add_(1)
    if not equal(value, right):
        raise Wrong("The table changes when the encoder does. Return a copy of its own.")


@exercise(
    "p_tuning.count",
    points=2,
    passes="Most of what is trained is the encoder, and nothing of the encoder is needed afterwards.",
    section=_STORED,
)
def _count(answer: Any) -> None:
    k, hidden, classes = 7, 10, 3
    head = hidden * classes + classes
    table, network = k * hidden, 3 * (hidden * hidden + hidden)
    trained, stored = _two(call(answer, k, hidden, classes))
    if (trained, stored) == (table + head, table + network + head):
        raise Wrong("These are the right numbers in the wrong order: trained first, then stored.")
    compare(
        trained,
        table + network + head,
        [
            (table + head, "Trained: the encoder is missing. Its three layers are trained with T and the head."),
            (network + head, "Trained: the table T is missing, k · hidden numbers."),
            (table + network, "Trained: the head is missing. It is new, so it is trained with all the rest."),
            (table + 3 * hidden * hidden + head, "Trained: the biases of the three layers are missing."),
            (table + network // 3 + head, "Trained: that is one layer. The encoder has three."),
            (table + 2 * network // 3 + head, "Trained: that is two layers. The encoder has three."),
            (table + k * network + head, "Trained: all k rows go through the same network. Count it once."),
            (2 * table + network + head, "Trained: you counted P too. P is computed, not trained."),
            (table + network + hidden * classes, "Trained: the bias of the head is missing."),
        ],
        f"For k = 7, hidden = 10 and 3 classes {table + network + head} numbers are trained, you say {trained:g}.",
    )
    compare(
        stored,
        table + head,
        [
            (table + network + head, "Stored: the encoder is not needed any more. Only P and the head are."),
            (table, "Stored: the head is missing. Without it the loaded model answers at random."),
            (2 * table + head, "Stored: T is not needed beside P."),
            (network + head, "Stored: that is the encoder and the head. P is k · hidden numbers."),
            (head, "Stored: P is missing, k · hidden numbers."),
        ],
        f"For k = 7, hidden = 10 and 3 classes {table + head} numbers are stored, you say {stored:g}.",
    )
    if _two(call(answer, 2, 6, 4)) != (12 + 3 * 42 + 28, 12 + 28):
        raise Wrong("It is right for one case only; use all three arguments.")


def _two(result: Any) -> tuple[float, float]:
    """The learner's two counts."""
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise Wrong("Return two numbers: how many are trained, and how many are stored.")
    return number(result[0]), number(result[1])
