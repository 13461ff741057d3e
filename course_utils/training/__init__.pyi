from .chats import (
    ChatTraining as ChatTraining,
    loss_per_token as loss_per_token,
    train_on_chats as train_on_chats,
    write_answers as write_answers,
)
from .checks import (
    check_finite as check_finite,
    check_labels as check_labels,
    check_steps as check_steps,
    check_trainable as check_trainable,
)
from .config import TrainingConfig as TrainingConfig, TrainingError as TrainingError
from .distributed import (
    SharedBatches as SharedBatches,
    SharingError as SharingError,
    batch_size as batch_size,
    share as share,
    without_dropout as without_dropout,
)
from .groups import parameter_groups as parameter_groups
from .history import BestWeights as BestWeights, History as History
from .linear import judge as judge, sentence_vectors as sentence_vectors, train_linear as train_linear
from .loop import (
    backward as backward,
    clip as clip,
    evaluate_epoch as evaluate_epoch,
    fit as fit,
    in_groups as in_groups,
    train_epoch as train_epoch,
)
from .memory import (
    MEMORY_METHODS as MEMORY_METHODS,
    NF4_BITS as NF4_BITS,
    SHAPES as SHAPES,
    Memory as Memory,
    Shape as Shape,
    peak_memory as peak_memory,
    saved_for_backward as saved_for_backward,
    trained_weights as trained_weights,
    training_memory as training_memory,
)
from .needless import (
    first_token_only as first_token_only,
    plain_attention as plain_attention,
    quick as quick,
    without_drawing as without_drawing,
)
from .optimizers import (
    SGD as SGD,
    Adam as Adam,
    AdamW as AdamW,
    Optimizer as Optimizer,
    cross_entropy as cross_entropy,
    cross_entropy_gradient as cross_entropy_gradient,
    descend as descend,
    log_sum_exp as log_sum_exp,
    softmax as softmax,
)
from .peak import (
    MEASURED_CONFIGS as MEASURED_CONFIGS,
    high_water as high_water,
    peak_bytes as peak_bytes,
    prepared as prepared,
    random_batch as random_batch,
    train_and_look as train_and_look,
)
from .precision import (
    LIMITS as LIMITS,
    ROWS as ROWS,
    WIDTH as WIDTH,
    WORTHWHILE as WORTHWHILE,
    SlowPrecisionWarning as SlowPrecisionWarning,
    bf16_factor as bf16_factor,
    choose as choose,
    describe as describe,
    fastest_dtype as fastest_dtype,
    warn_if_emulated as warn_if_emulated,
)
from .processes import launch as launch
from .recipes import Recipe as Recipe, runs_folder as runs_folder, trained as trained
from .resuming import Savepoint as Savepoint
from .run import Watch as Watch, finish as finish, start as start
from .schedule import learning_rates as learning_rates, make_schedule as make_schedule
from .tiny import collate_tiny as collate_tiny, tiny_loader as tiny_loader, tiny_model as tiny_model
from .whole_run import train_once as train_once
