"""What a training step on a processor need not compute: `with quick(model): fit(model, ...)`.

A step of a method with few parameters is a forward pass and, for the activations alone, a backward pass. With n tokens,
and P weights in the matrices of the frozen layers, that is about::

    2 n P + 2 n P      operations      MiniLM: P = 10.6 million, 700 tokens a batch of tweets: 30 · 10⁹ a step

What goes beyond them, and some of them, too, can be left out. `python -m course_utils race` measures by how much each
choice shortens a step, and chapter 4 shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from course_utils.methods.virtual_tokens import AdaptedBody
from course_utils.training import precision
from course_utils.training.config import TrainingError
from course_utils.training.distributed import without_dropout

#: Classifiers of transformers whose head reads the first token, and whose last layer is built as BERT's. Only they, and
#: no class that builds on them, go on with one token: whoever takes the mean of all tokens would get another answer.
FIRST_TOKEN = frozenset(
    f"{family}ForSequenceClassification"
    for family in ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DebertaV2", "Deberta", "RemBert")
)


@contextmanager
def quick(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, a step of this classifier takes every short cut that is one here; after it, the model is as it was.

    * `without_drawing`: no dropout modules. A run of a few epochs with few parameters does without them.
    * `first_token_only`: the last layer goes on with the one token that the head reads. For the classes of
      `FIRST_TOKEN`; other models, and methods that put tokens of their own before the text, compute all tokens as
      before.
    * `plain_attention`: attention in separate products, where bfloat16 is the faster precision of this processor.

    A run with these settings gives another history than one without, but the same one each time.

    >>> with quick(model):  # doctest: +SKIP
    ...     fit(model, train, validation, TrainingConfig(precision="auto"))

    Args:
        model: a classifier, with a method in it or without.
    """
    with ExitStack() as stack:
        stack.enter_context(without_drawing(model))
        if _behind_the_last_attention(model) is not None:
            stack.enter_context(first_token_only(model))
        if _on_processor(model) and precision.fastest_dtype("cpu") == torch.bfloat16:
            stack.enter_context(plain_attention(model))
        yield model


@contextmanager
def without_drawing(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, no `nn.Dropout` of the model drops anything, that of a method neither.

    A processor draws the numbers of a mask one after another. That takes as long as half a matrix product. Dropout that
    a model calls as a function, as Llama's attention does, stays.
    """
    shares = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    try:
        yield without_dropout(model)
    finally:
        for module, share in shares.items():
            module.p = share


@contextmanager
def first_token_only(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, what stands behind the last attention computes one token of each text, the first, which the head reads.

    The last layer's attention looks at all tokens, (32, 21, 384), and gives back one, (32, 1, 384): the output matrix
    and the two wide ones behind it have a 21st of their work, forward and backward. Loss and gradients are what they
    were, up to rounding. Where `output_hidden_states` is asked for, all tokens are computed.

    Raises:
        TrainingError: the model is none of `FIRST_TOKEN`, or a method puts tokens of its own before the text.
    """
    place = _behind_the_last_attention(model)
    if place is None:
        raise TrainingError(
            f"{type(model).__name__} is not known to have a head that reads the first token alone; known are "
            f"{', '.join(sorted(FIRST_TOKEN))}. Use `quick`, which leaves this out where it must"
        )
    whole = False

    def look(_: nn.Module, __: tuple[Any, ...], words: dict[str, Any]) -> None:
        nonlocal whole
        asked = words.get("output_hidden_states")
        whole = bool(getattr(model.config, "output_hidden_states", False) if asked is None else asked)

    def cut(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return inputs if whole else tuple(tokens[:, :1] for tokens in inputs)

    hooks = [model.register_forward_pre_hook(look, with_kwargs=True), place.register_forward_pre_hook(cut)]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, attention is two products with a softmax between them, and not PyTorch's fused kernel.

    The fused kernel saves memory, and time where texts are long. In bfloat16 its way back is slow on a processor.
    """
    switch: Any = getattr(model, "set_attn_implementation", None)
    usual = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if switch is None or usual is None:
        yield model
        return
    try:
        switch("eager")
        yield model
    finally:
        switch(usual)


def _behind_the_last_attention(model: nn.Module) -> nn.Module | None:
    """The module that gets the last attention's result and the layer's input; None where `first_token_only` is wrong.

    A method that puts tokens before the text wraps the model's body; peft wraps the model.
    """
    unwrap = getattr(model, "get_base_model", None)
    inner: Any = unwrap() if unwrap is not None else model
    known = type(inner).__module__.startswith("transformers.models.") and type(inner).__name__ in FIRST_TOKEN
    body = getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    if not known or isinstance(body, AdaptedBody):
        return None
    place: nn.Module = body.encoder.layer[-1].attention.output  # type: ignore[union-attr]
    return place


def _on_processor(model: nn.Module) -> bool:
    return not torch.accelerator.is_available() and all(p.device.type == "cpu" for p in model.parameters())
