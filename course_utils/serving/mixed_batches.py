"""Many LoRA adapters on one base, each text of a batch with its own.

A batch holds texts of several customers, and text n wants adapter a(n). All of them need the same frozen product, so
it is computed once; only the thin path differs (Punica, Chen et al. 2023, arXiv:2310.18547; S-LoRA, Sheng et al. 2023,
arXiv:2311.03285)::

    h_n = W x_n + b + (s B)_a(n) (A_a(n) x_n)        for every text n of the batch

    x: (texts, tokens, in)    A: (adapters, rank, in)    s B: (adapters, out, rank)    a: (texts,)

Adapter 0 is the base: its A and B are zero. A smaller rank is filled up with zeros, which change nothing, and so is a
layer that an adapter leaves alone. Those papers read A and B where they lie; here they are gathered, a copy for each
text, which is simple and costs memory with many texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course_utils.checkpoints import load
from course_utils.checkpoints.folder import without_memory
from course_utils.errors import CourseError
from course_utils.methods.errors import MethodError
from course_utils.methods.lora import LoRAConfig, LoRALinear, LoRAPlusConfig
from course_utils.methods.merging import eject
from course_utils.methods.targets import find_head, replace_module
from course_utils.serving.base_fingerprint import check_seal


class ServingError(CourseError, ValueError):
    """A request does not fit the adapters that are served."""


class MixedLoRA(nn.Module):
    """One base with the LoRA adapters of several checkpoints; each text of a batch names its own.

    Args:
        model: the bare base. It is changed in place, frozen, and put into evaluation mode.
        folders: name → checkpoint of LoRA. Ranks, alphas and targets may differ. A sealed one must be of this base.

    Raises:
        MethodError: there are no folders, a method is in the model, a checkpoint is not one of LoRA, or the head has
            weights outside linear layers. The model is then unchanged.
        CheckpointError: a checkpoint does not fit, or was sealed with another base. The model is unchanged, too.
    """

    def __init__(self, model: nn.Module, folders: Mapping[str, str | Path]) -> None:
        super().__init__()
        if not folders:
            raise MethodError("there is no adapter to serve; hand over a dictionary, name → folder of a checkpoint")
        heads = _head_layers(model)
        check_seal(model, *folders.values(), required=False)
        for name, folder in folders.items():
            _rehearse(model, name, folder)
        self.names = tuple(folders)
        self._batch = _Batch()
        base_head = {key: _copies(layer) for key, layer in heads.items()}
        paths: list[dict[str, LoRALinear]] = []
        head_weights = [base_head]
        for folder in folders.values():
            load(model, folder)
            paths.append({key: part for key, part in model.named_modules() if isinstance(part, LoRALinear)})
            head_weights.append({key: _copies(layer) for key, layer in heads.items()})
            eject(model)
        for key in dict.fromkeys(key for path in paths for key in path):
            layers = [path.get(key) for path in paths]
            replace_module(model, key, _MixedLinear(model.get_submodule(key), layers, self._batch))
        for key in heads:
            replace_module(model, key, _MixedHead([weights[key] for weights in head_weights], self._batch))
        self.model = model.requires_grad_(False).eval()

    def forward(self, adapters: Sequence[str | None], **inputs: Any) -> Any:
        """The model's output for a batch.

        Args:
            adapters: one name a text; None means the base with the head that it came with.
            inputs: what the model takes, such as `input_ids` and `attention_mask`, each (texts, tokens).

        Raises:
            ServingError: an unknown name, or not one name for each text.
        """
        with self.using(adapters, len(inputs["input_ids"])):
            return self.model(**inputs)

    @contextmanager
    def using(self, adapters: Sequence[str | None], texts: int | None = None) -> Iterator[None]:
        """Within it, `self.model` computes with these adapters; for `self.model.generate(...)`, say."""
        if isinstance(adapters, str) or (texts is not None and len(adapters) != texts):
            raise ServingError(f"each text names its adapter: expected a list of {texts} names, got {adapters!r}")
        places: dict[str | None, int] = {None: 0} | {name: place for place, name in enumerate(self.names, start=1)}
        if unknown := [name for name in adapters if name not in places]:
            raise ServingError(f"there is no adapter {unknown[0]!r}; there are {', '.join(self.names)}, and None")
        device = next(self.model.parameters()).device
        self._batch.which = torch.tensor([places[name] for name in adapters], device=device)
        try:
            yield
        finally:
            self._batch.which = None


class _Batch:
    """Which adapter each text of the present batch wants, (texts,); all layers look here."""

    which: torch.Tensor | None = None

    def of(self, stacked: torch.Tensor, texts: int) -> torch.Tensor:
        """(adapters, ...) → (texts, ...)."""
        if self.which is None or len(self.which) != texts:
            raise ServingError(
                "name the adapter of each text: call mixed(names, **batch), or `with mixed.using(names)`"
            )
        return stacked[self.which]


class _MixedLinear(nn.Module):
    """A frozen linear layer with a stack of low-rank paths beside it."""

    A: torch.Tensor
    B: torch.Tensor

    def __init__(self, base: nn.Module, layers: Sequence[LoRALinear | None], batch: _Batch) -> None:
        super().__init__()
        self.base, self.batch = base, batch
        present = [layer for layer in layers if layer is not None]
        rank = max(layer.lora_A.out_features for layer in present)
        some = present[0].lora_A.weight
        A = some.new_zeros(len(layers) + 1, rank, present[0].lora_A.in_features)
        B = some.new_zeros(len(layers) + 1, present[0].lora_B.out_features, rank)
        for place, layer in enumerate(layers, start=1):
            if layer is not None:
                own = layer.lora_A.out_features
                A[place, :own] = layer.lora_A.weight.detach()
                B[place, :, :own] = layer.lora_B.weight.detach() * layer.scaling
        self.register_buffer("A", A)
        self.register_buffer("B", B)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (texts, tokens, in) → (texts, tokens, out)
        h: torch.Tensor = self.base(x)
        A, B = self.batch.of(self.A, len(x)), self.batch.of(self.B, len(x))
        return (h + _each(_each(x.to(A.dtype), A), B)).to(h.dtype)


class _MixedHead(nn.Module):
    """A linear layer of the head; each adapter has trained its own."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weights: Sequence[tuple[torch.Tensor, torch.Tensor | None]], batch: _Batch) -> None:
        super().__init__()
        self.batch = batch
        biases = [bias for _, bias in weights if bias is not None]
        self.register_buffer("weight", torch.stack([weight for weight, _ in weights]))
        self.register_buffer("bias", torch.stack(biases) if biases else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (texts, [tokens,] in) → (texts, [tokens,] out)
        y = _each(x, self.batch.of(self.weight, len(x)))
        if self.bias is None:
            return y
        bias = self.batch.of(self.bias, len(x))
        return y + (bias if x.dim() == 2 else bias[:, None])


def _each(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each text, ([tokens,] in), times its own matrix of (texts, out, in)."""
    tokens = x[:, None] if x.dim() == 2 else x
    return (tokens @ weights.mT).view(*x.shape[:-1], -1)


def _copies(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    return layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()


def _head_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that make up the classification head, by name."""
    layers: dict[str, nn.Linear] = {}
    for head in find_head(model):
        for name, part in model.get_submodule(head).named_modules(prefix=head):
            if isinstance(part, nn.Linear):
                layers[name] = part
            elif next(part.parameters(recurse=False), None) is not None:
                raise MethodError(f"{name} of the head is no linear layer, so it cannot be mixed within a batch")
    return layers


def _rehearse(model: nn.Module, name: str, folder: str | Path) -> None:
    """Load into a copy without memory, so that an error leaves the model as it is."""
    rehearsal = load(without_memory(model), folder)
    config: Any = rehearsal.tuning
    if type(config) not in (LoRAConfig, LoRAPlusConfig):
        raise MethodError(
            f"the adapter {name!r} is {config.name}; only LoRA is a sum that can differ from text to text here. Merge "
            "it into a model of its own"
        )
    if config.head is not None and tuple(config.head) != find_head(model):
        raise MethodError(f"the adapter {name!r} has trained {config.head} as its head; expected {find_head(model)}")
