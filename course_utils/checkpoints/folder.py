"""Write a checkpoint's folder and read it, all of it or nothing."""

from __future__ import annotations

import json
import os
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

from course_utils.checkpoints.adalora import AdaLoRAFormat
from course_utils.checkpoints.dora import DoRAFormat
from course_utils.checkpoints.formats import CheckpointError, PeftFormat, common_header
from course_utils.checkpoints.ia3 import IA3Format
from course_utils.checkpoints.lora import LoRAFormat, LoRAPlusFormat
from course_utils.checkpoints.pissa import PiSSAFormat
from course_utils.checkpoints.prefix import PrefixFormat, PTuningV2Format
from course_utils.checkpoints.prompts import PromptTuningFormat, PTuningFormat
from course_utils.checkpoints.qlora import QLoRAFormat
from course_utils.checkpoints.vera import VeRAFormat
from course_utils.methods import (
    BitFitConfig,
    FullConfig,
    HeadOnlyConfig,
    HoulsbyConfig,
    LastLayersConfig,
    MethodConfig,
    MethodError,
    ParallelAdapterConfig,
    PfeifferConfig,
    inject,
    trainable_parameters,
)

_PEFT_NAMES = _PEFT_HEADER, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OWN_NAMES = _OWN_HEADER, _OWN_WEIGHTS = "tuning_config.json", "tuning_model.safetensors"
_OWN_FORMAT = 1
_OWN_METHODS: dict[str, type[MethodConfig]] = {
    config.name: config
    for config in (
        FullConfig,
        HeadOnlyConfig,
        LastLayersConfig,
        BitFitConfig,
        HoulsbyConfig,
        PfeifferConfig,
        ParallelAdapterConfig,
    )
}


#: Methods that peft has; each header is read by the first that says that it is its own.
PEFT_FORMATS: tuple[PeftFormat, ...] = (
    AdaLoRAFormat(),
    VeRAFormat(),
    IA3Format(),
    DoRAFormat(),
    PiSSAFormat(),
    LoRAPlusFormat(),
    QLoRAFormat(),
    LoRAFormat(),
    PromptTuningFormat(),
    PTuningFormat(),
    PrefixFormat(),
    PTuningV2Format(),
)


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
    peft_format = next((entry for entry in PEFT_FORMATS if entry.method is type(config)), None)
    if peft_format is not None:
        header = common_header(model, config) | peft_format.header(model, config)
        header_name, weights_name = _PEFT_NAMES
        files = {weights_name: peft_format.to_peft(tensors, model)}
        extra = peft_format.extra_tensors(model)
        if peft_format.extra_file is not None and extra:
            files[peft_format.extra_file] = extra
    else:
        header = {"format": _OWN_FORMAT, "method": config.name, "settings": asdict(config)}
        header_name, weights_name = _OWN_NAMES
        files = {weights_name: tensors}
    path = Path(folder)
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        # All is written inside a temporary folder first: a full disk leaves nothing half-written behind.
        with TemporaryDirectory(prefix=".partial-", dir=path) as temporary:
            for name, content in files.items():
                save_file(content, Path(temporary, name), metadata={"format": "pt"})
            Path(temporary, header_name).write_text(json.dumps(header, indent=2, sort_keys=True) + "\n", "utf-8")
            for name in (*files, header_name):
                os.replace(Path(temporary, name), path / name)
        extra_names = {entry.extra_file for entry in PEFT_FORMATS if entry.extra_file is not None}
        for name in {*_PEFT_NAMES, *_OWN_NAMES, *extra_names} - {*files, header_name}:  # of an older checkpoint
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
    peft_format: PeftFormat | None = None
    try:
        if (path / _PEFT_HEADER).is_file():
            peft_format, config = _peft_config(_read_json(path / _PEFT_HEADER), model)
            stored = _read_tensors(path / _PEFT_WEIGHTS)
            if peft_format.extra_file is not None:
                if (path / peft_format.extra_file).is_file():
                    stored |= _read_tensors(path / peft_format.extra_file)
                else:
                    config = peft_format.without_extra(config)
            tensors = peft_format.from_peft(stored, model, config)
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
        if peft_format is not None:
            peft_format.load_frozen(model, stored)
    return model


def _expected_shapes(model: nn.Module, config: MethodConfig) -> dict[str, torch.Size]:
    """What the checkpoint must hold, found on a copy without memory, so that the model stays as it is."""
    copy = without_memory(model)
    inject(copy, config)
    return {name: p.shape for name, p in trainable_parameters(copy).items()}


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of a model that has its modules and shapes and none of its numbers."""

    def empty(weight: torch.Tensor) -> torch.Tensor:
        meta = weight.detach().to("meta")
        return nn.Parameter(meta, weight.requires_grad) if isinstance(weight, nn.Parameter) else meta

    return deepcopy(model, {id(weight): empty(weight) for weight in (*model.parameters(), *model.buffers())})


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


def _peft_config(header: dict[str, Any], model: nn.Module) -> tuple[PeftFormat, MethodConfig]:
    peft_format = next((entry for entry in PEFT_FORMATS if entry.reads(header)), None)
    if peft_format is None:
        raise CheckpointError(f"peft_type is {header.get('peft_type')!r}, which the course does not read")
    try:
        return peft_format, peft_format.settings(header, model)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{_PEFT_HEADER} lacks a setting or has one of a wrong type: {error}") from error
