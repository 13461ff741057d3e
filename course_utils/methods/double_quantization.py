"""Double quantisation: the absmax values of NF4's blocks, stored in 8 bits (Dettmers et al. 2023, arXiv:2305.14314).

With one float32 for 64 weights, the absmax values cost half a bit for each weight. Quantised once more, in blocks of
256 values with one scale each, they cost an eighth of a bit::

    code  = nearest of 256 levels of  (absmax - mean) / scale        scale = max |absmax - mean| of the block
    absmax ≈ level[code] · scale + mean
"""

from __future__ import annotations

import torch

from course_utils.methods.quantization import BLOCK, dequantize_blocks, quantize_blocks

#: Absmax values that share one scale.
ABSMAX_BLOCK = 256


def dynamic_levels() -> torch.Tensor:
    """The 256 levels of an 8-bit float with a moving point (Dettmers 2016, arXiv:1511.04561), ascending.

    For each power of ten from 10⁻⁶ to 10⁰ there are 1, 2, 4 ... 64 levels between a tenth of it and it: the middles of
    equal intervals. Large numbers get many digits, small ones still get one. Their negatives, 0 and 1 make 256.
    """
    positive: list[float] = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        positive += (10 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
    return torch.tensor(sorted([-level for level in positive] + [0.0] + positive + [1.0]))


DYNAMIC_LEVELS = dynamic_levels()


def double_quantize_absmax(
    absmax: torch.Tensor, block_size: int = ABSMAX_BLOCK
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Store absmax values in 8 bits each.

    They are all positive and of similar size. Without their mean they lie around 0, where the table has its sign and
    its fine levels.

    Returns:
        The codes, uint8 (values,); one scale for each block, float32 (⌈values / block_size⌉,); the mean, float32 ().
    """
    mean = absmax.mean()
    codes, scales = quantize_blocks(absmax - mean, DYNAMIC_LEVELS, block_size)
    return codes, scales, mean


def dequantize_absmax(
    codes: torch.Tensor, scales: torch.Tensor, mean: torch.Tensor, block_size: int = ABSMAX_BLOCK
) -> torch.Tensor:
    """Read the absmax values back from what `double_quantize_absmax` returned: float32 (values,)."""
    return dequantize_blocks(codes, scales, DYNAMIC_LEVELS, block_size) + mean


def bits_per_parameter(block_size: int = BLOCK, *, double: bool = True) -> float:
    """What one weight costs: 4 bits, and its share of the scales (the one mean of a matrix left out)."""
    return 4 + (8 / block_size + 32 / (block_size * ABSMAX_BLOCK) if double else 32 / block_size)
