"""The names of a model's own classes, beside its checkpoint: peft's files have no place for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from course_utils.checkpoints.errors import CheckpointError

_FILE = "labels.json"
_USUAL = ["negative", "positive"]


def write_labels(model: nn.Module, folder: Path) -> None:
    """Write the names in the order of the logits; not those that each classifier of the course has anyway."""
    names: dict[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    listed = [str(names[number]) for number in sorted(names)]
    usual = listed == _USUAL or listed == [f"LABEL_{number}" for number in range(len(listed))]
    if usual:
        (folder / _FILE).unlink(missing_ok=True)
    else:
        (folder / _FILE).write_text(json.dumps(listed, ensure_ascii=False) + "\n", encoding="utf-8")


def read_labels(model: nn.Module, folder: Path) -> None:
    """Give the model the names that its checkpoint was saved with.

    Raises:
        CheckpointError: the file holds no list of names.
    """
    if not (folder / _FILE).is_file():
        return
    try:
        names: Any = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it is no list of words")
    except ValueError as error:
        raise CheckpointError(
            f'{folder / _FILE} cannot be read ({error}); expected the names of the classes, such as ["bad", "good"]'
        ) from error
    name_classes(model, names)


def name_classes(model: Any, names: Sequence[str]) -> None:
    """Name a classifier's classes, in the order of its logits."""
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
