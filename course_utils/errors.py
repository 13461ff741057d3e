"""What the course's own errors have in common."""

from __future__ import annotations


class CourseError(Exception):
    """Something that the course refuses, told to the person who asked for it.

    The message is one to three sentences: what was wrong, with the value that was given; what was expected; what to do
    now. For example: "rank must be a whole number of at least 1, got 0". ``except CourseError`` catches what the course
    raises on purpose, and nothing else: any other error is a fault of ours.
    """
