"""One token through a model that has just got a method: does what is to be trained have a part in the output?

A model may pass by what a method puts in. OPT's language model calls a part of its body and never the body, so virtual
tokens before it are ignored; `nn.MultiheadAttention` reads the weight of its last layer and never calls the layer. No
step would then change anything, without an error.

Asked is whether a path leads from the output back to the parameter, not how large its gradient is: beside LoRA's B,
which is zero at first, that of A is zero too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn

from course_utils.methods.errors import MethodError

# Fields of an output that lead around the result: a parameter that reaches only them has no part in it.
_ASIDE = ("hidden_states", "attentions", "past_key_values", "cache", "mems", "encoder_", "router_", "loss")


class Bare:
    """A model as it was before a method came: its modules, its parameters and which of them were trained."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(module, dict(module._modules)) for module in model.modules()]
        self.trained = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def restore_modules(self) -> None:
        """Put the modules where they were, whatever has been wrapped or replaced since."""
        for module, children in self.modules:
            module._modules.clear()
            module._modules.update(children)

    def restore(self) -> None:
        """Put the modules where they were, and train what was trained."""
        self.restore_modules()
        for parameter, trained in self.trained.items():
            parameter.requires_grad_(trained)


def refuse_without_effect(
    model: nn.Module, method: str, bare: Bare, head: set[nn.Parameter], *, named: bool
) -> set[nn.Parameter]:
    """Raise `MethodError` if something that is new and trained, in the method or in the head, reaches no output.

    Models that read no token ids, have no memory (meta) or do not take a single token are let through unseen.

    Args:
        model: with the method, the trained parameters unfrozen. Modes, buffers and gradients stay as they are.
        method: how it is called.
        bare: the model before. Of the pretrained parameters that are trained, one must reach the output; of the
            others, all.
        head: the parameters of the head.
        named: somebody has named the head. Otherwise a part of it may reach nothing: BERT's new pooler under a head
            of one's own that reads another token.

    Returns:
        That part; empty where it is all of the head.
    """
    inputs = one_token(model)
    if inputs is None:
        return set()
    called: set[nn.Module] = set()
    try:
        output = _run(model, inputs, called)
    except MethodError:
        raise
    except Exception as error:
        if not _runs_without_the_method(model, inputs, bare):
            return set()
        raise MethodError(
            f"{type(model).__name__} computes a token without {method} and fails with it: {type(error).__name__}: "
            f"{error}. Choose other layers (targets, exclude), or another method"
        ) from error
    reached = _leaves(_results(output))
    read = head & _leaves(_tensors(output))
    unread = set() if named or not read else head - read
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p not in unread}
    own = {name for name, p in trained.items() if p in bare.trained and p not in head}
    seen = reached if named else reached | read
    lost = _unreached({name: p for name, p in trained.items() if name not in own}, seen)
    if own and not any(trained[name] in reached for name in own):
        lost += sorted(own)
    lost = [name for name in lost if not name.startswith(_towers(model, called, bare))]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise MethodError(
            f"{method} would train {', '.join(lost[:3])}{more}, which {type(model).__name__} passes by: it has no part "
            "in the output. Leave it out of the targets (exclude), or of the head, or use another method"
        )
    return unread


def one_token(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The smallest input of a model of text, on its device; None for a model that this trial is not for."""
    if not isinstance(model, transformers.PreTrainedModel) or model.main_input_name != "input_ids":
        return None
    if torch.is_inference_mode_enabled() or any(t.is_meta or hasattr(t, "ds_id") for t in model.parameters()):
        return None  # nothing to compute with (ds_id: DeepSpeed has spread the weights over other processes)
    config: Any = model.config.get_text_config()
    end = getattr(config, "eos_token_id", None)
    end = end[0] if isinstance(end, list) and end else end
    token = next(i for i in range(2, 5) if i not in (end, getattr(config, "pad_token_id", None)))
    several = getattr(config, "is_encoder_decoder", False) and isinstance(end, int)  # BART's head reads the end's place
    ids = torch.tensor([[token, end] if several else [token]], device=model.device)
    inputs = {"input_ids": ids[None] if type(model).__name__.endswith("MultipleChoice") else ids}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = ids
    return inputs


def _run(model: nn.Module, inputs: Mapping[str, torch.Tensor], called: set[nn.Module] | None = None) -> Any:
    """The output, with its graph, in evaluation mode: no dropout, no skipped layers, no new running means."""
    modes = [(module, module.training) for module in model.modules()]
    seen = set[nn.Module]() if called is None else called
    hooks = [module.register_forward_pre_hook(lambda one, _: seen.add(one)) for module, _ in modes]
    try:
        with torch.enable_grad():
            return model.eval()(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def _towers(model: nn.Module, called: set[nn.Module], bare: Bare) -> tuple[str, ...]:
    """The parts for images and sounds of a model that reads them beside text: a token does not pass through them."""
    inputs = inspect.signature(model.forward).parameters
    if not any(name.startswith(("pixel_", "input_features", "input_values", "audio_")) for name in inputs):
        return ()
    parts = {module for module, children in bare.modules if children}  # a wrapper that nothing calls is none of these
    return tuple(
        f"{n}." for n, module in model.named_modules() if module in parts and not called & set(module.modules())
    )


def _runs_without_the_method(model: nn.Module, inputs: Mapping[str, torch.Tensor], bare: Bare) -> bool:
    tuned = Bare(model)
    bare.restore_modules()
    try:
        _run(model, inputs)
    except Exception:
        return False
    finally:
        tuned.restore_modules()
    return True


def _results(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of an output: its logits, or all but what leads around them."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        logits = [name for name in output if "logits" in name]  # a model of two heads has two
        for name in logits or [name for name in output if not any(part in name for part in _ASIDE)]:
            yield from _results(output[name])
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _results(part)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """All tensors of an output."""
    if isinstance(output, torch.Tensor):
        yield output
    for part in output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ():
        yield from _tensors(part)


def _leaves(outputs: Iterable[torch.Tensor]) -> set[torch.Tensor]:
    """The parameters from which a path leads to one of the outputs."""
    found: set[torch.Tensor] = set()
    nodes: list[Any] = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.add(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


def _unreached(parameters: Mapping[str, nn.Parameter], reached: Collection[torch.Tensor]) -> list[str]:
    """The names of those that no path leads from.

    Where one of several equal places is reached (expert 3 of layer 2, of layer 5), all are: a mixture of experts sends
    one token to few of them.
    """
    alive = {_place(name) for name, parameter in parameters.items() if parameter in reached}
    return [name for name in parameters if _place(name) not in alive]


def _place(name: str) -> str:
    return re.sub(r"\d+", "#", name)
