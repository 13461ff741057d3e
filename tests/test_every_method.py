"""What every method must keep, on every tiny model. One more line in `cases.py` brings a new method under it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case, move
from models import ALL_MODELS, LANGUAGE_MODELS, Batch, make, make_batch, relative, rounding
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Cache

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    HeadOnlyConfig,
    LoRAConfig,
    MethodConfig,
    MethodError,
    PrefixTuningConfig,
    PromptTuningConfig,
    count_parameters,
    eject,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.methods.base import AdaptedLayer
from course_utils.methods.targets import find_body, find_head
from course_utils.methods.virtual_tokens import cache_name


def every(*kinds: str) -> pytest.MarkDecorator:
    """Run a test on each method and each of these models that the method is defined on."""
    pairs = [
        pytest.param(case, kind, id=f"{case.name}-{kind}") for case in CASES for kind in case.kinds if kind in kinds
    ]
    return pytest.mark.parametrize(("case", "kind"), pairs)


def tuned(case: Case, kind: str, seed: int = 0) -> Any:
    """A model with a method whose weights, those of the head included, are far from where they began."""
    model = inject(case.make(kind), case.config, seed=seed)
    move(model, seed=seed + 1)
    with torch.no_grad():
        for parameter in head_parameters(model).values():
            parameter.mul_(1.5)
    return model


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    head = tuple(name + "." for name in find_head(model))
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(head)}


@torch.no_grad()
def logits(model: Any, batch: Batch) -> torch.Tensor:
    return model.eval()(**batch).logits


def train(model: Any, kind: str, steps: int = 10) -> torch.optim.AdamW:
    """As `training.fit` does, without schedule and decay. The last gradients are still there afterwards."""
    method: MethodConfig = model.tuning
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2, weight_decay=0.0)
    model.train()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(**make_batch(kind, seed=step)).loss
        penalty = method.penalty(model)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.after_step(model, step)
    return optimizer


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a refusal must leave alone: modules, weights bit for bit, what is trained, the method."""
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "trained": list(trainable_parameters(model)),
        "tuning": getattr(model, "tuning", None),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    now = snapshot(model)
    weights, expected = now.pop("weights"), before["weights"]
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert now == {key: value for key, value in before.items() if key != "weights"}


# --- inserting ------------------------------------------------------------------------------------------------------


@every(*ALL_MODELS)
def test_inject(case: Case, kind: str) -> None:
    """It computes what it did before, counts itself, draws from its own seed, and refuses a second method."""
    batch = make_batch(kind)
    random_state = torch.random.get_rng_state()
    model = inject(case.make(kind), case.config)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    if case.identity:  # in fp64, where rounding can neither hide nor feign a difference
        wide = inject(case.make(kind).double(), case.config)
        assert relative(logits(wide, batch), logits(case.make(kind).double(), batch)) <= 1e-6

    count, trained = count_parameters(model), trainable_parameters(model)
    head = sum(p.numel() for name, p in head_parameters(model).items() if name in trained)
    method = sum(p.numel() for p in trained.values()) - head
    assert count.trainable == method + head > 0
    assert (method > 0) == (case.name != "head-only")
    assert str(count).endswith(f"{method:,} by the method, {head:,} in the head")

    same, other = (inject(case.make(kind), case.config, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())
    assert case.random == any(not torch.equal(value, other[name]) for name, value in same.items())

    before = snapshot(model)
    with pytest.raises(MethodError, match=f"already carries {case.config.name}"):
        inject(model, HeadOnlyConfig())
    assert_unchanged(model, before)

    start = logits(model, batch)
    move(model)
    assert (relative(logits(model, batch), start) > 1e-3) == (case.name != "head-only")


MISFITS = [
    pytest.param(case, kind, id=f"{case.name}-{kind}")
    for case in CASES
    for kind in ALL_MODELS
    if kind not in case.kinds
]


@pytest.mark.parametrize(("case", "kind"), MISFITS)
def test_a_model_that_does_not_fit_is_refused_and_stays_as_it_was(case: Case, kind: str) -> None:
    model = make(kind)
    before = snapshot(model)
    with pytest.raises(MethodError):
        inject(model, case.config)
    assert_unchanged(model, before)


# --- training, taking out, merging ----------------------------------------------------------------------------------


@every(*ALL_MODELS)
def test_training_moves_what_is_trained_and_eject_takes_it_out(case: Case, kind: str) -> None:
    model, batch = case.make(kind), make_batch(kind)
    pretrained, untuned = dict(model.named_parameters()), logits(model, batch)
    head = {name: p.detach().clone() for name, p in head_parameters(model).items()}
    inject(model, case.config)
    if case.ejects:  # a method that adds weights trains no pretrained one beside the head
        assert not [name for name, p in pretrained.items() if p.requires_grad and name not in head]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = train(model, kind)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        if parameter.requires_grad and parameter.ndim > 1:  # the key's bias rightly has no gradient
            # The mean of the gradients of all steps: a ReLU may be dead on one small batch.
            assert optimizer.state[parameter]["exp_avg"].any(), name
    if type(case.config).after_step is MethodConfig.after_step:  # else the method keeps its records there
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())

    if not case.ejects:
        unchanged = snapshot(model)
        with pytest.raises(MethodError, match="model's own weights"):
            eject(model)
        assert_unchanged(model, unchanged)
        return
    assert eject(model).tuning is None
    with torch.no_grad():
        for name, parameter in head_parameters(model).items():
            parameter.copy_(head[name])
    assert torch.equal(logits(model, batch), untuned)
    assert list(model.state_dict()) == list(case.make(kind).state_dict())
    assert inject(model, LoRAConfig()).tuning == LoRAConfig()  # and it takes the next method


@every(*ALL_MODELS)
def test_merged_equals_unmerged(case: Case, kind: str) -> None:
    model, batch = tuned(case, kind).double(), make_batch(kind)
    unmerged = logits(model, batch)
    if not case.merges:
        before = snapshot(model)
        with pytest.raises(MethodError):
            merge(model)
        assert_unchanged(model, before)
        return
    assert relative(logits(merge(model), batch), unmerged) <= 1e-6
    assert set(model.state_dict()) == set(make(kind).state_dict())  # in full precision, if it was quantised
    assert not any(isinstance(module, AdaptedLayer) for module in model.modules())
    assert model.tuning is None


# --- checkpoints ----------------------------------------------------------------------------------------------------


def lose(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(iter(tensors))]


def add_surplus(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(iter(tensors)) + ".surplus"] = torch.zeros(2, 2)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(iter(tensors))] = torch.zeros(7, 1, 5)


def with_damage(folder: Path, damage: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)


def assert_refuses(load: Callable[[nn.Module, Path], object], model: nn.Module, folder: Path) -> None:
    before = snapshot(model)
    with pytest.raises(CheckpointError):
        load(model, folder)
    assert_unchanged(model, before)


@every(*ALL_MODELS)
def test_a_checkpoint_comes_back(case: Case, kind: str, tmp_path: Path) -> None:
    model, batch = tuned(case, kind), make_batch(kind)
    folder = save(model, tmp_path / "checkpoint")
    restored = logits(load(case.make(kind), folder), batch)
    if case.exact:
        assert torch.equal(restored, logits(model, batch))
    else:
        assert relative(restored, logits(model, batch)) <= rounding()
    assert not torch.equal(restored, logits(case.make(kind), batch))
    wider = {"n_embd": 48} if kind.startswith("gpt2") else {"hidden_size": 48}
    assert_refuses(load, case.make(kind, **wider), folder)


@every("bert", "gpt2-lm")
def test_a_damaged_checkpoint_is_refused(case: Case, kind: str, tmp_path: Path) -> None:
    folder, model = save(tuned(case, kind), tmp_path / "checkpoint"), case.make(kind)
    weights = next(folder.glob("*.safetensors"))
    sound = weights.read_bytes()
    for damage in (lose, add_surplus, reshape):
        weights.write_bytes(sound)
        with_damage(folder, damage)
        assert_refuses(load, model, folder)
    weights.write_bytes(sound)
    load(model, folder)


# --- running --------------------------------------------------------------------------------------------------------


@every(*ALL_MODELS)
def test_copies_and_half_precision(case: Case, kind: str) -> None:
    model, batch = tuned(case, kind), make_batch(kind)
    expected = logits(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, batch), expected)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert relative(logits(twin.to(torch.bfloat16), batch), expected) < 0.1
    assert torch.equal(logits(model, batch), expected)

    half = case.make(kind).to(torch.bfloat16)
    pretrained = set(half.parameters())
    inject(half, case.config)
    assert logits(half, batch).dtype == torch.bfloat16
    new = {name: p.dtype for name, p in trainable_parameters(half).items() if p not in pretrained}
    assert set(new.values()) <= {torch.float32}, new  # bfloat16 is too coarse to learn in


@every(*ALL_MODELS)
def test_padding_changes_nothing(case: Case, kind: str) -> None:
    """Each row of a padded batch gives what it gives alone, as a batch of one."""
    model = tuned(case, kind)
    # GPT-2 and BERT count positions from the left edge, padding or not; `generate` (below) tells GPT-2 the positions.
    for left in (False, True) if kind.startswith("llama") else (False,):
        batch = make_batch(kind, left=left)
        together = logits(model, batch)
        for row, mask in enumerate(batch["attention_mask"].bool()):
            row_alone = {k: v[row : row + 1] if v.ndim == 1 else v[row : row + 1, mask] for k, v in batch.items()}
            alone = logits(model, row_alone)
            real = together[row, mask] if kind in LANGUAGE_MODELS else together[row]
            # Both are rounded, each in its own way: their products have other shapes.
            assert relative(alone[0], real) <= 2 * rounding(), (row, left)


@every(*LANGUAGE_MODELS)
def test_generation(case: Case, kind: str) -> None:
    model = tuned(case, kind)
    batch = make_batch(kind, rows=3, left=True)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    length = inputs["input_ids"].shape[1]
    padded = model.generate(**inputs, **settings)[:, length:]
    assert padded.shape == (3, 5)
    for row in range(3):
        text = inputs["input_ids"][row : row + 1, row:]
        alone = model.generate(text, attention_mask=torch.ones_like(text), **settings)
        assert torch.equal(alone[0, length - row :], padded[row]), row
    without_cache = model.generate(**inputs, **settings, use_cache=False)[:, length:]
    assert torch.equal(without_cache, padded)
    with torch.no_grad():  # the first new token is the forward pass's own
        last = model(text, attention_mask=torch.ones_like(text)).logits[0, -1]
    assert last.argmax() == padded[2, 0]
    assert not torch.equal(case.make(kind).generate(**inputs, **settings)[:, length:], padded)


@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@every("bert", "llama-lm")
def test_gradient_checkpointing(case: Case, kind: str, reentrant: bool) -> None:
    batch = make_batch(kind)
    plain, saving = tuned(case, kind).train(), tuned(case, kind).train()
    plain(**batch).loss.backward()

    def checkpointed() -> None:
        saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
        saving.enable_input_require_grads()  # the re-entrant kind needs it with frozen embeddings
        saving(**batch).loss.backward()

    if not case.checkpointing:
        with pytest.raises(MethodError, match="checkpointing"):
            checkpointed()
        return
    checkpointed()
    for name, parameter in trainable_parameters(saving).items():
        expected = trainable_parameters(plain)[name].grad
        assert expected is not None
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, expected, rtol=1e-5, atol=1e-7), name


def rename_cache(body: Any) -> None:
    """Let a body call its cache `cache`, as those of transformers 5.24 do."""
    name, compute = cache_name(body), body.forward

    def forward(*inputs: Any, cache: Cache | None = None, **named: Any) -> Any:
        output = compute(*inputs, **named | {name: cache})
        output["cache"] = output[name]
        return output

    body.forward = forward


@pytest.mark.parametrize("config", [PromptTuningConfig(virtual_tokens=3), PrefixTuningConfig(virtual_tokens=3)])
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@torch.no_grad()
def test_a_cache_goes_on_under_either_name(config: MethodConfig, kind: str) -> None:
    """A name that is not known would start every step of `generate` with the virtual tokens again, without an error."""
    tokens = make_batch(kind, rows=1)["input_ids"]
    ends = []
    for rename in (False, True):
        body: Any = find_body(inject(make(kind), config))[1]
        if rename:
            rename_cache(body.base)
            body.cache_name = cache_name(body.base)
            assert body.cache_name == "cache"
        start = body(tokens[:, :6], use_cache=True)
        cache = start[body.cache_name]
        assert cache.get_seq_length() == 3 + 6
        ends.append(body(tokens[:, 6:], **{body.cache_name: cache}).last_hidden_state)
    assert torch.equal(*ends)
