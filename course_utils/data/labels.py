"""Whether each text of a loader has a label, and one that is a class of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from course_utils.data.errors import DataError

#: The labels of a text that has none: -1 in published test splits, -100 for PyTorch's cross-entropy.
UNLABELLED = (-1, -100)
#: What a row may call its label; the collators of transformers rename the last two.
COLUMNS = ("labels", "label", "label_ids")


def refuse_wrong_labels(model: nn.Module, loader: DataLoader, *, unlabelled: bool = False) -> None:
    """Raise where a label is no class of the model: PyTorch's own error names no text, and on a GPU ends the process.

    A model that does not say how many classes it has, and rows that are no dictionaries, are not looked at.

    Args:
        model: its `config.num_labels` is read.
        loader: of a dataset that can be indexed.
        unlabelled: texts without a label are allowed: no column of labels, -1 or -100.

    Raises:
        DataError: a label is no whole number from 0 to classes - 1, or is missing. True and 1.0 are no whole numbers.
    """
    classes: Any = getattr(getattr(model, "config", None), "num_labels", None)
    if classes is None or not isinstance(loader.dataset, Sized):
        return
    for position in range(len(loader.dataset)):
        row = loader.dataset[position]
        if not isinstance(row, Mapping):
            return
        column = next((name for name in COLUMNS if name in row), None)
        if column is None and unlabelled:
            continue
        label: Any = _plain(row[column]) if column else None
        if _is_whole(label) and (0 <= label < classes or (unlabelled and label in UNLABELLED)):
            continue
        raise DataError(
            f"text {position} has {f'the label {label!r}' if column else 'no label'}, but the model has {classes} "
            f"classes: labels must be whole numbers from 0 to {classes - 1}. Map yours to them, for example by "
            "dataset.map; only predict takes texts without a label, from make_loader(..., label=None) or with -1"
        )


def _plain(label: Any) -> Any:
    """A tensor or array of one number as that number."""
    single = isinstance(label, (torch.Tensor, np.ndarray, np.generic)) and label.ndim == 0
    return label.item() if single else label


def _is_whole(label: Any) -> bool:
    return isinstance(label, int) and not isinstance(label, bool)
