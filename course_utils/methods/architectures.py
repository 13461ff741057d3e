"""What each family of models calls its parts: one row a family, read by every method and every checkpoint format.

A transformer is a list of equal blocks, and the parts of a block have the same names in each. So a row gives *paths
within a block*: BERT's query projection is `bert.encoder.layer.0.attention.self.query`, block 0 of the list
`bert.encoder.layer`, and its path is `attention.self.query`. The number of the block stands right before a path, which
keeps BERT's `output.dense` (feed-forward) apart from its `attention.output.dense`.

A new family is one more row of `ARCHITECTURES`. The tests then build a tiny model of it, look every path up in every
block, and demand LoRA's and (IA)³'s outputs and gradients to be peft's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn


class Attention(NamedTuple):
    """The matrices of an attention part, as paths within a block; query, key and value may be one and the same."""

    query: str
    key: str
    value: str
    output: str


def grouped_key_heads(config: Any) -> int:
    """As many heads of keys as the configuration says, or as there are heads of queries where it says nothing."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads  # type: ignore[no-any-return]


def _falcon_key_heads(config: Any) -> int:
    """Falcon 7B has one for all queries; those of the larger ones are repeated before they are cached."""
    return 1 if config.multi_query and not config.new_decoder_architecture else config.num_attention_heads


class AdapterPlaces(NamedTuple):
    """Where bottleneck adapters go, as paths within a block."""

    attention_end: str  # the last step of attention: its output is h
    feed_forward_end: str
    feed_forward: str  # takes x and gives h; in BERT it takes the hidden layer and x, and gives LN(h + x)
    norm_before: str | None  # the normalisation of x, where there is one


@dataclass(frozen=True)
class Architecture:
    """The names of one family. In brackets: BERT's; Llama's.

    Args:
        attention: paths of the matrices that make queries, keys and values, and of the attention's last one
            (`attention.self.query`, `.key`, `.value`, `attention.output.dense`; `self_attn.q_proj`, `.k_proj`,
            `.v_proj`, `.o_proj`). GPT-2 has the same path three times, `attn.c_attn`: one matrix makes all three.
        up: of the first matrices of the feed-forward part: one (`intermediate.dense`), or two where it is gated
            (`mlp.gate_proj` and `mlp.up_proj`).
        down: of its last matrix (`output.dense`; `mlp.down_proj`).
        norms: of the normalisations, sorted (`attention.output.LayerNorm`, `output.LayerNorm`; `input_layernorm`,
            `post_attention_layernorm`).
        head: names of a classifier's head in the whole model, not in a block (`classifier`; `score`).
        thirds: one matrix makes query, key and value, in this order and each a third of it (GPT-2). False where three
            do, and where one mixes them head by head (BLOOM) or in unequal parts (Phi-3).
        biased: the query's matrix and `up` have biases (yes; no).
        key_heads: how many heads the keys have, from a model's configuration. A layer's cached keys, and so those of a
            prefix, are (batch, heads, tokens, size), for example (32, 4, 20, 64).
        adapters: where bottleneck adapters go; None where we have not shown that they are right.
        peft_ia3: names that peft scales in (IA)³ when a header names none, the last of them on its input
            (`key`, `value`, `output.dense`, which is more than the paper's places); None where peft has no choice.
    """

    attention: Attention
    up: tuple[str, ...]
    down: str
    norms: tuple[str, ...]
    head: tuple[str, ...] = ("score",)
    thirds: bool = False
    biased: bool = False
    key_heads: Callable[[Any], int] = grouped_key_heads
    adapters: AdapterPlaces | None = None
    peft_ia3: tuple[str, ...] | None = None

    @property
    def fused(self) -> bool:
        """Whether one matrix makes query, key and value."""
        return self.attention.query == self.attention.key

    @property
    def query_and_value(self) -> tuple[str, ...]:
        """LoRA's default targets, as peft names them: `("query", "value")`."""
        return tuple(dict.fromkeys(_last_part(path) for path in (self.attention.query, self.attention.value)))

    @property
    def ia3_places(self) -> tuple[str, str] | None:
        """(IA)³'s places as patterns: keys and values, feed-forward. None where keys have no rows of their own."""
        if self.fused and not self.thirds:
            return None
        return block_pattern(self.attention.key, self.attention.value), block_pattern(self.down)

    @property
    def two_biases(self) -> tuple[str, str] | None:
        """BitFit's two, as ends of dotted names: b_q of the query and b_m2 of `up`. None without both, or fused."""
        return None if self.fused or not self.biased else (f".{self.attention.query}.bias", f".{self.up[0]}.bias")


def block_pattern(*paths: str) -> str:
    """A regular expression for the dotted names of these paths in every block."""
    return rf".*\.\d+\.({'|'.join(map(re.escape, dict.fromkeys(paths)))})"


def model_type(model: nn.Module) -> str:
    """What transformers calls the family of a model, such as "bert"; "" for a model that says nothing."""
    return getattr(getattr(model, "config", None), "model_type", None) or ""


def architecture_of(model: nn.Module) -> Architecture | None:
    """The row of a model's family, or None if it has none."""
    return ARCHITECTURES.get(model_type(model))


def _last_part(path: str) -> str:
    return path.rpartition(".")[2]


def _attention(prefix: str, names: str) -> Attention:
    """Query, key, value and output below one prefix."""
    query, key, value, output = (prefix + name for name in names.split())
    return Attention(query, key, value, output)


_BERT = Architecture(
    attention=_attention("attention.", "self.query self.key self.value output.dense"),
    up=("intermediate.dense",),
    down="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    head=("classifier",),
    biased=True,
    adapters=AdapterPlaces("attention.output.dropout", "output.dropout", "output", None),
)
_LLAMA = Architecture(
    attention=_attention("self_attn.", "q_proj k_proj v_proj o_proj"),
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    adapters=AdapterPlaces("self_attn.o_proj", "mlp.down_proj", "mlp", "post_attention_layernorm"),
)
_GPT2 = Architecture(
    attention=_attention("attn.", "c_attn c_attn c_attn c_proj"),
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    norms=("ln_1", "ln_2"),
    thirds=True,
    biased=True,
    adapters=AdapterPlaces("attn.resid_dropout", "mlp.dropout", "mlp", "ln_2"),
    peft_ia3=("c_attn", "mlp.c_proj"),
)
_NEOX = Architecture(
    attention=_attention("attention.", "query_key_value query_key_value query_key_value dense"),
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    norms=("input_layernorm", "post_attention_layernorm"),
    biased=True,
    peft_ia3=("query_key_value", "dense_4h_to_h"),
)
_BLOOM = replace(
    _NEOX, attention=_attention("self_attention.", "query_key_value query_key_value query_key_value dense")
)
_QVD = ("q_proj", "v_proj", "down_proj")  # the query, not the key: so peft has it
_GEMMA2_NORMS = (*_LLAMA.norms, "post_feedforward_layernorm", "pre_feedforward_layernorm")

#: `model_type` of transformers → its names.
ARCHITECTURES: dict[str, Architecture] = {
    # encoders
    "bert": replace(_BERT, peft_ia3=("key", "value", "output.dense")),
    "roberta": replace(_BERT, peft_ia3=("key", "value", "output.dense")),
    "xlm-roberta": _BERT,
    "camembert": replace(_BERT, adapters=None),
    "electra": replace(_BERT, adapters=None),
    "ernie": replace(_BERT, adapters=None),
    "mpnet": replace(
        _BERT,
        attention=_attention("attention.attn.", "q k v o"),
        norms=("attention.LayerNorm", "output.LayerNorm"),
        adapters=None,
    ),
    "albert": replace(
        _BERT,
        attention=_attention("attention.", "query key value dense"),
        up=("ffn",),
        down="ffn_output",
        norms=("attention.LayerNorm", "full_layer_layer_norm"),
        adapters=None,
    ),
    "distilbert": Architecture(
        attention=_attention("attention.", "q_lin k_lin v_lin out_lin"),
        up=("ffn.lin1",),
        down="ffn.lin2",
        norms=("output_layer_norm", "sa_layer_norm"),
        head=("pre_classifier", "classifier"),
        biased=True,
    ),
    # decoders
    "gpt2": _GPT2,
    "llama": replace(_LLAMA, peft_ia3=("k_proj", "v_proj", "down_proj")),
    "mistral": replace(_LLAMA, peft_ia3=("k_proj", "v_proj", "down_proj")),
    "qwen2": replace(_LLAMA, peft_ia3=_QVD),
    "qwen3": replace(
        _LLAMA, norms=(*_LLAMA.norms, "self_attn.k_norm", "self_attn.q_norm"), adapters=None, peft_ia3=_QVD
    ),
    "smollm3": replace(_LLAMA, adapters=None),
    "stablelm": replace(_LLAMA, adapters=None),
    "gemma": replace(_LLAMA, adapters=None, peft_ia3=_QVD),
    "gemma2": replace(_LLAMA, norms=_GEMMA2_NORMS, adapters=None, peft_ia3=_QVD),
    "gemma3_text": replace(
        _LLAMA, norms=(*_GEMMA2_NORMS, "self_attn.k_norm", "self_attn.q_norm"), adapters=None, peft_ia3=_QVD
    ),
    "phi": Architecture(
        attention=_attention("self_attn.", "q_proj k_proj v_proj dense"),
        up=("mlp.fc1",),
        down="mlp.fc2",
        norms=("input_layernorm",),
        biased=True,
        peft_ia3=("q_proj", "v_proj", "fc2"),
    ),
    "phi3": replace(
        _LLAMA,
        attention=_attention("self_attn.", "qkv_proj qkv_proj qkv_proj o_proj"),
        up=("mlp.gate_up_proj",),
        adapters=None,
    ),
    "opt": Architecture(
        attention=_attention("self_attn.", "q_proj k_proj v_proj out_proj"),
        up=("fc1",),
        down="fc2",
        norms=("final_layer_norm", "self_attn_layer_norm"),
        biased=True,
        peft_ia3=("q_proj", "k_proj", "fc2"),
    ),
    "gpt_neo": Architecture(
        attention=_attention("attn.attention.", "q_proj k_proj v_proj out_proj"),
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        norms=("ln_1", "ln_2"),
        peft_ia3=("q_proj", "v_proj", "c_proj"),
    ),
    "gptj": Architecture(
        attention=_attention("attn.", "q_proj k_proj v_proj out_proj"),
        up=("mlp.fc_in",),
        down="mlp.fc_out",
        norms=("ln_1",),
        peft_ia3=("q_proj", "v_proj", "fc_out"),
    ),
    "gpt_neox": _NEOX,
    "bloom": replace(_BLOOM, peft_ia3=("query_key_value", "mlp.dense_4h_to_h")),
    "falcon": replace(_BLOOM, norms=("input_layernorm",), biased=False, key_heads=_falcon_key_heads),
}

#: The heads of all families: what is new in a classifier, whichever of them it has.
HEAD_NAMES: tuple[str, ...] = tuple(dict.fromkeys(name for row in ARCHITECTURES.values() for name in row.head))
