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
from course_utils.methods.targets import find_body
from course_utils.methods.virtual_tokens import (
    AdaptedBody,
    cache_name,
    cached_positions,
    check_length,
    extend_mask,
    position_range,
    take_cache,
    text_positions,
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

    def wrappers(self, model: nn.Module) -> dict[str, PromptBody]:
        """The body in a `PromptBody`."""
        name, body = find_body(model)
        if self.pool == "peft" and not pools_first_token(model):
            raise MethodError(
                f"pool='peft' is for classifiers that pool the first token (BERT, RoBERTa), and {type(model).__name__} "
                "does not. Leave pool at 'text'"
            )
        words = word_embeddings(body)
        check_length(position_range(body), self.virtual_tokens, tokens=1)
        prompt = self.new_prompt(words).to(words.weight.device, trainable_dtype(words.weight))
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


def pools_first_token(model: nn.Module) -> bool:
    """Whether this classifier of texts reads the first token (BERT, RoBERTa); those with `score` read the last."""
    return type(model).__name__.endswith("ForSequenceClassification") and hasattr(model, "classifier")
