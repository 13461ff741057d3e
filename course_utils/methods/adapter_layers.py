"""What stands in the model where an adapter goes: the wrapped layers of Houlsby, Pfeiffer and parallel adapters.

h is what a sublayer computes from x, and A is the adapter (see `bottleneck`; the three methods: `adapters`).
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any, NoReturn

import torch
from torch import nn

from course_utils.methods.architecture_row import block_pattern
from course_utils.methods.base import AdaptedLayer, trainable_dtype
from course_utils.methods.bottleneck import Bottleneck, BottleneckConfig
from course_utils.methods.errors import MethodError


class _Unmergeable(AdaptedLayer):
    base: Any  # a module of the model, whose parts are called by their names

    def merged(self) -> NoReturn:
        raise MethodError(
            "bottleneck adapters cannot be merged: an adapter bends its input with a non-linear function between its "
            "two matrices, and no change of the weights does that. Keep it in the model, or take it out with eject"
        )


class _Adapted(_Unmergeable):
    def __init__(self, base: nn.Module, model: nn.Module, config: BottleneckConfig) -> None:
        super().__init__(base)
        self.adapter = Bottleneck(model, config)
        self.parallel = config.parallel


class AdapterAfter(_Adapted):
    """The last step of a sublayer, with an adapter after it (Houlsby)."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Compute ``h + A(h)``."""
        h = self.base(z)
        return (h + self.adapter(h)).to(h.dtype)


class AdaptedOutput(_Adapted):
    """The last step of BERT's block, which holds the sum and its normalisation too (Pfeiffer, parallel)."""

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # (…, hidden layer), (…, d) → (…, d)
        """Compute ``LN(h + A(LN(h + x)) + x)``, or ``LN(h + A(x) + x)``."""
        h = self.base.dropout(self.base.dense(hidden))
        z = x if self.parallel else self.base.LayerNorm(h + x)
        return self.base.LayerNorm((h + self.adapter(z)).to(h.dtype) + x)


class AdaptedFeedForward(_Adapted):
    """The feed-forward network of GPT-2 and Llama (Pfeiffer, parallel). The block adds x to the result."""

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Compute ``h + A(h + x)``, or ``h + A(x)``. The inputs come from `NormAndInput`."""
        normalised, x = inputs
        h = self.base(normalised)
        return (h + self.adapter(x if self.parallel else h + x)).to(h.dtype)


class NormAndInput(_Unmergeable):
    """The normalisation before the feed-forward network; it hands on x as well, because the adapter reads it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised x, and x."""
        return self.base(x), x


class TrainedNorm(_Unmergeable):
    """A trained copy of a normalisation (Houlsby). The model's own waits in `base`, unused."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.trained: Any = deepcopy(base).requires_grad_(True)
        self.trained.to(trainable_dtype(next(base.parameters())))

    @property
    def weight(self) -> torch.Tensor:
        """The trained scale."""
        scale: torch.Tensor = self.trained.weight
        return scale

    @property
    def bias(self) -> torch.Tensor | None:
        """The trained shift, where there is one."""
        shift: torch.Tensor | None = getattr(self.trained, "bias", None)
        return shift

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Normalise with the trained scale and shift."""
        return self.trained(z.to(self.trained.weight.dtype)).to(z.dtype)


def in_blocks(model: nn.Module, place: str) -> dict[str, nn.Module]:
    """Dotted name → the module with this name in each block; the number of the block stands right before it."""
    pattern = re.compile(block_pattern(place))
    return {name: module for name, module in model.named_modules() if pattern.fullmatch(name)}


def is_norm(module: nn.Module) -> bool:
    """Whether this is a layer normalisation; other classes' are called LlamaRMSNorm, T5LayerNorm ..."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
