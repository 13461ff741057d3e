"""The course's figures: one style, and alternative text that travels with each picture.

`base` holds what the labs draw with. Each other module holds the figures of one chapter, drawn from result files; a
page shows one by `{picture} module.function`.
"""

from course_utils.plots.base import Picture, bars, training_curves

__all__ = ["Picture", "bars", "training_curves"]
