"""The checks of chapter 8, adapters. Each compares with the formula on small random matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm, relu

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
_PLACES = "Three places"
_START = "Where it starts: near the identity"
_COUNT = "What it costs"

Function = Callable[[torch.Tensor], torch.Tensor]


@exercise(
    "adapters.bottleneck",
    points=3,
    passes="Down, a function that is not linear, up, and a way around it all.",
    section=_FORWARD,
)
def _bottleneck(answer: Any) -> None:
    # Square, so that swapped matrices do not stop at a shape error and can be named.
    h, D, b, U, c = trained_tensors((3, 7), (7, 7), (7,), (7, 7), (7,))
    value = tensor(call(answer, h, D, b, U, c), (3, 7), "the result")
    inner = relu(h @ D.T + b)
    compare(
        value,
        h + inner @ U.T + c,
        [
            (
                h + (h @ D.T + b) @ U.T + c,
                "The ReLU is missing. Without it the two matrices are one matrix of low rank, and the adapter is "
                "a LoRA in another place.",
            ),
            (inner @ U.T + c, "The shortcut is missing: the frozen layer's h must come through unchanged, h + A(h)."),
            (h + relu((h @ D.T + b) @ U.T + c), "The ReLU stands at the end. It belongs between D and U."),
            (relu(h + inner @ U.T + c), "There is a ReLU around everything. It belongs between D and U only."),
            (relu(h + (h @ D.T + b) @ U.T + c), "There is a ReLU around everything. It belongs between D and U only."),
            (h + (relu(h) @ D.T + b) @ U.T + c, "The ReLU comes before D. It belongs between D and U."),
            (h + gelu(h @ D.T + b) @ U.T + c, "That is GELU, as in Houlsby's adapters. Here it is ReLU."),
            (h + relu(h @ D.T) @ U.T + c, "The bias b is missing; it is added before the ReLU."),
            (
                h + (relu(h @ D.T) + b) @ U.T + c,
                "The bias b is added after the ReLU. It belongs inside: relu(D h + b).",
            ),
            (h + inner @ U.T, "The bias c is missing."),
            (h + relu(h @ D.T) @ U.T, "Both biases are missing."),
            (h + relu(h @ U.T + b) @ D.T + c, "D and U are exchanged. D comes first: it makes the vector short."),
            (h + relu(h @ D + b) @ U + c, "The products are transposed: h is a row here, so it is h Dᵀ."),
        ],
        "The result is not h + relu(h Dᵀ + b) Uᵀ + c.",
    )
    reaches(value, h, D, b, U, c)
    h, D, b, U, c = random_tensors((2, 5), (3, 5), (3,), (5, 3), (5,))
    if not equal(tensor(call(answer, h, D, b, U, c), (2, 5), "the result"), h + relu(h @ D.T + b) @ U.T + c):
        raise Wrong("It is right for square matrices only. D has the shape (m, d), U the shape (d, m).")


@exercise(
    "adapters.places",
    points=3,
    passes="The same adapter in three places; what differs is what it reads.",
    section=_PLACES,
)
def _places(answer: Any) -> None:
    for rows, width, size in ((3, 7, 4), (2, 5, 3)):
        _three_places(answer, rows, width, size)


def _three_places(answer: Any, rows: int, width: int, size: int) -> None:
    h, x, D, U = trained_tensors((rows, width), (rows, width), (size, width), (width, size))
    gain, shift = random_tensors((width,), (width,))

    def adapter(z: torch.Tensor) -> torch.Tensor:
        return relu(z @ D.T) @ U.T

    def norm(z: torch.Tensor) -> torch.Tensor:
        return layer_norm(z, (width,), gain, shift)

    n = norm(h + x)
    readings = {"houlsby": h, "pfeiffer": n, "parallel": x}
    names = {"houlsby": "h itself", "pfeiffer": "the normalised sum LN(h + x)", "parallel": "x"}
    for kind, z in readings.items():
        value = tensor(call(answer, h, x, adapter, norm, kind), (rows, width), f"the result for {kind!r}")
        mistakes = [
            (
                norm(h + adapter(other) + x),
                f"{kind}: your adapter reads {names[name]}, as in {name}. Here it reads {names[kind]}.",
            )
            for name, other in readings.items()
            if name != kind
        ]
        mistakes += [
            (norm(h + adapter(h + x) + x), f"{kind}: your adapter reads the sum h + x. Here it reads {names[kind]}."),
            (n, f"{kind}: the adapter is missing; that is the plain block, LN(h + x)."),
            (norm(adapter(z) + x), f"{kind}: the shortcut around the adapter is missing: h + A(...), then + x."),
            (norm(h + adapter(z)), f"{kind}: x is missing. The block's own sum stays: LN(h + A(...) + x)."),
            (h + adapter(z) + x, f"{kind}: the normalisation at the end is missing."),
        ]
        mistakes += [
            (
                n + adapter(other),
                f"{kind}: you added the adapter after the normalisation. It is added to h, and then LN comes.",
            )
            for other in readings.values()
        ]
        mistakes += [(norm(n + adapter(z)), f"{kind}: you add to the normalised sum. Add to h and x themselves.")]
        compare(value, norm(h + adapter(z) + x), mistakes, f"{kind}: the result is not LN(h + A({names[kind]}) + x).")
        reaches(value, h, x, D, U)


@exercise(
    "adapters.initialise",
    points=2,
    passes="The adapter adds next to nothing at first, and both matrices can learn.",
    section=_START,
)
def _initialise(answer: Any) -> None:
    for width, size in ((41, 8), (30, 7)):
        _start(answer, width, size)


def _start(answer: Any, width: int, size: int) -> None:
    result = call(answer, width, size)
    if not (isinstance(result, (tuple, list)) and len(result) == 4):
        raise Wrong("Expected four tensors: D, b, U and c.")
    if isinstance(result[0], torch.Tensor) and tuple(result[0].shape) == (width, size):
        raise Wrong("The first has the shape of U. D comes first and has the shape (size, width); U is (width, size).")
    shapes = {"D, (size, width),": (size, width), "b, (size,),": (size,), "U, (width, size),": (width, size)}
    shapes["c, (width,),"] = (width,)
    parts = [tensor(part, shape, what) for part, (what, shape) in zip(result, shapes.items(), strict=True)]
    if not all(part.is_floating_point() for part in parts):
        raise Wrong("All four must hold floating-point numbers, or they cannot be trained.")
    if not all(bool(part.isfinite().all()) for part in parts):
        raise Wrong("Some numbers are what stood in the memory before: `torch.empty` sets nothing. Draw them.")
    D, b, U, c = (part.detach().clone().requires_grad_() for part in parts)
    d_zero, u_zero = not bool(D.any()), not bool(U.any())
    if d_zero and u_zero:
        raise Wrong(
            "D and U are both zero. Then the gradient of U is zero, because the bottleneck is silent, and that of D is "
            "zero, because U is. Only c would learn, the same for every text."
        )
    if bool(c.any()):
        raise Wrong("c is not zero, so the adapter moves every vector before it has learnt anything.")
    z, direction = random_tensors((50, width), (50, width))
    added = relu(z @ D.T + b) @ U.T + c
    (added * direction).sum().backward()
    if d_zero and not (D.grad is not None and bool(D.grad.any())):
        raise Wrong(
            "D is zero and U is random. ReLU stands at 0 then, where PyTorch takes its slope as 0: no gradient reaches D, "
            "and none reaches U. The other way round it works: D random, U zero."
        )
    share = (added.norm() / z.norm()).item()
    if share > 0.05:
        raise Wrong(
            f"The start is not near the identity: what your adapter adds has {share:.0%} of the size of its input. "
            "Draw U much smaller, or set it to zero."
        )
    units = torch.cat([D, U.T, b[:, None]], dim=1)
    if bool((units == units[0]).all()):
        raise Wrong("All units of the bottleneck are equal. They get equal gradients and stay equal, as if m were 1.")


@exercise(
    "adapters.count",
    points=2,
    passes="It grows with the width of the bottleneck, and with the number of places.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    width, size, blocks, each = 50, 7, 3, 2
    one = 2 * size * width + size + width
    right = blocks * each * one
    value = number(call(answer, width, size, blocks, each))
    places = blocks * each
    compare(
        value,
        right,
        [
            (
                places * 2 * size * width,
                "The biases are missing: D has one for each of the m, U one for each of the d.",
            ),
            (places * (2 * size * width + size), "The bias of U is missing; it has d numbers."),
            (places * (2 * size * width + width), "The bias of D is missing; it has m numbers."),
            (places * (2 * size * width + 2 * size), "One bias has m numbers and the other d, not m both."),
            (places * (2 * size * width + 2 * width), "One bias has m numbers and the other d, not d both."),
            (places * (size * width + size), "That is D alone; U is as large."),
            (places * (size * width + width), "That is U alone; D is as large."),
            (places * (size * width + size + width), "There are two matrices, D and U, with m · d numbers each."),
            (blocks * one, "Each block holds several adapters: multiply by the last argument, too."),
            (each * one, "That is one block. Multiply by the number of blocks."),
            (one, "That is one adapter. Multiply by the number of places."),
            (places * 2 * (size + width), "D and U are matrices: m · d numbers each, not m + d."),
            (places * (2 * width * width + 2 * width), "You took the bottleneck as wide as the model; it has m units."),
        ],
        f"For d = {width}, m = {size} and {places} adapters it is {right:,}, your function returns {value:g}.",
    )
    if number(call(answer, 4, 1, 1, 1)) != 13:
        raise Wrong("It is right for these numbers only; use all four arguments.")
