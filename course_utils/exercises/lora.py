"""The checks of chapter 9, LoRA. Each compares with the formula on small random matrices."""

from __future__ import annotations

from typing import Any

import torch

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

_FORWARD = "The formula, beside the code"
_SPECIAL = "Where it starts: B is zero"
_MERGE = "Merging"
_COUNT = "What it costs"


@exercise(
    "lora.forward",
    points=3,
    passes="Two thin paths are added to the frozen layer; its weight was never touched.",
    section=_FORWARD,
)
def _forward(answer: Any) -> None:
    # W is square, so that a turned product does not stop at a shape error and can be named.
    x, W, b, A, B = trained_tensors((3, 7), (7, 7), (7,), (2, 7), (7, 2))
    alpha, s = 5.0, 2.5
    low = x @ A.T @ B.T
    value = tensor(call(answer, x, W, b, A, B, alpha), (3, 7), "the result")
    h = x @ W.T + b
    compare(
        value,
        h + s * low,
        [
            (
                h + alpha * low,
                "The update is multiplied by alpha alone. It is alpha / rank: else every change of the rank changes the strength.",
            ),
            (h + low, "The factor alpha / rank is missing."),
            (
                h + alpha / 7 * low,
                "You divided alpha by the width of the layer. The rank is the number of rows of A.",
            ),
            (
                h + alpha / 2**0.5 * low,
                "That is alpha / √rank, which is rsLoRA. LoRA divides by the rank itself.",
            ),
            (h + alpha // 2 * low, "`//` cuts the fraction off: 5 // 2 is 2. The factor is alpha / rank."),
            (h + 2 / alpha * low, "The factor is upside down: alpha stands above, the rank below."),
            (h + alpha / 8 * low, "You took 8 for the rank. It is the number of rows of A."),
            (h + alpha / 3 * low, "You divided by the number of rows of x. The rank is the number of rows of A."),
            (h + b + s * low, "The bias b is added twice."),
            (h + s * h @ A.T @ B.T, "LoRA reads the layer's output. Both paths read the same x."),
            (h + s * (x @ W.T) @ A.T @ B.T, "LoRA reads what W made of x. Both paths read the same x."),
            (x @ W.T + s * low, "The bias b is missing; LoRA leaves it as it is."),
            (s * (x @ W.T + low) + b, "The frozen layer's output is scaled too. Only the update is."),
            (s * (h + low), "The frozen layer's output is scaled too. Only the update is."),
            (
                x @ (W @ (s * B @ A)).T + b,
                "The update is multiplied with W. It is added: h = W x + b + s · B A x.",
            ),
            (
                x @ (W * (s * B @ A)).T + b,
                "The update is multiplied with W. It is added: h = W x + b + s · B A x.",
            ),
            (h + s * x @ (B @ A), "The product is transposed: x is a row here, so it is x Aᵀ Bᵀ."),
            (s * low, "The frozen path is missing. LoRA adds to W x + b, it does not replace it."),
            (h, "The update is missing; your function computes the frozen layer only."),
        ],
        "The result is not x Wᵀ + b + (alpha / rank) · x Aᵀ Bᵀ.",
    )
    reaches(value, x, A, B)
    # Another rank and a layer that is not square: a formula with a number in it fails here.
    x, W, b, A, B = random_tensors((2, 5), (7, 5), (7,), (3, 5), (7, 3))
    value = tensor(call(answer, x, W, b, A, B, 4.0), (2, 7), "the result")
    if not equal(value, x @ W.T + b + 4 / 3 * x @ A.T @ B.T):
        raise Wrong("It is right for rank 2 only. Take the rank from A's shape.")


@exercise(
    "lora.initialise",
    points=2,
    passes="The product is zero, so training starts at the pretrained model, and the gradient is not zero.",
    section=_SPECIAL,
)
def _initialise(answer: Any) -> None:
    for inputs, outputs, rank in ((11, 6, 2), (200, 201, 7)):
        _start(answer, inputs, outputs, rank)


def _start(answer: Any, inputs: int, outputs: int, rank: int) -> None:
    result = call(answer, inputs, outputs, rank)
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise Wrong("Expected two tensors, A and B.")
    A, B = result
    if isinstance(A, torch.Tensor) and tuple(A.shape) == (outputs, rank):
        raise Wrong("These are B and A. Return A first: A has the shape (rank, in), B (out, rank).")
    A, B = tensor(A, (rank, inputs), "A, (rank, in),"), tensor(B, (outputs, rank), "B, (out, rank),")
    if not A.is_floating_point() or not B.is_floating_point():
        raise Wrong("A and B must hold floating-point numbers, or they cannot be trained.")
    if not bool(A.isfinite().all() and B.isfinite().all()):
        raise Wrong("Some numbers are what stood in the memory before: `torch.empty` sets nothing. Draw them.")
    a_zero, b_zero = bool((A == 0).all()), bool((B == 0).all())
    if a_zero and b_zero:
        raise Wrong(
            "Both are zero. Then the gradient of A is Bᵀ(...) = 0 and that of B is (...)Aᵀ = 0: nothing ever learns."
        )
    if not a_zero and not b_zero:
        raise Wrong(
            "Neither is zero, so B A is not zero and the very first forward pass already disturbs the pretrained model. "
            "Let B start at zero."
        )
    random_one = B if a_zero else A
    if bool((random_one == random_one.flatten()[0]).all()):
        raise Wrong(
            "All entries of the random factor are equal. Then its rows get equal gradients and stay equal: rank 1 for ever."
        )
    if torch.linalg.matrix_rank(random_one.detach()) < 2:
        raise Wrong("The rows of the random factor are multiples of each other, so the update has rank 1.")
    spread, middle = random_one.std().item(), random_one.mean().item()
    if abs(middle) > 5 * spread / random_one.numel() ** 0.5:
        raise Wrong(
            "The random numbers do not lie around zero, so all rows point to one side. Draw them on both sides of it: "
            "`torch.randn`, or `nn.init.kaiming_uniform_`."
        )
    if not 1e-4 < spread < _LARGEST_SPREAD:
        raise Wrong(
            f"The random numbers have a spread of {spread:.3g}: the first steps would be far off. About 1 / √in is usual."
        )


_LARGEST_SPREAD = 2.0  # torch.randn gives 1


@exercise(
    "lora.merge",
    points=2,
    passes="The merged matrix has the size of the old one: no extra time, no extra memory at inference.",
    section=_MERGE,
)
def _merge(answer: Any) -> None:
    W, A, B = random_tensors((7, 7), (2, 7), (7, 2))
    alpha, s = 5.0, 2.5
    value = tensor(call(answer, W, A, B, alpha), (7, 7), "the merged weight")
    compare(
        value,
        W + s * B @ A,
        [
            (W + B @ A, "The factor alpha / rank is missing: merged and unmerged model would differ."),
            (W + alpha * B @ A, "The update is multiplied by alpha alone. It is alpha / rank."),
            (
                W + alpha / 7 * B @ A,
                "You divided alpha by the width of the layer. The rank is the number of rows of A.",
            ),
            (W + alpha // 2 * B @ A, "`//` cuts the fraction off: 5 // 2 is 2. The factor is alpha / rank."),
            (W + 2 / alpha * B @ A, "The factor is upside down: alpha stands above, the rank below."),
            (s * (W + B @ A), "The frozen weight is scaled too. Only the update is."),
            (W + s * (B @ A).T, "The update is transposed. B A already has the shape (out, in) of W."),
            (s * B @ A, "That is the update alone; W is missing."),
            (W @ (s * B @ A), "The update is multiplied with W. It is added."),
            (W * (s * B @ A), "The update is multiplied with W. It is added."),
            (W - s * B @ A, "That takes the update out again; merging adds it."),
        ],
        "The result is not W + (alpha / rank) · B A.",
    )
    W, A, B = random_tensors((7, 5), (3, 5), (7, 3))
    if not equal(tensor(call(answer, W, A, B, 4.0), (7, 5), "the merged weight"), W + 4 / 3 * B @ A):
        raise Wrong("It is right for rank 2 only. Take the rank from A's shape.")


@exercise(
    "lora.count",
    points=2,
    passes="The count grows with the sum of a matrix's sides, not with their product.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    shapes, rank = [(101, 10), (23, 37), (9, 16)], 4
    right = rank * sum(o + i for o, i in shapes)
    value = number(call(answer, list(shapes), rank))
    with_bias = "You gave LoRA a bias. It has none: both factors belong to one weight."
    square = "You took the layers for square. B has `out` rows, A has `in` columns."
    compare(
        value,
        right,
        [
            (
                rank * sum(o * i for o, i in shapes),
                "You multiplied the sides. B has out · rank numbers and A has rank · in: add them.",
            ),
            (sum(o * i for o, i in shapes), "That counts the frozen matrices. Count A and B."),
            (rank * sum(i for _, i in shapes), "That is A alone; B has out · rank numbers more."),
            (rank * sum(o for o, _ in shapes), "That is B alone; A has rank · in numbers more."),
            (2 * rank * sum(i for _, i in shapes), square),
            (2 * rank * sum(o for o, _ in shapes), square),
            (rank * sum(o + i + o for o, i in shapes), with_bias),
            (sum(rank * (o + i) + o for o, i in shapes), with_bias),
            (sum(o + i for o, i in shapes), "The rank is missing."),
            (rank * sum(shapes[0]), "You counted the first matrix only."),
            (rank * sum(shapes[-1]), "You counted the last matrix only. Does the sum begin again in each round?"),
            (sum(rank * o + i for o, i in shapes), "Multiply both sides by the rank: A has rank · in numbers."),
            (sum(o + rank * i for o, i in shapes), "Multiply both sides by the rank: B has out · rank numbers."),
            (4 * right, "That is in bytes. Count the numbers."),
            (rank * rank * len(shapes), "A and B are thin, but not rank × rank: each keeps one long side."),
        ],
        f"For matrices of {shapes} and rank {rank} it is {right}, your function returns {value:g}.",
    )
    if number(call(answer, [(8, 8)], 1)) != 16 or number(call(answer, [(5, 3), (2, 7)], 11)) != 187:
        raise Wrong("It is right for one rank only; use the argument `rank`.")
