"""Exercises that check themselves: `check("lora.forward", lora_forward)`.

An exercise is a function that takes the learner's answer, tries it, and raises `Wrong` with a sentence that names the
mistake. The checks of a chapter stand in a module of the chapter's name; importing it registers them. It is imported
when a check of it is first asked for, so that a lab waits for its own chapter only; `exercises()` imports all.
"""

from course_utils.lazy import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
