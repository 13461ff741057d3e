"""Methods that add nothing and only choose which of the model's own parameters are trained.

* full fine-tuning: all of them;
* head only, also called feature extraction or linear probe: only the new head;
* last layers: the head and the top blocks of the body;
* BitFit: the head and every bias, ``b ← b + Δb``, or two of them (Ben Zaken et al. 2022, arXiv:2106.10199).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from course_utils.methods.architectures import ARCHITECTURES, architecture_of, model_type
from course_utils.methods.base import MethodConfig
from course_utils.methods.errors import MethodError, TargetError, check_whole_number, refuse_packed_weights
from course_utils.methods.targets import find_head


@dataclass(frozen=True)
class FullConfig(MethodConfig):
    """Full fine-tuning: every parameter is trained."""

    name: ClassVar[str] = "full fine-tuning"

    def find_head(self, model: nn.Module) -> tuple[str, ...]:
        """The head, or none where it cannot be told from the body: all is trained anyway."""
        try:
            return super().find_head(model)
        except TargetError:
            if self.head is not None:
                raise
            return ()

    def apply(self, model: nn.Module) -> None:
        """Unfreeze everything."""
        refuse_packed_weights(model, self.name)
        model.requires_grad_(True)


@dataclass(frozen=True)
class HeadOnlyConfig(MethodConfig):
    """Feature extraction: the body stays as it was, only the new head is trained."""

    name: ClassVar[str] = "head only"

    def apply(self, model: nn.Module) -> None:
        """Leave the body frozen; `inject` unfreezes the head."""
        if not find_head(model, self.head):
            raise MethodError(
                f"{type(model).__name__} has no new head to train. Use a classifier, or name modules: "
                "HeadOnlyConfig(head=('lm_head',))"
            )


@dataclass(frozen=True)
class LastLayersConfig(MethodConfig):
    """Train the top blocks of the body and the head.

    Args:
        layers: how many blocks, counted from the top; at least 1. What comes after them (a pooler, a last
            normalisation) is trained too.
    """

    name: ClassVar[str] = "last layers"
    layers: int = 1

    def __post_init__(self) -> None:
        check_whole_number(self.layers, "layers")

    def apply(self, model: nn.Module) -> None:
        """Unfreeze the last blocks and what follows them."""
        path, blocks = _blocks(model)
        if self.layers > len(blocks):
            raise MethodError(f"layers is {self.layers}, but the model has only {len(blocks)} blocks")
        refuse_packed_weights(model, self.name)
        for block in blocks[-self.layers :]:
            block.requires_grad_(True)
        names = [name for name, _ in model.named_parameters()]
        last = max(index for index, name in enumerate(names) if name.startswith(path + "."))
        for name in names[last + 1 :]:
            model.get_parameter(name).requires_grad_(True)


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks, and its dotted name: as many as the model's configuration says it has."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)  # a list within a block
        if isinstance(module, nn.ModuleList) and not inside:
            lists[name] = module
    if not lists:
        raise MethodError("the model has no list of blocks, so there are no last layers to choose")
    config = getattr(model, "config", None)
    layers = getattr(config, "num_hidden_layers", None)
    found = {name: blocks for name, blocks in lists.items() if layers is None or len(blocks) == layers}
    if len(found) != 1 or getattr(config, "is_encoder_decoder", False):
        raise MethodError(
            f"{type(model).__name__} has no one list of {'' if layers is None else f'{layers} '}blocks, so it cannot "
            f"be said which layers are the last; its lists are: {', '.join(lists)}. Encoder-decoders, models "
            "of two towers and models that share their blocks have several last layers, or none. Use LoRA"
        )
    return next(iter(found.items()))


@dataclass(frozen=True)
class BitFitConfig(MethodConfig):
    """BitFit: train biases and leave every weight matrix as it was.

    ``biases="all"`` trains every bias, those of the layer normalisations included: 102,912 numbers on BERT-base, and
    102,914 with the head's own bias. ``biases="two"`` trains b_q and b_m2 of each block, which moved the most in the
    paper: 12 · (768 + 3072) = 46,080. (The authors' code trains the pooler's bias beside them.)

    Of all biases the key's does nothing in BERT, RoBERTa and GPT-2. It adds ``q · b_k`` to the scores of a query,
    the same for each key, and the softmax does not see that. Its gradient is zero up to rounding.

    Args:
        biases: "all" or "two".
    """

    name: ClassVar[str] = "BitFit"
    biases: str = "all"

    def __post_init__(self) -> None:
        if self.biases not in ("all", "two"):
            raise MethodError(
                f"biases must be 'all' or 'two' (query and first feed-forward layer), got {self.biases!r}"
            )

    def apply(self, model: nn.Module) -> None:
        """Unfreeze the parameters that are called bias, or those of the two."""
        head = tuple(f"{name}." for name in find_head(model, self.head))  # is trained as it is
        biases = {
            name: p
            for name, p in model.named_parameters()
            if name.endswith("bias") and p.ndim == 1 and not name.startswith(head)  # DeBERTa has a q_bias and a v_bias
        }
        family = model_type(model) or type(model).__name__
        if not biases:
            raise MethodError(
                f"BitFit trains biases, and the body of this model ({family}) has none: the Llama family leaves them "
                "out of its linear layers and normalisations. Use LoRA, or a model with biases (BERT, RoBERTa, GPT-2)."
            )
        if self.biases == "two":
            architecture = architecture_of(model)
            if architecture is not None and architecture.fused and architecture.biased:
                raise MethodError(
                    f"this model ({family}) keeps the biases of query, key and value in one parameter, "
                    f"{architecture.lora_targets[0]}.bias, and a part of a parameter cannot be frozen. "
                    "Use biases='all'."
                )
            if architecture is None or architecture.two_biases is None:
                known = ", ".join(name for name, row in ARCHITECTURES.items() if row.two_biases is not None)
                raise MethodError(
                    f"biases='two' is not defined for this model ({family}), only for {known}. Use biases='all'."
                )
            biases = {name: p for name, p in biases.items() if name.endswith(architecture.two_biases)}
        for bias in biases.values():
            bias.requires_grad_(True)
