"""Adapters: small trained networks (see `bottleneck`) between the frozen layers. Three methods, three places.

A sublayer of a transformer (attention, or the feed-forward network) takes `x`, computes `h`, and then adds the two. In
BERT a normalisation follows: LN(h + x). The three methods differ in where the adapter sits and what it reads::

    Houlsby     h ← h + A(h)            after attention and after the feed-forward; trains the normalisations too
    Pfeiffer    h ← h + A(LN(h + x))    after the feed-forward; the LN is the model's own, which is thus used twice
    parallel    h ← h + A(x)            beside the feed-forward

    Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247; He et al. 2022, arXiv:2110.04366

GPT-2 and Llama normalise x before the sublayer and not the sum after it. There we follow the library `adapters`:
Pfeiffer reads the plain sum h + x, and parallel reads x before its normalisation. Gemma 2 and 3 normalise h once more
before the sum; h is what comes before that. In a decoder of T5 the attention to the encoder gets no adapter, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from course_utils.methods.adapter_layers import (
    AdaptedFeedForward,
    AdaptedOutput,
    AdapterAfter,
    NormAndInput,
    TrainedNorm,
    in_blocks,
    is_norm,
)
from course_utils.methods.architecture_row import AdapterPlaces
from course_utils.methods.architectures import model_type
from course_utils.methods.base import AdaptedLayer
from course_utils.methods.bottleneck import BottleneckConfig
from course_utils.methods.errors import MethodError
from course_utils.methods.targets import find_head


@dataclass(frozen=True)
class HoulsbyConfig(BottleneckConfig):
    """Two adapters in each block; all normalisations are trained too, as copies, so that `eject` restores the old.

    The defaults are those of the authors' code. Its 0.001 starts the model almost where it was, not exactly there.
    (The preset of `adapters` has swish and 0.02, and leaves the normalisations frozen.)
    """

    name: ClassVar[str] = "Houlsby adapters"
    activation: str = "gelu"
    initial_std: float | None = 0.001

    def in_places(self, model: nn.Module, places: AdapterPlaces) -> dict[str, AdaptedLayer]:
        """An adapter at the end of each sublayer, and a trained copy of each normalisation."""
        ends = in_blocks(model, places.attention_end) | in_blocks(model, places.feed_forward_end)
        head = tuple(name + "." for name in find_head(model, self.head))  # is trained as it is
        return {name: AdapterAfter(module, model, self) for name, module in ends.items()} | {
            name: TrainedNorm(module)
            for name, module in model.named_modules()
            if is_norm(module) and not f"{name}.".startswith(head)
        }


@dataclass(frozen=True)
class PfeifferConfig(BottleneckConfig):
    """One adapter in each block, after the feed-forward network: half of Houlsby's parameters.

    The defaults are those of the library `adapters`, which does not cut the normal distribution off.
    """

    name: ClassVar[str] = "Pfeiffer adapters"

    def in_places(self, model: nn.Module, places: AdapterPlaces) -> dict[str, AdaptedLayer]:
        """One adapter in each block."""
        return _one_a_block(self, model, places)


@dataclass(frozen=True)
class ParallelAdapterConfig(BottleneckConfig):
    """One adapter in each block, beside the feed-forward network. Wide, and with s = 4, as in the paper."""

    name: ClassVar[str] = "parallel adapters"
    reduction: ClassVar[int] = 2
    parallel: ClassVar[bool] = True
    scaling: float = 4.0
    initial_std: float | None = None

    def in_places(self, model: nn.Module, places: AdapterPlaces) -> dict[str, AdaptedLayer]:
        """One adapter in each block."""
        return _one_a_block(self, model, places)


def _one_a_block(config: BottleneckConfig, model: nn.Module, places: AdapterPlaces) -> dict[str, AdaptedLayer]:
    """One adapter in each block, at the feed-forward network, which reads x or the sum."""
    if places.feed_forward is None:
        raise MethodError(
            f"{config.name} read what goes into the feed-forward network beside what comes out, and no module of "
            f"{model_type(model)!r} takes the one and gives the other. Use HoulsbyConfig, which reads the end alone"
        )
    feed_forwards = in_blocks(model, places.feed_forward)
    if places.norm_before is None:
        return {name: AdaptedOutput(module, model, config) for name, module in feed_forwards.items()}
    norms = {name.removesuffix(places.feed_forward) + places.norm_before for name in feed_forwards}
    try:
        before: dict[str, AdaptedLayer] = {name: NormAndInput(model.get_submodule(name)) for name in sorted(norms)}
    except AttributeError as error:  # a variant of StableLM hands one normalised x to both of its sublayers
        raise MethodError(
            f"{config.name} need a normalisation before the feed-forward network, and this {model_type(model)} has "
            "none of its own there. Use HoulsbyConfig"
        ) from error
    return before | {name: AdaptedFeedForward(module, model, config) for name, module in feed_forwards.items()}
