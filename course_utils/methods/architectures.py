"""What each family of models calls its parts: one row a family, read by every method and every checkpoint format.

A new family is one more row of `ARCHITECTURES` (what a row says: `architecture_row`). The tests then build a tiny model
of it, look every path up in every block, and demand outputs, gradients, texts and checkpoints to be peft's:
`python tests/every_architecture.py` runs every method on every row.
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


def _bigcode_key_heads(config: Any) -> int:
    """StarCoder has one for all queries."""
    return 1 if config.multi_query else int(config.num_attention_heads)


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
    adapters=AdapterPlaces("attention.output.dropout", "output.dropout", "output"),
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
_GPTJ = Architecture(
    attention=_attention("attn.", "q_proj k_proj v_proj out_proj"),
    up=("mlp.fc_in",),
    down="mlp.fc_out",
    norms=("ln_1",),
    adapters=AdapterPlaces("attn.resid_dropout", "mlp.dropout"),
    peft_ia3=("q_proj", "v_proj", "fc_out"),
)
_NEOX = Architecture(
    attention=_attention("attention.", "query_key_value query_key_value query_key_value dense"),
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    norms=("input_layernorm", "post_attention_layernorm"),
    biased=True,
    adapters=AdapterPlaces("attention.dense", "mlp.dense_4h_to_h", "mlp", "post_attention_layernorm"),
    peft_ia3=("query_key_value", "dense_4h_to_h"),
)
_BLOOM = replace(
    _NEOX,
    attention=_attention("self_attention.", "query_key_value query_key_value query_key_value dense"),
    adapters=AdapterPlaces("self_attention.dense", "mlp.dense_4h_to_h"),
)
_BART = Architecture(
    attention=_attention("self_attn.", "q_proj k_proj v_proj out_proj"),
    cross=_attention("encoder_attn.", "q_proj k_proj v_proj out_proj"),
    up=("fc1",),
    down="fc2",
    norms=("encoder_attn_layer_norm", "final_layer_norm", "self_attn_layer_norm"),
    head=("classification_head",),
    biased=True,
    adapters=AdapterPlaces("self_attn.out_proj", "fc2"),
)
_OPT = replace(_BART, cross=None, norms=_BART.norms[1:], head=("score",))
_T5 = Architecture(
    attention=_attention("SelfAttention.", "q k v o"),
    cross=_attention("EncDecAttention.", "q k v o"),
    up=("DenseReluDense.wi",),
    down="DenseReluDense.wo",
    norms=("layer_norm",),
    head=("classification_head",),
    adapters=AdapterPlaces("SelfAttention.o", "DenseReluDense.wo", "DenseReluDense", "layer_norm"),
    peft_ia3=("k", "v", "wo"),
)
_QVD = ("q_proj", "v_proj", "down_proj")  # the query, not the key: so peft has it
_GEMMA2 = replace(
    _LLAMA,
    norms=(*_LLAMA.norms, "post_feedforward_layernorm", "pre_feedforward_layernorm"),
    adapters=AdapterPlaces("self_attn.o_proj", "mlp.down_proj", "mlp", "pre_feedforward_layernorm"),
    peft_ia3=_QVD,
)
_HEADS_NORMS = ("self_attn.k_norm", "self_attn.q_norm")

#: `model_type` of transformers → its names.
ARCHITECTURES: dict[str, Architecture] = {
    # encoders
    "bert": replace(_BERT, peft_ia3=("key", "value", "output.dense")),
    "roberta": replace(_BERT, peft_ia3=("key", "value", "output.dense")),
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "ernie": _BERT,
    "layoutlm": _BERT,
    "mpnet": replace(
        _BERT,
        attention=_attention("attention.attn.", "q k v o"),
        norms=("attention.LayerNorm", "output.LayerNorm"),
        adapters=AdapterPlaces("attention.dropout", "output.dropout", "output"),
    ),
    "albert": replace(
        _BERT,
        attention=_attention("attention.", "query key value dense"),
        up=("ffn",),
        down="ffn_output",
        norms=("attention.LayerNorm", "full_layer_layer_norm"),
        adapters=AdapterPlaces("attention.output_dropout", "ffn_output"),
    ),
    "distilbert": Architecture(
        attention=_attention("attention.", "q_lin k_lin v_lin out_lin"),
        up=("ffn.lin1",),
        down="ffn.lin2",
        norms=("output_layer_norm", "sa_layer_norm"),
        head=("pre_classifier", "classifier"),
        biased=True,
        adapters=AdapterPlaces("attention.out_lin", "ffn.dropout"),
    ),
    "deberta": replace(
        _BERT,
        attention=_attention("attention.", "self.in_proj self.in_proj self.in_proj output.dense"),
        head=("pooler", "classifier"),
        biased=False,
        peft_ia3=("in_proj", "output.dense"),
    ),
    "deberta-v2": replace(
        _BERT,
        attention=_attention("attention.", "self.query_proj self.key_proj self.value_proj output.dense"),
        head=("pooler", "classifier"),
        peft_ia3=("key_proj", "value_proj", "output.dense"),
    ),
    "modernbert": Architecture(
        attention=_attention("attn.", "Wqkv Wqkv Wqkv Wo"),
        up=("mlp.Wi",),
        down="mlp.Wo",
        norms=("attn_norm", "mlp_norm"),
        head=("head", "classifier"),
        thirds=True,
        adapters=AdapterPlaces("attn.out_drop", "mlp.Wo", "mlp", "mlp_norm"),
    ),
    "vit": Architecture(
        attention=_attention("attention.", "q_proj k_proj v_proj o_proj"),
        up=("mlp.fc1",),
        down="mlp.fc2",
        norms=("layernorm_after", "layernorm_before"),
        head=("classifier",),
        biased=True,
        adapters=AdapterPlaces("attention.o_proj", "mlp.fc2", "mlp", "layernorm_after"),
    ),
    # decoders
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, thirds=False, key_heads=_bigcode_key_heads),
    "gpt_neo": Architecture(
        attention=_attention("attn.attention.", "q_proj k_proj v_proj out_proj"),
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        norms=("ln_1", "ln_2"),
        adapters=AdapterPlaces("attn.attention.resid_dropout", "mlp.dropout", "mlp", "ln_2"),
        peft_ia3=("q_proj", "v_proj", "c_proj"),
    ),
    "gptj": _GPTJ,
    "codegen": replace(
        _GPTJ, attention=_attention("attn.", "qkv_proj qkv_proj qkv_proj out_proj"), head=(), peft_ia3=None
    ),
    "gpt_neox": _NEOX,
    "bloom": replace(_BLOOM, peft_ia3=("query_key_value", "mlp.dense_4h_to_h")),
    "falcon": replace(_BLOOM, norms=("input_layernorm",), biased=False, key_heads=_falcon_key_heads),
    "mpt": Architecture(
        attention=_attention("attn.", "Wqkv Wqkv Wqkv out_proj"),
        up=("ffn.up_proj",),
        down="ffn.down_proj",
        norms=("norm_1", "norm_2"),
        thirds=True,
        adapters=AdapterPlaces("attn.out_proj", "ffn.down_proj"),
    ),
    "opt": replace(_OPT, peft_ia3=("q_proj", "k_proj", "fc2")),
    "llama": replace(_LLAMA, peft_ia3=("k_proj", "v_proj", "down_proj")),
    "mistral": replace(_LLAMA, peft_ia3=("k_proj", "v_proj", "down_proj")),
    "qwen2": replace(_LLAMA, peft_ia3=_QVD),
    "qwen3": replace(_LLAMA, norms=(*_LLAMA.norms, *_HEADS_NORMS), peft_ia3=_QVD),
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "gemma": replace(_LLAMA, peft_ia3=_QVD),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, norms=(*_GEMMA2.norms, *_HEADS_NORMS)),
    "phi": Architecture(
        attention=_attention("self_attn.", "q_proj k_proj v_proj dense"),
        up=("mlp.fc1",),
        down="mlp.fc2",
        norms=("input_layernorm",),
        biased=True,
        adapters=AdapterPlaces("self_attn.dense", "mlp.fc2"),
        peft_ia3=("q_proj", "v_proj", "fc2"),
    ),
    "phi3": replace(
        _LLAMA,
        attention=_attention("self_attn.", "qkv_proj qkv_proj qkv_proj o_proj"),
        up=("mlp.gate_up_proj",),
    ),
    # mixtures of experts, and models of more than attention
    "mixtral": replace(
        _LLAMA,
        up=(),
        down=None,
        adapters=AdapterPlaces("self_attn.o_proj", "mlp", "mlp", "post_attention_layernorm"),
        peft_ia3=("k_proj", "v_proj", "w2"),
    ),
    "llama4": replace(_LLAMA, up=(), down=None, head=(), adapters=None, peft_ia3=_QVD),
    "llama4_text": replace(_LLAMA, up=(), down=None, head=(), adapters=None),
    "gemma4": replace(
        _GEMMA2,
        targets=r".*language_model\..*\.(q_proj|v_proj)",
        head=(),
        up=(),
        down=None,
        adapters=None,
        peft_ia3=None,
    ),
    "nemotron_h": Architecture(
        attention=_attention("mixer.", "q_proj k_proj v_proj o_proj"),
        up=(),
        down=None,
        norms=("norm",),
        head=(),
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    "rwkv": Architecture(
        attention=_attention("attention.", "receptance key value output"),
        up=("feed_forward.key", "feed_forward.receptance"),
        down="feed_forward.value",
        norms=("ln1", "ln2"),
        head=(),
        targets=("key", "value", "receptance", "output"),
    ),
    "blip-2": replace(_OPT, targets=r".*\.(q|v|q_proj|v_proj)", up=(), down=None, head=(), biased=False, adapters=None),
    # encoder-decoders
    "t5": _T5,
    "mt5": replace(_T5, up=("DenseReluDense.wi_0", "DenseReluDense.wi_1"), peft_ia3=("k", "v", "wi_1")),
    "bart": replace(_BART, peft_ia3=("q_proj", "v_proj", "fc2")),
    "mbart": _BART,
    "pegasus": replace(_BART, head=()),
    "marian": replace(_BART, head=()),
}

#: The heads of all families: what is new in a classifier, whichever of them it has.
HEAD_NAMES: tuple[str, ...] = tuple(dict.fromkeys(name for row in ARCHITECTURES.values() for name in row.head))
