"""NF4 read back by one kernel on a GPU; `quantization` says what is computed, and computes it elsewhere.

The same in PyTorch's operations takes ten kernels, and each of them writes its result to memory for the next one to
read. This one (in Triton; Tillet et al. 2019, doi.org/10.1145/3315508.3329973) reads half a byte for each weight and
writes the weight::

    w_hat[n] = level[code[n]] · absmax[n // block]
    absmax[b] = level₂[code₂[b]] · scale[b // 256] + mean        where the absmax values are quantised too

Products and sums are rounded one by one, as PyTorch does it, so every bit is the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from course_utils.methods.double_quantization import ABSMAX_BLOCK, DYNAMIC_LEVELS
from course_utils.methods.quantization import NF4_LEVELS, table_on

_BYTES = 1024  # that one program of the kernel reads


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    codes, absmax, scales, mean, levels, absmax_levels, out, numbers,
    BLOCK: tl.constexpr, ABSMAX_BLOCK: tl.constexpr, TWICE: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    byte = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    pair = tl.load(codes + byte, mask=2 * byte < numbers, other=0).to(tl.int32)
    n = tl.program_id(0).to(tl.int64) * 2 * BYTES + tl.arange(0, 2 * BYTES)
    inside = n < numbers
    block = n // BLOCK
    if TWICE:
        code = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        size = tl.load(absmax_levels + code) * tl.load(scales + block // ABSMAX_BLOCK, mask=inside, other=0.0)
        size = size + tl.load(mean)
    else:
        size = tl.load(absmax + block, mask=inside, other=0.0)
    level = tl.load(levels + tl.interleave(pair >> 4, pair & 15))
    tl.store(out + n, (level * size).to(out.dtype.element_ty), mask=inside)


def read_nf4(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    shape: tuple[int, ...],
    block_size: int,
    dtype: torch.dtype,
    second: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Read a weight back on a GPU.

    Args:
        codes: two in a byte, from `quantize_nf4`.
        absmax: of each block: float32, or the 8-bit codes of `double_quantize_absmax`.
        shape: of the weight.
        block_size: numbers that share one absmax.
        dtype: of the result.
        second: scales and mean of the absmax values, where these are codes.
    """
    out = torch.empty(shape, dtype=dtype, device=codes.device)
    scales, mean = second or (absmax, absmax)  # the kernel does not look at them then
    tables = (table_on(table, codes.device) for table in (NF4_LEVELS, DYNAMIC_LEVELS))
    with torch.cuda.device_of(codes):
        _read[(triton.cdiv(codes.numel(), _BYTES),)](
            codes, absmax, scales, mean, *tables, out, out.numel(),
            BLOCK=block_size, ABSMAX_BLOCK=ABSMAX_BLOCK, TWICE=second is not None, BYTES=_BYTES,
            enable_fp_fusion=False,  # else a product and a sum are rounded once, not twice
        )  # fmt: skip
    return out
