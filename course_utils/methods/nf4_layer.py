"""A linear layer whose weight is stored in 4 bits and read back each time it computes (see `quantization`).

::

    h = Ŵ x + b        Ŵ = dequantize(quantize(W)), of shape (out, in), frozen

The weight is read in the forward pass, and again in the backward pass, so that it never has to wait there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from course_utils.methods.double_quantization import dequantize_absmax, double_quantize_absmax
from course_utils.methods.quantization import BLOCK, dequantize_nf4, quantize_nf4
from course_utils.methods.targets import Matrix, layer_shape

#: Triton, which compiles `nf4_kernel`, comes with PyTorch for NVIDIA's and AMD's GPUs on Linux.
HAS_TRITON = find_spec("triton") is not None


class NF4Linear(nn.Linear):
    """A linear layer whose weight is stored in NF4; `weight` reads it back, and what is written to that is lost.

    Args:
        layer: an `nn.Linear`, or a `Conv1D`, whose transpose is stored, so that all weights are (out, in).
        double: store the absmax values in 8 bits.
        block_size: how many neighbouring weights share one absmax.
        compute_dtype: in what the layer computes; None means the type of what comes in.
    """

    codes: torch.Tensor  # two in a byte
    absmax: torch.Tensor  # of each block: float32, or 8-bit codes with the next two
    absmax_scales: torch.Tensor
    absmax_mean: torch.Tensor

    def __init__(
        self,
        layer: Matrix,
        *,
        double: bool = True,
        block_size: int = BLOCK,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which makes a weight
        self.in_features, self.out_features = layer_shape(layer)
        self.transposed = isinstance(layer, Conv1D)
        self.dtype = layer.weight.dtype  # of the weight that is read; follows `model.to(...)`
        self.block_size, self.quantized_twice, self.compute_dtype = block_size, double, compute_dtype
        self.register_parameter("bias", layer.bias)
        codes, absmax = quantize_nf4(layer.weight.T if self.transposed else layer.weight, block_size)
        self.register_buffer("codes", codes)
        if double:
            absmax, scales, mean = double_quantize_absmax(absmax)
            self.register_buffer("absmax_scales", scales)
            self.register_buffer("absmax_mean", mean)
        self.register_buffer("absmax", absmax)
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """``Ŵ``, of shape (out, in)."""
        return self.read(self.dtype)

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Dequantise the weight anew: (out, in)."""
        shape = (self.out_features, self.in_features)
        second = (self.absmax_scales, self.absmax_mean) if self.quantized_twice else None
        if self.codes.is_cuda and HAS_TRITON:
            from course_utils.methods.nf4_kernel import read_nf4

            return read_nf4(self.codes, self.absmax, shape, self.block_size, dtype, second)
        absmax = self.absmax if second is None else dequantize_absmax(self.absmax, *second)
        return dequantize_nf4(self.codes, absmax, shape, self.block_size).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, tokens, in) → (batch, tokens, out)
        """Compute ``Ŵ x + b`` in the compute dtype and return it in that of `x`."""
        dtype = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _ReadTwice.apply(x.to(dtype), bias, self).to(x.dtype)

    def dequantized(self) -> Matrix:
        """An ordinary layer of the kind that was quantised, with ``Ŵ`` as its weight."""
        inputs, outputs = self.in_features, self.out_features
        with torch.device("meta"):  # without memory and random numbers: the weight comes below
            layer: Matrix = Conv1D(outputs, inputs) if self.transposed else nn.Linear(inputs, outputs)
        weight = self.weight.T.contiguous() if self.transposed else self.weight
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    @property
    def packed_parameters(self) -> int:
        """How many parameters the codes stand for."""
        return self.in_features * self.out_features

    @property
    def bits_per_parameter(self) -> float:
        """All that is stored in place of the weight, measured."""
        return 8 * sum(buffer.nbytes for buffer in self.buffers()) / self.packed_parameters

    def extra_repr(self) -> str:
        """What `print(model)` says in the brackets."""
        return f"{super().extra_repr()}, bits_per_parameter={self.bits_per_parameter:.3f}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> NF4Linear:
        """Let `model.to(...)` move the buffers, but never round the scales."""
        exact = dict(self._buffers)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            if buffer is not None and self.get_buffer(name).dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self.get_buffer(name).device)
        return self


class _ReadTwice(torch.autograd.Function):
    """`F.linear` that keeps no weight for the backward pass.

    Left to itself, autograd would keep every layer's dequantised weight until then, and the memory saved would be lost.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: NF4Linear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.read(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        needs_x, needs_bias, _ = ctx.needs_input_grad
        for_x = gradient @ ctx.layer.read(gradient.dtype) if needs_x else None
        for_bias = gradient.flatten(0, -2).sum(0) if needs_bias else None
        return for_x, for_bias, None
