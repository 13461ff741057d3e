"""What each family of models calls its parts: one row a family, read by every method and every checkpoint format.

A new family is one more row of `ARCHITECTURES` (what a row says: `architecture_row`). The tests then build a tiny model
of it, look every path up in every block, and demand LoRA's and (IA)³'s outputs and gradients to be peft's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from course_utils.methods.architecture_row import AdapterPlaces, Architecture, Attention


def model_type(model: nn.Module) -> str:
    """What transformers calls the family of a model, such as "bert"; "" for a model that says nothing."""
    return getattr(getattr(model, "config", None), "model_type", None) or ""


def architecture_of(model: nn.Module) -> Architecture | None:
    """The row of a model's family, or None if it has none."""
    return ARCHITECTURES.get(model_type(model))


def _falcon_key_heads(config: Any) -> int:
    """Falcon 7B has one for all queries; those of the larger ones are repeated before they are cached."""
    return 1 if config.multi_query and not config.new_decoder_architecture else config.num_attention_heads


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
