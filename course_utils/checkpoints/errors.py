"""What a checkpoint says when it does not fit."""

from __future__ import annotations

from course_utils.errors import CourseError


class CheckpointError(CourseError, ValueError):
    """The folder holds no checkpoint that fits this model. The model is unchanged."""
