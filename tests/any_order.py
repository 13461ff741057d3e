"""Another processor, for machines that have but one: COURSE_TEST_ORDER=1 adds the terms of products in another order.

Two processors, or one with other instructions, differ in the order in which they add: how many terms at a time, and
how many sums side by side. Which order it is depends on the shapes, and on nothing else. Here each product's sum is
taken in two pieces, cut where its shapes and the seed say. So the same product of the same shapes gives the same bits,
and what is equal by chance, or only because a processor's pieces happen to be short, no longer is.

`pretend_gpu.py` cuts the same way, on tensors that also stand elsewhere.
"""

from __future__ import annotations

import warnings

import torch

_KEPT: list[torch.library.Library] = []  # PyTorch forgets what a library registered when the library is collected


def add_in_any_order(seed: int) -> None:
    """From now on the processor computes its products in two pieces.

    Args:
        seed: of the places where they are cut.
    """

    def added(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float = 1, alpha: float = 1) -> torch.Tensor:
        wide = torch.promote_types(a.dtype, torch.float32)
        return (beta * c.to(wide) + alpha * pieces(seed, a.to(wide), b.to(wide))).to(a.dtype)

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(a.dtype, torch.float32)  # half precision is added in float32
        return pieces(seed, a.to(wide), b.to(wide)).to(a.dtype)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes the place of PyTorch's own is meant
        for name, kernel in (("mm", product), ("bmm", product), ("addmm", added), ("baddbmm", added)):
            library.impl(name, kernel, "CPU")
    _KEPT.append(library)


def pieces(seed: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a b``, the sum over the inner size in two pieces.

    Args:
        seed: of the place of the cut.
        a: (..., m, n).
        b: (..., n, p).
    """
    contiguous = (a.stride(-1) == 1, b.stride(-1) == 1)
    cut = hash((seed, a.shape[-2:], b.shape[-1], contiguous)) % max(1, a.shape[-1])
    multiply = torch.mm if a.ndim == 2 else torch.bmm  # with `out` they are the processor's own
    first, second = a.new_empty(*a.shape[:-1], b.shape[-1]), a.new_empty(*a.shape[:-1], b.shape[-1])
    multiply(a[..., :cut], b[..., :cut, :], out=first)
    return first.add_(multiply(a[..., cut:], b[..., cut:, :], out=second))
