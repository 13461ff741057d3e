"""AdaLoRA equals peft's, number for number and mask for mask, and does what its documentation says."""

from __future__ import annotations

import copy
import json
import re
import warnings
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALL_MODELS, CLASSIFIERS, DEVICE, HIDDEN, Batch, agree, make, make_batch, noise, relative, rounding
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    AdaLoRAConfig,
    AdaLoRALinear,
    LoRAConfig,
    MethodError,
    allocated_ranks,
    count_parameters,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.training import TrainingConfig, TrainingError, fit

STEPS = 30
#: Thirty steps of Adam make much of the last digits of a small gradient, so a GPU, which rounds otherwise, needs more.
DTYPE = torch.float32 if DEVICE == "cpu" else torch.float64
#: Small, with numbers that differ from each other, so that no two of them can be confused.
CONFIG = AdaLoRAConfig(
    init_rank=5,
    target_rank=3,
    total_steps=STEPS,
    initial_steps=4,
    final_steps=7,
    interval=2,
    beta1=0.8,
    beta2=0.7,
    orthogonality=0.3,
    alpha=11,
    targets="all-linear",
)


def peft_model(kind: str, config: AdaLoRAConfig, model: Any = None) -> Any:
    """The same model under peft's own AdaLoRA."""
    settings = AdaLoraConfig(
        init_r=config.init_rank,
        target_r=config.target_rank,
        total_step=config.total_steps,
        tinit=config.initial_steps,
        tfinal=config.final_steps,
        deltaT=config.interval,
        beta1=config.beta1,
        beta2=config.beta2,
        orth_reg_weight=config.orthogonality,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft takes fractions too
        lora_dropout=config.dropout,
        target_modules=config.targets,  # type: ignore[arg-type]
        task_type="SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM",
        fan_in_fan_out=kind.startswith("gpt2"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Llama has no Conv1D, GPT-2 has little else
        return get_peft_model(make(kind) if model is None else model, settings).eval()


def peft_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """peft's parameters under our names. (In half precision peft 0.21 makes its divisor `ranknum` trainable, too.)"""
    return {
        name.removeprefix("base_model.model.").removesuffix(".default").replace(".modules_to_save.default", ""): p
        for name, p in trainable_parameters(model).items()
        if ".ranknum." not in name
    }


def pair(kind: str, config: AdaLoRAConfig = CONFIG, *, fill: bool = False) -> tuple[Any, Any]:
    """Ours and peft's with the same weights: fresh ones, or ones that are all far from zero."""
    ours, theirs = inject(make(kind).to(DTYPE), config), peft_model(kind, config, make(kind).to(DTYPE))
    if fill:
        fill_triplets(ours)
    copy_weights(ours, theirs)
    return ours, theirs


def fill_triplets(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in layers(model).values():
            for weight in (layer.lora_A, layer.lora_E, layer.lora_B):
                weight.copy_(0.4 * noise(weight, generator))


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])


def layers(model: nn.Module) -> dict[str, AdaLoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaLoRALinear)}


def first_difference(ours: Any, theirs: Any, kind: str, *, early: bool = False) -> str:
    """Train both side by side. "" if each loss, gradient, weight and mask agrees (see `models.agree`), else the first
    that does not. `early` calls our allocator before the optimiser's step, which is a mistake."""
    config: AdaLoRAConfig = ours.tuning
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    optimizers = [torch.optim.AdamW(weights.values(), lr=1e-2) for weights in (mine, reference)]
    for step in range(1, STEPS + 1):
        batch = make_batch(kind, seed=step)
        loss, expected = ours(**batch).loss + config.penalty(ours), theirs(**batch).loss
        if not agree(loss, expected):
            return f"step {step}: the loss"
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        expected.backward()
        for name, parameter in reference.items():
            if not equal(mine[name].grad, parameter.grad):
                return f"step {step}: the gradient of {name}"
        if early:
            config.after_step(ours, step)
        for optimizer in optimizers:
            optimizer.step()
        if not early:
            config.after_step(ours, step)
        theirs.base_model.update_and_allocate(step)
        pattern = theirs.peft_config["default"].rank_pattern or {}
        for name, layer in layers(ours).items():
            if layer.kept.tolist() != pattern.get(f"{name}.lora_E.default", [True] * config.init_rank):
                return f"step {step}: the mask of {name}"
        for name, parameter in reference.items():
            if not agree(mine[name], parameter):
                return f"step {step}: the weight {name}"
    assert pattern, "peft has allocated nothing, so nothing was compared"
    return ""


def equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is not None and second is not None and agree(first, second)


def train(model: Any, kind: str, steps: range) -> None:
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    for step in steps:
        optimizer.zero_grad()
        (model(**make_batch(kind, seed=step)).loss + model.tuning.penalty(model)).backward()
        optimizer.step()
        model.tuning.after_step(model, step)


@torch.no_grad()
def logits(model: Any, kind: str) -> torch.Tensor:
    batch: Batch = make_batch(kind)
    del batch["labels"]  # peft's AdaLoRA, loaded for inference, fails when it is given labels
    return model.eval()(**batch).logits


# --- equal to peft --------------------------------------------------------------------------------------------------


@cache
def trained_pair(kind: str) -> tuple[Any, Any]:
    """Both after thirty equal steps. Several tests look at them; none may change them."""
    ours, theirs = pair(kind)
    assert first_difference(ours, theirs, kind) == ""
    return ours, theirs


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_thirty_steps_equal_peft_bit_for_bit(kind: str) -> None:
    ours, _ = trained_pair(kind)
    ranks = allocated_ranks(ours)
    assert sum(ranks.values()) == CONFIG.target_rank * len(ranks)
    assert len(set(ranks.values())) > 1  # not every matrix got the same, which is the point of the method
    for layer in layers(ours).values():
        assert torch.equal((layer.lora_E != 0).view(-1), layer.kept)


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_forward_and_gradients_equal_peft_far_from_zero(kind: str) -> None:
    ours, theirs = pair(kind, fill=True)
    assert not torch.allclose(logits(ours, kind), logits(make(kind).to(DTYPE), kind), rtol=1e-2)
    batch = make_batch(kind)
    mine, reference = ours(**batch), theirs(**batch)
    assert agree(mine.logits, reference.logits)
    (mine.loss + CONFIG.penalty(ours)).backward()
    reference.loss.backward()
    for name, parameter in peft_trainable(theirs).items():
        assert equal(trainable_parameters(ours)[name].grad, parameter.grad), name


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_dropout_equals_peft_under_one_seed(kind: str) -> None:
    ours, theirs = pair(kind, replace(CONFIG, dropout=0.3), fill=True)
    results = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(5)
        results.append(model(**make_batch(kind)).logits)
    assert agree(*results)
    assert not torch.equal(results[0], logits(ours, kind))


def test_the_schedule_is_that_of_peft() -> None:
    _, theirs = pair("bert")
    allocator = theirs.base_model.rankallocator
    matrices = len(allocator.name_set)
    budgets = [CONFIG.budget(step, matrices) for step in range(1, STEPS + 1)]
    assert budgets == [allocator.budget_schedule(step)[0] for step in range(1, STEPS + 1)]
    assert budgets == sorted(budgets, reverse=True)
    assert (budgets[3], budgets[22]) == (5 * matrices, 3 * matrices)
    assert budgets[3] > budgets[4] > budgets[10] > budgets[22]


@dataclass(frozen=True)
class TwicePenalized(AdaLoRAConfig):
    """A mistake: the mean over pairs of matrices, not over matrices."""

    def penalty(self, model: nn.Module) -> torch.Tensor:
        return 2 * super().penalty(model)


@dataclass(frozen=True)
class Forgetful(AdaLoRAConfig):
    """A mistake: after the last allocation nothing keeps the cut singular values at zero."""

    def after_step(self, model: nn.Module, step: int) -> None:
        if step <= self.last_allocation:
            super().after_step(model, step)


def test_the_parity_check_sees_the_classic_mistakes() -> None:
    settings = {setting.name: getattr(CONFIG, setting.name) for setting in fields(CONFIG)}
    assert first_difference(*pair("bert", TwicePenalized(**settings)), "bert") == "step 1: the loss"
    last = f"step {CONFIG.last_allocation + 1}: the weight"
    assert first_difference(*pair("bert", Forgetful(**settings)), "bert").startswith(last)

    # A GPU's rounding may show the weight first that the mask sets to zero.
    masked = "the mask" if DEVICE == "cpu" else "the mask|lora_E"
    ours, theirs = pair("bert")
    ours.tuning = replace(CONFIG, beta1=CONFIG.beta2, beta2=CONFIG.beta1)  # swapped
    assert re.search(masked, first_difference(ours, theirs, "bert"))

    ours, theirs = pair("bert")  # the sensitivity from the weights before the step
    assert re.search(masked, first_difference(ours, theirs, "bert", early=True))

    ours, theirs = pair("bert")
    for layer in layers(ours).values():
        layer.divisor = CONFIG.target_rank + 1e-5  # the rank of the end, not that of the start
    assert first_difference(ours, theirs, "bert").startswith("step 1: the gradient")


# --- the allocator --------------------------------------------------------------------------------------------------


def test_a_copy_in_the_middle_of_training_takes_the_allocator_along() -> None:
    model = inject(make("bert"), CONFIG)
    train(model, "bert", range(1, 11))
    twin = copy.deepcopy(model)
    noted = [layer.importance_E.sensitivity.clone() for layer in layers(model).values()]
    train(twin, "bert", range(11, STEPS + 1))  # before the model itself: a shared allocator would show
    untouched = [layer.importance_E.sensitivity for layer in layers(model).values()]
    assert all(torch.equal(a, b) for a, b in zip(noted, untouched, strict=True))  # the two share nothing
    train(model, "bert", range(11, STEPS + 1))
    for name, layer in layers(model).items():
        assert torch.equal(layer.kept, layers(twin)[name].kept)
        assert torch.equal(layer.lora_B, layers(twin)[name].lora_B)
    assert sum(allocated_ranks(model).values()) == 3 * len(layers(model))


def test_the_allocator_needs_the_gradients() -> None:
    model = inject(make("bert"), CONFIG)
    with pytest.raises(MethodError, match=r"after optimizer.step\(\) and before zero_grad"):
        CONFIG.after_step(model, 1)


def test_fit_reaches_the_target_budget() -> None:
    rows = [{key: value[0] for key, value in make_batch("bert", rows=1, seed=n).items()} for n in range(48)]
    for number, row in enumerate(rows):
        row["labels"] = number % 2  # type: ignore[assignment]
    loader: DataLoader = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    config = replace(CONFIG, total_steps=len(loader), initial_steps=2, final_steps=4)
    model = inject(make("bert"), config)
    history = fit(model, loader, loader, TrainingConfig(learning_rate=1e-2, epochs=1, device="cpu"))
    assert len(history.steps) == config.total_steps == 12
    ranks = {name: int((layer.lora_E != 0).sum()) for name, layer in layers(model).items()}
    assert ranks == allocated_ranks(model)
    assert sum(ranks.values()) == config.target_rank * len(ranks)
    assert history.steps[0]["loss"] > config.penalty(inject(make("bert"), config)).item() > 0  # it is in the loss


def test_fit_never_returns_more_than_the_budget() -> None:
    """On opposite labels the first epoch is the best one, and it comes before the last cut."""
    rows = [{key: value[0] for key, value in make_batch("bert", rows=1, seed=n).items()} for n in range(16)]
    for number, row in enumerate(rows):
        row["labels"] = number % 2  # type: ignore[assignment]
    opposite = [row | {"labels": 1 - row["labels"]} for row in rows]
    train: DataLoader = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    validation: DataLoader = DataLoader(opposite, batch_size=4)  # type: ignore[arg-type]
    config = replace(CONFIG, total_steps=3 * len(train), initial_steps=2, final_steps=2)
    model = inject(make("bert"), config)
    history = fit(model, train, validation, TrainingConfig(learning_rate=2e-2, epochs=3, warmup=0, device="cpu"))
    losses = [row["loss"] for row in history.evaluations]
    assert losses.index(min(losses)) == 0 and history.best_epoch == 3
    assert sum(allocated_ranks(model).values()) == config.target_rank * len(layers(model))


def twelve_batches() -> DataLoader:
    rows = [{key: value[0] for key, value in make_batch("bert", rows=1, seed=n).items()} for n in range(48)]
    for number, row in enumerate(rows):
        row["labels"] = number % 2  # type: ignore[assignment]
    return DataLoader(rows, batch_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 2, "accumulate": 5}, 6),  # ⌈12 / 5⌉ = 3 an epoch
        ({"epochs": 2, "accumulate": 100}, 2),
        ({"epochs": 2, "max_steps": 19}, 19),
        ({"epochs": 1}, 12),
    ],
)
def test_a_run_that_ends_before_the_last_cut_is_refused(settings: dict[str, Any], steps: int) -> None:
    """`total_steps` is epochs · len(loader) and no more, which is what one counts first."""
    loader, config = twelve_batches(), replace(CONFIG, total_steps=24, initial_steps=2, final_steps=4)
    model = inject(make("bert"), config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = rf"lowers its ranks until step 20 of total_steps=24, but this run has {steps} steps .*total_steps={steps}, "
    with pytest.raises(TrainingError, match=said):
        fit(model, loader, loader, TrainingConfig(device="cpu", **settings))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("total", [6, 8])
def test_a_run_that_reaches_the_last_cut_is_taken(total: int) -> None:
    """The number that the message asks for, and a run that is cut short within the last steps, where the ranks stay."""
    loader, config = twelve_batches(), replace(CONFIG, total_steps=total, initial_steps=1, final_steps=2)
    model = inject(make("bert"), config)
    history = fit(model, loader, loader, TrainingConfig(device="cpu", epochs=2, accumulate=5, learning_rate=1e-2))
    assert len(history.steps) == 6
    assert sum(allocated_ranks(model).values()) == config.target_rank * len(layers(model))


def test_patience_waits_for_the_last_cut() -> None:
    """With a rate that helps nobody it would stop after the second epoch, before the ranks are where they should be."""
    loader, config = twelve_batches(), replace(CONFIG, total_steps=60, initial_steps=2, final_steps=26)
    model = inject(make("bert"), config)
    settings = TrainingConfig(device="cpu", epochs=5, learning_rate=1e-9, patience=1, minimum_change=1.0)
    history = fit(model, loader, loader, settings)
    assert history.stopped_early and len(history.steps) == 48 > config.last_allocation
    assert sum(allocated_ranks(model).values()) == config.target_rank * len(layers(model))


def test_ranks_that_were_allocated_before_fit_any_run() -> None:
    config = replace(CONFIG, total_steps=1000)
    config.check_steps(1000)
    replace(config, ranks={}).check_steps(1)
    LoRAConfig().check_steps(1)
    with pytest.raises(MethodError, match="this run has 1 steps"):
        config.check_steps(1)


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_merged_equals_peft(kind: str) -> None:
    ours, theirs = pair(kind, fill=True)
    reference = theirs.merge_and_unload().state_dict()
    for name, tensor in merge(ours).state_dict().items():
        if not name.startswith(("classifier", "score")):
            assert agree(tensor, reference[name]), name


@pytest.mark.parametrize(("dtype", "gate"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_half_precision_equals_peft(kind: str, dtype: torch.dtype, gate: float) -> None:
    ours, theirs = inject(make(kind).to(dtype), CONFIG), peft_model(kind, CONFIG, make(kind).to(dtype))
    fill_triplets(ours)
    copy_weights(ours, theirs)
    assert agree(logits(ours, kind), logits(theirs, kind), gate)
    layer = next(iter(layers(ours).values()))
    x = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    with torch.no_grad():
        unmerged = layer(x).float()
        assert relative(copy.deepcopy(layer).merged()(x).float(), unmerged) <= gate
    reference = theirs.merge_and_unload().state_dict()
    for name, tensor in merge(ours).state_dict().items():
        assert agree(tensor, reference[name], gate), name


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_trained_checkpoint_goes_both_ways(kind: str, tmp_path: Path) -> None:
    ours, theirs = trained_pair(kind)
    save(ours, tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    mine, reference = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert set(mine) == set(reference)
    assert all(agree(tensor, reference[name]) for name, tensor in mine.items())
    patterns = [
        json.loads((tmp_path / who / "adapter_config.json").read_text(encoding="utf-8"))["rank_pattern"]
        for who in ("ours", "theirs")
    ]
    assert patterns[0] == patterns[1]

    # A thinner product may differ from one with zeros in the last bit, so what was cut is compared with what was cut.
    expected = logits(PeftModel.from_pretrained(make(kind).to(DTYPE), tmp_path / "ours"), kind)
    assert relative(expected, logits(ours, kind)) <= rounding()
    for who in ("ours", "theirs"):
        again: Any = load(make(kind).to(DTYPE), tmp_path / who)
        assert agree(logits(again, kind), expected)
        assert allocated_ranks(again) == allocated_ranks(ours) == dict(again.tuning.ranks)
        assert replace(again.tuning, ranks=None, targets=None, head=None) == replace(CONFIG, targets=None, head=None)
        trained = count_parameters(again)
        assert trained.trainable - trained.head < sum(p.numel() for p in layers_parameters(ours))
    save(again, tmp_path / "again")
    rewritten = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(agree(tensor, mine[name]) for name, tensor in rewritten.items())
    assert agree(logits(PeftModel.from_pretrained(make(kind).to(DTYPE), tmp_path / "again"), kind), expected)
    assert relative(logits(merge(again), kind), expected) <= rounding()


def layers_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for layer in layers(model).values() for p in (layer.lora_A, layer.lora_E, layer.lora_B)]


def test_a_matrix_may_lose_its_whole_rank(tmp_path: Path) -> None:
    model = inject(make("bert"), CONFIG)
    fill_triplets(model)
    name, layer = next(iter(layers(model).items()))
    layer.kept[:] = False
    with torch.no_grad():
        layer.cut()
    save(model, tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")[f"base_model.model.{name}.lora_A"].shape == (0, HIDDEN)
    again = load(make("bert"), tmp_path)
    assert allocated_ranks(again)[name] == 0
    assert relative(logits(again, "bert"), logits(model, "bert")) <= rounding()
    assert agree(logits(PeftModel.from_pretrained(make("bert"), tmp_path), "bert"), logits(again, "bert"))
    train(again, "bert", range(1, 4))  # what is left can be trained on, and keeps its ranks
    assert allocated_ranks(again) == allocated_ranks(model)


def test_before_and_between_allocations_nothing_is_lost(tmp_path: Path) -> None:
    """Between two rankings the optimiser moves cut triplets: they are part of what the model computes, so they stay."""
    fresh = inject(make("bert"), CONFIG)
    save(fresh, tmp_path / "fresh")
    assert json.loads((tmp_path / "fresh" / "adapter_config.json").read_text(encoding="utf-8"))["rank_pattern"] is None
    assert load(make("bert"), tmp_path / "fresh").tuning.ranks is None  # type: ignore[union-attr]
    train(fresh, "bert", range(1, 16))  # the last ranking was after step 14
    assert not all(layer.kept.all() for layer in layers(fresh).values())
    save(fresh, tmp_path / "between")
    assert torch.equal(logits(load(make("bert"), tmp_path / "between"), "bert"), logits(fresh, "bert"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_pattern": {"nothing.lora_E": [True] * 2}}, "ranks names 'nothing', which is not among the targets"),
        ({"rank_pattern": {"query": 3}}, "of a wrong type"),
        ({"rank_pattern": {"bert.encoder.layer.0.attention.self.query.lora_E": [True]}}, r"shape \(5, 32\).*\(1, 32\)"),
        ({"init_r": 4}, r"\(5, 32\) in the checkpoint and \(4, 32\) in the model"),
        ({"total_step": None}, "total_steps must be a whole number"),
        ({"bias": "all"}, "bias='all'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"layers_to_transform": [0]}, r"layers_to_transform=\[0\]"),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(inject(make("bert"), CONFIG), tmp_path)
    header = tmp_path / "adapter_config.json"
    header.write_text(json.dumps(json.loads(header.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    model = make("bert")
    with pytest.raises(CheckpointError, match=message):
        load(model, tmp_path)
    assert list(model.state_dict()) == list(make("bert").state_dict())
    assert not hasattr(model, "tuning")


# --- settings and counts --------------------------------------------------------------------------------------------


def test_parameter_count_on_bert_base() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
        counted = count_parameters(inject(model, AdaLoRAConfig(total_steps=100)))
        peft_count = sum(p.numel() for n, p in peft_trainable(bert_base_in_peft()).items() if "lora_" in n)
    assert counted.trainable - counted.head == 442_656 == 24 * 12 * (768 + 768 + 1) == peft_count


def bert_base_in_peft() -> PeftModel:
    settings = AdaLoraConfig(total_step=100, task_type="SEQ_CLS")
    return get_peft_model(BertForSequenceClassification(BertConfig()), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, r"steps of the optimiser, which are epochs · ⌈len\(loader\) / accumulate⌉"),
        ({"total_steps": 2.5}, "total_steps must be a whole number of at least 0, got 2.5"),
        ({"init_rank": 0}, "init_rank must be a whole number of at least 1, got 0"),
        ({"target_rank": 0}, "target_rank must be a whole number of at least 1, got 0"),
        ({"target_rank": 12}, "target_rank must be below init_rank, got 12 and 12"),
        ({"interval": 0}, "interval must be a whole number of at least 1"),
        ({"initial_steps": -1}, "initial_steps must be a whole number of at least 0, got -1"),
        ({"initial_steps": 60, "final_steps": 40}, "total_steps=100 leaves no steps to lower the ranks in"),
        ({"total_steps": 1}, "total_steps=1 leaves no steps to lower the ranks in"),
        ({"beta1": 1}, "beta1 must be above 0 and below 1, got 1"),
        ({"beta2": 0}, "beta2 must be above 0 and below 1, got 0"),
        ({"orthogonality": -0.1}, "orthogonality must be a number of at least 0, got -0.1"),
        ({"alpha": 0}, "alpha must be a number above 0, got 0"),
        ({"dropout": 1}, "dropout is a share from 0 to below 1, got 1"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        AdaLoRAConfig(**{"total_steps": 100} | settings)


def test_total_steps_must_be_given() -> None:
    with pytest.raises(MethodError, match="AdaLoRA plans its budget over the whole training: give total_steps"):
        AdaLoRAConfig()


def test_ranks_that_name_no_target_change_nothing() -> None:
    model = make("bert")
    with pytest.raises(MethodError, match=r"ranks names 'bert\.nothing', which is not among the targets"):
        inject(model, replace(CONFIG, ranks={"bert.nothing": 2}))
    assert list(model.state_dict()) == list(make("bert").state_dict())
