"""A tuned model in use: several adapters, export, a runtime without torch."""

from course_utils.lazy import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
