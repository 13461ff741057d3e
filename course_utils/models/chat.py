"""Questions and answers for a language model with a chat template: rows to train on, batches, losses, answers.

A chat model reads one text: the template writes system, user and assistant messages into it, with special tokens
between. Training is next-token prediction on that text. A label of -100 is left out of the loss, so that the model
learns the answer and its end, and not the question::

    input_ids   <|im_start|>user ↵ … <|im_end|> ↵ <|im_start|>assistant ↵   positive   2   <|im_end|>
    labels          -100 for all of these                                   positive   2   <|im_end|>

    loss = mean over labels[t] ≠ -100 of −log p(labels[t] | input_ids[: t])

Labels are *not* shifted here. The models of transformers do it: the logits of position t - 1 meet the label of t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from course_utils.errors import CourseError

if TYPE_CHECKING:
    pass

IGNORE = -100  # what cross-entropy in PyTorch leaves out by default

Message = dict[str, str]
Row = dict[str, list[int]]


class ChatError(CourseError, ValueError):
    """A conversation, a row or a setting cannot be used as it is."""


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, up to where the assistant is to write on.

    Args:
        tokenizer: with a chat template.
        messages: `{"role": ..., "content": ...}`, the last one from the user.

    Raises:
        ChatError: the tokenizer has no chat template, or there is no message.
    """
    if tokenizer.chat_template is None:
        raise ChatError(
            "the tokenizer has no chat template, so its model was not trained on conversations. Take a model with "
            "'Instruct' or 'chat' in its name, or set tokenizer.chat_template"
        )
    if not messages:
        raise ChatError("there is no message; expected at least one, {'role': 'user', 'content': 'your question'}")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    # The template has written all special tokens; a tokenizer such as Llama 2's would put another <s> in front.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str, *, mask_prompt: bool = True
) -> Row:
    """One row to train on: the conversation, the answer, and the token that ends it.

    Args:
        tokenizer: with a chat template and an end-of-sequence token.
        messages: the conversation before the answer.
        answer: what the assistant should write.
        mask_prompt: False puts the conversation into the loss as well.

    Returns:
        `input_ids` and `labels`, of the same length; `labels` holds -100 where nothing is to be learnt.

    Raises:
        ChatError: no template, no end-of-sequence token, or nothing in the answer.
    """
    if not answer:
        raise ChatError("the answer is empty, so there is nothing to learn; drop the row")
    if tokenizer.eos_token_id is None:
        raise ChatError("the tokenizer has no end-of-sequence token, so the model could not learn where to stop")
    prompt = encode_prompt(tokenizer, messages)
    learnt = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": prompt + learnt, "labels": ([IGNORE] * len(prompt) if mask_prompt else prompt) + learnt}


def pad_left(rows: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch of rows of different lengths, filled up on the left.

    Args:
        rows: with `input_ids` and, for training, `labels`.
        pad_token_id: for the free places. The attention mask goes by position and not by this id, because in many
            models it is also the token that ends an answer.

    Returns:
        `input_ids`, `attention_mask` and, where given, `labels`, each (rows, longest).

    Raises:
        ChatError: there are no rows.
    """
    if not rows:
        raise ChatError("there are no rows to make a batch of")
    longest = max(len(row["input_ids"]) for row in rows)
    empty = [longest - len(row["input_ids"]) for row in rows]
    filled = {
        "input_ids": [[pad_token_id] * n + row["input_ids"] for n, row in zip(empty, rows, strict=True)],
        "attention_mask": [[0] * n + [1] * (longest - n) for n in empty],
    }
    if "labels" in rows[0]:
        filled["labels"] = [[IGNORE] * n + row["labels"] for n, row in zip(empty, rows, strict=True)]
    return {name: torch.tensor(values) for name, values in filled.items()}


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id for free places: any will do, because the attention mask hides them."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
