"""The course's figures: one style, and alternative text that travels with each picture.

`style` holds what the labs draw with. Each other module holds the figures of one chapter, drawn from result files; a
page shows one by `{picture} module.function`.
"""

from course_utils.lazy import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
