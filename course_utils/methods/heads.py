"""Which parts of a model are its head: what no pretraining made, and what is therefore trained with every method.

Two things are asked, and what either names belongs to the head:

* the build: in a class with a task, such as `BertForSequenceClassification`, the modules outside the body are new
  (DistilBERT's `pre_classifier` and `classifier`, DeBERTa's `pooler`, BART's `classification_head`, `qa_outputs`). A
  language model's output layer is as old as its body and no head;
* the loading: what the checkpoint lacked has been drawn at random, wherever it stands. BERT's pooler is a part of the
  body, and new if the checkpoint comes from a masked language model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import transformers
from torch import nn

from course_utils.methods.architectures import HEAD_NAMES
from course_utils.methods.errors import TargetError

# Classes whose modules outside the body pretraining has made.
_PRETRAINED = ("PreTraining", "NextSentencePrediction", "ConditionalGeneration", "CausalLM", "MaskedLM", "LMHeadModel")


def default_head(model: nn.Module) -> tuple[str, ...]:
    """The dotted names of a model's new modules, in the model's order: `("pre_classifier", "classifier")`.

    `inject` writes them into the model as `new_modules`, because a method hides what can be seen here.

    Raises:
        TargetError: neither the build nor the loading says what is new.
    """
    recorded: tuple[str, ...] | None = getattr(model, "new_modules", None)
    if recorded is not None:
        return recorded
    outside = head_by_build(model)
    if not isinstance(model, transformers.PreTrainedModel):
        return outside or ()
    if outside is None and not _is_loaded(model):
        children = ", ".join(name for name, _ in model.named_children())
        raise TargetError(
            f"{type(model).__name__} has a task, and it cannot be seen which of its modules ({children}) are the new "
            "head. A head that nobody trains stays random: name its modules, head=('classifier',), or head=() for none"
        )
    found = list(outside or ())
    for name in _lacking_in_the_checkpoint(model):
        if not any(f"{name}.".startswith(f"{head}.") for head in found):
            found.append(_without_pretrained_parts(model, name))
    return tuple(found)


def head_by_build(model: nn.Module) -> tuple[str, ...] | None:
    """The modules beside the body; () for a body alone and for a language model, None if no body can be told."""
    if not isinstance(model, transformers.PreTrainedModel):
        return tuple(name for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module))
    name = type(model).__name__
    if not re.search("For[A-Z]", name) or name.endswith(_PRETRAINED) or model.get_output_embeddings() is not None:
        return ()
    children = dict(model.named_children())
    body = children.get(model.base_model_prefix)
    bodies = (
        [body] if body is not None else [c for c in children.values() if isinstance(c, transformers.PreTrainedModel)]
    )
    words = table_of_words(model)
    outside = tuple(
        name
        for name, child in children.items()
        if child not in bodies
        and any(True for _ in child.parameters())
        and not any(module is words for module in child.modules())
    )
    return outside if bodies and outside else None


def table_of_words(model: nn.Module) -> nn.Module | None:
    """What turns tokens into vectors, or None: the model is none of transformers, reads none, or does not tell."""
    if not isinstance(model, transformers.PreTrainedModel):
        return None
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


# `from_pretrained` marks the parameters that it has found in the checkpoint, and every module that it has looked at. A
# module that came later, such as a quantised layer, has no mark and says nothing.
_MARK = "_is_hf_initialized"


def _is_loaded(model: nn.Module) -> bool:
    return any(hasattr(parameter, _MARK) for parameter in model.parameters())


def _lacking_in_the_checkpoint(model: transformers.PreTrainedModel) -> Iterator[str]:
    """The dotted names of the modules with parameters of their own that the checkpoint has not brought."""
    if not _is_loaded(model):
        return
    computed = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]  # such as sinusoids
    for name, module in model.named_modules():
        own = [
            f"{name}.{key}".lstrip(".") for key, p in module.named_parameters(recurse=False) if not hasattr(p, _MARK)
        ]
        if "Sinusoidal" in type(module).__name__:  # a formula gives its table, and no checkpoint has to
            continue
        if hasattr(module, _MARK) and any(not any(pattern.search(key) for pattern in computed) for key in own):
            yield name


def _without_pretrained_parts(model: nn.Module, name: str) -> str:
    """The name itself, unless the module holds pretrained parameters beside the new ones: then `TargetError`."""
    if any(hasattr(parameter, _MARK) for parameter in model.get_submodule(name).parameters()):
        place = f"in {name}" if name else "in the model itself"
        raise TargetError(
            f"the checkpoint lacks a parameter {place}, which is random now and stands beside pretrained ones. Say "
            f"what is to be trained: head=({name or 'classifier'!r},) for all of a module, or head=() for none"
        )
    return name
