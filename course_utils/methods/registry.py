"""All methods, one row each: what the study, the bench, the checkpoints, the map and the tests know of them.

A row is plain data. Whoever needs a list of methods makes a view of `METHODS`. `tests/test_registry.py` demands a row,
a test case, a checkpoint, a page and the rest for every configuration of this package: a forgotten line fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from course_utils.methods.adalora import AdaLoRAConfig
from course_utils.methods.adapters import HoulsbyConfig, ParallelAdapterConfig, PfeifferConfig
from course_utils.methods.base import MethodConfig
from course_utils.methods.dora import DoRAConfig
from course_utils.methods.ia3 import IA3Config
from course_utils.methods.lora import LoRAConfig, LoRAPlusConfig
from course_utils.methods.p_tuning import PTuningConfig
from course_utils.methods.pissa import PiSSAConfig
from course_utils.methods.prefix import PrefixTuningConfig, PTuningV2Config
from course_utils.methods.prompts import PromptTuningConfig
from course_utils.methods.qlora import QLoRAConfig
from course_utils.methods.selective import BitFitConfig, FullConfig, HeadOnlyConfig, LastLayersConfig
from course_utils.methods.vera import VeRAConfig


class Family(NamedTuple):
    """Where the map places a method, and what it changes in the end."""

    title: str
    changes: Literal["weights", "activations", "inputs", "start"]


_COMPARISON = Family("for comparison", "weights")


@dataclass(frozen=True)
class Twin:
    """The same method in peft, with which the bench races it on BERT.

    Args:
        config: the class of peft's settings.
        arguments: its arguments.
        ours: our settings, where they differ from the study's.
    """

    config: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ours: MethodConfig | None = None


@dataclass(frozen=True)
class Method:
    """One row.

    Args:
        title: how the book calls it.
        config: its settings in the study.
        learning_rates: the study's candidates; or a sentence that says why it is not in the study.
        twin: the same in peft; or a sentence that says why none is raced.
        family: of the map.
        paper: key in `references.bib`; "" for what no single paper brought.
        chapter: file name of the page that teaches it.
        detail: what tells two rows of one method apart, such as "all linear".
        pretrained: False starts the study's model from random weights.
        memory: its key in the memory calculator; "" while that has no rule for it.
    """

    title: str
    config: MethodConfig
    learning_rates: tuple[float, ...] | str
    twin: Twin | str = "nobody has written it in peft yet"
    family: Family = _COMPARISON
    paper: str = ""
    chapter: str = ""
    detail: str = ""
    pretrained: bool = True
    memory: str = ""

    @property
    def rates(self) -> tuple[float, ...]:
        """The study's candidates for the learning rate; () where it leaves the method out."""
        return () if isinstance(self.learning_rates, str) else self.learning_rates

    @property
    def full_title(self) -> str:
        """`LoRA, all linear`."""
        return f"{self.title}, {self.detail}" if self.detail else self.title

    @property
    def in_peft(self) -> bool:
        """Whether peft has the method; then `save` writes peft's format."""
        return self.twin != _NOT_IN_PEFT


def _lora(**more: Any) -> Twin:
    return Twin("LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": _QUERY_VALUE} | more)


_QUERY_VALUE = ["query", "value"]
_SELECTIVE = Family("selective", "weights")
_LAYERS = Family("additive: layers and vectors", "activations")
_PROMPTS = Family("additive: soft prompts", "inputs")
_PREFIXES = Family("additive: soft prompts", "activations")
_LOW_RANK = Family("reparameterised", "weights")
_START = Family("reparameterised", "start")
_NOT_IN_PEFT = "peft has no such method"

# The study's three epochs of 69 steps: the ranks fall after the first half epoch, and stay from the last epoch on.
_ADALORA = AdaLoRAConfig(
    init_rank=12, target_rank=8, alpha=24, total_steps=3 * 69, initial_steps=35, final_steps=69, interval=5
)
_STEPS = 1000  # of AdaLoRA in the bench: far more than are timed, so that every timed step ranks and cuts
_ADALORA_TWIN = Twin(
    "AdaLoraConfig",
    {"init_r": 12, "target_r": 8, "lora_alpha": 16, "total_step": _STEPS, "target_modules": _QUERY_VALUE},
    ours=AdaLoRAConfig(init_rank=12, target_rank=8, alpha=16, total_steps=_STEPS),
)
_IA3_TWIN = Twin(
    "IA3Config",
    {
        "target_modules": r".*(key|value|layer\.\d+\.output\.dense)",
        "feedforward_modules": r".*layer\.\d+\.output\.dense",
    },
)
_VERA_TWIN = Twin("VeraConfig", {"r": 256, "target_modules": _QUERY_VALUE})
_PROMPT_TWIN = Twin(
    "PromptTuningConfig", {"num_virtual_tokens": 20}, ours=PromptTuningConfig(virtual_tokens=20, pool="peft")
)
_P_TUNING_TWIN = Twin(
    "PromptEncoderConfig",
    {"num_virtual_tokens": 20, "encoder_hidden_size": 384},
    ours=PTuningConfig(virtual_tokens=20, pool="peft"),
)

# fmt: off
#: Short name → row, in the order of the study.
METHODS: dict[str, Method] = {
    # title, settings in the study, learning rates
    #     twin in peft, or why none is raced; family, paper, chapter
    "lora": Method("LoRA", LoRAConfig(rank=8, alpha=16), (5e-4, 2e-3, 5e-3),
        _lora(), _LOW_RANK, "hu2021lora", "09_lora", detail="query and value", memory="lora-qv"),
    "full": Method("full fine-tuning", FullConfig(), (5e-5, 1e-4, 2e-4),
        _NOT_IN_PEFT, _COMPARISON, "devlin2019bert", "01_why_fine_tune", memory="full"),
    "head_only": Method("head only", HeadOnlyConfig(), (2e-2, 5e-2, 1e-1, 2e-1),
        _NOT_IN_PEFT, _COMPARISON, "", "01_why_fine_tune"),
    "scratch": Method("from scratch", FullConfig(), (1e-4, 5e-4, 1e-3),
        _NOT_IN_PEFT, _COMPARISON, "", "01_why_fine_tune", pretrained=False),
    "bitfit": Method("BitFit", BitFitConfig(), (1e-3, 5e-3, 1e-2, 2e-2),
        _NOT_IN_PEFT, _SELECTIVE, "benzaken2022bitfit", "07_bitfit"),
    "last_layers": Method("last layer only", LastLayersConfig(layers=1), (1e-4, 5e-4),
        _NOT_IN_PEFT, _SELECTIVE, "", "07_bitfit"),
    "houlsby": Method("Houlsby adapters", HoulsbyConfig(), (1e-3, 3e-3),
        _NOT_IN_PEFT, _LAYERS, "houlsby2019adapters", "08_adapters"),
    "pfeiffer": Method("Pfeiffer adapters", PfeifferConfig(), (1e-3, 3e-3),
        _NOT_IN_PEFT, _LAYERS, "pfeiffer2021adapterfusion", "08_adapters"),
    "parallel": Method("parallel adapters", ParallelAdapterConfig(), (2e-4, 5e-4, 1e-3),
        _NOT_IN_PEFT, _LAYERS, "he2021unified", "08_adapters"),
    "lora_all": Method("LoRA", LoRAConfig(rank=8, alpha=16, targets="all-linear"), (1e-3, 2e-3),
        "raced on query and value", _LOW_RANK, "hu2021lora", "09_lora", detail="all linear", memory="lora-all"),
    "lora_plus": Method("LoRA+", LoRAPlusConfig(rank=8, alpha=16), (2e-4, 5e-4, 1e-3),
        "computes what LoRA does; the optimiser differs", _LOW_RANK, "hayou2024loraplus", "10_lora_family"),
    "dora": Method("DoRA", DoRAConfig(rank=8, alpha=16), (2e-3, 5e-3),
        _lora(use_dora=True), _LOW_RANK, "liu2024dora", "10_lora_family"),
    "pissa": Method("PiSSA", PiSSAConfig(rank=8, alpha=16), (5e-4, 2e-3),
        _lora(init_lora_weights="pissa"), _START, "meng2024pissa", "10_lora_family"),
    "adalora": Method("AdaLoRA", _ADALORA, (5e-3, 2e-2),
        _ADALORA_TWIN, _LOW_RANK, "zhang2023adalora", "10_lora_family"),
    "vera": Method("VeRA", VeRAConfig(rank=256), (1e-2, 5e-2),
        _VERA_TWIN, _LOW_RANK, "kopiczko2023vera", "10_lora_family"),
    "ia3": Method("(IA)³", IA3Config(), (1e-2, 3e-2),
        _IA3_TWIN, _LAYERS, "liu2022fewshot", "11_ia3", memory="ia3"),
    "prompt": Method("prompt tuning", PromptTuningConfig(virtual_tokens=20), (1e-2, 2e-2, 5e-2),
        _PROMPT_TWIN, _PROMPTS, "lester2021power", "12_prompt_tuning"),
    "p_tuning": Method("P-Tuning", PTuningConfig(virtual_tokens=20), (1e-3, 2e-3, 5e-3),
        _P_TUNING_TWIN, _PROMPTS, "liu2021gpt", "13_p_tuning"),
    "prefix": Method("prefix tuning", PrefixTuningConfig(virtual_tokens=20), (1e-2, 3e-2, 1e-1),
        Twin("PrefixTuningConfig", {"num_virtual_tokens": 20}), _PREFIXES, "li2021prefix", "14_prefix_tuning"),
    "p_tuning_v2": Method("P-Tuning v2", PTuningV2Config(virtual_tokens=20), (3e-2, 1e-1),
        "prefix tuning in peft, without dropout", _PREFIXES, "liu2022ptuningv2", "14_prefix_tuning"),
    "qlora": Method("QLoRA", QLoRAConfig(rank=8, alpha=16), (1e-3, 2e-3),
        _lora(target_modules="all-linear"), _LOW_RANK, "dettmers2023qlora", "15_qlora"),
}
# fmt: on


def studied() -> dict[str, Method]:
    """The rows that the study compares; yours is among them once it stands in `METHODS` with its learning rates."""
    return {name: row for name, row in METHODS.items() if row.rates}
