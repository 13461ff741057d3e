"""Quantisation: store a weight in 4 bits instead of 32 (NF4; Dettmers et al. 2023, arXiv:2305.14314).

All formats here do the same: divide by the largest absolute value, so that all numbers lie in [-1, 1], and store for
each number the index of the nearest *level* of a fixed table. To read it back, look the level up and multiply::

    code  = nearest level of  w / absmax          absmax = max |w|, one for each row or block of numbers
    w_hat = level[code] · absmax

* **int8** (the stepping stone): 255 levels at equal distances, one absmax for each row.
* **NF4**: 16 levels where a normal distribution has its weight (`nf4_levels`), one absmax for each block of 64 numbers,
  two codes in one byte. An outlier then spoils 63 neighbours and not a whole row.
* **double quantisation**: the absmax values are themselves stored in 8 bits, see `double_quantization`.

Bits for each weight: 4 + 32/64 = 4.5 for NF4; 4 + 8/64 + 32/(64 · 256) = 4.127 with double quantisation.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
from torch.nn.functional import pad

from course_utils.methods.errors import MethodError, check_whole_number

#: Numbers that share one absmax in NF4.
BLOCK = 64


# --- int8 -----------------------------------------------------------------------------------------------------------


def quantize_int8_absmax(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to 255 equally spaced levels: ``code = round(127 · w / absmax)``.

    Args:
        weight: (rows, columns).

    Returns:
        The codes, int8 (rows, columns), and the absmax of each row, float32 (rows,).

    Raises:
        MethodError: a weight is infinite or NaN.
    """
    absmax = weight.float().abs().amax(dim=1)
    _refuse_not_finite(absmax)
    codes = torch.round(weight * (127 / _not_zero(absmax)).unsqueeze(1))
    return codes.to(torch.int8), absmax


def dequantize_int8_absmax(codes: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    """``w_hat = code · absmax / 127``, float32 (rows, columns)."""
    return codes * (absmax / 127).unsqueeze(1)


# --- NF4 ------------------------------------------------------------------------------------------------------------


def nf4_levels(offset: float = 0.9677083) -> torch.Tensor:
    """The 16 levels of the 4-bit NormalFloat, ascending from -1 to 1.

    Trained weights are close to normally distributed. The levels are therefore quantiles of the normal distribution:
    close together near 0, where most weights are, and far apart at the ends. Three details are easily missed:

    * 0 must be a level, so that a weight of 0 (padding, pruning) stays 0. Sixteen levels and one in the middle leave
      two unequal halves: 8 positive levels, 7 negative ones, and 0.
    * The quantile of probability 1 is infinite, so the halves start a little inside, at `offset`. The authors take the
      mean of 1 - 1/32 and 1 - 1/30, half a step inside for 16 and for 15 levels: 0.9677083.
    * Each half runs from `offset` to 1/2 (whose quantile is 0) at equal steps of probability: 8 steps, 7 steps.

    Dividing by the largest makes the ends -1 and 1.
    """

    def half(steps: int) -> list[float]:
        probabilities = torch.linspace(offset, 0.5, steps + 1)[:-1].tolist()
        return [NormalDist().inv_cdf(p) for p in probabilities]

    levels = torch.tensor(sorted([-q for q in half(7)] + [0.0] + half(8)))
    return levels / levels.max()


NF4_LEVELS = nf4_levels()
# Both levels of a byte, found at once: for each of the 256 bytes two float32, carried as one number of 64 bits.
_LEVEL_PAIRS = torch.cartesian_prod(NF4_LEVELS, NF4_LEVELS).view(torch.int64).squeeze(1)


def quantize_nf4(weight: torch.Tensor, block_size: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """Store a weight in NF4.

    Args:
        weight: of any shape; its numbers are taken row by row. The last block may be shorter.
        block_size: how many neighbouring numbers share one absmax.

    Returns:
        The codes, two in each byte, the first of a pair in the high four bits: uint8 (⌈numbers / 2⌉,). And the absmax
        of each block: float32 (⌈numbers / block_size⌉,).

    Raises:
        MethodError: `block_size` is no whole number of at least 1, or a weight is infinite or NaN.
    """
    codes, absmax = quantize_blocks(weight, NF4_LEVELS, block_size)
    codes = pad(codes, (0, codes.numel() % 2), value=7)  # the last number's missing partner: a 0, whose code is 7
    return codes[::2] << 4 | codes[1::2], absmax


def dequantize_nf4(
    codes: torch.Tensor, absmax: torch.Tensor, shape: tuple[int, ...], block_size: int = BLOCK
) -> torch.Tensor:
    """Read a weight of this `shape` back from what `quantize_nf4` returned: float32."""
    unpacked = table_on(_LEVEL_PAIRS, codes.device).index_select(0, codes.int()).view(torch.float32)
    return _scale_blocks(unpacked[: math.prod(shape)], absmax, block_size).view(shape)


# --- what NF4 and double quantisation share -------------------------------------------------------------------------


def quantize_blocks(values: torch.Tensor, levels: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide each block by its absmax and take the nearest level: codes, uint8 (numbers,), and absmax (blocks,)."""
    check_whole_number(block_size, "block_size")
    if not values.is_floating_point():
        raise MethodError(f"only floating point numbers can be quantised, got {values.dtype}: quantised already?")
    flat = values.detach().float().flatten()
    blocks = _in_blocks(flat, block_size)
    absmax = blocks.abs().amax(dim=1)
    _refuse_not_finite(absmax)
    scaled = (blocks * (1 / _not_zero(absmax)).unsqueeze(1)).clamp(-1, 1)  # clamp: the product may round above 1
    middles = (levels[1:] + levels[:-1]) / 2  # between two levels: below it the lower one is nearer
    codes = torch.bucketize(scaled, middles.to(scaled.device))
    return codes.flatten()[: flat.numel()].to(torch.uint8), absmax


def dequantize_blocks(codes: torch.Tensor, absmax: torch.Tensor, levels: torch.Tensor, block_size: int) -> torch.Tensor:
    """Look the levels up and multiply each block by its absmax: float32 (numbers,)."""
    return _scale_blocks(table_on(levels, codes.device).index_select(0, codes.int()), absmax, block_size)


@lru_cache(maxsize=16)
def table_on(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The table on a device. To copy it there each time would let a GPU wait for the processor."""
    return table.to(device)


def _scale_blocks(found: torch.Tensor, absmax: torch.Tensor, block_size: int) -> torch.Tensor:
    """Multiply each block of a vector, which is changed, by its absmax."""
    blocks = _in_blocks(found, block_size)
    return blocks.mul_(absmax.unsqueeze(1)).flatten()[: found.numel()]


def _in_blocks(values: torch.Tensor, block_size: int) -> torch.Tensor:
    """(numbers,) → (blocks, block_size); the last block is filled up with zeros."""
    missing = -values.numel() % block_size
    return (pad(values, (0, missing)) if missing else values).view(-1, block_size)  # `pad` copies even for nothing


def _refuse_not_finite(absmax: torch.Tensor) -> None:
    """An infinite weight would spoil its block, and with double quantisation all of them. `amax` hands NaN on."""
    if not absmax.is_meta and not bool(absmax.isfinite().all()):
        raise MethodError(
            "a weight is infinite or NaN, and cannot be quantised: it would spoil its neighbours as well. Load the "
            "model in float32 (fp16 overflows above 65504), or look at the training that it comes from"
        )


def _not_zero(absmax: torch.Tensor) -> torch.Tensor:
    """A block of nothing but zeros must not become 0 / 0."""
    return absmax.clamp(min=torch.finfo(torch.float32).tiny)
