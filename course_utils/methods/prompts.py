"""Prompt tuning: learn k vectors that stand before the text (Lester et al. 2021, arXiv:2104.08691).

::

    [P; E(x)]                    P: (k, hidden)    E(x): (tokens, hidden)    P is trained itself

P starts as the embeddings of real tokens, or is drawn from N(0, 1). Either way the model's answers change at once:
unlike LoRA, no start leaves them as they were. Prompt tuning trains ``k · hidden`` numbers. How the vectors get into
the model, and where that differs from peft, says `prompt_body`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from course_utils.methods.errors import MethodError, check_choice
from course_utils.methods.prompt_body import VirtualPromptConfig


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
        check_choice(self.init, "init", ("vocabulary", "text", "random"))
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
        with torch.no_grad():  # the module and not its table: Gemma and BART multiply each row by a factor
            return PromptTable(words(torch.tensor(repeated, device=words.weight.device)))


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
