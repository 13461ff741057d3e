"""Train a language model on answers, measure its loss on them, and let it write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from course_utils.data.batching import LengthBucketedSampler
from course_utils.methods import trainable_parameters
from course_utils.models.chat import (
    IGNORE,
    ChatError,
    Message,
    Row,
    encode_prompt,
    pad_left,
    padding_token,
)
from course_utils.training import precision
from course_utils.training.config import PRECISIONS

if TYPE_CHECKING:
    from transformers import TrainingArguments


@torch.no_grad()
def write_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 16,
) -> list[str]:
    """The answer to each conversation, written greedily: always the most probable token, so the same in each run.

    Args:
        model: a language model; its mode is restored afterwards.
        tokenizer: the model's.
        conversations: a list of messages each.
        max_new_tokens: where to stop a model that does not.
        batch_size: conversations at a time.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ChatError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    precision.warn_if_emulated(model)
    device, training, answers = next(model.parameters()).device, model.training, list[str]()
    model.eval()
    for start in range(0, len(conversations), batch_size):
        rows = [{"input_ids": encode_prompt(tokenizer, each)} for each in conversations[start : start + batch_size]]
        batch = {name: value.to(device) for name, value in pad_left(rows, padding_token(tokenizer)).items()}
        written = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        answers += tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(training)
    return [answer.strip() for answer in answers]


@torch.no_grad()
def loss_per_token(model: Any, rows: Sequence[Row], pad_token_id: int, batch_size: int = 16) -> float:
    """The mean loss over all labels of all rows that are not -100; the model's mode is restored afterwards."""
    device, training, total, count = next(model.parameters()).device, model.training, 0.0, 0
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = pad_left(rows[start : start + batch_size], pad_token_id)
        labels = batch.pop("labels")[:, 1:].to(device)  # position t - 1 predicts the label of t
        logits = model(**{name: value.to(device) for name, value in batch.items()}).logits[:, :-1].float()
        total += nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels != IGNORE).sum())
    model.train(training)
    if not count:
        raise ChatError("every label is -100, so there is no loss; were the labels masked from the wrong end?")
    return total / count


@dataclass(frozen=True)
class ChatTraining:
    """The settings of a training run on chats.

    Args:
        learning_rate: the highest one, after a warm-up over a tenth of the steps; it falls to 0 at the end.
        steps: of the optimiser.
        batch_size: rows a step.
        seed: of the order of the rows and of dropout.
        precision: "fp32", "bf16" for autocast, or "auto" for the faster of the two here, see `training.precision`.
    """

    learning_rate: float = 1e-3
    steps: int = 64
    batch_size: int = 8
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ChatError(f"learning_rate must be above 0, got {self.learning_rate!r}")
        if self.steps < 1 or self.batch_size < 1:
            raise ChatError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if self.precision not in PRECISIONS:
            raise ChatError(f"precision is one of {', '.join(PRECISIONS)}, got {self.precision!r}")


def train_on_chats(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], config: ChatTraining | None = None
) -> list[float]:
    """Train what is trainable in `model` with transformers' `Trainer`, on a GPU if there is one.

    Our own `fit` is for classifiers: it chooses the best epoch by their scores.

    Args:
        model: with at least one trainable parameter.
        tokenizer: the model's.
        rows: as `encode_chat` makes them.
        config: the settings.

    Returns:
        The loss of each step, a mean over the labels that are not -100.

    Raises:
        ChatError: nothing is trainable, or there are no rows.
    """
    from transformers import PrinterCallback, Trainer  # at the top they would make each import of chat slow

    config = config or ChatTraining()
    if not rows:
        raise ChatError("there are no rows to train on")
    if not trainable_parameters(model):
        raise ChatError("no parameter is trainable; inject a method first, for example inject(model, LoRAConfig())")
    with TemporaryDirectory() as folder:
        padding = padding_token(tokenizer)
        trainer = Trainer(
            cast(Any, model),
            _arguments(config, folder, model),
            train_dataset=_by_length(rows, config),
            data_collator=lambda batch: pad_left(batch, padding),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]


def _arguments(config: ChatTraining, folder: str, model: nn.Module) -> TrainingArguments:
    from transformers import TrainingArguments

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        precision.warn_if_emulated(model)
    return TrainingArguments(
        folder,
        per_device_train_batch_size=config.batch_size,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.steps // 10,
        bf16=precision.choose(config.precision, device) == "bf16",
        use_cpu=device == "cpu",
        train_sampling_strategy="sequential",  # the order is made by `_by_length`
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=config.seed,
    )


def _by_length(rows: Sequence[Row], config: ChatTraining) -> Any:
    """Texts of about the same length share a batch. Trainer's own way to do so begins with the longest ones."""
    sampler = LengthBucketedSampler([len(row["input_ids"]) for row in rows], config.batch_size, seed=config.seed)
    return [rows[index] for batch in sampler for index in batch]
