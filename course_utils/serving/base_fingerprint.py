"""A seal that tells one base model from another: the SHA-256 of its weights, kept beside each adapter's checkpoint.

A checkpoint fits every base of the same shape. On another base of that shape it loads without an error and computes
nonsense. Names and shapes cannot show this; the numbers can.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from course_utils.checkpoints import CheckpointError
from course_utils.methods.base import AdaptedLayer
from course_utils.methods.errors import MethodError
from course_utils.methods.targets import find_head

#: The file beside a checkpoint that says which base it was trained on. peft and the servers leave it alone.
SEAL = "base.json"


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and numbers of the base's weights: head and adapters are left out.

    The same with a method in the model and without it. It reads every weight, some seconds for each gigabyte.

    Raises:
        MethodError: the method trains the base's own weights (BitFit, full fine-tuning), so no base is left.
    """
    wrappers = [name + "." for name, module in model.named_modules() if isinstance(module, AdaptedLayer)]
    config = getattr(model, "tuning", None)
    heads = tuple(f"{name}." for name in find_head(model, None if config is None else config.head))
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        own = _name_in_the_base(name, wrappers)
        if own is None or own.startswith(heads):
            continue
        if config is not None and parameter.requires_grad:
            raise MethodError(f"{config.name} trains {own} of the base itself; take the fingerprint before you train")
        weights[own] = parameter.detach()
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name_in_the_base(name: str, wrappers: Sequence[str]) -> str | None:
    """The name of a parameter before methods came; None for one that a method has brought."""
    for wrapper in reversed(wrappers):  # the innermost first
        if name.startswith(wrapper):
            inside = name.removeprefix(wrapper)
            if not inside.startswith("base."):
                return None
            name = wrapper + inside.removeprefix("base.")
    return name


def seal(model: nn.Module, folder: str | Path) -> Path:
    """Write beside a checkpoint which base it belongs to; returns the file.

    Args:
        model: the base, with the trained method in it or without.
        folder: of the checkpoint, as written by `save`.
    """
    path = Path(folder) / SEAL
    if not path.parent.is_dir():
        raise CheckpointError(f"there is no folder {path.parent}; save the checkpoint first")
    path.write_text(json.dumps({"sha256": fingerprint(model)}) + "\n", "utf-8")
    return path


def check_seal(model: nn.Module, *folders: str | Path, required: bool = True) -> None:
    """Raise `CheckpointError` if a checkpoint was sealed with another base than `model`, whose weights are read once.

    Args:
        model: the base that is about to serve.
        folders: of the checkpoints.
        required: whether a checkpoint without a seal is refused.
    """
    found = None
    for folder in folders:
        path = Path(folder) / SEAL
        if not path.is_file():
            if required:
                raise CheckpointError(
                    f"{folder} has no {SEAL}; write it with seal(model, folder) where the adapter is trained"
                )
            continue
        try:
            stored = json.loads(path.read_text("utf-8"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error!r}; write it again with seal(model, folder)"
            ) from error
        found = found or fingerprint(model)
        if found != stored:
            raise CheckpointError(
                f"the adapter in {folder} was trained on another base: its seal begins with {str(stored)[:8]}, this "
                f"base's with {found[:8]}. Load the base that it was trained on, in the same number format"
            )
