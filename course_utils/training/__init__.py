"""Train what is trainable in a model: `history = fit(model, train, validation, TrainingConfig(...))`.

* `config.py`: the settings of a run.
* `loop.py`: `fit`, and the loop as chapter 4 tells it. **Read this one first.**
* `run.py`, `checks.py`: what stands ready before the first step, and what stops a run.
* `resuming.py`: the state of a run, for going on after an interruption.
* `groups.py`, `schedule.py`: the learning rate of each parameter and of each step.
* `history.py`: the rows that a run leaves behind, and the weights of its best epoch.
* `needless.py`: what a step on a processor need not compute.
* `precision.py`: whether bfloat16 is faster here, measured.
"""

from course_utils.lazy import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
