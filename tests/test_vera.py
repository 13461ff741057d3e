"""VeRA equals peft's, number for number, and does what its documentation says."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALL_MODELS, CLASSIFIERS, DEVICE, HIDDEN, make, make_batch, noise, relative
from peft import PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    MethodError,
    VeRAConfig,
    VeRALinear,
    count_parameters,
    eject,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.methods.vera import Projections

CONFIG = VeRAConfig(rank=7, initial_d=0.3, projection_seed=5, targets="all-linear")
A, B = "base_model.vera_A", "base_model.vera_B"


def peft_model(kind: str, config: VeRAConfig, model: Any = None) -> Any:
    """The same model under peft's own VeRA."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Llama has no Conv1D, GPT-2 has little else; no projections in the checkpoint
        settings = VeraConfig(
            r=config.rank,
            d_initial=config.initial_d,
            vera_dropout=config.dropout,
            projection_prng_key=config.projection_seed,
            save_projection=config.save_projection,
            target_modules=config.targets,  # type: ignore[arg-type]
            task_type="SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM",
            fan_in_fan_out=kind.startswith("gpt2"),
        )
        return get_peft_model(make(kind) if model is None else model, settings).eval()


def peft_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """peft's parameters under our names."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".default").replace(".modules_to_save.default", ""): p
        for name, p in trainable_parameters(model).items()
    }


def fill_vectors(model: nn.Module, *, seed: int = 3) -> None:
    """Draw every b and d at random, so that the update is far from zero. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vera_lambda_" in name:
                parameter.copy_(noise(parameter, generator))


def pair(kind: str, config: VeRAConfig = CONFIG, model: Callable[[], Any] | None = None) -> tuple[Any, Any]:
    """Ours and peft's with the same vectors, far from where they start; each draws its A and B itself."""
    ours = inject(make(kind) if model is None else model(), config)
    theirs = peft_model(kind, config, None if model is None else model())
    fill_vectors(ours)
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])
    return ours, theirs


def difference(ours: Any, theirs: Any, kind: str) -> str:
    """What differs between ours and peft's with the same vectors: "" if every bit is equal."""
    shared, reference = projections(ours), theirs.base_model
    if not (torch.equal(shared.A, reference.vera_A["default"]) and torch.equal(shared.B, reference.vera_B["default"])):
        return "the shared matrices"
    batch = make_batch(kind)
    mine, expected = ours(**batch), theirs(**batch)
    if not torch.equal(mine.logits, expected.logits):
        return "the logits"
    mine.loss.backward()
    expected.loss.backward()
    gradients = {name: p.grad for name, p in trainable_parameters(ours).items()}
    for name, parameter in peft_trainable(theirs).items():
        if gradients[name] is None or not torch.equal(gradients[name], parameter.grad):  # type: ignore[arg-type]
            return f"the gradient of {name}"
    return ""


def layers(model: nn.Module) -> dict[str, VeRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, VeRALinear)}


def projections(model: nn.Module) -> Projections:
    shared = {id(layer.projections): layer.projections for layer in layers(model).values()}
    assert len(shared) == 1
    return next(iter(shared.values()))


@torch.no_grad()
def logits(model: Any, kind: str) -> torch.Tensor:
    return model.eval()(**make_batch(kind)).logits


# --- equal to peft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, VeRAConfig()], ids=["all-linear", "defaults"])
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_projections_forward_and_gradients_equal_peft(kind: str, config: VeRAConfig) -> None:
    ours, theirs = pair(kind, config)
    assert difference(ours, theirs, kind) == ""
    assert not torch.allclose(logits(ours, kind), logits(make(kind), kind), rtol=1e-2)


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ten_steps_give_peft_s_weights_bit_for_bit(kind: str) -> None:
    ours, theirs = inject(make(kind), CONFIG), peft_model(kind, CONFIG)  # from the start, where b is zero
    with torch.no_grad():
        for name, parameter in peft_trainable(theirs).items():
            assert name.startswith(("classifier", "score")) or torch.equal(parameter, trainable_parameters(ours)[name])
            parameter.copy_(trainable_parameters(ours)[name])
    frozen = [m.clone() for m in (projections(ours).A, projections(ours).B)]
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    for name, parameter in peft_trainable(theirs).items():
        assert torch.equal(trainable_parameters(ours)[name], parameter), name
    assert all(torch.equal(a, b) for a, b in zip(frozen, (projections(ours).A, projections(ours).B), strict=True))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_dropout_equals_peft_under_one_seed(kind: str) -> None:
    ours, theirs = pair(kind, VeRAConfig(rank=7, dropout=0.3, targets="all-linear"))
    results = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(5)
        results.append(model(**make_batch(kind)).logits)
    assert torch.equal(*results)
    assert not torch.equal(results[0], logits(ours, kind))


@pytest.mark.parametrize(("dtype", "gate"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_half_precision_equals_peft(kind: str, dtype: torch.dtype, gate: float) -> None:
    ours, theirs = pair(kind, model=lambda: make(kind).to(dtype))
    assert difference(ours, theirs, kind) == ""
    assert projections(ours).A.dtype == torch.float32
    layer = next(iter(layers(ours).values()))
    x = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    with torch.no_grad():
        unmerged = layer(x).float()
        assert relative(copy.deepcopy(layer).merged()(x).float(), unmerged) <= gate
    reference = theirs.merge_and_unload().state_dict()
    for name, tensor in merge(ours).state_dict().items():
        assert torch.equal(tensor, reference[name]), name


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_merged_equals_peft(kind: str) -> None:
    ours, theirs = pair(kind)
    theirs.merge_adapter()  # on RoBERTa, peft's merge_and_unload stumbles over the head
    assert torch.equal(logits(merge(ours), kind), logits(theirs, kind))
    assert not any(isinstance(module, Projections) for module in ours.modules())


def test_the_parity_check_sees_the_classic_mistakes() -> None:
    ours, theirs = pair("llama")
    shared = projections(ours)
    shared.A = torch.randn_like(shared.A)  # another draw
    assert difference(ours, theirs, "llama") == "the shared matrices"

    ours, theirs = pair("llama")  # the last rows of B for a narrow layer, not the first
    narrow = next(layer for layer in layers(ours).values() if layer.outputs < projections(ours).B.shape[0])
    narrow.projections = copy.deepcopy(narrow.projections)
    narrow.projections.B = narrow.projections.B.flip(0)
    assert not torch.equal(logits(ours, "llama"), logits(theirs, "llama"))

    ours, theirs = pair("bert")
    with torch.no_grad():
        for layer in layers(ours).values():
            layer.vera_lambda_d.abs_()  # d is not a scale that has to be positive
    assert difference(ours, theirs, "bert") == "the logits"

    ours, theirs = pair("bert")
    for layer in layers(ours).values():
        layer.vera_lambda_d.requires_grad_(False)  # d left untrained
    with pytest.raises(KeyError, match="vera_lambda_d"):
        difference(ours, theirs, "bert")


# --- the shared matrices --------------------------------------------------------------------------------------------


def test_one_pair_of_matrices_is_shared_and_frozen_and_counted_nowhere() -> None:
    model = inject(make("llama"), CONFIG)
    shared = projections(model)
    assert (shared.A.shape, shared.B.shape) == ((7, 48), (48, 7))  # the widest of each, which no single layer has
    assert not any(layer.inputs == layer.outputs == 48 for layer in layers(model).values())
    assert not list(shared.parameters())
    assert sum(buffer is shared.A for buffer in model.buffers()) == 1
    learnt = sum(7 + layer.outputs for layer in layers(model).values())
    count, plain = count_parameters(model), count_parameters(make("llama"))
    assert (count.trainable - count.head, count.total - plain.total) == (learnt, learnt)
    assert not [name for name in model.state_dict() if "projections" in name]


def test_copies_moves_and_state_dicts_keep_them_right() -> None:
    model = inject(make("bert"), CONFIG)
    fill_vectors(model)
    expected = logits(model, "bert")
    twin = copy.deepcopy(model)
    assert projections(twin) is not projections(model)  # one object within each
    assert projections(twin).A.data_ptr() != projections(model).A.data_ptr()
    twin.to(torch.bfloat16)
    assert projections(twin).A.dtype == projections(twin).B.dtype == torch.bfloat16
    assert projections(model).A.dtype == torch.float32
    assert relative(logits(twin, "bert").float(), expected) < 0.1
    other = inject(make("bert", seed=2), CONFIG, seed=9)  # the seed of `inject` is another
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, "bert"), expected)
    assert list(eject(model).state_dict()) == list(make("bert").state_dict())


def test_the_seed_of_the_projections_decides() -> None:
    first, same, other = (projections(inject(make("bert"), VeRAConfig(rank=4, projection_seed=s))) for s in (0, 0, 1))
    assert torch.equal(first.A, same.A)
    assert not torch.equal(first.A, other.A)
    assert first.A.abs().max() <= (6 / HIDDEN) ** 0.5
    assert first.B.abs().max() <= (6 / 4) ** 0.5


# --- checkpoints ----------------------------------------------------------------------------------------------------

SAVED = [CONFIG, VeRAConfig(rank=6, initial_d=-0.2, dropout=0.1, projection_seed=8, save_projection=False)]


@pytest.mark.filterwarnings("ignore:Specified to not")
@pytest.mark.parametrize("config", SAVED, ids=["with matrices", "from the seed"])
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_checkpoints_go_both_ways(kind: str, config: VeRAConfig, tmp_path: Path) -> None:
    ours, theirs = pair(kind, config)
    expected = logits(ours, kind)
    save(ours, tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    mine, reference = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert set(mine) == set(reference)
    assert (A in mine) == config.save_projection
    assert all(torch.equal(tensor, reference[name]) for name, tensor in mine.items())
    assert torch.equal(logits(PeftModel.from_pretrained(make(kind), tmp_path / "ours"), kind), expected)
    for who in ("ours", "theirs"):
        again: Any = load(make(kind), tmp_path / who)
        assert torch.equal(logits(again, kind), expected)
        assert [getattr(again.tuning, name) for name in ("rank", "initial_d", "dropout", "save_projection")] == [
            getattr(config, name) for name in ("rank", "initial_d", "dropout", "save_projection")
        ]


def test_the_saved_matrices_count_and_not_the_seed(tmp_path: Path) -> None:
    """As if another version of PyTorch had drawn them."""
    _, theirs = pair("bert")
    theirs.base_model.vera_A["default"].mul_(-1.5)
    theirs.base_model.vera_B["default"].add_(0.1)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = load(make("bert"), tmp_path / "theirs")
    assert torch.equal(logits(ours, "bert"), logits(theirs, "bert"))
    save(ours, tmp_path / "ours")
    assert torch.equal(logits(load(make("bert"), tmp_path / "ours"), "bert"), logits(theirs, "bert"))


@pytest.mark.filterwarnings("ignore:Specified to not")
@pytest.mark.parametrize("save_projection", [True, False])
def test_peft_s_half_precision_checkpoint_means_the_same_here(save_projection: bool, tmp_path: Path) -> None:
    config = VeRAConfig(rank=7, save_projection=save_projection)
    _, theirs = pair("bert", config, lambda: make("bert").to(torch.bfloat16))
    theirs.save_pretrained(str(tmp_path))
    assert torch.equal(logits(load(make("bert").to(torch.bfloat16), tmp_path), "bert"), logits(theirs, "bert"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A), "the checkpoint lacks base_model.vera_A, which save_projection=True says that it holds"),
        (lambda t: t.update({B: t[B][:40].clone()}), r"base_model.vera_B has the shape \(40, 7\).* needs \(48, 7\)"),
        (lambda t: t.update({A: t[A].T.contiguous()}), r"base_model.vera_A has the shape \(48, 7\)"),
        (lambda t: t.update({A + ".x": t[A].clone()}), "unexpected key 'base_model.vera_A.x'"),
        (
            lambda t: t.pop("base_model.model.bert.pooler.dense.vera_lambda_b"),
            "missing bert.pooler.dense.vera_lambda_b",
        ),
    ],
)
def test_damaged_tensors_are_refused(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    file = save(inject(make("bert"), CONFIG), tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    refuses(tmp_path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 6}, r"base_model.vera_A has the shape \(7, 48\) in the checkpoint, and the model needs \(6, 48\)"),
        ({"save_projection": False}, "unexpected key 'base_model.vera_A'"),
        ({"bias": "vera_only"}, "bias='vera_only'"),
        ({"layers_to_transform": 0}, "layers_to_transform=0"),
        ({"d_initial": "x"}, "initial_d must be a number"),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    header = save(inject(make("bert"), CONFIG), tmp_path) / "adapter_config.json"
    header.write_text(json.dumps(json.loads(header.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    refuses(tmp_path, message)


def refuses(folder: Path, message: str) -> None:
    model = make("bert")
    with pytest.raises(CheckpointError, match=message):
        load(model, folder)
    assert list(model.state_dict()) == list(make("bert").state_dict())
    assert not hasattr(model, "tuning")


# --- settings and counts --------------------------------------------------------------------------------------------


def test_parameter_count_on_bert_base() -> None:
    with torch.device("meta"):
        counted = count_parameters(inject(BertForSequenceClassification(BertConfig()), VeRAConfig()))
        theirs = get_peft_model(BertForSequenceClassification(BertConfig()), VeraConfig(task_type="SEQ_CLS"))
    peft_count = sum(p.numel() for name, p in theirs.named_parameters() if p.requires_grad and "vera_" in name)
    assert counted.trainable - counted.head == 24_576 == 24 * (256 + 768) == peft_count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"initial_d": 0}, "initial_d must be a number other than 0, got 0: at 0 nothing is learnt"),
        ({"initial_d": "a"}, "initial_d must be a number other than 0, got 'a'"),
        ({"dropout": 1}, "dropout is a share from 0 to below 1, got 1"),
        ({"projection_seed": -1}, "projection_seed must be a whole number of at least 0, got -1"),
        ({"projection_seed": 1.5}, "projection_seed must be a whole number of at least 0, got 1.5"),
        ({"save_projection": 1}, "save_projection must be True or False, got 1"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        VeRAConfig(**settings)
