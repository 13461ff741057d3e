"""The checks of chapter 11, (IA)³. Each compares with the formula on small random tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

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
_MERGE = "Merging: rows or columns"
_PLACES = "Three vectors a block, and not one more"


def _attention_of(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    l_k: torch.Tensor | float = 1.0,
    l_v: torch.Tensor | float = 1.0,
    divisor: float | None = None,
) -> torch.Tensor:
    scores = q @ (k * l_k).T / (q.shape[1] ** 0.5 if divisor is None else divisor)
    return torch.softmax(scores, dim=-1) @ (v * l_v)


@exercise(
    "ia3.attention",
    points=3,
    passes="Each number of a key and of a value has its own factor, the same for all tokens.",
    section=_FORMULA,
)
def _attention(answer: Any) -> None:
    # Square, so that swapped or turned factors do not stop at a shape error and can be named.
    q, k, v, l_k, l_v = trained_tensors((3, 5), (5, 5), (5, 5), (5,), (5,))
    value = tensor(call(answer, q, k, v, l_k, l_v), (3, 5), "the result")
    scores = q @ (k * l_k).T
    tokens = "A factor belongs to one number of each key, not to one token: k * l_k scales the columns of k."
    compare(
        value,
        _attention_of(q, k, v, l_k, l_v),
        [
            (_attention_of(q, k, v), "Neither vector is used. Multiply k by l_k, and v by l_v."),
            (_attention_of(q, k, v, l_v=l_v), "The keys are not scaled; l_k is missing."),
            (_attention_of(q, k, v, l_k=l_k), "The values are not scaled; l_v is missing."),
            (_attention_of(q, k, v, l_v, l_k), "The two vectors are swapped: l_k belongs to k, l_v to v."),
            (_attention_of(q, k, v, l_k, l_v, 1.0), "The scores are not divided by √d."),
            (_attention_of(q, k, v, l_k, l_v, 5.0), "The scores are divided by d. It is √d."),
            (_attention_of(q * l_k, k, v, l_k, l_v), "The query is scaled too. Only keys and values are."),
            (_attention_of(q, k + l_k, v + l_v), "The vectors are added. They are factors: multiply."),
            (
                _attention_of(q, k, v, 1 + l_k, 1 + l_v),
                "You multiply by 1 + l. The vectors themselves are the factors; they start at one, not at zero.",
            ),
            (_attention_of(q, k, v, l_k[:, None], l_v[:, None]), tokens),
            (_attention_of(q, k, v, l_k[:, None], l_v), tokens),
            (_attention_of(q, k, v, l_k, l_v[:, None]), tokens),
            (scores / 5**0.5 @ (v * l_v), "The softmax is missing."),
            (
                torch.softmax(scores / 5**0.5, dim=0) @ (v * l_v),
                "The softmax goes along the queries. The weights of one query, a row, add up to one: dim=-1.",
            ),
        ],
        "The result is not softmax(q (l_k ⊙ k)ᵀ / √d) (l_v ⊙ v).",
    )
    reaches(value, q, l_k, l_v)
    q, k, v, l_k, l_v = random_tensors((3, 2), (5, 2), (5, 7), (2,), (7,))
    value = tensor(call(answer, q, k, v, l_k, l_v), (3, 7), "the result")
    if not equal(value, _attention_of(q, k, v, l_k, l_v)):
        raise Wrong("It is right for one size only. Take d from q's shape.")


@exercise(
    "ia3.feedforward",
    points=2,
    passes="The factors stand after the activation function, where the second layer reads.",
    section=_FORMULA,
)
def _feedforward(answer: Any) -> None:
    x, W1, b1, W2, b2, factors = trained_tensors((3, 7), (7, 7), (7,), (7, 7), (7,), (7,))
    value = tensor(call(answer, x, W1, b1, W2, b2, factors), (3, 7), "the result")
    h = x @ W1.T + b1
    f = functional.gelu(h)
    compare(
        value,
        (f * factors) @ W2.T + b2,
        [
            (f @ W2.T + b2, "The factors l are missing; your function computes the frozen block."),
            (
                functional.gelu(h * factors) @ W2.T + b2,
                "The factors stand before GELU. They scale what comes out of it.",
            ),
            (
                (f @ W2.T) * factors + b2,
                "The factors stand after W2. They scale what goes *into* the second layer.",
            ),
            (
                (f @ W2.T + b2) * factors,
                "The factors stand after W2. They scale what goes *into* the second layer.",
            ),
            (
                functional.gelu((x * factors) @ W1.T + b1) @ W2.T + b2,
                "The factors scale the input of the first layer. They belong before the second.",
            ),
            (
                (f * factors) @ W2.T + b2 * factors,
                "The bias b2 is scaled too. It is added after the scaled input was multiplied, so it stays.",
            ),
            ((f * factors) @ W2.T, "The bias b2 is missing; (IA)³ leaves it as it is."),
            ((f * (1 + factors)) @ W2.T + b2, "You multiply by 1 + l. The vector itself holds the factors."),
            ((f + factors) @ W2.T + b2, "The vector is added. Its numbers are factors: multiply."),
            ((torch.relu(h) * factors) @ W2.T + b2, "That is ReLU. This block uses GELU, as BERT does."),
            ((h * factors) @ W2.T + b2, "The activation function GELU is missing."),
        ],
        "The result is not W2 (l ⊙ GELU(W1 x + b1)) + b2.",
    )
    reaches(value, x, factors)
    x, W1, b1, W2, b2, factors = random_tensors((2, 3), (7, 3), (7,), (5, 7), (5,), (7,))
    value = tensor(call(answer, x, W1, b1, W2, b2, factors), (2, 5), "the result")
    if not equal(value, (functional.gelu(x @ W1.T + b1) * factors) @ W2.T + b2):
        raise Wrong("It is right for square layers only.")


@exercise(
    "ia3.merge",
    points=3,
    passes="Factors of the output go into rows and bias, factors of the input into columns. The model is plain again.",
    section=_MERGE,
)
def _merge(answer: Any) -> None:
    _merge_on_output(answer, *random_tensors((4, 4), (4,), (4,)))
    _merge_on_input(answer, *random_tensors((4, 4), (4,), (4,)))
    W, b, long, short = random_tensors((5, 3), (5,), (5,), (3,))
    for side, factors in (("output", long), ("input", short)):
        weight, bias = _merged(answer, W, b, factors, side)
        x = random_tensors((2, 3))[0]
        right = (x @ W.T + b) * factors if side == "output" else (x * factors) @ W.T + b
        if not equal(x @ weight.T + bias, right):
            raise Wrong("It is right for square layers only.")


def _merged(
    answer: Any, W: torch.Tensor, b: torch.Tensor, factors: torch.Tensor, side: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the learner returns: weight and bias of the right shape, with the inputs left as they were."""
    result = call(answer, W, b, factors, side)
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise Wrong("Expected two tensors: the merged weight and the bias. Return both, also where one did not change.")
    weight = tensor(result[0], tuple(W.shape), f"the merged weight (side={side!r})")
    return weight, tensor(result[1], tuple(b.shape), f"the merged bias (side={side!r})")


def _merge_on_output(answer: Any, W: torch.Tensor, b: torch.Tensor, factors: torch.Tensor) -> None:
    weight, bias = _merged(answer, W, b, factors, "output")
    compare(
        weight,
        W * factors[:, None],
        [
            (W, "On the output side your function leaves W as it was."),
            (
                W * factors,
                "On the output side you scaled the columns of W. A row of W makes one output: scale the rows.",
            ),
            (
                W * factors[:, None] * factors,
                "On the output side you scaled rows and columns. Only the rows make the output.",
            ),
            (W / factors[:, None], "On the output side you divide. That takes the factors out again."),
        ],
        "On the output side the merged weight is not W with each row multiplied by its factor.",
    )
    compare(
        bias,
        b * factors,
        [(b, "On the output side the bias must be scaled too: l ⊙ (W x + b) = (l ⊙ W) x + l ⊙ b.")],
        "On the output side the merged bias is not l ⊙ b.",
    )


def _merge_on_input(answer: Any, W: torch.Tensor, b: torch.Tensor, factors: torch.Tensor) -> None:
    weight, bias = _merged(answer, W, b, factors, "input")
    compare(
        weight,
        W * factors,
        [
            (W, "On the input side your function leaves W as it was."),
            (
                W * factors[:, None],
                "On the input side you scaled the rows of W. A column of W meets one input: scale the columns.",
            ),
            (
                W * factors[:, None] * factors,
                "On the input side you scaled rows and columns. Only the columns meet the input.",
            ),
            (W / factors, "On the input side you divide. That takes the factors out again."),
        ],
        "On the input side the merged weight is not W with each column multiplied by its factor.",
    )
    compare(
        bias,
        b,
        [
            (
                b * factors,
                "On the input side the bias must stay: it is added after the scaled input met the weight.",
            )
        ],
        "On the input side the bias is not the old one.",
    )


#: Name → (out, in), with widths that give each wrong choice another number.
_LAYERS = {
    f"encoder.layer.{block}.{name}": shape
    for block in range(2)
    for name, shape in {
        "attention.self.query": (8, 10),
        "attention.self.key": (8, 10),
        "attention.self.value": (14, 10),
        "attention.output.dense": (10, 14),
        "intermediate.dense": (31, 10),
        "output.dense": (10, 31),
    }.items()
} | {"pooler.dense": (10, 10)}


@exercise(
    "ia3.count",
    points=3,
    passes="A few numbers a block, and the layer after the attention heads is not among them.",
    section=_PLACES,
)
def _count(answer: Any) -> None:
    value = number(call(answer, dict(_LAYERS)))
    compare(
        value,
        2 * (8 + 14 + 31),
        [
            (
                2 * (8 + 14 + 31 + 14),
                'You took attention.output.dense too: its name also ends in "output.dense". peft\'s default does. '
                "Take the layer after intermediate.dense only.",
            ),
            (
                2 * (8 + 14 + 10),
                "You counted the outputs of the feed-forward layer. It is scaled on its input, (out, in)[1].",
            ),
            (
                2 * (8 + 14 + 10 + 10),
                "You took attention.output.dense too, and counted outputs where inputs are scaled.",
            ),
            (
                2 * (10 + 10 + 31),
                "You counted the inputs of key and value. They are scaled on the output, (out, in)[0].",
            ),
            (2 * (8 + 8 + 14 + 31), "You counted the query. It needs no factor of its own: the key's does the same."),
            (2 * (8 + 14 + 31 + 31), "You counted the inner layer twice: as an output and as an input it is one."),
            (2 * (8 + 14), "The feed-forward vectors are missing."),
            (2 * 31, "The vectors of keys and values are missing."),
            (8 + 14 + 31, "You counted one block only."),
            (2 * (8 * 10 + 14 * 10 + 10 * 31), "You multiplied the sides. That counts the frozen weights."),
            (2 * (8 + 10 + 14 + 10 + 10 + 31), "You added both sides, as for LoRA. Here one side gets factors."),
        ],
        f"For the layers of the check it is {2 * (8 + 14 + 31)}, your function returns {value:g}.",
    )
    prefix = "bert.encoder.layer.11"
    other = {f"{prefix}.attention.self.{name}": (width, 6) for name, width in (("query", 4), ("key", 4), ("value", 5))}
    other |= {f"{prefix}.attention.output.dense": (6, 5), f"{prefix}.output.dense": (6, 9)}
    if number(call(answer, other)) != 4 + 5 + 9:
        raise Wrong("It is right for one model only. Count from the names and shapes that are handed over.")
