"""How much memory training takes: weights, gradients, optimiser state and activations, from a model's shape.

The rules, per trained weight (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1)::

    float32   weight 4, gradient 4, Adam's two moments 8                                  = 16 bytes
    mixed     weight 2, gradient 2, Adam's two moments 8, a copy of the weight in full 4  = 16 bytes

A frozen weight is only stored: 4 bytes, 2, or in NF4 with double quantisation 4 + 8/64 + 32/(64 · 256) bits (Dettmers
et al. 2023, arXiv:2305.14314) where it stands in a linear layer of the body, and 2 bytes elsewhere.

The activations that wait for the backward pass, per layer and token (Korthikanti et al. 2022, arXiv:2205.05198, section
4.1, where they come to 34 bytes times the width in 16 bits)::

    6 · width + 2 · kv_width + 2 · inner numbers       inputs of the matrices and of the normalisations, q, k, v
    + 2 · inner numbers                                with a gated feed-forward part, as Llama has it
    + 2 · width bytes                                  the masks of dropout, where the model has dropout

The attention matrix is not in it: fused attention, which PyTorch takes by default, never stores it. With checkpointing
(Chen et al. 2016, arXiv:1604.06174) a layer keeps `width` numbers a token, and one layer at a time is computed again.
The same rule serves every method: a lower bound it is not, because embeddings, output layer, temporary buffers and the
framework itself come on top, and for LoRA it is a little too much, because a frozen matrix need not keep its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """What the memory of a model follows from.

    Args:
        title: how people call it.
        layers: blocks of attention and feed-forward part.
        width: numbers per token between the blocks.
        inner: numbers per token inside the feed-forward part.
        total: all weights, without a classification head.
        kv_width: numbers per token in keys and in values; less than `width` where heads share them. 0 means `width`.
        gated: three matrices in the feed-forward part, as in Llama, not two.
        dropout: the model drops activations while it trains.
    """

    title: str
    layers: int
    width: int
    inner: int
    total: int
    kv_width: int = 0
    gated: bool = False
    dropout: bool = True

    @property
    def keys(self) -> int:
        """`kv_width`, or `width` where that is 0."""
        return self.kv_width or self.width

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(in, out) of the matrices of one layer: query, value, key, attention output, feed-forward."""
        up = [(self.width, self.inner)] * (2 if self.gated else 1)
        attention = [(self.width, self.width), (self.width, self.keys), (self.width, self.keys)]
        return [*attention, (self.width, self.width), *up, (self.inner, self.width)]

    @property
    def in_matrices(self) -> int:
        """The weights in all matrices of all layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.sides)


#: The models of the calculator; a test compares each count with the model itself, as transformers builds it.
SHAPES: dict[str, Shape] = {
    "minilm": Shape("MiniLM, 6 layers", 6, 384, 1536, 22_713_216),
    "bert-base": Shape("BERT-base", 12, 768, 3072, 109_482_240),
    "roberta-large": Shape("RoBERTa-large", 24, 1024, 4096, 355_359_744),
    "smollm2-135m": Shape("SmolLM2 135M", 30, 576, 1536, 134_515_008, kv_width=192, gated=True, dropout=False),
    "llama-2-7b": Shape("Llama 2 7B", 32, 4096, 11008, 6_738_415_616, gated=True, dropout=False),
    "llama-3.1-8b": Shape("Llama 3.1 8B", 32, 4096, 14336, 8_030_261_248, kv_width=1024, gated=True, dropout=False),
    "llama-2-70b": Shape("Llama 2 70B", 80, 8192, 28672, 68_976_648_192, kv_width=1024, gated=True, dropout=False),
}
MEMORY_METHODS: dict[str, str] = {
    "full": "full fine-tuning",
    "lora-qv": "LoRA on query and value",
    "lora-all": "LoRA on all linear layers",
    "ia3": "(IA)³",
}
PRECISIONS: dict[str, str] = {
    "float32": "32 bits (float32)",
    "mixed": "16 bits (mixed precision)",
    "nf4": "4 bits for the frozen weights (NF4, as in QLoRA)",
}
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


@dataclass(frozen=True)
class Memory:
    """Bytes while training, by what they hold; `trained` is a count of weights."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    trained: int

    @property
    def total(self) -> float:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


def trained_weights(shape: Shape, method: str, rank: int = 8) -> int:
    """How many weights a method trains, without a classification head."""
    if method == "full":
        return shape.total
    if method == "ia3":  # one factor for each key, value and inner number
        return shape.layers * (2 * shape.keys + shape.inner)
    if method not in MEMORY_METHODS:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(MEMORY_METHODS)}")
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, got {rank}")
    sides = shape.sides[:2] if method == "lora-qv" else shape.sides
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in sides)


def training_memory(
    shape: Shape,
    method: str = "lora-qv",
    precision: str = "mixed",
    batch: int = 32,
    length: int = 128,
    rank: int = 8,
    checkpointing: bool = False,
) -> Memory:
    """The memory of one training step by the rules of this module.

    Args:
        shape: of `SHAPES`, or one of your own.
        method: a key of `MEMORY_METHODS`.
        precision: a key of `PRECISIONS`.
        batch: texts in a batch.
        length: tokens in a text, padding included.
        rank: of LoRA; the other methods have none.
        checkpointing: compute the activations again in the backward pass instead of storing them.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if batch < 1 or length < 1:
        raise ValueError(f"batch and length must be at least 1, got {batch} and {length}")
    if method == "full" and precision == "nf4":
        raise ValueError("a weight in 4 bits cannot be trained: full fine-tuning needs 16 or 32")
    trained = trained_weights(shape, method, rank)
    size = 4 if precision == "float32" else 2
    stored = shape.total + (0 if method == "full" else trained)
    weights: float = stored * size
    if precision == "nf4":
        weights += shape.in_matrices * (NF4_BITS / 8 - size)
    numbers = 6 * shape.width + 2 * shape.keys + (4 if shape.gated else 2) * shape.inner
    layer = batch * length * (numbers * size + (2 * shape.width if shape.dropout else 0))
    kept = shape.layers * batch * length * shape.width * size + layer if checkpointing else shape.layers * layer
    return Memory(
        weights=weights,
        gradients=trained * size,
        optimizer=trained * (8 if size == 4 else 12),
        activations=kept,
        trained=trained,
    )


def peak_memory(
    shape: Shape,
    method: str = "lora-qv",
    batch: int = 32,
    length: int = 128,
    rank: int = 8,
    checkpointing: bool = False,
    device: str = "cpu",
) -> float:
    """The bytes at the fullest moment of a training step in float32: sharper than `training_memory`, in four points.

    1. Gradients of weights and activations are never there together: the first ones come as the last ones go.
    2. A frozen matrix keeps no input. LoRA on query and value saves `width + inner` numbers per layer and token.
    3. While a layer's backward pass runs, two gradients as wide as its feed-forward part are there.
    4. A mask of dropout is stored in float32 on a processor, in one byte a number on a GPU.

    The largest parameter is the table of words; the optimiser's update of it needs two more of its size. A test
    compares with what a process really holds, for MiniLM. Not in it, as above: an output layer with a large vocabulary,
    attention that is not fused (attention dropout on a processor), and memory that the allocator does not give back.

    Args:
        shape: of `SHAPES`, or one of your own.
        method: "full", "lora-qv" or "lora-all".
        batch: texts in a batch.
        length: tokens in a text, padding included.
        rank: of LoRA.
        checkpointing: compute the activations again in the backward pass instead of storing them.
        device: "cpu" or "cuda".

    Raises:
        ValueError: a setting that `training_memory` refuses, or another method or device.
    """
    if method not in _FREED:
        raise ValueError(f"peak_memory knows {', '.join(_FREED)}, not {method!r}; for others take training_memory")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"the device must be 'cpu' or 'cuda', got {device!r}")
    memory = training_memory(shape, method, "float32", batch, length, rank, checkpointing)
    per_width, per_inner = _FREED[method]
    numbers: float = -per_width * shape.width - per_inner * shape.inner
    if shape.dropout and device == "cpu":
        numbers += 2 * shape.width * 3 / 4  # three bytes more for each number of the two masks
    layers = 1 if checkpointing else shape.layers
    activations = memory.activations + 4 * batch * length * (layers * numbers + 2 * shape.inner)
    table = shape.total - shape.in_matrices
    update = memory.gradients + (2 * 4 * table if method == "full" else 0)
    return memory.weights + memory.optimizer + max(activations, update)


#: Method → how many times `width` and `inner` numbers a layer need not keep for a token.
_FREED: dict[str, tuple[int, int]] = {"full": (0, 0), "lora-all": (0, 0), "lora-qv": (1, 1)}


def saved_for_backward(model: transformers.PreTrainedModel, batch: dict[str, Tensor]) -> int:
    """Bytes that the forward pass keeps for the backward pass, the model's own weights not counted.

    Afterwards the model holds its gradients.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.manual_seed(0)
        loss = model.train()(**batch).loss
    loss.backward()
    return sum(kept.values())
