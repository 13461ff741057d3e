"""Exercises that check themselves: `check("lora.forward", lora_forward)`.

An exercise is a function that takes the learner's answer, tries it, and raises `Wrong` with a sentence that names the
mistake. The checks of a chapter stand in a module of the chapter's name; importing it registers them.
"""

from importlib import import_module
from pkgutil import iter_modules

from course_utils.exercises.registry import CheckResult, Exercise, Wrong, check, exercises, run_check

__all__ = ["CheckResult", "Exercise", "Wrong", "check", "exercises", "run_check"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
