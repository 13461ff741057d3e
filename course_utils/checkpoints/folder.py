"""Write a checkpoint's folder and read it, all of it or nothing."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from course_utils.checkpoints.class_names import read_labels, write_labels
from course_utils.checkpoints.errors import CheckpointError
from course_utils.checkpoints.formats import Format, taken_for_experts, task_of, with_peft_s_head
from course_utils.checkpoints.table import EVERY_METHOD, PEFT_FORMATS
from course_utils.checkpoints.tied import refuse_what_peft_unties, tied_names, without_twins
from course_utils.methods import MethodConfig, MethodError, inject, trainable_parameters
from course_utils.methods.base import AdaptedLayer
from course_utils.methods.heads import head_by_build
from course_utils.methods.targets import find_head

_PEFT_NAMES = _PEFT_HEADER, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OWN_NAMES = _OWN_HEADER, _OWN_WEIGHTS = "tuning_config.json", "tuning_model.safetensors"
_OWN_FORMAT = 1


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write what was trained, head included, and the method's settings.

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
    row = next((row for row in PEFT_FORMATS if row.method is type(config)), None)
    if row is not None and row.needs_task and task_of(model) is None:
        warnings.warn(
            f"peft has no task for {type(model).__name__}, and without one it ignores virtual tokens. So the "
            "checkpoint is in the course's own format, which peft does not read",
            stacklevel=2,
        )
        row = None
    if row is not None and (taken := taken_for_experts(row, model)):
        warnings.warn(
            f"peft takes {taken} for experts of the mixture, as older versions of transformers called them, and would "
            "put the checkpoint there. So it is in the course's own format, which peft does not read",
            stacklevel=2,
        )
        row = None
    if row is None:
        settings, head = asdict(config), find_head(model, config.head)
        if config.head is None and head != head_by_build(model):  # the next model may not show what was new in this one
            settings["head"] = head
        header_name, header = _OWN_HEADER, {"format": _OWN_FORMAT, "method": config.name, "settings": settings}
        files = {_OWN_WEIGHTS: _copies(learnt(model))}
    else:
        header_name, header, files = _PEFT_HEADER, row.header(model, config), _peft_files(row, model)
    path = _write(Path(folder), header_name, header, files)
    write_labels(model, path)
    return path


def _peft_files(row: Format, model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """File name → tensors."""
    refuse_what_peft_unties(model, "ensure_weight_tying" in row.by_code)
    config: Any = model.tuning
    head = with_peft_s_head(model, find_head(model, config.head))
    twins = {name: model.get_parameter(name) for others in tied_names(model).values() for name in others}
    files = {_PEFT_WEIGHTS: row.to_peft(_copies(learnt(model) | head | twins), model)}
    extra = row.extra_tensors(model)
    return files | ({row.extra_file: extra} if row.extra_file is not None and extra else {})


def learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters, and what the trained modules have counted beside them: the means of a BatchNorm."""
    config: Any = model.tuning
    trained = trainable_parameters(model)
    own = {id(parameter) for parameter in trained.values()}
    head = {part for name in find_head(model, config.head) for part in _submodule(model, name).modules()}
    counted = {
        f"{name}.{key}": buffer
        for name, module in model.named_modules()
        if module in head or any(id(p) in own for p in module.parameters(recurse=False))
        if not isinstance(module, AdaptedLayer)
        for key, buffer in module.named_buffers(recurse=False)
        if key not in module._non_persistent_buffers_set
    }
    return {**trained, **counted}


def _submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of that name; one without parts where a method has wrapped what it stands in."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return nn.Module()


def _copies(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous clones: safetensors refuses tensors that share memory."""
    return {name: p.detach().cpu().clone().contiguous() for name, p in parameters.items()}


def _write(path: Path, header_name: str, header: dict[str, Any], files: dict[str, dict[str, torch.Tensor]]) -> Path:
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
        extra_files = {row.extra_file for row in PEFT_FORMATS if row.extra_file is not None}
        for name in {*_PEFT_NAMES, *_OWN_NAMES, *extra_files} - {*files, header_name}:  # of an older checkpoint
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
        folder: written by `save`, or by peft's `save_pretrained` for a method of `table`.

    Returns:
        The same model, changed in place.

    Raises:
        CheckpointError: no checkpoint is there; it is of a variant that the course does not implement; a key is
            missing or unexpected; a shape does not fit. The model is then unchanged.
    """
    path = Path(folder)
    row: Format | None = None
    try:
        if (path / _PEFT_HEADER).is_file():
            row, config = _peft_config(_read_json(path / _PEFT_HEADER), model)
            stored = _read_tensors(path / _PEFT_WEIGHTS)
            if row.extra_file is not None:
                if (path / row.extra_file).is_file():
                    stored |= _read_tensors(path / row.extra_file)
                else:
                    config = row.without_extra(config)
            tensors = row.from_peft(stored, model, config)
        elif (path / _OWN_HEADER).is_file():
            config = _own_config(_read_json(path / _OWN_HEADER))
            tensors = _read_tensors(path / _OWN_WEIGHTS)
        else:
            raise CheckpointError(f"{path} holds neither {_PEFT_HEADER} nor {_OWN_HEADER}, so it is no checkpoint")
        # A header of ours names no head where it was that of the build, whatever this model's own checkpoint lacked.
        build = head_by_build(model) if config.head is None else None
        named = config if build is None else replace(config, head=build)
        # Tried on a copy without memory, so that the model stays as it is if anything does not fit.
        rehearsal = inject(without_memory(model), named)
        if row is not None:
            tensors = without_twins(rehearsal, tensors)
        _check_fits({name: tensor.shape for name, tensor in learnt(rehearsal).items()}, tensors)
        inject(model, named)
    except MethodError as error:
        raise CheckpointError(f"the checkpoint in {path} cannot be loaded into this model: {error}") from error
    with torch.no_grad():
        for name, tensor in learnt(model).items():
            tensor.copy_(tensors[name])
        if row is not None:
            row.load_frozen(model, stored)
    if build is not None:
        model.tuning, model.new_modules = config, build  # type: ignore[assignment]
    read_labels(model, path)
    return model


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of a model that has its modules and shapes and none of its numbers."""

    def empty(weight: torch.Tensor) -> torch.Tensor:
        meta = weight.detach().to("meta")
        if isinstance(weight, nn.Parameter):
            meta = nn.Parameter(meta, weight.requires_grad)
            vars(meta).update(vars(weight))  # whether the pretrained checkpoint has brought it
        return meta

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
    method = EVERY_METHOD.get(str(header.get("method")))
    settings = header.get("settings")
    if header.get("format") != _OWN_FORMAT:
        raise CheckpointError(
            f"{_OWN_HEADER} has the format {header.get('format')!r}; this version reads {_OWN_FORMAT}"
        )
    if not isinstance(settings, dict):
        raise CheckpointError(f"{_OWN_HEADER} should hold the method's settings by name, got {settings!r}")
    if method is None:
        raise CheckpointError(f"unknown method {header.get('method')!r}; expected one of {', '.join(EVERY_METHOD)}")
    unknown = set(settings) - {f.name for f in fields(method)}
    if unknown:
        raise CheckpointError(f"unknown settings for {method.name}: {', '.join(sorted(unknown))}")
    return method(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def _peft_config(header: dict[str, Any], model: nn.Module) -> tuple[Format, MethodConfig]:
    row = next((row for row in PEFT_FORMATS if row.reads(header)), None)
    if row is None:
        raise CheckpointError(f"peft_type is {header.get('peft_type')!r}, which the course does not read")
    try:
        return row, row.config(header, model)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{_PEFT_HEADER} lacks a setting or has one of a wrong type: {error}") from error
