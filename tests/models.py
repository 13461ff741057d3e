"""Tiny random models and batches, built without any network: two layers, hidden size 32, a few milliseconds each.

With COURSE_TEST_DEVICE=cuda they stand on a GPU, and so the tests of the methods run there.

Their weights are drawn larger than a pretrained model's, so that attention is far from uniform and a mistake in any
layer moves the logits well above rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

VOCABULARY, HIDDEN, LAYERS, PAD = 64, 32, 2, 1
#: Sums that stand one behind another on the longest way from a token to the loss: in each layer the query, its score,
#: the softmax, the mean of the values, the output, up, down and two normalisations; outside of them the first and the
#: last normalisation, the head and the loss. The way back to a gradient is as long again.
DEPTH = 9 * LAYERS + 4
#: Terms of the longest of these sums: GPT-2's way down.
WIDEST = 4 * HIDDEN
DEVICE = os.environ.get("COURSE_TEST_DEVICE", "cpu")
if DEVICE == "pretend":
    import pretend_gpu  # noqa: F401
Batch = dict[str, torch.Tensor]


def _encoder(dropout: float) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": PAD,
    }


def _config(family: str, dropout: float, settings: dict[str, Any]) -> PretrainedConfig:
    configs: dict[str, Callable[[], PretrainedConfig]] = {
        "bert": lambda: BertConfig(**_encoder(dropout) | settings),
        "roberta": lambda: RobertaConfig(**_encoder(dropout) | settings),
        "gpt2": lambda: GPT2Config(
            **{"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 40}
            | {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
            | {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
            | settings
        ),
        "llama": lambda: LlamaConfig(  # grouped queries: k_proj and v_proj are half as wide as q_proj
            **{"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
            | {"max_position_embeddings": 40, "attention_dropout": dropout}
            | {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
            | settings
        ),
    }
    config = configs[family]()
    config.initializer_range = 0.1
    return config


_CLASSES: dict[str, tuple[str, type[PreTrainedModel]]] = {
    "bert": ("bert", BertForSequenceClassification),
    "roberta": ("roberta", RobertaForSequenceClassification),
    "gpt2": ("gpt2", GPT2ForSequenceClassification),
    "llama": ("llama", LlamaForSequenceClassification),
    "gpt2-lm": ("gpt2", GPT2LMHeadModel),  # its embeddings are tied to its output layer
    "llama-lm": ("llama", LlamaForCausalLM),
}

CLASSIFIERS = ("bert", "roberta", "gpt2", "llama")
LANGUAGE_MODELS = ("gpt2-lm", "llama-lm")
ALL_MODELS = CLASSIFIERS + LANGUAGE_MODELS


def make(kind: str, *, seed: int = 0, dropout: float = 0.0, **settings: Any) -> Any:
    """A tiny random model in evaluation mode; the same seed gives the same weights.

    Args:
        kind: one of `ALL_MODELS`.
        seed: of the weights.
        dropout: everywhere in the model, so that training mode computes the same as evaluation mode when it is 0.
        settings: more of the model's own configuration, such as `num_labels=3`.
    """
    family, model_class = _CLASSES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = model_class(_config(family, dropout, settings))
        for parameter in model.parameters():  # biases and normalisations start at 0 and 1: a mistake there would hide
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(DEVICE)
    return model.eval()


def make_batch(kind: str, *, rows: int = 4, length: int = 9, seed: int = 0, left: bool = False) -> Batch:
    """Random tokens with padding (each row one token shorter than the row before), and labels.

    Args:
        kind: one of `ALL_MODELS`; a language model's labels are its tokens, with -100 on the padding.
        rows: texts.
        length: tokens of the longest text.
        seed: of the tokens.
        left: pad on the left, as for generation.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(rows):
        mask[row, length - row :] = 0
    if left:
        mask = mask.flip(1)
    tokens = tokens.masked_fill(mask == 0, PAD)
    labels = torch.arange(rows) % 2 if kind in CLASSIFIERS else tokens.masked_fill(mask == 0, -100)
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def fill_lora(model: torch.nn.Module, *, seed: int = 1, size: float = 0.1) -> None:
    """Draw every lora_A and lora_B at random, so that the update is far from zero. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(size * noise(parameter, generator))


def noise(like: torch.Tensor, generator: torch.Generator | int) -> torch.Tensor:
    """Normal numbers in the shape of a tensor, of its type and where it stands: the same ones on every device.

    Args:
        like: the tensor.
        generator: of the processor, or a seed for a new one.
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    return torch.randn(like.shape, generator=generator).to(like)


def rounding(dtype: torch.dtype = torch.float32, *, terms: int = WIDEST, depth: int = DEPTH) -> float:
    """How far two ways to one result may lie apart, as a share of its length (see `relative`); 6.3e-6 for the logits.

    Bits are equal where both ways are the same operations on the same shapes. Everywhere else the order of the terms
    differs, and it is each processor's own. To add n numbers is to round n - 1 times, each time by at most u = eps / 2
    of the sum so far. As many go up as down, so together they are about √n u of the sum, in any order; the bound
    without chance, n u, is far above what is ever met (Higham and Mary 2019). `depth` sums one behind another add up
    likewise, to √(n depth) u. Both ways err, which makes √2 of that, and another √2 is to spare::

        eps √(terms depth)

    Args:
        dtype: in which the sums are kept.
        terms: of the longest sum on the way; 1 where half precision is added in float32 and rounded once.
        depth: how many sums stand one behind another.
    """
    return torch.finfo(dtype).eps * math.sqrt(terms * depth)


def agree(first: torch.Tensor, second: torch.Tensor, gate: float | None = None) -> bool:
    """Whether two tensors are equal bit for bit, on the processor.

    A GPU may cut one product into other pieces than the next, so there they are equal up to rounding: the gate, by
    default that of a gradient.
    """
    if torch.equal(first, second):
        return True
    return DEVICE != "cpu" and relative(first, second) <= (rounding(depth=2 * DEPTH) if gate is None else gate)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """How long the difference is, as a share of the length of what was expected; computed in fp64."""
    assert got.shape == expected.shape
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    return ((got - expected).norm() / expected.norm()).item()
