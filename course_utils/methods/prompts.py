"""Prompt tuning and P-Tuning: learn k vectors that stand before the text, and leave the model as it is.

The embeddings of a text get k learnt rows P before them, "virtual tokens" that no word has to match::

    [P; E(x)]                    P: (k, hidden)    E(x): (tokens, hidden)

    P = T                        prompt tuning (Lester et al. 2021, arXiv:2104.08691): T is trained itself
    P = MLP(T)                   P-Tuning (Liu et al. 2021, arXiv:2103.10385): T and the encoder are trained;
    P = MLP(BiLSTM(T))           after training only P is needed

T starts as the embeddings of real tokens, or is drawn from N(0, 1). Either way the model's answers change at once:
unlike LoRA, no start leaves them as they were. Prompt tuning trains ``k · hidden`` numbers. Nothing can be merged, and
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

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache
from transformers.utils import ModelOutput

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


@dataclass(frozen=True)
class VirtualPromptConfig(MethodConfig):
    """What prompt tuning and P-Tuning share.

    Args:
        virtual_tokens: how many vectors stand before the text, written k; at least 1.
        pool: which position a classifier of the BERT family reads: "text", the [CLS] of the text, or "peft", the first
            virtual token.
    """

    virtual_tokens: int = 20
    pool: str = "text"

    def __post_init__(self) -> None:
        positive_integer(self.virtual_tokens, "virtual_tokens")
        _one_of(self.pool, "pool", ("text", "peft"))

    def apply(self, model: nn.Module) -> None:
        """Wrap the body in a `PromptBody`."""
        name, body = find_body(model)
        if self.pool == "peft" and not pools_first_token(model):
            raise MethodError(
                f"pool='peft' is for classifiers that pool the first token (BERT, RoBERTa), and {type(model).__name__} "
                "does not. Leave pool at 'text'"
            )
        words = word_embeddings(body)
        check_length(position_range(body), self.virtual_tokens, tokens=1)
        prompt = self.new_prompt(words).to(words.weight.device, trainable_dtype(words.weight))
        replace_module(model, name, PromptBody(body, prompt, self))

    @abstractmethod
    def new_prompt(self, words: nn.Embedding) -> nn.Module:
        """A module that takes nothing and returns P, (k, hidden)."""


@dataclass(frozen=True)
class PromptTuningConfig(VirtualPromptConfig):
    """The settings of prompt tuning.

    Args:
        init: where the k vectors start: "vocabulary", the embeddings of tokens drawn at random, as in the paper;
            "text", the embeddings of `initial_tokens`; "random", N(0, 1), which is peft's default and makes vectors
            18 times as long as MiniLM's own (19.6 against 1.1).
        initial_tokens: token ids for "text", for example ``tuple(tokenizer("good or bad?")["input_ids"])``. They are
            cut to k, or repeated until there are k.
    """

    name: ClassVar[str] = "prompt tuning"
    init: str = "vocabulary"
    initial_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self.init, "init", ("vocabulary", "text", "random"))
        if (self.initial_tokens is not None) != (self.init == "text"):
            raise MethodError("initial_tokens and init='text' go together: give both, or neither")
        ids = self.initial_tokens
        if ids is not None and not (isinstance(ids, tuple) and ids and all(type(i) is int and i >= 0 for i in ids)):
            raise MethodError(f"initial_tokens must be a tuple of token ids, such as (2204, 2919), got {ids!r}")

    def new_prompt(self, words: nn.Embedding) -> nn.Module:
        """The table, filled as `init` says."""
        k, rows = self.virtual_tokens, words.num_embeddings
        if self.init == "random":
            return PromptTable(torch.randn(k, words.embedding_dim))
        ids = self.initial_tokens or tuple(torch.randint(rows, (k,), device="cpu").tolist())
        if max(ids) >= rows:
            raise MethodError(
                f"initial_tokens holds the id {max(ids)}, but the model's vocabulary has {rows} tokens: were the ids "
                "made by the tokenizer of another model?"
            )
        repeated = (ids * math.ceil(k / len(ids)))[:k]
        return PromptTable(words.weight.detach()[list(repeated)])


@dataclass(frozen=True)
class PTuningConfig(VirtualPromptConfig):
    """The settings of P-Tuning.

    Args:
        encoder: "mlp", three linear layers, or "lstm", a bidirectional LSTM and two linear layers, as in the paper.
        hidden: width of the encoder; None means the model's own. (The paper's LSTM has half of that.)
        lstm_layers: layers of the LSTM; the MLP does not use it.
        lstm_dropout: dropout between the layers of the LSTM, from 0 to below 1; the MLP does not use it.
    """

    name: ClassVar[str] = "P-Tuning"
    encoder: str = "mlp"
    hidden: int | None = None
    lstm_layers: int = 2
    lstm_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self.encoder, "encoder", ("mlp", "lstm"))
        if self.hidden is not None:
            positive_integer(self.hidden, "hidden")
        positive_integer(self.lstm_layers, "lstm_layers")
        if not (is_number(self.lstm_dropout) and 0 <= self.lstm_dropout < 1):
            raise MethodError(f"lstm_dropout is a share from 0 to below 1, got {self.lstm_dropout!r}")
        if self.lstm_dropout and self.lstm_layers == 1:
            raise MethodError("lstm_dropout acts between the layers of the LSTM, and lstm_layers=1 leaves no between")

    def new_prompt(self, words: nn.Embedding) -> nn.Module:
        """The encoder, drawn at random."""
        return PromptEncoder(words.embedding_dim, self)


class PromptTable(nn.Module):
    """Prompt tuning: P is a trained table.

    Args:
        start: the first values, (k, hidden).
    """

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(start.clone(), freeze=False)

    def forward(self) -> torch.Tensor:  # (k, hidden)
        """Return P."""
        return self.embedding.weight


class PromptEncoder(nn.Module):
    """P-Tuning: P is computed from a trained table by a trained encoder. Its layers are called as in peft.

    Args:
        size: of the model's token embeddings.
        config: the settings.
    """

    def __init__(self, size: int, config: PTuningConfig) -> None:
        super().__init__()
        hidden = config.hidden or size
        self.embedding = nn.Embedding(config.virtual_tokens, size)  # T, drawn from N(0, 1)
        self.lstm_head: nn.LSTM | None = None
        if config.encoder == "mlp":
            layers = [nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size)]
        else:
            self.lstm_head = nn.LSTM(
                size, hidden, config.lstm_layers, dropout=config.lstm_dropout, bidirectional=True, batch_first=True
            )
            layers = [nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, size)]
        self.mlp_head = nn.Sequential(*layers)

    def forward(self) -> torch.Tensor:  # (k, hidden)
        """Compute P."""
        rows = self.embedding.weight.unsqueeze(0)  # (1, k, hidden): one text of k tokens
        if self.lstm_head is not None:
            rows, _ = self.lstm_head(rows)  # (1, k, 2 · width), from left to right, and from right to left
        prompt: torch.Tensor = self.mlp_head(rows)
        return prompt.squeeze(0)


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

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (batch, tokens)
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **others: Any,
    ) -> ModelOutput:
        """Run the body on [P; E(x)] and cut P off again."""
        k, cached = self.k, cached_positions(past_key_values)  # above 0 while generate goes on: the cache holds P
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
            "past_key_values": past_key_values,
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


def _one_of(value: Any, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise MethodError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
