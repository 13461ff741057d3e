"""Distillation: the losses, where a student comes from, how it is trained, and the recipe for few labels."""

from course_utils.distillation.few_shot import (
    FewShotConfig,
    draw_labels,
    few_shot_student,
    people_logits,
    without_labels,
)
from course_utils.distillation.losses import (
    NO_LABEL,
    DistillationError,
    attention_loss,
    hard_label_loss,
    hidden_state_loss,
    soft_label_loss,
)
from course_utils.distillation.mistakes import MISTAKES
from course_utils.distillation.students import cut_layers, encoder_parameters, small_student
from course_utils.distillation.teaching import DistillationConfig, Distilled, teacher_logits, with_teacher

__all__ = [
    "MISTAKES",
    "NO_LABEL",
    "DistillationConfig",
    "DistillationError",
    "Distilled",
    "FewShotConfig",
    "attention_loss",
    "cut_layers",
    "draw_labels",
    "encoder_parameters",
    "few_shot_student",
    "hard_label_loss",
    "hidden_state_loss",
    "people_logits",
    "small_student",
    "soft_label_loss",
    "teacher_logits",
    "with_teacher",
    "without_labels",
]
