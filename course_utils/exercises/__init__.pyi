from .checking import (
    CheckResult as CheckResult,
    Exercise as Exercise,
    Wrong as Wrong,
    check as check,
    exercises as exercises,
    run_check as run_check,
)
from .crashes import show_traceback as show_traceback
from .debugging_patients import (
    look_trained as look_trained,
    tiny_batch as tiny_batch,
    tiny_classifier as tiny_classifier,
)
from .solved import (
    LabProgress as LabProgress,
    Progress as Progress,
    ProgressError as ProgressError,
    progress as progress,
)
