"""How a prefix gets into a model: each layer finds learnt keys and values in its cache, as if k tokens had been read.

What the keys and values are, and who computes them, says `prefix`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn

from course_utils.methods.architecture_row import grouped_key_heads
from course_utils.methods.architectures import ARCHITECTURES
from course_utils.methods.errors import MethodError
from course_utils.methods.virtual_tokens import (
    AdaptedBody,
    cache_name,
    cached_positions,
    check_length,
    extend_mask,
    position_range,
    take_cache,
    text_positions,
    window,
    word_embeddings,
)


class PrefixTable(nn.Module):
    """A module that returns (k, 2 · layers · width), the same for all texts.

    Args:
        virtual_tokens: k.
    """

    def __init__(self, virtual_tokens: int) -> None:
        super().__init__()
        self.virtual_tokens = virtual_tokens


class PrefixBody(AdaptedBody):
    """The body of a model, which starts from a cache that holds the prefix as if k tokens had been read already.

    Args:
        base: the body, such as `BertModel`, which `check_prefix` has let through.
        prefix: gives the table of all keys and values, (k, 2 · layers · width), and k as `virtual_tokens`.
        dropout: share of the numbers in the table that are set to zero while training.
    """

    base: transformers.PreTrainedModel
    prefix: PrefixTable

    def __init__(self, base: nn.Module, prefix: PrefixTable, dropout: float) -> None:
        super().__init__(base)
        self.positions = position_range(base)
        self.cache_name = cache_name(base)
        self.shape = prefix_shape(self.base.config)
        self.window = window(base.config)
        self.prefix = prefix
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the body on the text, with the prefix before it in every layer."""
        batch, tokens, given, seen = self._begin(input_ids, inputs)
        k = self.prefix.virtual_tokens
        mask = extend_mask(attention_mask, k)
        self._refuse_padding_in_the_window(attention_mask)
        if (
            position_ids is None and attention_mask is not None
        ):  # the text follows the prefix, padded on the left or not
            first = 0 if self.positions is None else self.positions.start
            position_ids = first + text_positions(attention_mask)[:, -tokens:]
        # The layers append to the cache that they are given, so every text needs a fresh one.
        cache = transformers.DynamicCache() if given is None else given
        if not seen:
            for layer, (keys, values) in enumerate(self.keys_and_values(batch)):
                cache.update(keys, values, layer)
        output = self.base(
            input_ids,
            attention_mask=mask,
            position_ids=None if position_ids is None else position_ids + k,
            **inputs | {self.cache_name: cache},
        )
        if given is None and inputs.get("use_cache") is False:
            setattr(output, self.cache_name, None)  # Llama hands every cache back, even if none was asked for
        return output

    def _begin(self, input_ids: torch.Tensor | None, inputs: dict[str, Any]) -> tuple[int, int, Any, int]:
        """Texts, tokens of each, the given cache, and how many positions it holds; what is wrong is refused."""
        if self.training:
            refuse_gradient_checkpointing(self.base)
        batch, tokens = (inputs["inputs_embeds"] if input_ids is None else input_ids).shape[:2]
        given = take_cache(inputs)
        seen = cached_positions(given)  # above 0 while generate goes on: the cache holds the prefix already
        k = self.prefix.virtual_tokens
        check_length(self.positions, k, max(seen - k, 0) + tokens)
        return batch, tokens, given, seen

    def _refuse_padding_in_the_window(self, attention_mask: torch.Tensor | None) -> None:
        """In the cache the prefix stands before the padding, and a window counts positions, padding or not."""
        if self.window is None or attention_mask is None:
            return
        if self.prefix.virtual_tokens + attention_mask.shape[1] <= self.window or bool(attention_mask[:, 0].all()):
            return
        raise MethodError(
            f"layers of this model see {self.window} positions at a time, and padding on the left would push the "
            "prefix out of their sight. Give texts of one length, one text at a time, or use prompt tuning, whose "
            "virtual tokens stand behind the padding"
        )

    def keys_and_values(self, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each layer the keys and the values of the prefix, each (batch, heads, k, head size)."""
        layers, heads, head_size = self.shape
        table = self.prefix().expand(batch, -1, -1)  # (batch, k, 2 · layers · width), without a copy for each text
        table = self.dropout(table).to(self.base.dtype)
        table = table.view(batch, -1, 2 * layers, heads, head_size).permute(2, 0, 3, 1, 4)
        return zip(table[0::2], table[1::2], strict=True)  # keys of layer 0, its values, keys of layer 1 ...


class PrefixDecoder(PrefixBody):
    """The decoder of an encoder-decoder, which finds the prefix before what it has written, in every layer.

    As in peft: the paper puts prefixes into the encoder and before what the decoder reads of it, too.
    """

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the decoder; the cache that it is given has a part for the prefix and one for the encoder."""
        batch, _, given, seen = self._begin(input_ids, inputs)
        k = self.prefix.virtual_tokens
        own, read = transformers.DynamicCache(), transformers.DynamicCache()
        cache: Any = transformers.EncoderDecoderCache(own, read) if given is None else given
        if not seen:
            for layer, (keys, values) in enumerate(self.keys_and_values(batch)):
                cache.self_attention_cache.update(keys, values, layer)
        inputs |= {self.cache_name: cache} | ({} if position_ids is None else {"position_ids": position_ids + k})
        output = self.base(input_ids, attention_mask=extend_mask(attention_mask, k), **inputs)
        if given is None and not inputs.get("use_cache"):
            setattr(output, self.cache_name, None)
        return output


def prefix_shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads and head size of the keys. With grouped queries there are fewer heads of keys than of queries.

    Args:
        config: of the body, or of the decoder.
    """
    if hasattr(config, "decoder_layers"):  # BART and its relatives
        return config.decoder_layers, config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    architecture = ARCHITECTURES.get(config.model_type)
    key_heads = grouped_key_heads if architecture is None else architecture.key_heads
    head_size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)  # the second: T5
    head_size = head_size or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, key_heads(config), head_size


def check_prefix(body: nn.Module, k: int) -> None:
    """Raise `MethodError` if the body takes no cache, checkpoints gradients, or has no more than k positions."""
    word_embeddings(body)
    if cache_name(body) not in inspect.signature(body.forward).parameters:
        raise MethodError(
            f"{type(body).__name__} cannot start from given keys and values, so it takes no "
            "prefix. Use BERT, RoBERTa, GPT-2 or a model of the Llama family, or use LoRA"
        )
    if getattr(body.config, "attention_type", None) == "block_sparse":
        raise MethodError(
            f"the attention of {type(body).__name__} is computed in blocks of the text alone, so no block would see a "
            'prefix. Load the model with attention_type="original_full", or use LoRA'
        )
    refuse_gradient_checkpointing(body)
    check_length(position_range(body), k, tokens=1)


def refuse_gradient_checkpointing(body: nn.Module) -> None:
    """Raise `MethodError` if it is switched on: checkpointed layers throw a cache away, and the prefix with it."""
    if any(getattr(module, "gradient_checkpointing", False) for module in body.modules()):
        raise MethodError(
            "a prefix does not work with gradient checkpointing, whose layers drop all given keys and values. Call "
            "model.gradient_checkpointing_disable(); for less memory use smaller batches, or LoRA"
        )
