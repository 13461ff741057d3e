"""The pretrained models: fetch and verify, load, look inside, chat templates."""

from course_utils.lazy import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
