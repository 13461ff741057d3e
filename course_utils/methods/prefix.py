"""Prefix tuning: learn keys and values that every layer attends to beside those of the text.

Li & Liang 2021, arXiv:2101.00190. P-Tuning v2 (Liu et al. 2022, arXiv:2110.07602) is the same for understanding tasks.
An attention head computes ``softmax(q Kᵀ / √d) V``. Prefix tuning freezes the model and puts k learnt rows in front::

    softmax(q [P_K; K]ᵀ / √d) [P_V; V]        P_K, P_V: (k, d) for each head of each layer

    table: (k, 2 · layers · width)            all of them side by side, width = heads of the keys · d
    table = E                                 direct: the table itself is trained
    table = W₂ tanh(W₁ E + b₁) + b₂           reparameterised: a small network computes it, E: (k, width)

The rows belong to no word, so they are called virtual tokens. The text follows them at positions k, k + 1, ...: a BERT
with 512 positions reads 512 - k tokens. Padding on the left does not count (in peft it does, and changes the result).

E is drawn from N(0, 1), as in peft. No initialisation leaves the model as it was: a row of zeros has the score 0, and
its share of the attention, ``e⁰ / (k e⁰ + Σ e^score)``, is taken from the text.

The direct table is ``k · 2 · layers · width`` numbers (BERT-base, k = 20: 368,640). The paper found it hard to train
and used the network (14,780,160), which is thrown away after training: only its table is needed then.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel

from course_utils.methods.base import (
    MethodConfig,
    MethodError,
    find_body,
    is_number,
    positive_integer,
    replace_module,
    trainable_dtype,
)
from course_utils.methods.virtual_tokens import (
    AdaptedBody,
    cached_positions,
    check_length,
    extend_mask,
    position_range,
    text_positions,
    word_embeddings,
)

INITIALISATIONS = ("normal", "zero")


@dataclass(frozen=True)
class PrefixTuningConfig(MethodConfig):
    """The settings of prefix tuning.

    Args:
        virtual_tokens: the length k of the prefix; at least 1.
        reparameterize: compute the table with a network while training, as in the paper.
        mid_dim: width of that network; None means the width of the keys, as in peft (the authors' code takes 512).
        init: "normal", or "zero" for a table of zeros, which is milder but no identity either: see above.
    """

    name: ClassVar[str] = "prefix tuning"
    virtual_tokens: int = 20
    reparameterize: bool = False
    mid_dim: int | None = None
    init: str = "normal"

    def __post_init__(self) -> None:
        positive_integer(self.virtual_tokens, "virtual_tokens")
        if self.init not in INITIALISATIONS:
            raise MethodError(f"init must be one of {', '.join(INITIALISATIONS)}, got {self.init!r}")
        if self.mid_dim is not None:
            positive_integer(self.mid_dim, "mid_dim")
            if not self.reparameterize:
                raise MethodError("mid_dim is the width of the network, which is off; set reparameterize=True with it")

    def apply(self, model: nn.Module) -> None:
        """Wrap the body of the model in a `PrefixBody`."""
        name, body = find_body(model)
        replace_module(model, name, PrefixBody(body, self))


@dataclass(frozen=True)
class PTuningV2Config(PrefixTuningConfig):
    """The settings of P-Tuning v2: prefix tuning for classifiers, direct, with dropout on the prefix.

    Args:
        dropout: share of the numbers in the keys and values that are set to zero while training, from 0 to below 1.
    """

    name: ClassVar[str] = "P-Tuning v2"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.dropout) and 0 <= self.dropout < 1):
            raise MethodError(f"dropout is a share from 0 to below 1, got {self.dropout!r}")


class PrefixEncoder(nn.Module):
    """The table of all keys and values, or the network that computes it. Named and drawn as in peft.

    Args:
        config: the settings.
        columns: of the table, 2 · layers · width.
        width: numbers in the keys of one token in one layer.
    """

    def __init__(self, config: PrefixTuningConfig, columns: int, width: int) -> None:
        super().__init__()
        self.virtual_tokens = config.virtual_tokens
        if config.reparameterize:
            mid_dim = config.mid_dim or width
            self.embedding = nn.Embedding(config.virtual_tokens, width)  # N(0, 1)
            self.transform = nn.Sequential(nn.Linear(width, mid_dim), nn.Tanh(), nn.Linear(mid_dim, columns))
        else:
            self.embedding = nn.Embedding(config.virtual_tokens, columns)
            self.transform = nn.Sequential()  # returns what it gets
        if config.init == "zero":
            last = self.transform[-1] if config.reparameterize else self.embedding
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, batch: int) -> torch.Tensor:  # → (batch, k, 2 · layers · width)
        """The table once for each row of the batch."""
        tokens = torch.arange(self.virtual_tokens, device=self.embedding.weight.device)
        return self.transform(self.embedding(tokens.expand(batch, -1)))


class PrefixBody(AdaptedBody):
    """The body of a model, which starts from a cache that holds the prefix as if k tokens had been read already.

    Args:
        base: the body, such as `BertModel`.
        config: the settings.

    Raises:
        MethodError: the body takes no cache, has gradient checkpointing on, or has no more than k positions.
    """

    base: PreTrainedModel

    def __init__(self, base: nn.Module, config: PrefixTuningConfig) -> None:
        super().__init__(base)
        words = word_embeddings(base)
        if "past_key_values" not in inspect.signature(base.forward).parameters:
            raise MethodError(
                f"{type(base).__name__} cannot start from given keys and values (past_key_values), so it takes no "
                "prefix. Use BERT, RoBERTa, GPT-2 or a model of the Llama family, or use LoRA"
            )
        refuse_gradient_checkpointing(base)
        self.positions = position_range(base)
        check_length(self.positions, config.virtual_tokens, tokens=1)
        layers, heads, head_size = self.shape = prefix_shape(self.base.config)
        width = heads * head_size
        self.prefix = PrefixEncoder(config, 2 * layers * width, width)
        self.prefix.to(words.weight.device, trainable_dtype(words.weight))
        self.dropout = nn.Dropout(config.dropout if isinstance(config, PTuningV2Config) else 0.0)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the body on the text, with the prefix before it in every layer."""
        if self.training:
            refuse_gradient_checkpointing(self.base)
        batch, tokens = (inputs["inputs_embeds"] if input_ids is None else input_ids).shape[:2]
        k = self.prefix.virtual_tokens
        seen = cached_positions(past_key_values)  # above 0 while generate goes on: the cache holds the prefix already
        check_length(self.positions, k, max(seen - k, 0) + tokens)
        mask = extend_mask(attention_mask, k)
        if (
            position_ids is None and attention_mask is not None
        ):  # the text follows the prefix, padded on the left or not
            first = 0 if self.positions is None else self.positions.start
            position_ids = first + text_positions(attention_mask)[:, -tokens:]
        # The layers append to the cache that they are given, so every text needs a fresh one.
        cache = DynamicCache() if past_key_values is None else past_key_values
        if not seen:
            for layer, (keys, values) in enumerate(self.keys_and_values(batch)):
                cache.update(keys, values, layer)
        output = self.base(
            input_ids,
            attention_mask=mask,
            position_ids=None if position_ids is None else position_ids + k,
            past_key_values=cache,
            **inputs,
        )
        if past_key_values is None and inputs.get("use_cache") is False:
            output.past_key_values = None  # Llama hands every cache back, even if none was asked for
        return output

    def keys_and_values(self, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each layer the keys and the values of the prefix, each (batch, heads, k, head size)."""
        layers, heads, head_size = self.shape
        table = self.dropout(self.prefix(batch)).to(self.base.dtype)  # (batch, k, 2 · layers · width)
        table = table.view(batch, -1, 2 * layers, heads, head_size).permute(2, 0, 3, 1, 4)
        return zip(table[0::2], table[1::2], strict=True)  # keys of layer 0, its values, keys of layer 1 ...


def prefix_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Layers, heads and head size of the keys. With grouped queries there are fewer heads of keys than of queries."""
    heads: int = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_size


def refuse_gradient_checkpointing(body: nn.Module) -> None:
    """Raise `MethodError` if it is switched on: checkpointed layers throw a cache away, and the prefix with it."""
    if any(getattr(module, "gradient_checkpointing", False) for module in body.modules()):
        raise MethodError(
            "a prefix does not work with gradient checkpointing, whose layers drop all given keys and values. Call "
            "model.gradient_checkpointing_disable(); for less memory use smaller batches, or LoRA"
        )
