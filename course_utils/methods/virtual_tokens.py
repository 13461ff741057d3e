"""What the methods with virtual tokens share: k positions before the text that hold learnt vectors and no words.

Prompt tuning and P-Tuning put k vectors before the token embeddings; prefix tuning puts k keys and values into every
layer. Both wrap the transformer below the head, so that the head, the labels and the loss never see the k positions.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import nn

from course_utils.methods.base import AdaptedLayer
from course_utils.methods.errors import MethodError
from course_utils.methods.heads import table_of_words


class AdaptedBody(AdaptedLayer):
    """The transformer below the head, wrapped.

    Whatever else transformers asks the body for, such as its `config` or `get_input_embeddings()`, `base` answers.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


# What some bodies read of each token beside its mask, its kind and its position: where it stands on the page, whether
# all others see it.
_FOR_EACH_TOKEN = {"bbox", "global_attention_mask"}
# transformers calls a key-value cache `cache` from 5.24 on, and called it `past_key_values` before.
_CACHE_NAMES = ("cache", "past_key_values")


def cache_name(body: nn.Module) -> str:
    """What the body calls its key-value cache: the name of the argument and of the field in its output."""
    new, old = _CACHE_NAMES
    return new if new in inspect.signature(body.forward).parameters else old


def take_cache(inputs: dict[str, Any]) -> transformers.Cache | None:
    """Take the key-value cache out of the inputs of a body, under whichever name it came."""
    found = [inputs.pop(name, None) for name in _CACHE_NAMES]
    return next((cache for cache in found if cache is not None), None)


def extend_mask(attention_mask: torch.Tensor | None, k: int) -> torch.Tensor | None:
    """Put k ones before the mask of the text, (batch, tokens) → (batch, k + tokens): every token sees the k positions.

    Raises:
        MethodError: the mask is not of that shape.
    """
    if attention_mask is None:  # all is visible already
        return None
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        raise MethodError(
            "virtual tokens need an attention mask of shape (batch, tokens), 1 for a token, 0 for padding"
        )
    return torch.cat((attention_mask.new_ones(len(attention_mask), k), attention_mask), dim=1)


def text_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """The place of each token in its text, from 0, of the shape of the mask. Padding on the left does not count."""
    padding = (attention_mask.cumsum(1) == 0).sum(1, keepdim=True)
    return (torch.arange(attention_mask.shape[1], device=attention_mask.device) - padding).clamp(min=0)


def cached_positions(cache: transformers.Cache | None) -> int:
    """How many positions a key-value cache holds. Above 0, the k virtual ones are among them.

    Raises:
        MethodError: the cache has a fixed size, in which `generate` leaves no room for virtual tokens.
    """
    if cache is None:
        return 0
    if cache.is_compileable:
        raise MethodError(
            "virtual tokens need a key-value cache that grows, and this one has a fixed size. Leave out "
            "cache_implementation in generate: its default grows"
        )
    return int(cache.get_seq_length())


def position_range(body: nn.Module) -> range | None:
    """The positions that the body has an embedding for; None for rotary positions, which need no table."""
    rows = getattr(body.config, "max_position_embeddings", None)
    words = word_embeddings(body)
    for module in body.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == rows and module is not words:
            # RoBERTa counts from the row after that of its padding token.
            return range(0 if module.padding_idx is None else module.padding_idx + 1, module.num_embeddings)
    return None


def check_length(positions: range | None, k: int, tokens: int) -> None:
    """Raise `MethodError` if k virtual and `tokens` real tokens are more than there are positions."""
    if positions is not None and k + tokens > len(positions):
        raise MethodError(
            f"the model has {len(positions)} positions and {k} of them are taken by virtual tokens, so a text may have "
            f"{max(len(positions) - k, 0)} tokens, got {tokens}. Truncate the texts, or use fewer virtual tokens"
        )


def word_embeddings(body: nn.Module) -> nn.Embedding:
    """The table of the tokens' embeddings.

    Raises:
        MethodError: the model reads no tokens, or has an encoder and a decoder, or reads more of a token than its mask.
    """
    words = table_of_words(body)
    for name in _FOR_EACH_TOKEN & set(inspect.signature(body.forward).parameters):
        raise MethodError(
            f"{type(body).__name__} reads something more of each token ({name}), which virtual tokens do not have. Use "
            "LoRA"
        )
    if not isinstance(words, nn.Embedding) or getattr(body.config, "is_encoder_decoder", False):
        raise MethodError(
            f"virtual tokens stand before the tokens of one text, and {type(body).__name__} is no plain encoder or "
            "decoder of text. Use a model such as BERT, RoBERTa, GPT-2 or Llama"
        )
    return words
