"""What stands beside a model with a method against two mistakes that nobody would notice.

* `model.save_pretrained` would write the wrapped layers under names that `from_pretrained` does not know, and draws
  those layers at random when it reads the folder;
* gradient checkpointing of the older, re-entrant kind drops all gradients of a block whose input needs none, which is
  so behind frozen embeddings.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn

from course_utils.methods.errors import MethodError


def put_guards(model: nn.Module, *, saving: bool) -> None:
    """Put them there, in the place of older ones.

    Args:
        model: with the method in it, or with quantised weights.
        saving: whether `save_pretrained` would write names that `from_pretrained` does not know.
    """
    remove_guards(model)
    if saving and hasattr(model, "save_pretrained"):
        model.save_pretrained = _refuse_saving  # type: ignore[assignment]
    if hasattr(model, "enable_input_require_grads"):
        model.register_forward_pre_hook(_keep_gradients)


def remove_guards(model: nn.Module) -> None:
    """Take them away."""
    vars(model).pop("save_pretrained", None)
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is _keep_gradients:
            del model._forward_pre_hooks[key]


def _refuse_saving(*_: Any, **__: Any) -> NoReturn:
    raise MethodError(
        "save_pretrained would write the layers of a method, or weights in 4 bits, under names that from_pretrained "
        "does not know: it would draw those layers at random. Write the method alone with save(model, folder), or call "
        "merge(model), or dequantize(model), before save_pretrained. For Trainer set save_strategy='no'"
    )


def _keep_gradients(model: Any, _: Any) -> None:
    """Let what the embeddings give need a gradient where the re-entrant kind would drop all others, as peft does."""
    if not (model.training and torch.is_grad_enabled() and _checkpoints_re_entrantly(model)):
        return
    if getattr(model, "_require_grads_hooks", None) or any(p.requires_grad for p in _embeddings(model)):
        return
    model.enable_input_require_grads()
    if not model._require_grads_hooks:
        raise MethodError(
            f"gradient checkpointing with use_reentrant=True drops the gradients of {type(model).__name__}, whose "
            'embeddings cannot be told. Call model.gradient_checkpointing_enable({"use_reentrant": False})'
        )


def _checkpoints_re_entrantly(model: nn.Module) -> bool:
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            settings = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
            return bool(settings.get("use_reentrant", True))
    return False


def _embeddings(model: Any) -> list[nn.Parameter]:
    try:
        return list(model.get_input_embeddings().parameters())
    except (AttributeError, NotImplementedError):
        return []
