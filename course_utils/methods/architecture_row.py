"""What a row of the table of architectures says: the names of a family's parts, and what follows from them.

A transformer is a list of equal blocks, and the parts of a block have the same names in each. So a row gives *paths
within a block*: BERT's query projection is `bert.encoder.layer.0.attention.self.query`, block 0 of the list
`bert.encoder.layer`, and its path is `attention.self.query`. The number of the block stands right before a path, which
keeps BERT's `output.dense` (feed-forward) apart from its `attention.output.dense`. An encoder-decoder has two lists of
blocks with the same names. In a block of T5 the sublayers are numbered again, and the paths start there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Attention(NamedTuple):
    """The matrices of an attention part, as paths within a block; query, key and value may be one and the same."""

    query: str
    key: str
    value: str
    output: str


def grouped_key_heads(config: Any) -> int:
    """As many heads of keys as the configuration says, or as there are heads of queries where it says nothing."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


class AdapterPlaces(NamedTuple):
    """Where bottleneck adapters go, as paths within a block."""

    attention_end: str  # the last step of attention: its output is h
    feed_forward_end: str
    # Takes x and gives h; in BERT it takes the hidden layer and x, and gives LN(h + x). None where no module of the
    # model does that, or where attention reads the normalised x as well: then only Houlsby adapters have a place.
    feed_forward: str | None = None
    norm_before: str | None = None  # the normalisation of x, where there is one, beside `feed_forward`


@dataclass(frozen=True)
class Architecture:
    """The names of one family. In brackets: BERT's; Llama's.

    Args:
        attention: paths of the matrices that make queries, keys and values, and of the attention's last one
            (`attention.self.query`, `.key`, `.value`, `attention.output.dense`; `self_attn.q_proj`, `.k_proj`,
            `.v_proj`, `.o_proj`). GPT-2 has the same path three times, `attn.c_attn`: one matrix makes all three.
        cross: the same of a decoder's attention to its encoder, such as T5's `EncDecAttention.q`; None without.
        up: of the first matrices of the feed-forward part: one (`intermediate.dense`), or two where it is gated
            (`mlp.gate_proj` and `mlp.up_proj`).
        down: of its last matrix (`output.dense`; `mlp.down_proj`). None, and `up` empty, where no linear layer holds
            it: the experts of a mixture are one tensor (Mixtral).
        norms: of the normalisations, sorted (`attention.output.LayerNorm`, `output.LayerNorm`; `input_layernorm`,
            `post_attention_layernorm`).
        head: names of a classifier's head in the whole model, not in a block (`classifier`; `score`).
        thirds: one matrix makes query, key and value, in this order and each a third of it (GPT-2). False where three
            do, and where one mixes them head by head (BLOOM) or in unequal parts (Phi-3).
        biased: the query's matrix and `up` have biases (yes; no).
        targets: LoRA's default targets where peft has others than query and value; a tuple of names or a pattern.
        key_heads: how many heads the keys have, from a model's configuration. A layer's cached keys, and so those of a
            prefix, are (batch, heads, tokens, size), for example (32, 4, 20, 64).
        adapters: where bottleneck adapters go; None where we have not shown that they are right.
        peft_ia3: names that peft scales in (IA)³ when a header names none, the last of them on its input
            (`key`, `value`, `output.dense`, which is more than the paper's places); None where peft has no choice. See
            `peft_ia3_inputs`.
    """

    attention: Attention
    up: tuple[str, ...]
    down: str | None
    norms: tuple[str, ...]
    cross: Attention | None = None
    head: tuple[str, ...] = ("score",)
    thirds: bool = False
    biased: bool = False
    targets: tuple[str, ...] | str | None = None
    key_heads: Callable[[Any], int] = grouped_key_heads
    adapters: AdapterPlaces | None = None
    peft_ia3: tuple[str, ...] | None = None

    @property
    def fused(self) -> bool:
        """Whether one matrix makes query, key and value."""
        return self.attention.query == self.attention.key

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """A block's attention, and a decoder's to its encoder."""
        return (self.attention,) if self.cross is None else (self.attention, self.cross)

    @property
    def lora_targets(self) -> tuple[str, ...] | str:
        """LoRA's default targets, as peft names them: query and value, `("query", "value")`, if not others."""
        if self.targets is not None:
            return self.targets
        return tuple(dict.fromkeys(_last_part(path) for path in (self.attention.query, self.attention.value)))

    @property
    def ia3_places(self) -> tuple[str, str] | None:
        """(IA)³'s places as patterns: keys and values, feed-forward. None where keys have no rows of their own."""
        if self.down is None or (self.fused and not self.thirds):
            return None
        keys_and_values = (path for attention in self.attentions for path in (attention.key, attention.value))
        return block_pattern(*keys_and_values), block_pattern(self.down)

    @property
    def peft_ia3_inputs(self) -> tuple[str, ...]:
        """Of `peft_ia3` those that peft scales on the input: the last, if it does not widen, as mT5's `wi_1` does."""
        widening = {_last_part(path) for path in self.up}
        return tuple(name for name in (self.peft_ia3 or ())[-1:] if name not in widening)

    @property
    def two_biases(self) -> tuple[str, ...] | None:
        """BitFit's two, as ends of dotted names: b_q of the query and b_m2 of `up`. None without both, or fused."""
        if self.fused or not self.biased:
            return None
        return (*(f".{attention.query}.bias" for attention in self.attentions), f".{self.up[0]}.bias")


def block_pattern(*paths: str) -> str:
    """A regular expression for the dotted names of these paths in every block."""
    return rf".*\.\d+\.({'|'.join(map(re.escape, dict.fromkeys(paths)))})"


def _last_part(path: str) -> str:
    return path.rpartition(".")[2]
