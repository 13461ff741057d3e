"""The table of formats: what peft calls each method and its settings. A new method is one row more.

A row of a method that wraps layers is a `Format`: our settings under peft's names, the wrapper, and what may be passed
over, with the reason. Whatever a row leaves out is refused by name as soon as a header switches it on, so a setting of
a newer peft cannot be ignored in silence.
"""

from __future__ import annotations

from dataclasses import replace

from course_utils import methods
from course_utils.checkpoints.adalora import AdaLoRAFormat
from course_utils.checkpoints.formats import Format, Header, Only, Setting
from course_utils.checkpoints.ia3 import QUERIES, IA3Format
from course_utils.checkpoints.pissa import PiSSAFormat
from course_utils.checkpoints.vera import VeRAFormat
from course_utils.checkpoints.virtual_tokens import ENCODER_FILE, PrefixFormat, PromptFormat, PTuningFormat


def never(header: Header) -> bool:
    """For methods that only train differently: what they have learnt is plain LoRA, and is loaded as such."""
    return False


# --- why a setting may be passed over -------------------------------------------------------------------------------

STORED = "how peft stores a matrix, which the model shows"
BEGAN = "where it began; the checkpoint says where it is now"
ALONE = "counts only beside a setting that is refused"
RUN = "how it is computed, not what"
UNUSED = "inherited in peft, and not looked at"

NO_BIASES = {"bias": Only(("none", None), "trains biases too, which the course's implementation does not")}
#: Other ways to begin (OLoRA, LoftQ ...) change the backbone, so their checkpoint fits only one changed alike.
SAME_BACKBONE = {
    "init_lora_weights": Only(
        (True, False, None, "gaussian", "eva", "orthogonal"),
        "also changes the pretrained weights, which this checkpoint does not hold. In peft, convert it to plain LoRA "
        "when saving.",
    )
}
STACKS = {"num_transformer_submodules": Only((None, 1, 2), "is more than an encoder and a decoder")}
SIZES = ("token_dim", "num_attention_heads", "num_layers")

#: What "all-linear" or a list of names shall not take. (peft's VeRA has no such setting; there the list says it all.)
EXCLUDE = Setting(
    "exclude_modules",
    None,
    read=lambda names: tuple(names) if isinstance(names, list) else names,
    write=lambda names: list(names) if isinstance(names, tuple) else names,
)

# --- methods that wrap layers ---------------------------------------------------------------------------------------

LORA = Format(
    methods.LoRAConfig,
    "LORA",
    {
        "rank": Setting("r"),
        "alpha": Setting("lora_alpha"),
        "dropout": Setting("lora_dropout", 0.0),
        "rank_stabilized": Setting("use_rslora", False),
        "exclude": EXCLUDE,
    },
    methods.LoRALinear,
    constants={"bias": "none"},
    only=NO_BIASES | SAME_BACKBONE,
    ignored={
        STORED: ("fan_in_fan_out",),
        BEGAN: ("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
        ALONE: ("megatron_core", "qalora_group_size"),
        RUN: ("runtime_config",),
    },
    by_code=("ensure_weight_tying",),
)
LORA_PLUS = replace(LORA, method=methods.LoRAPlusConfig, when=never)  # its two rates belong to the optimiser
QLORA = replace(
    LORA, method=methods.QLoRAConfig, when=never
)  # how the backbone stores its weights is the backbone's matter
DORA = replace(
    LORA,
    method=methods.DoRAConfig,
    constants={"bias": "none", "use_dora": True},
    only={**LORA.only, "use_dora": Only((True,), "is not DoRA")},
    endings={"lora_magnitude_vector": ".weight"},
    when=lambda header: bool(header.get("use_dora")),
)
PISSA = PiSSAFormat(
    **vars(LORA)
    | {
        "method": methods.PiSSAConfig,
        "only": NO_BIASES | {"init_lora_weights": Only(("pissa",), "is not PiSSA")},
        "when": lambda header: header.get("init_lora_weights") == "pissa",  # "pissa_niter_4" decomposes at random
    }
)
ADALORA = AdaLoRAFormat(
    methods.AdaLoRAConfig,
    "ADALORA",
    {
        "init_rank": Setting("init_r", 12),
        "target_rank": Setting("target_r", 8),
        "total_steps": Setting("total_step", 0),
        "initial_steps": Setting("tinit", 0),
        "final_steps": Setting("tfinal", 0),
        "interval": Setting("deltaT", 1),
        "beta1": Setting("beta1", 0.85),
        "beta2": Setting("beta2", 0.85),
        "orthogonality": Setting("orth_reg_weight", 0.5),
        "alpha": Setting("lora_alpha", 8),
        "dropout": Setting("lora_dropout", 0.0),
        "exclude": EXCLUDE,
    },
    methods.AdaLoRALinear,
    constants={"bias": "none"},
    only=NO_BIASES,
    ignored={**LORA.ignored, UNUSED: ("r", "use_rslora", "init_lora_weights")},
    by_code=("rank_pattern",),
)
VERA = VeRAFormat(
    methods.VeRAConfig,
    "VERA",
    {
        "rank": Setting("r"),
        "initial_d": Setting("d_initial", 0.1),
        "dropout": Setting("vera_dropout", 0.0),
        "projection_seed": Setting("projection_prng_key", 0),
        "save_projection": Setting("save_projection", True),
    },
    methods.VeRALinear,
    constants={"bias": "none"},
    only=NO_BIASES,
    ignored={STORED: ("fan_in_fan_out",), BEGAN: ("init_weights",)},
)
IA3 = IA3Format(
    methods.IA3Config,
    "IA3",
    layer=methods.IA3Linear,
    ignored={STORED: ("fan_in_fan_out",), BEGAN: ("init_ia3_weights",)},
    by_code=("feedforward_modules", QUERIES),
)

# --- methods with virtual tokens ------------------------------------------------------------------------------------

PROMPT_TUNING = PromptFormat(
    methods.PromptTuningConfig,
    "PROMPT_TUNING",
    {
        "virtual_tokens": Setting("num_virtual_tokens"),
        # Where the table began no longer counts, and peft's "TEXT" would ask for a tokenizer.
        "init": Setting("prompt_tuning_init", "RANDOM", read=lambda _: "random", write=lambda _: "RANDOM"),
    },
    constants={"num_transformer_submodules": 1},
    only=STACKS,
    ignored={
        "the shape of the table shows it": SIZES,
        BEGAN: ("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    },
    by_code=("pool",),
    needs_task=True,
)
P_TUNING = PTuningFormat(
    methods.PTuningConfig,
    "P_TUNING",
    {
        "virtual_tokens": Setting("num_virtual_tokens"),
        "encoder": Setting("encoder_reparameterization_type", read=str.lower, write=str.upper),
        "hidden": Setting("encoder_hidden_size"),
        "lstm_layers": Setting("encoder_num_layers", 2),
        "lstm_dropout": Setting("encoder_dropout", 0.0),
    },
    constants={"num_transformer_submodules": 1},
    only=STACKS,
    ignored={"the shape of the table shows it": SIZES},
    by_code=("pool",),
    extra_file=ENCODER_FILE,
    needs_task=True,
)
PREFIX_TUNING = PrefixFormat(
    methods.PrefixTuningConfig,
    "PREFIX_TUNING",
    {
        "virtual_tokens": Setting("num_virtual_tokens"),
        "reparameterize": Setting("prefix_projection", False),
        "init": Setting(
            "init_weights", None, read=lambda init: init or "normal", write={"zero": "zero", "normal": None}.get
        ),
    },
    by_code=("encoder_hidden_size", "num_transformer_submodules", *SIZES),
    extra_file=ENCODER_FILE,
    needs_task=True,
)
#: peft does not have the dropout on the prefix. It warns that it does not know this setting, and computes the same:
#: nothing is dropped after training.
P_TUNING_V2 = replace(
    PREFIX_TUNING,
    method=methods.PTuningV2Config,
    settings={**PREFIX_TUNING.settings, "dropout": Setting("prefix_dropout")},
    when=lambda header: "prefix_dropout" in header,
)

# --- all together ---------------------------------------------------------------------------------------------------

#: Methods that peft has. A header is read by the first row that says that it is its own.
PEFT_FORMATS: tuple[Format, ...] = (
    *(ADALORA, VERA, IA3, DORA, PISSA, LORA_PLUS, QLORA, LORA),
    *(PROMPT_TUNING, P_TUNING, P_TUNING_V2, PREFIX_TUNING),
)
#: Our own format needs no row, only the method's class, by its name.
EVERY_METHOD: dict[str, type[methods.MethodConfig]] = {
    row.config.name: type(row.config) for row in methods.METHODS.values()
}
