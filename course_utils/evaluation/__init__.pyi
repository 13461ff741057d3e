from . import results as results
from .agreement import (
    LEVELS as LEVELS,
    AgreementError as AgreementError,
    cohen_kappa as cohen_kappa,
    krippendorff_alpha as krippendorff_alpha,
)
from .baselines import (
    NEGATIONS as NEGATIONS,
    NEGATIVE as NEGATIVE,
    POSITIVE as POSITIVE,
    count_words as count_words,
    lexicon_logits as lexicon_logits,
    lexicon_score as lexicon_score,
    positive_scores as positive_scores,
    right_answers as right_answers,
    word_count_logits as word_count_logits,
    word_counts as word_counts,
)
from .calibration import (
    Bin as Bin,
    calibration_error as calibration_error,
    cross_entropy as cross_entropy,
    fit_temperature as fit_temperature,
    probabilities as probabilities,
    reliability as reliability,
)
from .errors import MetricError as MetricError, as_columns as as_columns, quotient as quotient
from .human_review import review as review, review_bound as review_bound, surest_errors as surest_errors
from .intervals import (
    accuracy_interval as accuracy_interval,
    bootstrap_interval as bootstrap_interval,
    compare as compare,
    disagreements as disagreements,
    mcnemar as mcnemar,
    mean_and_spread as mean_and_spread,
)
from .invariants import (
    TOLERANCE as TOLERANCE,
    Batch as Batch,
    Property as Property,
    Report as Report,
    check_invariants as check_invariants,
)
from .many_methods import (
    PairedDifference as PairedDifference,
    beats as beats,
    front as front,
    holm as holm,
    mean_interval as mean_interval,
    paired_difference as paired_difference,
)
from .metrics import (
    ClassScores as ClassScores,
    Scores as Scores,
    best_threshold as best_threshold,
    class_scores as class_scores,
    confusion as confusion,
    f1_average as f1_average,
    majority_accuracy as majority_accuracy,
    score as score,
)
from .prediction import (
    evaluate as evaluate,
    gather_predictions as gather_predictions,
    logits_of as logits_of,
    predict as predict,
    predict_in_order as predict_in_order,
)
from .rates import best_rate as best_rate, finalists as finalists, runs_of as runs_of
from .slices import (
    SLICES as SLICES,
    Slice as Slice,
    SliceError as SliceError,
    has_face as has_face,
    has_negation as has_negation,
    has_sarcasm_marker as has_sarcasm_marker,
    says_the_opposite as says_the_opposite,
    slice_table as slice_table,
)
from .timing import in_turn as in_turn
