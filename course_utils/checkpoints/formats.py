"""What a checkpoint format is: one row that says what peft calls our settings, and what of peft's may be passed over.

The rows stand in `table`. A method whose tensors peft stores in another way has a class of its own beside its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.checkpoints.errors import CheckpointError
from course_utils.checkpoints.tied import tied_names
from course_utils.methods import MethodConfig
from course_utils.methods.base import AdaptedLayer
from course_utils.methods.targets import find_head

Header = Mapping[str, Any]
Tensors = Mapping[str, torch.Tensor]

#: What peft puts before the dotted name of a module of the model.
PREFIX = "base_model.model."
#: Settings of peft that say where a checkpoint comes from, not what it computes.
ORIGIN = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("task_type",),
}
#: What a name of a model class ends with → the task in peft, whose own class then wraps the model.
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForQuestionAnsweringSimple": "QUESTION_ANS",
    "CausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "MarianMTModel": "SEQ_2_SEQ_LM",
}
_REQUIRED: Any = object()


def _as_it_is(value: Any) -> Any:
    return value


class Setting(NamedTuple):
    """One of our settings as peft has it.

    Args:
        peft: its name there.
        default: for a header that leaves it out. Without a default, a header must have it.
        read: peft's value → ours.
        write: our value → peft's.
    """

    peft: str
    default: Any = _REQUIRED
    read: Callable[[Any], Any] = _as_it_is
    write: Callable[[Any], Any] = _as_it_is


class Only(NamedTuple):
    """The values of a setting of peft's that mean what ours does; all others are refused.

    Args:
        values: these.
        otherwise: what another value does, the end of a sentence that begins with the setting.
    """

    values: tuple[Any, ...]
    otherwise: str


@dataclass(frozen=True)
class Format:
    """How peft stores one method. Whatever a row does not name is refused as soon as a header switches it on.

    Args:
        method: the settings that this row writes, an exact class and not its subclasses.
        peft_type: peft's name for the method.
        settings: our name → peft's, for all that need no look at the model.
        layer: the wrapper of a target, for a method that wraps layers.
        constants: what the header says of every checkpoint of ours.
        only: peft's name → the values that ours implements.
        ignored: a reason → the settings of peft that change nothing here for this reason.
        by_code: settings that the row's own class reads.
        endings: a tensor whose name ends with the key may carry this ending more, as some tools write it.
        when: which headers of this `peft_type` the row reads. The first row that says yes is taken.
        extra_file: a second file of tensors, for what peft drops when it saves and training needs, such as an encoder.
        needs_task: peft ignores the method in a model whose task it does not know.
    """

    method: type[MethodConfig]
    peft_type: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    layer: type[AdaptedLayer] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Only] = field(default_factory=dict)
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_code: tuple[str, ...] = ()
    endings: Mapping[str, str] = field(default_factory=dict)
    when: Callable[[Header], bool] = lambda header: True
    extra_file: str | None = None
    needs_task: bool = False

    def reads(self, header: Header) -> bool:
        """Whether a checkpoint with this header is this row's to read."""
        return header.get("peft_type") == self.peft_type and self.when(header)

    # --- settings: ours → peft's, and back

    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """peft's settings, each adapted layer by its full name, so that peft's endings match nothing else."""
        head = list(find_head(model, config.head))
        header = {setting.peft: setting.write(getattr(config, ours)) for ours, setting in self.settings.items()}
        if self.layer is not None:
            wrapped = self.layers(model)
            header |= {
                "target_modules": sorted(wrapped),
                "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in wrapped.values()),
            }
        tied = [
            name.removesuffix(".weight") for first, others in tied_names(model).items() for name in (first, *others)
        ]
        if tied:
            header["ensure_weight_tying"] = True
        return header | {
            **self.constants,
            "peft_type": self.peft_type,
            "base_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None) or None,
            "inference_mode": True,
            "modules_to_save": list(dict.fromkeys([*head, *tied])) or None,
            "task_type": task_of(model),
        }

    def config(self, header: Header, model: nn.Module) -> MethodConfig:
        """Our settings for a header of peft's. `model` is the bare model.

        Raises:
            CheckpointError: the header asks for something that ours does not implement.
        """
        self.refuse_the_rest(header)
        return self.method(**self.read(header, model))

    def read(self, header: Header, model: nn.Module) -> dict[str, Any]:
        """Our settings by name."""
        ours = {name: s.read(_look_up(header, s)) for name, s in self.settings.items()}
        head = head_from_peft(header.get("modules_to_save") or (), model)
        return ours | {"head": head} | (self.places(header, model, head) if self.layer is not None else {})

    def places(self, header: Header, model: nn.Module, head: tuple[str, ...]) -> dict[str, Any]:
        """Those of our settings that say which layers are adapted."""
        return {"targets": targets_from_peft(header)}

    def known(self) -> list[str]:
        """Every setting of peft's that is not refused, or not with every value."""
        ours = [setting.peft for setting in self.settings.values()]
        ignored = [setting for settings in self.ignored.values() for setting in settings]
        places = ["target_modules"] if self.layer is not None else []
        return [*ours, *self.only, *ignored, *self.by_code, *places, "modules_to_save", *sorted(ORIGIN)]

    def refuse_the_rest(self, header: Header) -> None:
        """Raise `CheckpointError` if the header switches something on that ours does not implement."""
        for setting, only in self.only.items():
            if setting in header and header[setting] not in only.values:
                raise CheckpointError(f"{setting}={header[setting]!r} {only.otherwise}")
        for setting in sorted(set(header) - set(self.known())):
            # Off is None, False or empty, for all of peft's variants; 0 is not off: layers_to_transform=0 is a layer.
            if header[setting] not in (None, "", [], {}) and header[setting] is not False:
                raise CheckpointError(
                    f"the checkpoint uses {setting}={header[setting]!r}, which the course's implementation does not "
                    "have"
                )

    # --- tensors: ours → peft's, and back

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """Our trained tensors under peft's names."""
        return {PREFIX + name: tensor for name, tensor in tensors.items()}

    def from_peft(self, tensors: Tensors, model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
        """peft's tensors under our names. `model` is the bare model, `config` is what `config` returned."""
        ours = {_without_prefix(key): tensor for key, tensor in tensors.items()}
        for end, ending in self.endings.items():
            for name in [name for name in ours if name.endswith(end + ending)]:
                short = name.removesuffix(ending)
                if short in ours:
                    raise CheckpointError(f"{PREFIX}{short} is there twice, with and without {ending}")
                ours[short] = ours.pop(name)
        return ours

    def load_frozen(self, model: nn.Module, tensors: Tensors) -> None:
        """Load what a checkpoint of peft's holds and nobody trains. Called last, with all tensors of the checkpoint."""

    def extra_tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What goes into `extra_file`. `from_peft` gets it back among the other tensors."""
        return {}

    def without_extra(self, config: Any) -> MethodConfig:
        """Our settings for a checkpoint of peft's, which has no `extra_file`. It computes the same."""
        raise CheckpointError(f"the checkpoint lacks {self.extra_file}")

    def layers(self, model: nn.Module) -> dict[str, Any]:
        """Name → wrapper, for each layer that the method has wrapped."""
        assert self.layer is not None
        return {name: module for name, module in model.named_modules() if isinstance(module, self.layer)}


def task_of(model: nn.Module) -> str | None:
    """peft's name of the model's task, such as `TOKEN_CLS`; None where peft has none, as for multiple choice."""
    name = type(model).__name__
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), None)
    two_stacks = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return None if task == "SEQ_2_SEQ_LM" and not two_stacks else task


def taken_for_experts(row: Format, model: nn.Module) -> str:
    """An adapted layer of a family with experts that peft would take for one of those, or "".

    Mixtures of experts kept a layer for each before transformers 5. For LoRA peft reads a target with an old name of
    these, whatever stands before it, as the tensor that holds all experts now. Families such as DeepSeek-V3 have plain
    layers of the same names as well.
    """
    counts = ("num_experts", "num_local_experts", "n_routed_experts")
    if row.peft_type != "LORA" or not any(hasattr(getattr(model, "config", None), count) for count in counts):
        return ""
    old_names = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
    return next((name for name in row.layers(model) if name.rpartition(".")[2] in old_names), "")


def head_from_peft(names: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """The modules that peft trains for these `modules_to_save`: all whose dotted name has such an end.

    An end need not be a whole word: "classifier" takes DistilBERT's `pre_classifier` as well. For every classifier peft
    names "classifier" and "score", whichever it has.
    """
    if isinstance(names, str):
        raise TypeError(f"modules_to_save should be a list of names, got {names!r}")
    return tuple(name for name, _ in model.named_modules(remove_duplicate=False) if name.endswith(tuple(names)))


def targets_from_peft(header: Header) -> Any:
    """Our `targets` for peft's `target_modules`.

    For "all-linear" peft lists the layers of a trained module too ("classifier.dense"), and then leaves them out.
    """
    targets = header["target_modules"]
    if isinstance(targets, str | None):
        return targets
    trained = [f".{name}." for name in header.get("modules_to_save") or ()]
    return tuple(target for target in targets if not any(name in f".{target}." for name in trained))


def with_peft_s_head(model: nn.Module, head: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The weights of what peft trains for our head beside it, which peft misses in a file that lacks them.

    Raises:
        CheckpointError: a method is in there, which peft would put beside a trained copy of the layer.
    """
    others = tuple(name for name in head_from_peft(head, model) if name not in head)
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLayer) and f"{name}.".startswith(tuple(f"{other}." for other in others)):
            raise CheckpointError(
                f"{name} is adapted, and peft takes it for a part of the head {head}, because the names end alike. "
                "Name it in `head` as well, or leave it out of the targets"
            )
    return {n: p for n, p in model.named_parameters() if n.startswith(tuple(f"{other}." for other in others))}


def _look_up(header: Header, setting: Setting) -> Any:
    return header[setting.peft] if setting.default is _REQUIRED else header.get(setting.peft, setting.default)


def _without_prefix(key: str) -> str:
    if not key.startswith(PREFIX):
        raise CheckpointError(f"unexpected key {key!r}: keys of this checkpoint should begin with {PREFIX!r}")
    return key.removeprefix(PREFIX)
