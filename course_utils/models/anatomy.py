"""What a BERT consists of: its numbers by kind, counted and by formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import transformers

#: kind → its formula, with V tokens, P positions, width h, inner width f and L layers
FORMULAS: dict[str, tuple[str, Callable[[int, int, int, int, int], int]]] = {
    "token embeddings": ("V h", lambda V, P, h, f, L: V * h),
    "position and segment embeddings": ("(P + 2) h", lambda V, P, h, f, L: (P + 2) * h),
    "attention weights": ("4 L h²", lambda V, P, h, f, L: 4 * L * h * h),
    "feed-forward weights": ("2 L h f", lambda V, P, h, f, L: 2 * L * h * f),
    "biases of these layers": ("L (5 h + f)", lambda V, P, h, f, L: L * (5 * h + f)),
    "normalisation gains": ("(2 L + 1) h", lambda V, P, h, f, L: (2 * L + 1) * h),
    "normalisation shifts": ("(2 L + 1) h", lambda V, P, h, f, L: (2 * L + 1) * h),
    "pooler, with its bias": ("h² + h", lambda V, P, h, f, L: h * h + h),
    "head for two classes, with its bias": ("2 h + 2", lambda V, P, h, f, L: 2 * h + 2),
}


def count_by_kind(model: transformers.PreTrainedModel) -> dict[str, int]:
    """Numbers in a BERT classifier, by kind; the kinds are those of `FORMULAS`."""
    found: Counter[str] = Counter(dict.fromkeys(FORMULAS, 0))
    for name, parameter in model.named_parameters():
        found[_kind(name)] += parameter.numel()
    return dict(found)


def _kind(name: str) -> str:
    if name.startswith("classifier"):
        return "head for two classes, with its bias"
    if ".pooler." in name:
        return "pooler, with its bias"
    if "LayerNorm" in name:
        return "normalisation gains" if name.endswith("weight") else "normalisation shifts"
    if "embeddings." in name:
        return "token embeddings" if "word" in name else "position and segment embeddings"
    if name.endswith("bias"):
        return "biases of these layers"
    return "attention weights" if ".attention." in name else "feed-forward weights"


def count_by_formula(config: transformers.BertConfig) -> dict[str, int]:
    """The same from five numbers of the architecture."""
    sizes = (config.vocab_size, config.max_position_embeddings, config.hidden_size, config.intermediate_size)
    return {kind: formula(*sizes, config.num_hidden_layers) for kind, (_, formula) in FORMULAS.items()}
