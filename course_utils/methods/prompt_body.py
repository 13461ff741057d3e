"""What prompt tuning and P-Tuning share: k learnt vectors before the text, in a model that stays as it is.

The embeddings of a text get k rows P before them, "virtual tokens" that no word has to match::

    [P; E(x)]                    P: (k, hidden)    E(x): (tokens, hidden)

Where P comes from is the whole difference between the methods, see `prompts` and `p_tuning`. Nothing can be merged, and
the k positions are lost to the text: BERT with 512 positions and k = 20 reads 492 tokens.

Three things differ from peft on purpose:

* peft lets a classifier of the BERT family pool the first virtual token, where pretraining pooled [CLS]. Ours pools
  [CLS]; ``pool="peft"`` does as peft. On Llama and GPT-2 both read the last token, but with right padding peft reads
  a padding position, because it counts the text's positions without the k virtual ones.
* Padding on the left stands before P, not between P and the text, as if it were not there. peft counts its positions,
  which moves P away from the text, and `generate` then answers a padded row otherwise than the row alone.
* A language model's first real token has no loss here. In peft the last virtual token predicts it.

In an encoder-decoder P stands before the text that the encoder reads, [P; E(x)], and the decoder attends to k vectors
more. peft's table has k rows more there, for the decoder, and never uses them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from course_utils.methods.base import trainable_dtype
from course_utils.methods.errors import MethodError, check_choice, check_whole_number
from course_utils.methods.virtual_tokens import (
    AdaptedBody,
    behind_padding,
    cache_name,
    cached_positions,
    check_length,
    extend_mask,
    find_stack,
    is_encoder_decoder,
    position_range,
    refuse_other_memories,
    take_cache,
    text_positions,
    window,
    word_embeddings,
)
from course_utils.methods.wrapping import WrappingConfig


@dataclass(frozen=True)
class VirtualPromptConfig(WrappingConfig):
    """What prompt tuning and P-Tuning share.

    Args:
        virtual_tokens: how many vectors stand before the text, written k; at least 1.
        pool: which position a classifier of the BERT family reads: "text", the [CLS] of the text, or "peft", the first
            virtual token.
    """

    virtual_tokens: int = 20
    pool: str = "text"

    def __post_init__(self) -> None:
        check_whole_number(self.virtual_tokens, "virtual_tokens")
        check_choice(self.pool, "pool", ("text", "peft"))

    def wrappers(self, model: nn.Module) -> dict[str, AdaptedBody]:
        """The body in a `PromptBody`; of an encoder-decoder both parts."""
        name, body = find_stack(model, "encoder")
        if self.pool == "peft" and not pools_first_token(model):
            raise MethodError(
                f"pool='peft' is for classifiers that pool the first token (BERT, RoBERTa), and {type(model).__name__} "
                "does not. Leave pool at 'text'"
            )
        words = word_embeddings(body)
        check_length(position_range(body), self.virtual_tokens, tokens=1)
        prompt = self.new_prompt(words).to(words.weight.device, trainable_dtype(words.weight))
        if is_encoder_decoder(model):
            reader, decoder = find_stack(model, "decoder")
            return {name: PromptedEncoder(body, prompt, self), reader: ReadingDecoder(decoder, self.virtual_tokens)}
        return {name: PromptBody(body, prompt, self)}

    @abstractmethod
    def new_prompt(self, words: nn.Embedding) -> nn.Module:
        """A module that takes nothing and returns P, (k, hidden)."""


class PromptBody(AdaptedBody):
    """The body with the k vectors of `prompt` before every text.

    Args:
        base: the body; it computes k positions more, which are cut off again before the head sees them.
        prompt: a module that returns P, (k, hidden).
        config: the settings.
    """

    def __init__(self, base: nn.Module, prompt: nn.Module, config: VirtualPromptConfig) -> None:
        super().__init__(base)
        self.prompt = prompt
        self.k = config.virtual_tokens
        self.pool = config.pool
        self.positions = position_range(base)
        self.cache_name = cache_name(base)
        self.windowed = window(base.config) is not None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (batch, tokens)
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **others: Any,
    ) -> ModelOutput:
        """Run the body on [P; E(x)] and cut P off again."""
        refuse_other_memories(self.base, others)
        cache = take_cache(others)
        k, cached = self.k, cached_positions(cache)  # above 0 while generate goes on: the cache holds P
        x = word_embeddings(self.base)(input_ids) if inputs_embeds is None else inputs_embeds
        check_length(self.positions, k, max(cached - k, 0) + x.shape[1])
        mask = extend_mask(attention_mask, k)
        first = 0 if self.positions is None else self.positions.start
        if position_ids is None and attention_mask is not None:  # P stands next to the text, before left padding or not
            position_ids = first + text_positions(attention_mask)[:, -x.shape[1] :]
        if position_ids is not None:
            position_ids = position_ids + k
        if not cached:
            x = torch.cat((self.prompt().to(x.dtype).expand(len(x), -1, -1), x), dim=1)  # (batch, k + tokens, hidden)
            if position_ids is not None:
                prompt_positions = torch.arange(first, first + k, device=x.device).expand(len(position_ids), -1)
                position_ids = torch.cat((prompt_positions, position_ids), dim=1)
            if token_type_ids is not None:
                token_type_ids = nn.functional.pad(token_type_ids, (k, 0))  # P is of type 0, as the first sentence
        if self.windowed and attention_mask is not None and mask is not None and position_ids is not None:
            mask = behind_padding(mask, attention_mask, k)
            if not cached:
                x, position_ids = (behind_padding(t, attention_mask, k) for t in (x, position_ids))
        inputs = {
            "attention_mask": mask,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
            self.cache_name: cache,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        output: ModelOutput = self.base(inputs_embeds=x, **given, **others | {"return_dict": True})
        return output if cached or self.pool == "peft" else self._without_prompt(output)

    def _without_prompt(self, output: Any) -> ModelOutput:
        """Cut the k positions off, so that [CLS] is the first one again, and pool it."""
        output.last_hidden_state = output.last_hidden_state[:, self.k :]
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = tuple(state[:, self.k :] for state in output.hidden_states)
        if getattr(output, "pooler_output", None) is not None:
            output.pooler_output = self.base.pooler(output.last_hidden_state)  # type: ignore[operator]
        return output


class PromptedEncoder(AdaptedBody):
    """The encoder of an encoder-decoder, which reads [P; E(x)]. Its k positions more are for the decoder to see.

    Args:
        base: the encoder.
        prompt: a module that returns P, (k, hidden).
        config: the settings.
    """

    def __init__(self, base: nn.Module, prompt: nn.Module, config: VirtualPromptConfig) -> None:
        super().__init__(base)
        self.prompt = prompt
        self.k = config.virtual_tokens
        self.positions = position_range(base)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (batch, tokens)
        *,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Run the encoder on [P; E(x)]; padding on the left comes before P."""
        x = word_embeddings(self.base)(input_ids) if inputs_embeds is None else inputs_embeds
        check_length(self.positions, self.k, x.shape[1])
        x = torch.cat((self.prompt().to(x.dtype).expand(len(x), -1, -1), x), dim=1)  # (batch, k + tokens, hidden)
        mask = extend_mask(attention_mask, self.k)
        if attention_mask is not None and mask is not None:
            x, mask = behind_padding(x, attention_mask, self.k), behind_padding(mask, attention_mask, self.k)
        return self.base(inputs_embeds=x, attention_mask=mask, **others)


class ReadingDecoder(AdaptedBody):
    """The decoder beside a `PromptedEncoder`: what it may attend to there is k positions longer.

    Args:
        base: the decoder.
        k: how many.
    """

    def __init__(self, base: nn.Module, k: int) -> None:
        super().__init__(base)
        self.k = k

    def forward(self, *inputs: Any, encoder_attention_mask: torch.Tensor | None = None, **others: Any) -> Any:
        """Run the decoder with the longer mask."""
        mask = extend_mask(encoder_attention_mask, self.k)
        if encoder_attention_mask is not None and mask is not None:
            mask = behind_padding(mask, encoder_attention_mask, self.k)
        return self.base(*inputs, encoder_attention_mask=mask, **others)


def pools_first_token(model: nn.Module) -> bool:
    """Whether this classifier of texts reads the first token (BERT, RoBERTa, XLM); those with `score` read the last."""
    summary = getattr(getattr(model, "config", None), "summary_type", None)
    return type(model).__name__.endswith("ForSequenceClassification") and (
        hasattr(model, "classifier") or summary == "first"
    )
