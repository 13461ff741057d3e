"""Few-shot distillation: few texts have a label, many have none, and a teacher answers for those.

The four steps: (1) a teacher, whose knowledge comes from elsewhere; (2) its probabilities for the texts without a
label; (3) the student learns from them and from the few labels; (4) it is fine-tuned on the few labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from course_utils.data.batching import make_loader
from course_utils.distillation.losses import NO_LABEL, DistillationError
from course_utils.distillation.teaching import DistillationConfig, Distilled, with_teacher
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Few labels leave none over to choose an epoch by. So each step of the recipe has a fixed length, and its end counts.
_LEARN = TrainingConfig(learning_rate=5e-4, epochs=1)
_TUNE = TrainingConfig(learning_rate=2e-4, epochs=1)


@dataclass(frozen=True)
class FewShotConfig:
    """The settings of steps 3 and 4.

    Args:
        loss: of step 3; labels count where a text has one.
        learn: how step 3 trains. Its epochs must be 1: the passes stand here.
        passes: how often step 3 reads all texts.
        tune: how step 4, and training on the labels alone, runs.
        tune_steps: how many batches of labelled texts step 4 reads; 0 leaves step 4 out.
        batch_size: texts a batch in step 3.
        tune_batch_size: texts a batch in step 4.
    """

    loss: DistillationConfig = field(default_factory=lambda: DistillationConfig(hard=0.2, temperature=2.0))
    learn: TrainingConfig = _LEARN
    passes: int = 2
    tune: TrainingConfig = _TUNE
    tune_steps: int = 40
    batch_size: int = 32
    tune_batch_size: int = 16

    def __post_init__(self) -> None:
        if self.learn.epochs != 1 or self.tune.epochs != 1:
            raise DistillationError(
                "expected one epoch in learn and in tune: with more, the best epoch would be chosen on validation "
                "labels, which few-shot learning does not have; set passes and tune_steps instead"
            )
        if self.passes < 1 or self.tune_steps < 0 or min(self.batch_size, self.tune_batch_size) < 1:
            raise DistillationError(
                f"expected at least 1 pass, 0 or more tune_steps and batches of at least 1 text; got {self.passes}, "
                f"{self.tune_steps}, {self.batch_size} and {self.tune_batch_size}"
            )


def draw_labels(dataset: Dataset, count: int, seed: int = 0) -> list[int]:
    """The rows of the few texts whose label we may read: drawn at random, with the classes at their shares.

    Raises:
        DistillationError: a count for which that cannot be done.
    """
    labels = list(dataset["label"])
    classes = len(set(labels))
    if not classes <= count <= len(labels) - classes:
        raise DistillationError(
            f"expected {classes} to {len(labels) - classes} labels of {len(labels)} texts, got {count}"
        )
    from sklearn.model_selection import train_test_split

    rows, _ = train_test_split(range(len(labels)), train_size=count, stratify=labels, random_state=seed)
    return sorted(rows)


def without_labels(dataset: Dataset, keep: list[int]) -> Dataset:
    """The same texts, with the label of the rows `keep` and `NO_LABEL` everywhere else."""
    kept = set(keep)
    labels = [label if row in kept else NO_LABEL for row, label in enumerate(dataset["label"])]
    return Dataset.from_dict({"text": list(dataset["text"]), "label": labels})


def people_logits(rated: Dataset) -> torch.Tensor:
    """The raters as a teacher: log-probabilities (texts, 2) of their votes, to be used as logits.

    With v of n votes for positive (a rating of 0 is half a vote), p = (v + ½) / (n + 1): twenty people who agree do
    not make it certain.

    Args:
        rated: with the columns `ratings` and `soft_label`, as `load_sentiment` returns them.
    """
    raters = torch.tensor([len(ratings) for ratings in rated["ratings"]], dtype=torch.float32)
    positive = (torch.tensor(rated["soft_label"]) * raters + 0.5) / (raters + 1)
    return torch.stack([1 - positive, positive], dim=1).log()


def few_shot_student(
    student: PreTrainedModel,
    texts: Dataset,
    logits: torch.Tensor | None,
    tokenizer: PreTrainedTokenizerBase,
    validation: DataLoader,
    config: FewShotConfig | None = None,
) -> PreTrainedModel:
    """Steps 3 and 4: train the student in place, on its own or with a teacher's answers, and return it.

    Args:
        student: to be trained.
        texts: with the columns `text` and `label`, where `NO_LABEL` stands for none.
        logits: the teacher's answers, (texts, classes), from step 2; None leaves step 3 out, so that the student
            learns from the labels alone.
        tokenizer: the student's.
        validation: is evaluated at the end of each step, to be looked at. Nothing is chosen by it.
        config: the settings.

    Raises:
        DistillationError: no text has a label and step 4 is wanted, or the answers do not fit the texts.
    """
    config = config or FewShotConfig()
    if logits is not None:
        many = list(range(len(texts))) * config.passes
        loader = make_loader(texts.select(many), tokenizer, config.batch_size, shuffle=True, seed=config.learn.seed)
        fit(Distilled(student, config.loss), with_teacher(loader, logits[many]), validation, config.learn)
    if config.tune_steps:
        labelled = [row for row, label in enumerate(texts["label"]) if label != NO_LABEL]
        if not labelled:
            raise DistillationError("no text has a label: step 4 needs some, or tune_steps=0 to leave it out")
        rows = config.tune_steps * config.tune_batch_size
        few = texts.select((labelled * (rows // len(labelled) + 1))[:rows])
        loader = make_loader(few, tokenizer, config.tune_batch_size, shuffle=True, seed=config.tune.seed)
        fit(student, loader, validation, config.tune)
    return student


def seeded(config: FewShotConfig, seed: int) -> FewShotConfig:
    """The same settings with another seed in both steps."""
    return replace(config, learn=replace(config.learn, seed=seed), tune=replace(config.tune, seed=seed))
