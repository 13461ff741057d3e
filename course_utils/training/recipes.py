"""Trained models of the case study: made once, kept in the cache, and read from there afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedTokenizerBase

from course_utils.checkpoints import load, save
from course_utils.data.batching import make_loader
from course_utils.methods import MethodConfig, inject
from course_utils.models.assets import cache_folder
from course_utils.models.backbones import DEFAULT_BACKBONE, load_classifier
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit

_FACTS = "run.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, except its seed.

    Args:
        method: LoRA with its rank, or another method.
        learning_rate: the highest one of the run.
        backbone: any name that `load_classifier` takes, such as "bert-base-uncased".
        epochs: passes over the training split.
        batch_size: texts a step.
    """

    method: MethodConfig
    learning_rate: float
    backbone: str = DEFAULT_BACKBONE
    epochs: int = 3
    batch_size: int = 32

    def name(self, seed: int) -> str:
        """The folder of this run: the method, the seed, and a number that changes with every setting."""
        settings = json.dumps({"name": self.method.name, **asdict(self)}, sort_keys=True, default=str)
        number = hashlib.sha256(settings.encode()).hexdigest()[:10]
        return f"{type(self.method).__name__.removesuffix('Config')}-{number}-seed{seed}"


def runs_folder() -> Path:
    """Where trained models and the search are kept."""
    return cache_folder() / "case-study"


def trained(
    recipe: Recipe,
    tweets: DatasetDict,
    seed: int,
    *,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[nn.Module, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model of a recipe and a seed; trains only if no finished run is in the cache.

    Args:
        recipe: the settings.
        tweets: the three splits; only train and validation are read.
        seed: of head, order and dropout.
        watch: see `fit`; it may raise to stop a run, and then nothing is kept.

    Returns:
        The model, its tokenizer, and the facts of the run: validation loss and accuracy of the best epoch, seconds.
    """
    folder = runs_folder() / recipe.name(seed)
    model, tokenizer = load_classifier(recipe.backbone, seed=seed)
    if (folder / _FACTS).is_file():
        load(model, folder)
        return model, tokenizer, json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    inject(model, recipe.method, seed=seed)
    train = make_loader(tweets["train"], tokenizer, recipe.batch_size, shuffle=True, seed=seed)
    validation = make_loader(tweets["validation"], tokenizer, 64)
    config = TrainingConfig(learning_rate=recipe.learning_rate, epochs=recipe.epochs, seed=seed)
    history = fit(model, train, validation, config, watch=watch)
    best = history.evaluations[history.best_epoch - 1]
    facts = {
        "validation_loss": best["loss"],
        "validation_accuracy": best["accuracy"],
        "best_epoch": history.best_epoch,
        "seconds": round(history.seconds, 1),
    }
    save(model, folder)
    # Last: its presence says that the run is complete.
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return model, tokenizer, facts
