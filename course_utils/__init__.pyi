from .checkpoints import CheckpointError as CheckpointError, load as load, save as save
from .data import load_sentiment as load_sentiment, make_loader as make_loader
from .evaluation import (
    check_invariants as check_invariants,
    evaluate as evaluate,
    majority_accuracy as majority_accuracy,
    predict as predict,
)
from .exercises import check as check
from .methods import (
    METHODS as METHODS,
    AdaLoRAConfig as AdaLoRAConfig,
    BitFitConfig as BitFitConfig,
    DoRAConfig as DoRAConfig,
    FullConfig as FullConfig,
    HeadOnlyConfig as HeadOnlyConfig,
    HoulsbyConfig as HoulsbyConfig,
    IA3Config as IA3Config,
    LastLayersConfig as LastLayersConfig,
    LoRAConfig as LoRAConfig,
    LoRAPlusConfig as LoRAPlusConfig,
    Method as Method,
    MethodConfig as MethodConfig,
    MethodError as MethodError,
    ParallelAdapterConfig as ParallelAdapterConfig,
    PfeifferConfig as PfeifferConfig,
    PiSSAConfig as PiSSAConfig,
    PrefixTuningConfig as PrefixTuningConfig,
    PromptTuningConfig as PromptTuningConfig,
    PTuningConfig as PTuningConfig,
    PTuningV2Config as PTuningV2Config,
    QLoRAConfig as QLoRAConfig,
    VeRAConfig as VeRAConfig,
    count_parameters as count_parameters,
    eject as eject,
    find_targets as find_targets,
    inject as inject,
    merge as merge,
    quantize as quantize,
    trainable_parameters as trainable_parameters,
)
from .models import load_causal_lm as load_causal_lm, load_classifier as load_classifier
from .training import (
    ChatTraining as ChatTraining,
    TrainingConfig as TrainingConfig,
    fastest_dtype as fastest_dtype,
    fit as fit,
    train_on_chats as train_on_chats,
    write_answers as write_answers,
)
