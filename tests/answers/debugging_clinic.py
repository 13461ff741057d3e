"""Answers to the exercises of chapter 18: wrong ones with words of the message, and right ones.

For a test that the learner writes, a wrong answer is one that misses a broken set-up or warns of a sound one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from course_utils.exercises.debugging_patients import checkpoint_blocks
from course_utils.methods import inject, trainable_parameters

Function = Callable[..., Any]
_PREFIX = "base_model.model."


# --- layers ---------------------------------------------------------------------------------------------------------


def _takes_what_matches(names: Any, targets: Any) -> Any:
    return [name for name in names if name.split(".")[-1] in targets]


def _only_if_none_matches(names: Any, targets: Any) -> Any:
    found = _takes_what_matches(names, targets)
    if not found:
        raise ValueError(f"nothing matches {targets}")
    return found


def _part_of_the_name(names: Any, targets: Any) -> Any:
    return [name for name in names if any(target in name for target in targets)]


def _asserts(names: Any, targets: Any) -> Any:
    assert all(any(name.endswith("." + target) for name in names) for target in targets)
    return _takes_what_matches(names, targets)


def _nameless(names: Any, targets: Any) -> Any:
    if not {name.split(".")[-1] for name in names} >= set(targets):
        raise ValueError("a target matches nothing")
    return _takes_what_matches(names, targets)


def _by_sets(names: Any, targets: Any) -> Any:
    lost = set(targets) - {name.rsplit(".", 1)[-1] for name in names}
    if lost:
        raise ValueError(f"no layer is called {', '.join(lost)}")
    return tuple(name for name in names if name.rsplit(".", 1)[-1] in targets)


def _numbers(build: Any) -> int:
    return sum(p.numel() for n, p in build().named_parameters() if "lora_" in n)


def _modules(build: Any, shapes: Any, rank: int) -> Any:
    return sum(hasattr(module, "lora_A") for module in build().modules()) != len(shapes)


# --- saving ---------------------------------------------------------------------------------------------------------


def _logits(model: Any, batch: Any) -> Any:
    with torch.no_grad():
        return model(**batch).logits


def _same_classes(build: Any, batch: Any) -> Any:
    one, other = (_logits(model.eval(), batch).argmax(1) for model in build())
    return not torch.equal(one, other)


def _without_eval(build: Any, batch: Any) -> Any:
    one, other = (_logits(model, batch) for model in build())
    return not torch.equal(one, other)


def _compares(chosen: str) -> Function:
    def detects(build: Any, batch: Any) -> Any:
        one, other = build()
        named = dict(other.named_parameters())
        return any(not torch.equal(p, named[n]) for n, p in one.named_parameters() if chosen in n)

    return detects


def _allclose(build: Any, batch: Any) -> Any:
    one, other = (_logits(model.eval(), batch) for model in build())
    return not torch.allclose(one, other, atol=1e-6)


# --- training -------------------------------------------------------------------------------------------------------


def _too_early(model: Any, config: Any, rate: float) -> Any:
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    inject(model, config)
    return optimiser


def _prepared(choose: Function, rate_factor: float = 1.0) -> Function:
    def prepare(model: Any, config: Any, rate: float) -> Any:
        inject(model, config)
        return torch.optim.AdamW(choose(model), lr=rate * rate_factor)

    return prepare


def _without_method(model: Any, config: Any, rate: float) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=rate)


def _returns_the_model(model: Any, config: Any, rate: float) -> Any:
    return inject(model, config)


def _moving(steps: int = 2, frozen: bool = True, head: bool = True, all_of_lora: bool = True) -> Function:
    def detects(build: Any, batch: Any) -> Any:
        model, optimiser = build()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for _ in range(steps):
            optimiser.zero_grad()
            model(**batch).loss.backward()
            optimiser.step()
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        meant = {n for n in before if "lora_" in n} | (
            {n for n in before if n.startswith("classifier")} if head else set()
        )
        if not all_of_lora:
            return not moved & meant
        return bool(meant - moved) or (frozen and any("lora_" not in n and "classifier" not in n for n in moved))

    return detects


def _ids(groups: slice, equal: bool = False) -> Function:
    def detects(build: Any, batch: Any) -> Any:
        model, optimiser = build()
        held = {id(p) for group in optimiser.param_groups[groups] for p in group["params"]}
        meant = {id(p) for n, p in model.named_parameters() if "lora_" in n or n.startswith("classifier")}
        trained = {id(p) for p in trainable_parameters(model).values()}
        return held != trained or trained != meant if equal else not meant <= held or trained != meant

    return detects


# --- loading --------------------------------------------------------------------------------------------------------


def _not_strict(model: Any, tensors: Any) -> Any:
    model.load_state_dict(tensors, strict=False)
    return model


def _strict(model: Any, tensors: Any) -> Any:
    model.load_state_dict({name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()})
    return model


def _loader(missing: bool = True, unexpected: bool = True, words: bool = True) -> Function:
    def load(model: Any, tensors: Any) -> Any:
        ours = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
        wanted = trainable_parameters(model)
        wrong = (set(wanted) - set(ours) if missing else set()) | (set(ours) - set(wanted) if unexpected else set())
        if wrong:
            raise ValueError(f"the names {sorted(wrong)} do not fit" if words else "the file does not fit")
        model.load_state_dict(ours, strict=False)
        return model

    return load


def _copies(model: Any, tensors: Any) -> Any:
    wanted = {_PREFIX + name: parameter for name, parameter in trainable_parameters(model).items()}
    if wanted.keys() != tensors.keys():
        raise ValueError(f"missing {wanted.keys() - tensors.keys()}, unexpected {tensors.keys() - wanted.keys()}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    return model


def _of_b(build: Any) -> list[torch.Tensor]:
    return [p for n, p in build().named_parameters() if "lora_B" in n]


# --- gradients ------------------------------------------------------------------------------------------------------


def _backward(build: Any, batch: Any) -> Any:
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(**batch).loss.backward()
    return model


def _unfrozen_embeddings(model: Any) -> Any:
    model.bert.embeddings.requires_grad_(True)
    return checkpoint_blocks(model, reentrant=True)


def _with_hook(model: Any) -> Any:
    model.enable_input_require_grads()
    return checkpoint_blocks(model, reentrant=True)


def _own_hook(model: Any) -> Any:
    model.bert.embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return checkpoint_blocks(model, reentrant=True)


# --- padding --------------------------------------------------------------------------------------------------------


def _in_place(input_ids: Any, attention_mask: Any) -> Any:
    labels = input_ids
    labels[attention_mask == 0] = -100
    return labels


def _longer(value: int, left: bool = False, real: bool = False) -> Function:
    def pad(input_ids: Any, attention_mask: Any) -> Any:
        sides = (3, 0) if left else (0, 3)
        return (
            nn.functional.pad(input_ids, sides, value=value),
            nn.functional.pad(attention_mask, sides, value=int(real)),
        )

    return pad


def _padding(change: Function, tolerance: float = 1e-4) -> Function:
    def detects(build: Any, input_ids: Any, attention_mask: Any) -> Any:
        loss = build()
        before, after = loss(input_ids, attention_mask), loss(*change(input_ids, attention_mask))
        return abs(before - after) > tolerance * abs(before)

    return detects


def _other_padding(input_ids: Any, attention_mask: Any) -> Any:
    return input_ids.masked_fill(attention_mask == 0, 7), attention_mask


WRONG: dict[str, list[tuple[Function, str]]] = {
    "debugging_clinic.choose_layers": [
        (_takes_what_matches, "match nothing, and your function says nothing"),
        (_only_if_none_matches, "Half of what was asked for"),
        (_part_of_the_name, "takes block.0.query_norm for a query"),
        (_asserts, "Raise a ValueError with a sentence"),
        (_nameless, "does not name v_proj"),
        (lambda names, targets: names, "query_norm"),
    ],
    "debugging_clinic.detects_missing_layers": [
        (lambda build, shapes, rank: _numbers(build) == 0, "the query layers got one, the value layers did not"),
        (
            lambda build, shapes, rank: (
                sum(p.numel() for p in trainable_parameters(build()).values()) != sum(rank * (o + i) for o, i in shapes)
            ),
            "raises the alarm for every set-up",
        ),
        (
            lambda build, shapes, rank: _numbers(build) != sum(2 * rank * i for o, i in shapes),
            "matrices that are not square",
        ),
        (lambda build, shapes, rank: _numbers(build) != sum(4 * (o + i) for o, i in shapes), "matrices that are not"),
        (lambda build, shapes, rank: not trainable_parameters(build()), "never raises the alarm"),
        (
            lambda build, shapes, rank: (
                not any("layer.0" in n and "value.lora" in n for n, _ in build().named_parameters())
            ),
            "the first block got its adapters",
        ),
        (lambda build, shapes, rank: "broken", "A test answers True (broken) or False (sound)"),
    ],
    "debugging_clinic.save_trained": [
        (lambda m: {n: p.detach().clone() for n, p in m.named_parameters() if "lora_" in n}, "The head is missing"),
        (lambda m: {n: p.detach().clone() for n, p in m.named_parameters()}, "Frozen weights are in it too"),
        (
            lambda m: {n: p.detach() for n, p in m.named_parameters() if p.requires_grad},
            "changes when training goes on",
        ),
        (lambda m: {n: p.clone() for n, p in m.named_parameters() if p.requires_grad}, "history of gradients"),
        (lambda m: {n: p.detach().clone() for n, p in m.named_parameters() if "classifier" in n}, "Only the head"),
        (lambda m: list(trainable_parameters(m)), "Expected a dictionary"),
    ],
    "debugging_clinic.detects_lost_weights": [
        (_same_classes, "the head's weight was saved and its bias was not"),
        (_without_eval, "still in training mode"),
        (_compares("lora_"), "the head was not saved"),
        (_compares("classifier"), "one factor B"),
        (lambda build, batch: True, "raises the alarm for every set-up"),
    ],
    "debugging_clinic.prepare": [
        (_too_early, "made before the adapter was put in"),
        (_prepared(lambda m: m.requires_grad_(True).parameters()), "Pretrained weights are trained too"),
        (_prepared(lambda m: m.classifier.parameters()), "does not hold LoRA's weights"),
        (
            _prepared(lambda m: [p for n, p in m.named_parameters() if "lora_" in n]),
            "do not move classifier",
        ),
        (_prepared(lambda m: trainable_parameters(m).values(), 0.1), "learning rate that was given"),
        (_without_method, "No LoRA is in the model"),
        (_returns_the_model, "Return the optimiser"),
    ],
    "debugging_clinic.detects_wrong_training": [
        (_moving(steps=1), "raises the alarm for every set-up"),
        (_moving(frozen=False), "the whole model was made trainable again"),
        (_moving(head=False), "the head is not in the optimiser"),
        (_moving(all_of_lora=False), "never raises the alarm"),
        (_ids(slice(0, 1)), "two groups"),
        (_ids(slice(None), equal=True), "given all parameters after they were frozen"),
    ],
    "debugging_clinic.load_strictly": [
        (_not_strict, "did not come from the file"),
        (_strict, "strict=True asks for the frozen weights too"),
        (_loader(missing=False), "was loaded without a word"),
        (_loader(unexpected=False), "keys that the model does not have"),
        (_loader(words=False), "does not name the key"),
    ],
    "debugging_clinic.detects_no_effect": [
        (lambda build: all(not p.any() for p in _of_b(build)), "the second block's B are zero"),
        (lambda build: any(p.norm() < 1e-2 for p in _of_b(build)), "are small"),
        (lambda build: any((p == 0).any() for p in _of_b(build)), "one row of each B is zero"),
        (
            lambda build: all(not p.any() for n, p in build().named_parameters() if "lora_" in n),
            "never raises the alarm",
        ),
        (lambda build: any(p.norm() > 0 for p in _of_b(build)), "every B is zero"),
    ],
    "debugging_clinic.checkpoint": [
        (lambda m: checkpoint_blocks(m, reentrant=True), "asks whether the block's *input*"),
        (lambda m: m, "checkpointing is off"),
        (_unfrozen_embeddings, "the table itself stays frozen"),
        (lambda m: [checkpoint_blocks(m, reentrant=False)], "Return the model"),
    ],
    "debugging_clinic.detects_no_gradient": [
        (
            lambda build, batch: all(p.grad is None for p in trainable_parameters(_backward(build, batch)).values()),
            "never raises the alarm",
        ),
        (
            lambda build, batch: any(p.grad is None for p in _backward(build, batch).parameters()),
            "raises the alarm for every set-up",
        ),
        (
            lambda build, batch: any(
                p.grad is None or not p.grad.any() for p in trainable_parameters(_backward(build, batch)).values()
            ),
            "A's gradient is zero, because B is zero",
        ),
        (
            lambda build, batch: all(
                p.grad is None for n, p in _backward(build, batch).named_parameters() if "lora_" in n
            ),
            "one single tensor has no gradient",
        ),
        (lambda build, batch: not build()(**batch).loss.requires_grad, "never raises the alarm"),
    ],
    "debugging_clinic.mask_labels": [
        (lambda ids, mask: ids.clone(), "Nothing is left out"),
        (lambda ids, mask: ids.masked_fill(ids == 2, -100), "look for the padding by its token"),
        (lambda ids, mask: ids.masked_fill(mask == 1, -100), "wrong way round"),
        (lambda ids, mask: ids * mask, "0 is a token like any other"),
        (lambda ids, mask: ids.masked_fill(mask == 0, -1), "not −1"),
        (_in_place, "`input_ids`"),
    ],
    "debugging_clinic.detects_padding": [
        (_padding(_other_padding), "divided by the number of all positions"),
        (_padding(_longer(1), tolerance=0.0), "alarm"),
        (_padding(_longer(1, left=True)), "raises the alarm for every set-up"),
        (_padding(_longer(1, real=True)), "raises the alarm for every set-up"),
        (_padding(lambda ids, mask: (ids, mask)), "never raises the alarm"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "debugging_clinic.choose_layers": [_by_sets],
    "debugging_clinic.detects_missing_layers": [_modules],
    "debugging_clinic.save_trained": [
        lambda m: {n: p.data.clone() for n, p in trainable_parameters(m).items()},
    ],
    "debugging_clinic.detects_lost_weights": [_compares(""), _allclose],
    "debugging_clinic.prepare": [
        _prepared(lambda m: m.parameters()),
        _prepared(lambda m: [{"params": [p]} for p in trainable_parameters(m).values()]),
    ],
    "debugging_clinic.detects_wrong_training": [_ids(slice(None)), _moving(steps=3)],
    "debugging_clinic.load_strictly": [_copies],
    "debugging_clinic.detects_no_effect": [
        lambda build: any(torch.count_nonzero(p) == 0 for p in _of_b(build)),
        lambda build: min(p.abs().max() for p in _of_b(build)) == 0,
    ],
    "debugging_clinic.checkpoint": [_with_hook, _own_hook],
    "debugging_clinic.detects_no_gradient": [
        lambda build, batch: None in [p.grad for p in trainable_parameters(_backward(build, batch)).values()],
    ],
    "debugging_clinic.mask_labels": [
        lambda ids, mask: torch.where(mask.bool(), ids, -100),
        lambda ids, mask: ids * mask - 100 * (1 - mask),
    ],
    "debugging_clinic.detects_padding": [_padding(_longer(0)), _padding(_longer(9), tolerance=1e-5)],
}
