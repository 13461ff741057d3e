"""Answers to the exercises of chapter 6: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from typing import Any

FAMILIES = {
    "full fine-tuning": "none",
    "BitFit": "selective",
    "bottleneck adapters": "additive",
    "(IA)³": "additive",
    "prompt tuning": "additive",
    "LoRA": "reparameterised",
    "VeRA": "reparameterised",
    "LoRA and all biases": "hybrid",
    "distillation": "none",
}


def _trained(model: Any, without_head: bool = False) -> int:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return sum(p.numel() for name, p in named if not (without_head and name.startswith("classifier.")))


def _all(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _head(model: Any) -> int:
    return sum(p.numel() for p in model.classifier.parameters())


def _tensors(model: Any) -> tuple[int, int]:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return len(names), sum(not name.startswith("classifier.") for name in names)


def _by_word(model: Any) -> tuple[int, int]:
    named = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    return sum(n for _, n in named), sum(n for name, n in named if "classifier" not in name)


WRONG: dict[str, list[tuple[Any, str]]] = {
    "map_of_peft.families": [
        (FAMILIES | {"distillation": "additive"}, "no kind of PEFT"),
        (FAMILIES | {"full fine-tuning": "selective"}, "trains every weight"),
        (FAMILIES | {"(IA)³": "reparameterised"}, "can be merged is another question"),
        (FAMILIES | {"LoRA": "additive"}, "product of two thin matrices"),
        (FAMILIES | {"BitFit": "additive"}, "Nothing is added"),
        (FAMILIES | {"LoRA and all biases": "selective"}, "Two families work at once"),
        (FAMILIES | {"VeRA": "hybrid"}, "Two factors are frozen"),
        (FAMILIES | {"LoRA": "PEFT"}, "none of the answers"),
        (FAMILIES | {"LORA": "reparameterised"}, "does not contain LORA"),
        ({"BitFit": "selective"}, "have no family yet: full fine-tuning"),
        (FAMILIES | {"BitFit": ...}, "have no family yet: BitFit"),
        ("selective", "Expected a dictionary"),
    ],
    "map_of_peft.memory": [
        (lambda base, selected, added: (base + added, selected + added, 2 * (selected + added)), "4 bytes"),
        (lambda base, s, a: (4 * base, 4 * (s + a), 8 * (s + a)), "added numbers are weights too"),
        (lambda base, s, a: (4 * (base + s + a), 4 * (s + a), 8 * (s + a)), "counted twice"),
        (lambda base, s, a: (4 * (s + a), 4 * (s + a), 8 * (s + a)), "frozen weights are missing"),
        (lambda base, s, a: (4 * (base + a), 4 * (base + a), 8 * (base + a)), "frozen weight needs no gradient"),
        (lambda base, s, a: (4 * (base + a), 4 * a, 8 * a), "selected weights are missing"),
        (lambda base, s, a: (4 * (base + a), 4 * (s + a), 4 * (s + a)), "two averages"),
        (lambda base, s, a: (4 * (base + a), 4 * (s + a), 12 * (s + a)), "three numbers"),
        (lambda base, s, a: (4 * (base + a), 4 * (s + a), 8 * (base + a)), "nothing for a frozen weight"),
        (lambda base, s, a: 4 * (base + a) + 12 * (s + a), "Expected 3 numbers"),
        (lambda base, s, a: (4028, 148, 296), "wrong for full fine-tuning"),
        (lambda base, s, a: (4 * (base + a), "148", 296), "got a text"),
    ],
    "map_of_peft.count": [
        (lambda model: (_trained(model, True), _trained(model)), "other order"),
        (lambda model: (_trained(model), _trained(model) - _trained(model, True)), "head alone"),
        (lambda model: (_trained(model), _trained(model)), "head is in both"),
        (lambda model: (_all(model), _all(model) - _head(model)), "frozen weights too"),
        (lambda model: (_trained(model), _all(model) - _head(model)), "The second counts the frozen"),
        (_tensors, "You counted tensors"),
        (_by_word, "Ask how the name begins"),
        (lambda model: (_trained(model), _trained(model) - _head(model)), "never in the count"),
        (lambda model: _trained(model), "Expected 2 numbers"),
    ],
    "map_of_peft.sizes": [
        (lambda base, s, a, merges: (4 * (s + a), 4 * (s + a)), "needs all its weights"),
        (lambda base, s, a, merges: (4 * (s + a), 4 * (base + a)), "folded into the weights"),
        (lambda base, s, a, merges: (4 * (s + a), 4 * base), "stays beside the base"),
        (lambda base, s, a, merges: (4 * a, 4 * (base if merges else base + a)), "among them the head"),
        (
            lambda base, s, a, merges: (4 * (base + a), 4 * (base if merges else base + a)),
            "stay in the base's own file",
        ),
        (lambda base, s, a, merges: (s + a, base if merges else base + a), "4 bytes"),
        (lambda base, s, a, merges: (4 * (s + a), 4 * (base + s + a)), "counted twice"),
        (lambda base, s, a, merges: (16 * (s + a), 16 * base), "they are not stored"),
        (lambda base, s, a, merges: (4 * (s + a), 16 * base), "a deployed model has none"),
        (lambda base, s, a, merges: (148, 4000 if merges else 4028), "one set of numbers only"),
        (lambda base, s, a, merges: 4 * (s + a), "Expected 2 numbers"),
    ],
}

RIGHT: dict[str, list[Any]] = {
    "map_of_peft.families": [
        {name: family.upper() for name, family in FAMILIES.items()},
        {name: family.replace("reparameterised", "reparameterized") for name, family in FAMILIES.items()},
    ],
    "map_of_peft.memory": [
        lambda base, s, a: [4.0 * base + 4 * a, 4.0 * s + 4 * a, 8.0 * s + 8 * a],
    ],
    "map_of_peft.count": [lambda model: [_trained(model), _trained(model, True)]],
    "map_of_peft.sizes": [
        lambda base, s, a, merges: [4 * s + 4 * a, 4 * base + 4 * a * (not merges)],
    ],
}
