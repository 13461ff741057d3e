"""How good a model is, and how sure that is."""

from course_utils.lazy import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
