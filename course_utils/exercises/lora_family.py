"""The checks of chapter 10, the LoRA family: a factor, two rates, a length and a start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number, random_tensors, tensor

_RSLORA = "rsLoRA: another factor"
_PLUS = "LoRA+: B learns faster"
_DORA = "DoRA: length and direction"
_PISSA = "PiSSA: start from the weight itself"


@exercise(
    "lora_family.scaling",
    points=2,
    passes="One square root is all that rsLoRA changes.",
    section=_RSLORA,
)
def _scaling(answer: Any) -> None:
    alpha, rank = 5.0, 9
    plain = number(call(answer, alpha, rank, False))
    swapped = "The two cases are swapped: LoRA divides by the rank, rsLoRA by its square root."
    compare(
        plain,
        alpha / rank,
        [
            (alpha / rank**0.5, swapped),
            (alpha, "Without rsLoRA it is alpha / rank; the rank is missing."),
            (rank / alpha, "Turned round: alpha stands above, the rank below."),
        ],
        f"For alpha 5, rank 9 and plain LoRA it is {alpha / rank:.4f}, your function returns {plain:g}.",
    )
    value = number(call(answer, alpha, rank, True))
    compare(
        value,
        alpha / rank**0.5,
        [
            (
                alpha / rank,
                "With `stabilized` your function still divides by the rank. rsLoRA divides by its square root.",
            ),
            ((alpha / rank) ** 0.5, "You took the root of all. Only the rank is under the root: alpha / √rank."),
            (alpha**0.5 / rank, "You took the root of alpha. The rank is under the root."),
            (alpha * rank**0.5, "You multiplied by √rank. Divide by it: else a larger rank makes a stronger update."),
            (alpha / rank**2, "You divided by rank². It is the square root."),
            (alpha, "With `stabilized` the rank is missing: alpha / √rank."),
        ],
        f"For alpha 5, rank 9 and rsLoRA it is {alpha / rank**0.5:.4f}, your function returns {value:g}.",
    )
    if not equal(number(call(answer, 7.0, 4, True)), 3.5):
        raise Wrong("It is right for one alpha and rank only; use the arguments.")


@exercise(
    "lora_family.groups",
    points=3,
    passes="Each weight is in one group, and only the Bs learn faster. That is all of LoRA+.",
    section=_PLUS,
)
def _groups(answer: Any) -> None:
    names = (
        "Bert.layer.0.query.lora_A.weight",
        "Bert.layer.0.query.lora_B.weight",
        "Bert.layer.1.value.lora_A.weight",
        "Bert.layer.1.value.lora_B.weight",
        "classifier.weight",
        "classifier.bias",
    )
    trained = {name: torch.nn.Parameter(torch.ones(2)) for name in names}
    rate, ratio = 3e-4, 8.0
    _compare_rates(_rates(call(answer, dict(trained), rate, ratio), trained), rate, ratio)
    other = _rates(call(answer, dict(trained), 1e-3, 4.0), trained)
    if not all(equal(other[name], 4e-3 if "lora_B" in name else 1e-3) for name in names):
        raise Wrong("It is right for one rate and one ratio only; use the arguments.")


def _rates(groups: Any, trained: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Name → learning rate, from the groups that the learner returned."""
    if isinstance(groups, dict) or not (isinstance(groups, (list, tuple)) and all(isinstance(g, dict) for g in groups)):
        raise Wrong("Expected a list of groups, each a dict with the keys 'params' and 'lr'.")
    names = {id(parameter): name for name, parameter in trained.items()}
    rates: dict[str, float] = {}
    for group in groups:
        if not {"params", "lr"} <= set(group):
            raise Wrong(f"A group needs the keys 'params' and 'lr'; one of yours has {sorted(group)}.")
        params = group["params"]
        for parameter in [params] if isinstance(params, torch.Tensor) else list(params):
            if isinstance(parameter, str):
                raise Wrong("'params' holds names. An optimiser needs the weights themselves.")
            if id(parameter) not in names:
                raise Wrong(
                    "'params' holds something else than the weights that were given: hand over the same objects."
                )
            name = names[id(parameter)]
            if name in rates:
                raise Wrong(f"{name} stands in your groups twice. An optimiser wants each weight once.")
            rates[name] = number(group["lr"])
    missing = [name for name in trained if name not in rates]
    if missing and all(name.startswith("classifier") for name in missing):
        raise Wrong("The head, classifier, is in no group, so it would never learn. It belongs to the lower rate.")
    if missing:
        raise Wrong(f"{missing[0]} is in no group, so it would never learn.")
    return rates


def _compare_rates(rates: Mapping[str, float], rate: float, ratio: float) -> None:
    """Raise `Wrong` with the mistake, unless every B has `ratio · rate` and all else has `rate`."""
    a, b = rates["Bert.layer.0.query.lora_A.weight"], rates["Bert.layer.0.query.lora_B.weight"]
    head, bias = rates["classifier.weight"], rates["classifier.bias"]
    high = ratio * rate
    if equal(a, b):
        if equal(b, high) and equal(head, rate):
            raise Wrong(
                "A and B both got the higher rate. The letter B also stands in “Bert”: look for 'lora_B', not for 'B'."
            )
        raise Wrong("A and B have the same rate, so this is plain LoRA. B's rate is ratio · rate.")
    if equal(a, high) and equal(b, rate):
        raise Wrong("A and B are swapped. B starts at zero and has far to go: B gets the higher rate.")
    if equal(b, rate) and equal(a, rate / ratio):
        raise Wrong("You lowered A's rate. `rate` is A's and the head's; B gets ratio times as much.")
    if equal(b, rate + ratio):
        raise Wrong("You added the ratio. B's rate is ratio · rate.")
    if not equal(a, rate):
        raise Wrong(f"A has the rate {a:g}; it should be `rate`, {rate:g}.")
    if not equal(b, high):
        raise Wrong(f"B has the rate {b:g}; it should be ratio · rate, {high:g}.")
    if equal(bias, high) and equal(head, rate):
        raise Wrong("The head's bias got B's rate. peft does that to all vectors; the paper means the Bs alone.")
    if not (equal(head, rate) and equal(bias, rate)):
        raise Wrong("The head is no B: it keeps `rate`.")
    if not all(equal(value, high if "lora_B" in name else rate) for name, value in rates.items()):
        raise Wrong("The first layer is right, the second is not. Look at every name.")


@exercise(
    "lora_family.dora",
    points=3,
    passes="A and B turn the rows, m alone sets their lengths, and the result is one plain matrix.",
    section=_DORA,
)
def _dora(answer: Any) -> None:
    # Square, so that columns in the place of rows do not stop at a shape error and can be named.
    W, A, B, m = random_tensors((5, 5), (2, 5), (5, 2), (5,))
    m, s = m.abs() + 0.5, 1.5
    value = tensor(call(answer, W, A, B, s, m), (5, 5), "the merged weight")
    V = W + s * B @ A
    rows, columns = V.norm(dim=1, keepdim=True), V.norm(dim=0, keepdim=True)
    by_column = "You took the lengths of the columns. A row makes one output, and its length is meant: dim=1."
    compare(
        value,
        m[:, None] / rows * V,
        [
            (V, "The lengths are missing: that is the merged weight of plain LoRA."),
            (m[:, None] * V, "The rows are multiplied by m, but not divided by their own lengths first."),
            (V / rows, "The rows have length 1. Their lengths m are missing."),
            (
                m[:, None] / W.norm(dim=1, keepdim=True) * V,
                "You divided by the lengths of W. Take those of W + s · B A.",
            ),
            (m / columns * V, by_column),
            (m[:, None] / columns.T * V, by_column),
            (m / rows * V, "m multiplies the columns. Its numbers belong to the rows: m[:, None]."),
            (
                m / rows.T * V,
                "The lengths belong to the rows, but they multiply the columns: use [:, None] or keepdim=True.",
            ),
            (m[:, None] / V.norm() * V, "You divided by the length of the whole matrix. Each row has its own length."),
            (m[:, None] / rows**2 * V, "You divided by the squares of the lengths; the root is missing."),
            (
                m[:, None] / V.abs().sum(1, keepdim=True) * V,
                "The length is the root of the sum of squares, not a sum of sizes.",
            ),
            (
                W + m[:, None] / rows * (s * B @ A),
                "Only the update is scaled. The whole row, W + s · B A, gets the length m.",
            ),
            (
                m[:, None] * torch.nn.functional.normalize(W + B @ A, dim=1),
                "The factor s is missing in W + s · B A.",
            ),
            (
                m[:, None] * torch.nn.functional.normalize(s * B @ A, dim=1),
                "W is missing: the direction is that of W + s · B A.",
            ),
        ],
        "The result is not m / ‖W + s · B A‖ ⊙ (W + s · B A), with the length of each row.",
    )
    W, A, B, m = random_tensors((7, 5), (3, 5), (7, 3), (7,))
    V = W + 0.5 * B @ A
    right = m.abs()[:, None] / V.norm(dim=1, keepdim=True) * V
    if not equal(tensor(call(answer, W, A, B, 0.5, m.abs()), (7, 5), "the merged weight"), right):
        raise Wrong("It is right for square layers only.")


@exercise(
    "lora_family.pissa",
    points=3,
    passes="The largest directions are trained, the rest is frozen, and their sum is the old weight.",
    section=_PISSA,
)
def _pissa(answer: Any) -> None:
    W, rank, s = random_tensors((7, 7))[0], 2, 2.5
    A, B, R = _parts(answer, W, rank, s)
    u, values, vt = torch.linalg.svd(W)
    top = torch.diag(values[:rank])
    largest = u[:, :rank] @ top @ vt[:rank]
    compare(
        s * B @ A,
        largest,
        [
            (
                s * largest,
                "B A has the size of the part; but the layer multiplies by s. Divide the singular values by s.",
            ),
            (s**2 * largest, "You multiplied the singular values by s. Divide by it: the layer multiplies again."),
            (largest / s, "You divided by s twice: each factor gets the root √(S / s), so that the product has S / s."),
            (
                u[:, -rank:] @ torch.diag(values[-rank:]) @ vt[-rank:],
                "Those are the smallest singular values. Take the first.",
            ),
            (s * u[:, :rank] @ vt[:rank], "The singular values are missing."),
            (
                u[:, :rank] @ top @ top @ vt[:rank] / s,
                "Each factor holds S / s. It gets the root of it, so that the product is S / s.",
            ),
            (
                s * u[:, :rank] @ top @ top @ vt[:rank],
                "Each factor holds S. It gets √(S / s), so that the product is S / s.",
            ),
            (u[:, :rank] @ top @ vt.T[:rank], "torch.linalg.svd returns Vᵀ, so its first rows are what you want."),
            (u.T[:, :rank] @ top @ vt[:rank], "The left singular vectors are the columns of U: U[:, :rank]."),
            (W, "You took all singular values. Take the first `rank`."),
        ],
        "s · B A is not the best approximation of W of this rank, U_r S_r V_rᵀ.",
    )
    if not equal(A @ A.T, B.T @ B):
        raise Wrong("The product is right, but one factor is larger than the other. Each gets the root √(S / s).")
    compare(
        R,
        W - largest,
        [
            (W, "R is still W. Then the layer counts the largest part twice: once frozen, once trained."),
            (W - B @ A, "R is W - B A; the factor s is missing."),
            (W + largest, "You added the largest part. It is taken away: R = W - s · B A."),
            (largest - W, "The sign is turned: R = W - s · B A."),
            (largest, "That is the trained part. R is what is left of W."),
        ],
        "R is not W - s · B A.",
    )
    W = random_tensors((7, 5))[0]
    A, B, R = _parts(answer, W, 3, 0.5)
    if not (equal(R + 0.5 * B @ A, W) and equal(torch.linalg.matrix_norm(R, 2), torch.linalg.svdvals(W)[3])):
        raise Wrong("It is right for one rank, one s or square layers only.")


def _parts(answer: Any, W: torch.Tensor, rank: int, s: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    result = call(answer, W, rank, s)
    if not (isinstance(result, (tuple, list)) and len(result) == 3):
        raise Wrong("Expected three tensors: A, B and R.")
    outputs, inputs = W.shape
    A, B, R = result
    if isinstance(A, torch.Tensor) and tuple(A.shape) == (outputs, rank):
        raise Wrong("These are B and A. Return A first: A has the shape (rank, in), B (out, rank).")
    return (
        tensor(A, (rank, inputs), "A, (rank, in),"),
        tensor(B, (outputs, rank), "B, (out, rank),"),
        tensor(R, (outputs, inputs), "R, (out, in),"),
    )
