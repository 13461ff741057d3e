"""The number formats equal those of bitsandbytes, byte for byte."""

from __future__ import annotations

import math

import bitsandbytes.functional as bnb
import pytest
import torch
from models import make, relative
from torch.distributions import Normal

from course_utils.methods import MethodError, QLoRAConfig, inject, quantize
from course_utils.methods.double_quantization import (
    DYNAMIC_LEVELS,
    bits_per_parameter,
    dequantize_absmax,
    double_quantize_absmax,
)
from course_utils.methods.quantization import (
    NF4_LEVELS,
    dequantize_blocks,
    dequantize_int8_absmax,
    dequantize_nf4,
    nf4_levels,
    quantize_blocks,
    quantize_int8_absmax,
    quantize_nf4,
)

#: Appendix E of the paper.
PUBLISHED = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
SHAPES = [(64, 64), (256, 320), (5, 7), (1, 63), (3, 43), (2, 32)]  # also odd, and with a shorter last block


def weights(*shape: int, size: float = 0.02, seed: int = 0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(weight: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, block_size: int = 64) -> str:
    """What differs between these codes and bitsandbytes': "" if nothing."""
    theirs, state = bnb.quantize_4bit(weight, blocksize=block_size, quant_type="nf4")
    if not torch.equal(absmax, state.absmax):
        return "another absmax"
    if torch.equal(codes, theirs.flatten()):
        return ""
    swapped = codes << 4 | codes >> 4
    return "the two codes of a byte are swapped" if torch.equal(swapped, theirs.flatten()) else "other codes"


def lookup(codes: torch.Tensor, absmax: torch.Tensor, block_size: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Dequantisation, one number after the other."""
    numbers = [
        PUBLISHED[codes[i // 2] >> 4 if i % 2 == 0 else codes[i // 2] & 15] * absmax[i // block_size]
        for i in range(math.prod(shape))
    ]
    return torch.stack(numbers).view(shape)


# --- int8 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_equals_bitsandbytes(shape: tuple[int, int]) -> None:
    weight = weights(*shape)
    codes, absmax = quantize_int8_absmax(weight)
    expected, rows, _ = bnb.int8_vectorwise_quant(weight.clone())
    assert codes.dtype == torch.int8
    assert torch.equal(codes, expected)
    assert torch.equal(absmax, rows)
    restored = dequantize_int8_absmax(codes, absmax)
    assert torch.allclose(restored, bnb.int8_vectorwise_dequant(codes, absmax), rtol=1e-6, atol=0)
    assert ((restored - weight).abs() <= 0.501 * absmax[:, None] / 127).all()  # half a step


def test_an_outlier_spoils_a_row_in_int8_and_a_block_in_nf4() -> None:
    weight = weights(8, 256)
    weight[3, 17] = 5.0  # 250 standard deviations
    others = torch.ones_like(weight, dtype=torch.bool)
    others[3, 17] = False
    eight = dequantize_int8_absmax(*quantize_int8_absmax(weight))
    four = dequantize_nf4(*quantize_nf4(weight), (8, 256))
    assert relative(eight[3][others[3]], weight[3][others[3]]) > 0.5  # without the outlier it is 0.008
    assert relative(eight[0], weight[0]) < 0.01
    assert relative(four[3, 64:], weight[3, 64:]) < 0.12
    assert not four[3, :64][others[3, :64]].any()  # all of them nearest to 0


# --- NF4 ------------------------------------------------------------------------------------------------------------


def test_the_levels_are_the_published_ones() -> None:
    assert NF4_LEVELS.shape == (16,)
    assert torch.equal(NF4_LEVELS, bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(NF4_LEVELS, torch.tensor(PUBLISHED))
    assert [(NF4_LEVELS.sign() == sign).sum().item() for sign in (1, -1, 0)] == [8, 7, 1]
    assert abs((1 - 1 / 32 + 1 - 1 / 30) / 2 - 0.9677083) < 5e-8


def test_levels_of_sixteen_equal_quantiles_are_others() -> None:
    naive = Normal(0.0, 1.0).icdf((torch.arange(16) + 0.5) / 16)  # what the formula in many a blog would give
    naive = naive / naive.max()
    assert not (naive == 0).any()
    assert (naive - NF4_LEVELS).abs().max() > 0.04
    assert (nf4_levels(offset=0.99) - NF4_LEVELS).abs().max() > 0.05


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf4_equals_bitsandbytes(shape: tuple[int, int], block_size: int) -> None:
    for seed, size in enumerate((0.02, 1.0, 300.0)):
        weight = weights(*shape, size=size, seed=seed)
        codes, absmax = quantize_nf4(weight, block_size)
        assert difference(weight, codes, absmax, block_size) == ""
        assert codes.dtype == torch.uint8
        assert codes.shape == (math.ceil(weight.numel() / 2),)
        assert absmax.shape == (math.ceil(weight.numel() / block_size),)
        restored = dequantize_nf4(codes, absmax, shape, block_size)
        if weight.numel() % 2:  # bitsandbytes compiles code for each odd size, which takes seconds
            assert torch.equal(restored, lookup(codes, absmax, block_size, shape))
        else:
            # As one row: where a block goes over the end of a row, bitsandbytes 0.50 on AVX512 takes wrong scales.
            row = bnb.quantize_4bit(weight.view(1, -1), blocksize=block_size, quant_type="nf4")
            assert torch.equal(restored, bnb.dequantize_4bit(*row).view(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_read_exactly(dtype: torch.dtype) -> None:
    weight = weights(64, 64).to(dtype)
    codes, absmax = quantize_nf4(weight)
    same, same_absmax = quantize_nf4(weight.float())
    assert torch.equal(codes, same)
    assert torch.equal(absmax, same_absmax)
    assert absmax.dtype == torch.float32


def test_each_number_becomes_the_nearest_level() -> None:
    weight = weights(64, 64, size=1.0)
    codes, absmax = quantize_nf4(weight)
    scaled = weight.view(-1, 64) / absmax[:, None]
    nearest = NF4_LEVELS[(scaled.unsqueeze(-1) - NF4_LEVELS).abs().argmin(-1)] * absmax[:, None]
    assert torch.equal(dequantize_nf4(codes, absmax, (64, 64)), nearest.view(64, 64))
    assert codes[0] >> 4 == (scaled[0, 0] - NF4_LEVELS).abs().argmin()  # the first of two is in the high bits


def test_levels_zeros_and_signs_survive() -> None:
    weight = torch.cat([NF4_LEVELS * 0.5, torch.zeros(48), torch.zeros(64), -NF4_LEVELS[[15]] * 1e-30])
    codes, absmax = quantize_nf4(weight)
    assert torch.equal(dequantize_nf4(codes, absmax, (129,)), weight)
    assert torch.equal(absmax, torch.tensor([0.5, 0.0, 1e-30]))
    # A block of zeros stays 0 even if its absmax is read back as something small after double quantisation.
    assert not dequantize_nf4(codes, absmax + 0.1, (129,))[64:128].any()
    rows, scale = quantize_int8_absmax(torch.zeros(2, 3))
    assert torch.equal(dequantize_int8_absmax(rows, scale), torch.zeros(2, 3))


def test_nf4_beats_equal_steps_on_normal_weights_and_loses_on_uniform_ones() -> None:
    def error(weight: torch.Tensor, levels: torch.Tensor) -> float:
        codes, absmax = quantize_blocks(weight, levels, 64)
        return relative(dequantize_blocks(codes, absmax, levels, 64), weight.flatten())

    equal_steps = torch.linspace(-1, 1, 16)
    normal, uniform = weights(256, 256), torch.rand(256, 256, generator=torch.Generator().manual_seed(0)) - 0.5
    assert error(normal, NF4_LEVELS) == pytest.approx(0.092, abs=0.002)
    assert error(normal, equal_steps) > 1.08 * error(normal, NF4_LEVELS)
    assert error(uniform, equal_steps) < error(uniform, NF4_LEVELS)


def test_the_comparison_finds_planted_mistakes() -> None:
    weight = weights(64, 64)
    codes, absmax = quantize_nf4(weight)
    assert difference(weight, codes, absmax) == ""
    assert difference(weight, codes << 4 | codes >> 4, absmax) == "the two codes of a byte are swapped"
    assert difference(weight, *quantize_nf4(weight.T)) == "another absmax"  # blocks along the columns
    unpacked, _ = quantize_blocks(weight, torch.linspace(-1, 1, 16), 64)  # another table
    assert difference(weight, unpacked[::2] << 4 | unpacked[1::2], absmax) == "other codes"
    scaled = (weight.view(-1, 64) / absmax[:, None]).flatten()
    below = torch.bucketize(scaled, NF4_LEVELS, right=True).sub(1).to(torch.uint8)  # the level below, not the nearest
    assert difference(weight, below[::2] << 4 | below[1::2], absmax) == "other codes"


# --- double quantisation --------------------------------------------------------------------------------------------


def test_the_dynamic_levels_are_those_of_bitsandbytes() -> None:
    assert torch.equal(DYNAMIC_LEVELS, bnb.create_dynamic_map())
    assert DYNAMIC_LEVELS.shape == (256,)


@pytest.mark.parametrize("numbers", [5, 256, 258, 1280, 40_000])
def test_double_quantisation_equals_bitsandbytes(numbers: int) -> None:
    absmax = weights(numbers).abs() + 0.03
    codes, scales, mean = double_quantize_absmax(absmax)
    # bitsandbytes' float32 path looks levels up approximately; given float64 it searches the nearest.
    expected, expected_scales = torch.ops.bitsandbytes.quantize_blockwise(
        (absmax - absmax.mean()).double(), DYNAMIC_LEVELS, 256
    )
    assert torch.equal(codes, expected)
    assert torch.equal(scales, expected_scales)
    restored = dequantize_absmax(codes, scales, mean)
    state = bnb.QuantState(absmax=scales, code=DYNAMIC_LEVELS, blocksize=256, dtype=torch.float32)
    assert torch.equal(restored, bnb.dequantize_blockwise(codes, state) + mean)
    assert relative(restored, absmax) < 0.01


def test_equal_absmax_values_come_back_exactly() -> None:
    """Nothing is left after the mean: a block of zeros, which must not become 0 / 0."""
    for numbers in (1, 300):
        absmax = torch.full((numbers,), 0.25)
        assert torch.equal(dequantize_absmax(*double_quantize_absmax(absmax)), absmax)


def test_without_the_mean_double_quantisation_is_worse() -> None:
    _, absmax = quantize_nf4(weights(256, 320))
    with_mean = dequantize_absmax(*double_quantize_absmax(absmax))
    codes, scales = quantize_blocks(absmax, DYNAMIC_LEVELS, 256)
    without_mean = dequantize_blocks(codes, scales, DYNAMIC_LEVELS, 256)
    assert relative(with_mean, absmax) < 0.5 * relative(without_mean, absmax)


def test_bits_per_parameter() -> None:
    weight = weights(256, 320)
    codes, absmax = quantize_nf4(weight)
    assert bits_per_parameter(double=False) == 4.5 == 8 * (codes.nbytes + absmax.nbytes) / weight.numel()
    measured = 8 * (codes.nbytes + sum(tensor.nbytes for tensor in double_quantize_absmax(absmax))) / weight.numel()
    assert round(bits_per_parameter(), 3) == round(measured, 3) == 4.127
    assert measured == pytest.approx(bits_per_parameter() + 32 / weight.numel())  # the mean


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(MethodError, match="block_size must be a whole number of at least 1, got 0"):
        quantize_nf4(weights(4, 4), block_size=0)
    with pytest.raises(MethodError, match=r"only floating point numbers can be quantised, got torch.uint8"):
        quantize_nf4(torch.zeros(4, dtype=torch.uint8))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("position", [0, 70, -1])  # the last block is not full
def test_a_weight_that_is_not_finite_is_refused(value: float, position: int) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = weights(7, 13).to(dtype)
        weight.flatten()[position] = value
        for quantise in (quantize_nf4, quantize_int8_absmax, double_quantize_absmax):
            with pytest.raises(MethodError, match="a weight is infinite or NaN, and cannot be quantised"):
                quantise(weight.flatten() if quantise is double_quantize_absmax else weight)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_the_layer_that_is_not_finite_is_named_and_the_model_unchanged(value: float, double: bool) -> None:
    model = make("bert")
    name = "bert.encoder.layer.1.output.dense"
    with torch.no_grad():
        model.get_submodule(name).weight[3, 5] = value
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(MethodError, match=f"the weight of {name} holds infinities or NaN"):
        quantize(model, double=double)
    with pytest.raises(MethodError, match=f"the weight of {name} holds infinities or NaN"):
        inject(model, QLoRAConfig(double=double))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor.nan_to_num(), after[key].nan_to_num()) for key, tensor in before.items())
