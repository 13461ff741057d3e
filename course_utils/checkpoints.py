"""Save what was trained, and load it again; LoRA in peft's own format, so that each reads the other's.

A checkpoint is a folder with a JSON header and one safetensors file; nothing is ever unpickled.

* Methods that peft has: `adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.save_pretrained` writes.
* Others: `tuning_config.json` and `tuning_model.safetensors`, our own header and the parameters by name.

peft loads a file whose keys do not match without a word, and the adapter then does nothing. Our loader raises.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.methods import (
    BitFitConfig,
    FullConfig,
    HeadOnlyConfig,
    LastLayersConfig,
    LoRAConfig,
    LoRALinear,
    MethodConfig,
    MethodError,
    inject,
    trainable_parameters,
)
from course_utils.methods.base import find_head

_PEFT_NAMES = _PEFT_HEADER, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OWN_NAMES = _OWN_HEADER, _OWN_WEIGHTS = "tuning_config.json", "tuning_model.safetensors"
_OWN_FORMAT = 1
_PEFT_PREFIX = "base_model.model."
_OWN_METHODS: dict[str, type[MethodConfig]] = {
    config.name: config for config in (FullConfig, HeadOnlyConfig, LastLayersConfig, BitFitConfig)
}


class CheckpointError(ValueError):
    """The folder holds no checkpoint that fits this model. The model is unchanged."""


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write the trained parameters, head included, and the method's settings.

    Args:
        model: with an injected method.
        folder: is created; a checkpoint that is already there is replaced file by file, each in one step.

    Returns:
        The folder.

    Raises:
        CheckpointError: no method is in the model, or the folder cannot be written.
    """
    config = getattr(model, "tuning", None)
    if config is None:
        raise CheckpointError(
            "no method is in the model (none was injected, or it was merged); save the whole model with "
            "model.save_pretrained(folder)"
        )
    # Contiguous clones: safetensors refuses tensors that share memory.
    tensors = {name: p.detach().cpu().clone().contiguous() for name, p in trainable_parameters(model).items()}
    if isinstance(config, LoRAConfig):
        header, (header_name, weights_name), other_names = _lora_to_peft(model, config), _PEFT_NAMES, _OWN_NAMES
        tensors = {_PEFT_PREFIX + name: tensor for name, tensor in tensors.items()}
    else:
        header = {"format": _OWN_FORMAT, "method": config.name, "settings": asdict(config)}
        (header_name, weights_name), other_names = _OWN_NAMES, _PEFT_NAMES
    path = Path(folder)
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        # All is written inside a temporary folder first: a full disk leaves nothing half-written behind.
        with TemporaryDirectory(prefix=".partial-", dir=path) as temporary:
            save_file(tensors, Path(temporary, weights_name), metadata={"format": "pt"})
            Path(temporary, header_name).write_text(json.dumps(header, indent=2, sort_keys=True) + "\n", "utf-8")
            for name in (weights_name, header_name):
                os.replace(Path(temporary, name), path / name)
        for name in other_names:  # an older checkpoint in the other format would be read instead of this one
            (path / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        if not existed:
            with suppress(OSError):
                path.rmdir()
        raise CheckpointError(f"could not write the checkpoint to {path}: {error}") from error
    return path


def load(model: nn.Module, folder: str | Path) -> nn.Module:
    """Inject the method of a checkpoint into a fresh model and load its weights, all of them or none.

    Args:
        model: the same backbone that the checkpoint was trained on, without a method.
        folder: written by `save`, or by peft's `save_pretrained` for LoRA.

    Returns:
        The same model, changed in place.

    Raises:
        CheckpointError: no checkpoint is there; it is of a variant that the course does not implement; a key is
            missing or unexpected; a shape does not fit. The model is then unchanged.
    """
    path = Path(folder)
    try:
        if (path / _PEFT_HEADER).is_file():
            config: MethodConfig = _lora_from_peft(_read_json(path / _PEFT_HEADER), model)
            tensors = _read_tensors(path / _PEFT_WEIGHTS)
            tensors = {_without_prefix(key): tensor for key, tensor in tensors.items()}
        elif (path / _OWN_HEADER).is_file():
            config = _own_config(_read_json(path / _OWN_HEADER))
            tensors = _read_tensors(path / _OWN_WEIGHTS)
        else:
            raise CheckpointError(f"{path} holds neither {_PEFT_HEADER} nor {_OWN_HEADER}, so it is no checkpoint")
        _check_fits(_expected_shapes(model, config), tensors)
        inject(model, config)
    except MethodError as error:
        raise CheckpointError(f"the checkpoint in {path} cannot be loaded into this model: {error}") from error
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(tensors[name])
    return model


def _expected_shapes(model: nn.Module, config: MethodConfig) -> dict[str, torch.Size]:
    """What the checkpoint must hold, found on a copy without memory, so that the model stays as it is."""
    weights = (*model.parameters(), *model.buffers())
    copy = deepcopy(model, {id(weight): _without_memory(weight) for weight in weights})
    inject(copy, config)
    return {name: p.shape for name, p in trainable_parameters(copy).items()}


def _without_memory(weight: torch.Tensor) -> torch.Tensor:
    empty = weight.detach().to("meta")
    return nn.Parameter(empty, weight.requires_grad) if isinstance(weight, nn.Parameter) else empty


def _check_fits(expected: dict[str, torch.Size], tensors: dict[str, torch.Tensor]) -> None:
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"the checkpoint does not fit the model: {_some('missing', missing)}{_some('unexpected', unexpected)}"
            "Load it into the backbone that it was trained on."
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{name} has the shape {tuple(tensors[name].shape)} in the checkpoint and {tuple(shape)} in the model: "
                "another backbone, rank or number of classes"
            )


def _some(word: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{word} {', '.join(keys[:3])}{more}; "


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object, it holds a {type(content).__name__}")
    return content


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read, it is missing or damaged: {error}") from error


def _own_config(header: dict[str, Any]) -> MethodConfig:
    method = _OWN_METHODS.get(str(header.get("method")))
    settings = header.get("settings")
    if header.get("format") != _OWN_FORMAT:
        raise CheckpointError(
            f"{_OWN_HEADER} has the format {header.get('format')!r}; this version reads {_OWN_FORMAT}"
        )
    if not isinstance(settings, dict):
        raise CheckpointError(f"{_OWN_HEADER} should hold the method's settings by name, got {settings!r}")
    if method is None:
        raise CheckpointError(f"unknown method {header.get('method')!r}; expected one of {', '.join(_OWN_METHODS)}")
    unknown = set(settings) - {f.name for f in fields(method)}
    if unknown:
        raise CheckpointError(f"unknown settings for {method.name}: {', '.join(sorted(unknown))}")
    return method(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


# --- LoRA in peft's format ------------------------------------------------------------------------------------------

#: Settings that we read, each into a field of `LoRAConfig`.
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "modules_to_save"}
#: Settings that do not change what a loaded checkpoint computes: where it comes from, how it was initialised, how
#: peft stores a matrix (we see that in the model), and sizes that count only beside a setting that is refused.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("corda_config", "eva_config", "lora_ga_config", "loftq_config"),
    *("ensure_weight_tying", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
}
#: Initialisations that leave the pretrained weights alone. The others (PiSSA, OLoRA, LoftQ ...) change them, so their
#: checkpoint fits only a backbone that was changed in the same way.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def _lora_to_peft(model: nn.Module, config: LoRAConfig) -> dict[str, Any]:
    task = {"SequenceClassification": "SEQ_CLS", "CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
    task_type = next((value for end, value in task.items() if type(model).__name__.endswith(end)), None)
    wrapped = {name: module.base for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": getattr(model.config, "name_or_path", None) or None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilized,
        "target_modules": sorted(wrapped),
        "modules_to_save": list(find_head(model, config.head)) or None,
        "fan_in_fan_out": any(isinstance(base, Conv1D) for base in wrapped.values()),
        "bias": "none",
        "inference_mode": True,
    }


def _lora_from_peft(header: dict[str, Any], model: nn.Module) -> LoRAConfig:
    if header.get("peft_type") != "LORA":
        raise CheckpointError(f"peft_type is {header.get('peft_type')!r}; the course reads LORA so far")
    if header.get("bias", "none") != "none":
        raise CheckpointError(
            f"the checkpoint trains biases beside LoRA (bias={header['bias']!r}), which ours does not"
        )
    if header.get("init_lora_weights", True) not in _INITIALISATIONS:
        raise CheckpointError(
            f"init_lora_weights={header['init_lora_weights']!r} also changes the pretrained weights, which this "
            "checkpoint does not hold. In peft, convert it to plain LoRA when saving."
        )
    for setting in sorted(set(header) - _READ - _HARMLESS - {"bias", "init_lora_weights"}):
        # Off is None, False or empty, for all of peft's variants; 0 is not off: layers_to_transform=0 means a layer.
        if header[setting] not in (None, "", [], {}) and header[setting] is not False:
            raise CheckpointError(
                f"the checkpoint uses {setting}={header[setting]!r}, which the course's LoRA does not implement"
            )
    try:
        targets = header["target_modules"]
        return LoRAConfig(
            rank=header["r"],
            alpha=header["lora_alpha"],
            dropout=header.get("lora_dropout", 0.0),
            targets=targets if isinstance(targets, str | None) else tuple(targets),
            rank_stabilized=header.get("use_rslora", False),
            head=_head_from_peft(header.get("modules_to_save") or (), model),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{_PEFT_HEADER} lacks a setting or has one of a wrong type: {error}") from error


def _head_from_peft(names: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """peft names "classifier" and "score" for every classifier, whichever it has, and matches ends of dotted names."""
    existing = [name for name, _ in model.named_modules()]
    return tuple(name for name in existing if any(name == n or name.endswith("." + n) for n in names))


def _without_prefix(key: str) -> str:
    if not key.startswith(_PEFT_PREFIX):
        raise CheckpointError(f"unexpected key {key!r}: keys of a LoRA checkpoint begin with {_PEFT_PREFIX!r}")
    return key.removeprefix(_PEFT_PREFIX)
