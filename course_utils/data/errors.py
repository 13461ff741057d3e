"""What is wrong with texts or labels."""

from __future__ import annotations

from course_utils.errors import CourseError


class DataError(CourseError, ValueError):
    """The texts or labels cannot be used as they are."""
