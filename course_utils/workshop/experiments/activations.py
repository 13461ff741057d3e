"""What the forward pass keeps for the backward pass, with fused attention and without: `study-activations`.

Attention that is fused never keeps its matrix (texts, heads, tokens, tokens); attention with dropout on a processor is
not fused and does. So the same method on the same batch has two answers, and the rule of the calculator is for the
first of them.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from course_utils.evaluation import results
from course_utils.methods import FullConfig, HeadOnlyConfig, LastLayersConfig, LoRAConfig, MethodConfig, inject
from course_utils.models.backbones import load_classifier
from course_utils.training.memory import SHAPES, saved_for_backward, training_memory
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-activations"
TEXTS, TOKENS = 32, 128

#: name → title, method, and the rule's name of it, where it has one
METHODS: dict[str, tuple[str, MethodConfig, str | None]] = {
    "full": ("full fine-tuning", FullConfig(), "full"),
    "lora": ("LoRA, query and value", LoRAConfig(rank=8), "lora-qv"),
    "last_layers": ("last layer and head", LastLayersConfig(), None),
    "head_only": ("head only", HeadOnlyConfig(), None),
}


def main(arguments: list[str]) -> int:
    """Write `book/results/activations.json`, unless it is there."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--again", action="store_true", help="measure it although it is stored")
    if not parser.parse_args(arguments).again and "methods" in results.stored("activations"):
        return 0
    rows: dict[str, Any] = {}
    for name, (title, config, rule) in METHODS.items():
        rows[name] = {"title": title, "fused_mb": kept(config, 0.0), "dropout_mb": kept(config, 0.1)}
        if rule:
            memory = training_memory(SHAPES["minilm"], rule, "float32", batch=TEXTS, length=TOKENS)
            rows[name]["rule_mb"] = memory.activations / 1e6
    store.write("activations", COMMAND, {"texts": TEXTS, "tokens": TOKENS, "methods": rows})
    return 0


def kept(config: MethodConfig, attention_dropout: float) -> float:
    """Megabytes that one forward pass of MiniLM in training keeps, beside its weights."""
    torch.manual_seed(0)
    model, _ = load_classifier("minilm")
    for name, module in model.named_modules():
        if name.endswith("attention.self.dropout") and isinstance(module, torch.nn.Dropout):
            module.p = attention_dropout
    inject(model, config)
    model.train()
    ids = torch.randint(1000, 20000, (TEXTS, TOKENS))
    labels = torch.zeros(TEXTS, dtype=torch.long)
    return saved_for_backward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}) / 1e6
