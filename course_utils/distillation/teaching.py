"""A student learns from a teacher in the course's own training loop: `fit(Distilled(student, ...), ...)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from course_utils.data.batching import make_loader
from course_utils.distillation.losses import (
    NO_LABEL,
    DistillationError,
    attention_loss,
    hard_label_loss,
    hidden_state_loss,
    soft_label_loss,
)
from course_utils.distillation.mistakes import SoftLoss
from course_utils.evaluation.prediction import predict_in_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DistillationConfig:
    """What the student's loss consists of: a · CE(labels) + (1 − a) · soft + hidden · MSE + attention · KL.

    Args:
        hard: a, the share of the labels; 1 never asks the teacher, 0 ignores the labels.
        temperature: T of the soft labels.
        hidden: weight of `hidden_state_loss`.
        attention: weight of `attention_loss`.
        layers: the teacher's layer that each layer of the student imitates, the first layer being 1. None spreads
            them evenly: 2 layers imitate layers 3 and 6 of 6.
    """

    hard: float = 0.5
    temperature: float = 2.0
    hidden: float = 0.0
    attention: float = 0.0
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.hard <= 1:
            raise DistillationError(f"hard is a share from 0 to 1, got {self.hard}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise DistillationError(f"expected a temperature above 0, got {self.temperature}; 1 to 5 are usual")
        if min(self.hidden, self.attention) < 0:
            raise DistillationError(f"weights are 0 or more, got hidden {self.hidden} and attention {self.attention}")


class Distilled(nn.Module):
    """A student together with the loss that it learns by. Evaluated, it is the student alone.

    Args:
        student: a classifier.
        config: what the loss consists of.
        teacher: reads every batch as well. Not needed where the batches bring `teacher_logits` (see `with_teacher`)
            and nothing inside is imitated. It is frozen, and stays in evaluation mode while the student trains.
        soft_loss: of (student's logits, teacher's logits, temperature), to try another one.

    Raises:
        DistillationError: something inside is to be imitated, and there is no teacher or no such layer.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        config: DistillationConfig | None = None,
        teacher: PreTrainedModel | None = None,
        *,
        soft_loss: SoftLoss = soft_label_loss,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.soft_loss = student, teacher, soft_loss
        self.settings = config or DistillationConfig()
        self.projection: nn.Module | None = None
        self.inside = self.settings.hidden > 0 or self.settings.attention > 0
        if self.inside and teacher is None:
            raise DistillationError("hidden states and attention cannot be stored beforehand: give the teacher itself")
        if teacher is not None:
            teacher.requires_grad_(False)
        if teacher is not None and self.inside:
            self.layers = _imitated(student, teacher, self.settings.layers)
            widths = student.config.hidden_size, teacher.config.hidden_size
            if self.settings.hidden and widths[0] != widths[1]:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    self.projection = nn.Linear(*widths)
            if self.settings.attention:
                for model in (student, teacher):  # PyTorch's fast attention hands out no probabilities
                    model.set_attn_implementation("eager")
                _without_attention_dropout(student)
        self.train(student.training)

    def train(self, mode: bool = True) -> Distilled:
        """Switch the student; the teacher's dropout stays off, or its answers would be noise."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        teacher_logits: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """The student's logits (texts, classes) and, in training mode, the loss."""
        if not self.training:
            return SequenceClassifierOutput(logits=self.student(input_ids, attention_mask).logits)
        inside: dict[str, Any] = {
            "output_hidden_states": self.settings.hidden > 0,
            "output_attentions": self.settings.attention > 0,
        }
        mine = self.student(input_ids, attention_mask, **inside)
        theirs: Any = None
        if self.inside or (self.settings.hard < 1 and teacher_logits is None):
            if self.teacher is None:
                raise DistillationError(
                    "there is no teacher, and the batches hold no teacher_logits: make the loader with with_teacher(), "
                    "or give the teacher"
                )
            with torch.no_grad():
                theirs = self.teacher(input_ids, attention_mask, **inside)
        a = self.settings.hard
        if labels is None:
            labels = torch.full((len(input_ids),), NO_LABEL, device=input_ids.device)
        loss = a * hard_label_loss(mine.logits, labels)
        if a < 1:
            answers = theirs.logits if teacher_logits is None else teacher_logits
            loss = loss + (1 - a) * self.soft_loss(mine.logits, answers, self.settings.temperature)
        if self.inside:
            loss = loss + self._inside_loss(mine, theirs, attention_mask)
        return SequenceClassifierOutput(loss=loss, logits=mine.logits)

    def _inside_loss(self, mine: Any, theirs: Any, mask: torch.Tensor) -> torch.Tensor:
        """The part that compares layer k of the student with the layer that it imitates."""
        loss = torch.zeros((), device=mask.device)
        if self.settings.hidden:
            states = [theirs.hidden_states[layer] for layer in self.layers]  # number 0 is the embeddings
            loss = loss + self.settings.hidden * hidden_state_loss(
                mine.hidden_states[1:], states, mask, self.projection
            )
        if self.settings.attention:
            looks = [theirs.attentions[layer - 1] for layer in self.layers]
            loss = loss + self.settings.attention * attention_loss(mine.attentions, looks, mask)
        return loss


def teacher_logits(teacher: nn.Module, texts: Dataset, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The teacher's answer to each text, in the order of the texts: logits (texts, classes), computed once.

    The teacher's dropout is off meanwhile. One pass is enough: its answer to a text never changes.
    """
    return torch.from_numpy(predict_in_order(teacher, make_loader(texts, tokenizer, 64)))


def with_teacher(loader: DataLoader, logits: torch.Tensor) -> DataLoader:
    """A loader that serves the same batches, each with the teacher's answers to its texts as `teacher_logits`.

    Args:
        loader: of `make_loader`, shuffled or not.
        logits: (texts, classes), one row for each text of the loader's dataset, in the dataset's order.

    Raises:
        DistillationError: there are not as many answers as texts.
    """
    rows: Any = loader.dataset
    if logits.ndim != 2 or len(logits) != len(rows):
        raise DistillationError(
            f"expected the teacher's answers as (texts, classes) for {len(rows)} texts, got {tuple(logits.shape)}; "
            "ask the teacher about the very dataset that the loader was made of"
        )
    collate = loader.collate_fn

    def collate_with_teacher(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**collate(batch), "teacher_logits": torch.stack([row["teacher_logits"] for row in batch])}

    answered: Any = [{**row, "teacher_logits": answer} for row, answer in zip(rows, logits, strict=True)]
    return DataLoader(answered, batch_sampler=loader.batch_sampler, collate_fn=collate_with_teacher)


def _imitated(student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    own, total = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    chosen = tuple(layers) if layers is not None else tuple(total * (k + 1) // own for k in range(own))
    if len(chosen) != own or not all(1 <= layer <= total for layer in chosen):
        raise DistillationError(
            f"the student has {own} layers and the teacher {total}: expected {own} numbers from 1 to {total}, got "
            f"{chosen}"
        )
    return chosen


def _without_attention_dropout(model: nn.Module) -> None:
    """A probability that dropout has set to 0 is no probability: its logarithm would be infinite."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith("attention.self.dropout"):
            module.p = 0.0
