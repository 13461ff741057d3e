"""The checks of chapter 15, QLoRA. Each compares with the formula on small tensors."""

from __future__ import annotations

from typing import Any

import torch

from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number, random_tensors, tensor
from course_utils.methods.quantization import NF4_LEVELS

_ABSMAX = "The formula, beside the code"
_NF4 = "Blocks, and sixteen levels"
_DOUBLE = "Double quantisation"
_LAYER = "The layer, and its gradient"


def _pair(result: Any, what: str) -> tuple[Any, Any]:
    """Two values, or a sentence that says which two."""
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise Wrong(f"Expected two values: {what}. Return both.")
    return result[0], result[1]


# --- int8 -----------------------------------------------------------------------------------------------------------


def _int8(scaled: torch.Tensor) -> torch.Tensor:
    """What `.to(torch.int8)` makes of whole numbers: beyond 127 they come out at the other end."""
    return scaled.to(torch.int64).to(torch.int8)


@exercise(
    "qlora.int8",
    points=2,
    passes="255 whole numbers and one absmax a row; no number moved by more than half a step.",
    section=_ABSMAX,
)
def _absmax(answer: Any) -> None:
    # Square, so that rows and columns can be taken for each other; the largest of the first row is negative.
    (W,) = random_tensors((5, 5))
    W[0, 3] = -3.0
    codes, W_hat = _pair(call(answer, W), "the codes and what they read back as")
    if isinstance(W_hat, torch.Tensor) and W_hat.numel() == 5:
        raise Wrong("The second is the absmax of each row. Return what the codes stand for: code · absmax / 127.")
    codes = tensor(codes, (5, 5), "the codes")
    W_hat = tensor(W_hat, (5, 5), "what is read back")
    if codes.dtype != torch.int8:
        raise Wrong(f"The codes must be stored in 8 bits: .to(torch.int8). Yours are {codes.dtype}.")
    _int8_codes(codes, W)
    _int8_read_back(W_hat, W)
    (W,) = random_tensors((3, 7))
    codes, W_hat = _pair(call(answer, W), "the codes and what they read back as")
    absmax = W.abs().amax(dim=1, keepdim=True)
    if not equal(tensor(W_hat, (3, 7), "what is read back"), torch.round(W / absmax * 127) * absmax / 127):
        raise Wrong("It is right for one shape only.")


def _int8_codes(codes: torch.Tensor, W: torch.Tensor) -> None:
    absmax = W.abs().amax(dim=1, keepdim=True)
    columns = W.abs().amax(dim=0, keepdim=True)
    right = torch.round(W / absmax * 127)
    compare(
        codes,
        right,
        [
            (_int8(torch.trunc(W / absmax * 127)), "The numbers are cut off. Round first: torch.round(...)."),
            (_int8(torch.floor(W / absmax * 127)), "The numbers are rounded down. Take the nearest: torch.round(...)."),
            (
                _int8(torch.round(W / absmax * 128)),
                "You multiply by 128. int8 ends at 127, so the largest number of a row comes out as -128.",
            ),
            (
                _int8(torch.round(W / W.abs().max() * 127)),
                "There is one absmax for the whole matrix. Each row has its own.",
            ),
            (
                _int8(torch.round(W / columns * 127)),
                "You took the absmax of each column. It is that of each row: dim=1.",
            ),
            (
                _int8(torch.round(W / absmax.T * 127)),
                "The absmax of a row meets the numbers of a column. Keep the dimension: keepdim=True.",
            ),
            (
                _int8(torch.round(W / W.amax(dim=1, keepdim=True) * 127)),
                "You took the largest number, not the largest absolute value; a large negative number then overflows.",
            ),
            (_int8(torch.round(W / absmax)), "The factor 127 is missing; all codes are -1, 0 or 1."),
            (_int8(torch.round(W * 127)), "The numbers are not divided by the absmax."),
        ],
        "The codes are not round(127 · w / absmax).",
    )


def _int8_read_back(W_hat: torch.Tensor, W: torch.Tensor) -> None:
    absmax = W.abs().amax(dim=1, keepdim=True)
    right = torch.round(W / absmax * 127)
    compare(
        W_hat,
        right * absmax / 127,
        [
            (right * absmax, "Reading back, you forgot to divide by 127."),
            (right / 127, "Reading back, you forgot the absmax."),
            (right, "You returned the codes twice. Read them back: code · absmax / 127."),
            (W, "You returned the weights themselves. Read them back from the codes."),
            (right / 127 * absmax.T, "Reading back, the absmax of a row meets the numbers of a column."),
        ],
        "What is read back is not code · absmax / 127.",
    )


# --- NF4 ------------------------------------------------------------------------------------------------------------


def _packed(codes: torch.Tensor) -> torch.Tensor:
    return codes[::2] * 16 + codes[1::2]


def _nearest(scaled: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return (scaled[:, None] - levels).abs().argmin(dim=1)


@exercise(
    "qlora.nf4",
    points=3,
    passes="Two weights in one byte, each as the index of the nearest level, the first in the high four bits.",
    section=_NF4,
)
def _nf4(answer: Any) -> None:
    levels = NF4_LEVELS.clone()
    # No half of this length is a half of the sixteen levels.
    block = torch.tensor([0.30, -0.41, 0.05, -0.90, 0.66, -0.07, 0.19, 0.52, -0.23, 0.44, 0.11, -0.58, 0.37, -0.14])
    _check_block(answer, block, levels)
    (block,) = random_tensors((64,))
    value, absmax = _pair(call(answer, block, levels), "the bytes and the absmax")
    right = _packed(_nearest(block / block.abs().max(), levels))
    if not equal(tensor(value, (32,), "the bytes"), right) or not equal(number(absmax), block.abs().max()):
        raise Wrong("It is right for one block only. Take the length from the block.")
    steps = torch.linspace(-1, 1, 16)
    value, _ = _pair(call(answer, block, steps), "the bytes and the absmax")
    if not equal(tensor(value, (32,), "the bytes"), _packed(_nearest(block / block.abs().max(), steps))):
        raise Wrong("It is right for one table only. Use the argument `levels`.")


def _check_block(answer: Any, block: torch.Tensor, levels: torch.Tensor) -> None:
    value, absmax = _pair(call(answer, block, levels), "the bytes and the absmax")
    compare(
        number(absmax),
        block.abs().max(),
        [
            (block.max(), "The absmax is the largest *absolute* value: .abs().max()."),
            (block.min(), "The absmax is the largest absolute value, so it is positive."),
            (1 / block.abs().max(), "You returned 1 / absmax."),
        ],
        "The absmax is not the largest absolute value of the block.",
    )
    if isinstance(value, torch.Tensor) and value.shape == block.shape:
        raise Wrong("There is one number for each weight. Put two codes into one byte: high << 4 | low.")
    if isinstance(value, torch.Tensor) and value.shape in ((len(levels),), (len(levels) // 2,)):
        raise Wrong(
            "The minimum runs over the wrong axis: for each *level* you looked for the nearest weight. Look for the "
            "nearest level of each weight, dim=1 of a table (weights, levels)."
        )
    value = tensor(value, (len(block) // 2,), "the bytes")
    if value.dtype != torch.uint8:
        raise Wrong(f"A byte is torch.uint8; yours are {value.dtype}.")
    scaled = block / block.abs().max()
    codes = _nearest(scaled, levels)
    below = (scaled[:, None] >= levels).sum(dim=1) - 1
    above = 15 - (scaled[:, None] <= levels).sum(dim=1) + 1
    even, odd, half = codes[::2], codes[1::2], len(codes) // 2
    compare(
        value,
        _packed(codes),
        [
            (odd * 16 + even, "The two codes of a byte are swapped. The first of a pair goes into the high four bits."),
            (_packed(below), "You took the level below each number. Take the nearest."),
            (
                _packed(above),
                "You took the level above each number, as searchsorted does. Take the nearest: search among the middles "
                "between two levels, or for the smallest distance.",
            ),
            (_packed(_nearest(block, levels)), "The block is not divided by its absmax."),
            (
                _packed(_nearest(block / block.max(), levels)),
                "You divided by the largest number. Divide by the largest absolute value.",
            ),
            (
                _packed(torch.round((scaled + 1) * 7.5).long()),
                "These are the indices of 16 levels at equal distances. Take the nearest of `levels`.",
            ),
            (
                codes[:half] * 16 + codes[half:],
                "You paired the two halves of the block. A byte holds two neighbours: codes[0::2] and codes[1::2].",
            ),
            (even + odd, "The first code must move four bits to the left: << 4, or times 16."),
            (even | odd, "The first code must move four bits to the left: << 4, or times 16."),
            (even * 10 + odd, "A byte is no decimal number: move by 16, not by 10."),
            (even * 15 + odd, "Four bits have 16 values: move by 16, not by 15."),
            (even * 8 + odd, "You moved by three bits. Four bits: << 4."),
        ],
        "The bytes are not the nearest levels, two in a byte.",
    )


# --- bits -----------------------------------------------------------------------------------------------------------


@exercise(
    "qlora.bits",
    points=2,
    passes="4.5 bits with plain NF4, 4.127 with double quantisation.",
    section=_DOUBLE,
)
def _bits(answer: Any) -> None:
    compare(
        number(call(answer, 12, None)),
        4 + 32 / 12,
        [
            (4, "The scales are missing: each block of 12 has one absmax."),
            (
                4 + 32 // 12,
                "`//` cuts the fraction off. Divide with `/`: a weight's share of the absmax is no whole number.",
            ),
            (
                (4 + 32) / 12,
                "You divided the four bits by the block as well. Only the absmax is shared: 4 + 32 / block.",
            ),
            (32 / 12, "The codes themselves are missing: four bits for each weight."),
            (4 + 4 / 12, "A float32 has four bytes. Count bits: 32."),
            (4 + 8 / 12, "Without double quantisation an absmax is a float32: 32 bits, not 8."),
            (4 + 16 / 12, "An absmax is a float32 here: 32 bits, not 16."),
            (8 + 32 / 12, "A code of NF4 has 4 bits, not 8."),
            (4 + 32, "The absmax is shared by the whole block: divide its bits by the block's length."),
            (4 * 12 + 32, "That is a whole block. Divide by its length."),
            ((4 + 32 / 12) / 8, "You counted bytes. The question is bits."),
        ],
        "For blocks of 12 with a float32 absmax it is 6.6667: 4 bits, and a twelfth of 32.",
    )
    _bits_of_double_quantisation(answer)
    for block, second in ((64, None), (32, None), (128, 64), (64, 256)):
        right = 4 + (32 / block if second is None else 8 / block + 32 / (block * second))
        if not equal(number(call(answer, block, second)), right):
            raise Wrong(f"For blocks of {block} and second_block {second} it is {right:.4f}. Use the arguments.")


def _bits_of_double_quantisation(answer: Any) -> None:
    compare(
        number(call(answer, 12, 25)),
        4 + 8 / 12 + 32 / (12 * 25),
        [
            (4 + 32 / 12, "With double quantisation the absmax is stored in 8 bits. Use the second argument."),
            (4 + 8 / 12, "The second scales are missing: one float32 for 25 absmax values."),
            (
                4 + 8 / 12 + 32 / 25,
                "A second scale serves 25 *blocks*, that is 12 · 25 weights.",
            ),
            (4 + 8 / 12 + 8 / (12 * 25), "The second scale is a float32: 32 bits."),
            (4 + 32 / 12 + 32 / (12 * 25), "The first absmax is no longer a float32. It has 8 bits now."),
            (4 + 32 / 12 + 8 / (12 * 25), "The two are swapped: absmax in 8 bits, the second scale in 32."),
            (4 + 8 / 12 + 32 / 12 / 12, "The second scales have blocks of their own length, the second argument."),
            (4 + 4 / 12 + 32 / (12 * 25), "The absmax is stored in 8 bits, not in 4."),
            (8 / 12 + 32 / (12 * 25), "The codes themselves are missing: four bits for each weight."),
            ((4 + 8 + 32 / 25) / 12, "You divided the four bits by the block as well. Only the scales are shared."),
        ],
        "For blocks of 12, and 25 absmax values under one second scale, it is 4.7733.",
    )


# --- the layer ------------------------------------------------------------------------------------------------------


@exercise(
    "qlora.layer",
    points=3,
    passes="The weight is read back when it is needed, and the gradient passes through it, although it is frozen.",
    section=_LAYER,
)
def _layer(answer: Any) -> None:
    levels = NF4_LEVELS.clone()
    # Square, so that swapped and turned factors do not stop at a shape error and can be named.
    x, g, A, B = random_tensors((3, 7), (3, 7), (2, 7), (7, 2))
    codes = torch.tensor([[(7 * row + 5 * column + 3) % 16 for column in range(7)] for row in range(7)])
    absmax = torch.tensor([0.5, 1.25, 0.75, 2.0, 1.5, 0.3, 0.9])
    s = 2.5
    h, for_x = _pair(call(answer, x, g, codes, absmax, levels, A, B, s), "the output and the gradient of the input")
    _layer_output(h, x, codes, absmax, A, B, s)
    _layer_gradient(for_x, x, g, codes, absmax, A, B, s)
    x, g, A, B = random_tensors((5, 7), (5, 11), (3, 7), (11, 3))
    codes, absmax = (torch.arange(77).view(11, 7) * 3) % 16, torch.linspace(0.2, 0.8, 11)
    levels = torch.linspace(-1, 1, 16)
    h, for_x = _pair(call(answer, x, g, codes, absmax, levels, A, B, 0.5), "the output and the gradient of the input")
    W = levels[codes] * absmax[:, None] + 0.5 * B @ A
    if not equal(tensor(h, (5, 11), "the output"), x @ W.T):
        raise Wrong("It is right for square layers, or for one table of levels, only.")
    if not equal(tensor(for_x, (5, 7), "the gradient of the input"), g @ W):
        raise Wrong("It is right for square layers, or for one table of levels, only.")


_COLUMNS = "The absmax of a row meets the numbers of a column: absmax[:, None]."


def _layer_output(
    h: Any, x: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, A: torch.Tensor, B: torch.Tensor, s: float
) -> None:
    read, low = NF4_LEVELS[codes], s * x @ A.T @ B.T
    W = read * absmax[:, None]
    compare(
        tensor(h, (3, 7), "the output"),
        x @ W.T + low,
        [
            (
                x @ (codes * absmax[:, None]).T + low,
                "You computed with the codes. A code is no number: it is the place of a level in the table.",
            ),
            (x @ read.T + low, "The absmax is missing: level · absmax."),
            (x @ (read * absmax).T + low, _COLUMNS),
            (x @ W + low, "The frozen path is transposed: x is a row here, so it is x Ŵᵀ."),
            (x @ W.T, "The update is missing; your function computes the frozen layer only."),
            (low, "The frozen path is missing: h = Ŵ x + s · B A x."),
            (x @ W.T + low / s, "The factor s is missing."),
            (s * (x @ W.T) + low, "The frozen path is scaled too. Only the update is."),
            (x @ W.T + s * x @ (B @ A), "The update is transposed: x is a row here, so it is x Aᵀ Bᵀ."),
            (x @ (read / absmax[:, None]).T + low, "You divide by the absmax. Reading back multiplies."),
        ],
        "The output is not x Ŵᵀ + s · x Aᵀ Bᵀ with Ŵ = levels[codes] · absmax.",
    )


def _layer_gradient(
    for_x: Any,
    x: torch.Tensor,
    g: torch.Tensor,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    s: float,
) -> None:
    read, for_low = NF4_LEVELS[codes], s * g @ B @ A
    W = read * absmax[:, None]
    compare(
        tensor(for_x, (3, 7), "the gradient of the input"),
        g @ W + for_low,
        [
            (
                for_low,
                "The gradient passes LoRA's path only. Frozen means that Ŵ gets no gradient *of its own*; "
                "the gradient of x goes through it: g Ŵ.",
            ),
            (g @ W, "The gradient passes the frozen path only; that of LoRA, s · g B A, is missing."),
            (g @ W.T + for_low, "The gradient of the frozen path is transposed: forward x Ŵᵀ, backward g Ŵ."),
            (g @ W + s * g @ A.T @ B.T, "The gradient of LoRA's path is transposed: forward x Aᵀ Bᵀ, backward g B A."),
            (g @ W.T + s * g @ A.T @ B.T, "That is the forward pass, applied to g. Backward it is g Ŵ + s · g B A."),
            (x @ W.T + s * x @ A.T @ B.T, "You returned the output twice."),
            (g @ W + for_low / s, "In the gradient the factor s is missing."),
            (g @ (read * absmax) + for_low, _COLUMNS),
            (g @ read + for_low, "In the gradient the absmax is missing."),
            (torch.zeros_like(x), "It is zero: then no layer below this one would learn anything."),
            (g, "That is the gradient of the output. It must go through both paths."),
        ],
        "The gradient of x is not g Ŵ + s · g B A.",
    )
