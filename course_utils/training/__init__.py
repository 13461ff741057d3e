"""Train what is trainable in a model: `history = fit(model, train, validation, TrainingConfig(...))`.

* `config.py`: the settings of a run.
* `loop.py`: `fit`, and the loop as chapter 4 tells it. **Read this one first.**
* `run.py`, `checks.py`: what stands ready before the first step, and what stops a run.
* `groups.py`, `schedule.py`: the learning rate of each parameter and of each step.
* `history.py`: the rows that a run leaves behind, and the weights of its best epoch.
* `precision.py`: whether bfloat16 is faster here, measured.
* `prediction.py`: labels, logits and scores of a trained model.
"""

from course_utils.training.config import TrainingConfig, TrainingError
from course_utils.training.groups import parameter_groups
from course_utils.training.history import BestWeights, History
from course_utils.training.loop import fit
from course_utils.training.precision import bf16_factor, fastest_dtype
from course_utils.training.prediction import evaluate, predict, predict_in_order
from course_utils.training.schedule import learning_rates, make_schedule

__all__ = [
    "BestWeights",
    "History",
    "TrainingConfig",
    "TrainingError",
    "bf16_factor",
    "evaluate",
    "fastest_dtype",
    "fit",
    "learning_rates",
    "make_schedule",
    "parameter_groups",
    "predict",
    "predict_in_order",
]
