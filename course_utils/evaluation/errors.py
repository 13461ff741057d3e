"""What is wrong with labels or scores, and how columns of them are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from course_utils.errors import CourseError

Labels = Sequence[int] | np.ndarray


class MetricError(CourseError, ValueError):
    """The predictions cannot be judged as they are."""


def as_columns(*columns: Sequence[float] | np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns as arrays of one length; raises `MetricError` where they differ or hold nothing."""
    arrays = tuple(np.asarray(column) for column in columns)
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1 or len(arrays[0]) == 0:
        raise MetricError(f"expected lists of one length above 0, got the shapes {[array.shape for array in arrays]}")
    return arrays


def quotient(part: float, whole: float) -> float:
    """part / whole, and 0 where there is nothing to divide by."""
    return float(part / whole) if whole else 0.0
