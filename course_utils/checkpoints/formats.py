"""What a method must say so that its checkpoints are peft's: the header, and the names of the tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from course_utils.methods import MethodConfig
from course_utils.methods.targets import find_head

Tensors = Mapping[str, torch.Tensor]

#: What peft puts before the dotted name of a module of the model.
PREFIX = "base_model.model."
#: Settings of peft that say where a checkpoint comes from, not what it computes.
ORIGIN = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("task_type",),
}
_TASKS = {"SequenceClassification": "SEQ_CLS", "CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}


class CheckpointError(ValueError):
    """The folder holds no checkpoint that fits this model. The model is unchanged."""


class PeftFormat(ABC):
    """How peft stores one method: our settings and tensors → peft's, and back.

    The defaults fit the methods that wrap layers and whose tensors peft calls as we do.
    """

    #: The settings that this format writes, an exact class and not its subclasses.
    method: ClassVar[type[MethodConfig]]
    #: A second file of tensors for what peft drops when it saves but training needs, such as an encoder; else None.
    extra_file: ClassVar[str | None] = None

    @abstractmethod
    def reads(self, header: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this header is this format's to read."""

    @abstractmethod
    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """peft's settings; `save` adds those of `common_header`."""

    @abstractmethod
    def settings(self, header: Mapping[str, Any], model: nn.Module) -> MethodConfig:
        """Our settings for a header of peft's; raises `CheckpointError` for what the course does not implement."""

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """Our trained tensors under peft's names."""
        return {PREFIX + name: tensor for name, tensor in tensors.items()}

    def from_peft(self, tensors: Tensors, model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
        """peft's tensors under our names. `model` is the bare model, `config` what `settings` returned."""
        return {without_prefix(key): tensor for key, tensor in tensors.items()}

    def load_frozen(self, model: nn.Module, tensors: Tensors) -> None:  # noqa: B027 (most need nothing)
        """Load what a checkpoint of peft's holds and nobody trains. Called last, with all tensors of the checkpoint."""

    def extra_tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What goes into `extra_file`. `from_peft` gets it back among the other tensors."""
        return {}

    def without_extra(self, config: Any) -> MethodConfig:
        """Our settings for a checkpoint of peft's, which has no `extra_file`. It computes the same."""
        raise CheckpointError(f"the checkpoint lacks {self.extra_file}")


def common_header(model: nn.Module, config: MethodConfig) -> dict[str, Any]:
    """What the headers of all methods hold."""
    name = type(model).__name__
    return {
        "base_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None) or None,
        "inference_mode": True,
        "modules_to_save": list(find_head(model, config.head)) or None,
        "task_type": next((task for end, task in _TASKS.items() if name.endswith(end)), None),
    }


def head_from_peft(header: Mapping[str, Any], model: nn.Module) -> tuple[str, ...]:
    """Our `head` for peft's `modules_to_save`.

    peft names "classifier" and "score" for every classifier, whichever it has, and matches ends of dotted names.
    """
    names: Sequence[str] = header.get("modules_to_save") or ()
    existing = [name for name, _ in model.named_modules()]
    return tuple(name for name in existing if any(name == n or name.endswith("." + n) for n in names))


def targets_from_peft(header: Mapping[str, Any]) -> Any:
    """Our `targets` for peft's `target_modules`.

    For "all-linear" peft lists the layers of a trained module too ("classifier.dense"), and then leaves them out.
    """
    targets = header["target_modules"]
    if isinstance(targets, str | None):
        return targets
    trained = [f".{name}." for name in header.get("modules_to_save") or ()]
    return tuple(target for target in targets if not any(name in f".{target}." for name in trained))


def refuse_other_settings(header: Mapping[str, Any], known: set[str]) -> None:
    """Raise `CheckpointError` if a setting that is not `known` is switched on."""
    for setting in sorted(set(header) - known - ORIGIN):
        # Off is None, False or empty, for all of peft's variants; 0 is not off: layers_to_transform=0 means a layer.
        if header[setting] not in (None, "", [], {}) and header[setting] is not False:
            raise CheckpointError(
                f"the checkpoint uses {setting}={header[setting]!r}, which the course's implementation does not have"
            )


def without_prefix(key: str) -> str:
    """The name of a tensor in the model, for its key in a checkpoint of peft's."""
    if not key.startswith(PREFIX):
        raise CheckpointError(f"unexpected key {key!r}: keys of this checkpoint should begin with {PREFIX!r}")
    return key.removeprefix(PREFIX)
