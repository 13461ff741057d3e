"""DoRA equals peft's: outputs, gradients, steps, merge and checkpoints.

Ours finds the length of the rows of W + ΔW without forming ΔW, which rounds otherwise than peft's norm. So the two are
compared twice: with peft's way to that one number put in place of ours, bit for bit; and as it is, within the rounding
of float64 and of float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import (
    ALL_MODELS,
    CLASSIFIERS,
    DEPTH,
    DEVICE,
    HIDDEN,
    Batch,
    agree,
    make,
    make_batch,
    noise,
    relative,
    rounding,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_lora import plain_name
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    DoRAConfig,
    DoRALinear,
    LoRAConfig,
    MethodError,
    count_parameters,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.methods.targets import turned

#: The factor is no power of two: the order of the products shows in the last bit.
CONFIG = DoRAConfig(rank=3, alpha=7, targets="all-linear")


def peft_model(kind: str, config: DoRAConfig, model: Any = None) -> PeftModel:
    """The same model under peft's own DoRA."""
    settings = LoraConfig(
        use_dora=True,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft takes fractions too
        lora_dropout=config.dropout,
        use_rslora=config.rank_stabilized,
        target_modules=config.targets,  # type: ignore[arg-type]
        task_type="SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM",
        fan_in_fan_out=kind.startswith("gpt2"),
    )
    return get_peft_model(make(kind) if model is None else model, settings).eval()


def peft_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """peft's trained parameters under our names."""
    named = {plain_name(name): parameter for name, parameter in trainable_parameters(model).items()}
    return {name.replace("magnitude_vector.weight", "magnitude_vector"): p for name, p in named.items()}


@torch.no_grad()
def fill(model: nn.Module, *, seed: int = 1) -> None:
    """A, B and m far from where they begin, under whoever's names. In place."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            drawn = noise(parameter, generator)
            parameter.copy_(parameter * (1 + 0.2 * drawn) if "magnitude" in name else 0.1 * drawn)


class FormedDelta(DoRALinear):
    """The lengths as peft finds them: W + ΔW is formed.

    To run, peft sends the identity through A and B; to merge, it multiplies B and A. The two add in other orders.
    """

    @torch.no_grad()
    def row_lengths(self) -> torch.Tensor:
        weight, identity = turned(self.base, self.base.weight), torch.eye(self.lora_A.in_features, device=DEVICE)
        update = self.lora_B(self.lora_A(identity.to(self.lora_A.weight))).T
        return torch.linalg.norm(weight + self.scaling * update, dim=1)

    def merged(self) -> nn.Module:
        self.__class__ = MultipliedDelta
        return super().merged()


class MultipliedDelta(FormedDelta):
    """The lengths that peft merges with."""

    @torch.no_grad()
    def row_lengths(self) -> torch.Tensor:
        return torch.linalg.norm(turned(self.base, self.base.weight) + self.delta(), dim=1)

    def merged(self) -> nn.Module:
        return DoRALinear.merged(self)


def pair(
    kind: str,
    config: DoRAConfig = CONFIG,
    dtype: torch.dtype = torch.float32,
    *,
    layer: type[DoRALinear] = DoRALinear,
) -> tuple[nn.Module, PeftModel]:
    """Ours, made of this kind of layer, and peft's with the same A, B and m."""
    ours, theirs = inject(make(kind).to(dtype), config), peft_model(kind, config, make(kind).to(dtype))
    for module in [m for m in ours.modules() if isinstance(m, DoRALinear)]:
        module.__class__ = layer
    fill(ours)
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])
    return ours, theirs


def differences(ours: nn.Module, theirs: PeftModel, batch: Batch, *, seed: int = 0) -> dict[str, float]:
    """What does not agree after one forward and backward pass (see `models.agree`), and the relative difference."""
    outputs = []
    for model in (ours, theirs):
        model.zero_grad()
        torch.manual_seed(seed)  # of the dropout, where there is one
        outputs.append(model(**batch))
        outputs[-1].loss.backward()
    pairs = {"logits": (outputs[0].logits, outputs[1].logits), "loss": (outputs[0].loss, outputs[1].loss)}
    for name, parameter in peft_trainable(theirs).items():
        gradient = trainable_parameters(ours)[name].grad
        assert gradient is not None
        assert parameter.grad is not None
        pairs[f"gradient of {name}"] = (gradient, parameter.grad)
    return {name: relative(*both) for name, both in pairs.items() if not agree(*both)}


# --- equal to peft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_fresh_dora_changes_nothing_and_starts_as_peft_s(kind: str) -> None:
    ours, theirs = inject(make(kind), CONFIG), peft_model(kind, CONFIG)
    batch = make_batch(kind)
    assert torch.equal(ours(**batch).logits, make(kind)(**batch).logits)
    magnitudes = {name: p for name, p in peft_trainable(theirs).items() if "magnitude" in name}
    assert len(magnitudes) == sum(isinstance(m, DoRALinear) for m in ours.modules()) > 0
    for name, parameter in magnitudes.items():
        assert relative(trainable_parameters(ours)[name], parameter) <= rounding(terms=HIDDEN, depth=1), name


@pytest.mark.parametrize("config", [CONFIG, DoRAConfig(rank=5, alpha=4, rank_stabilized=True)], ids=str)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_forward_and_gradients_equal_peft(kind: str, config: DoRAConfig) -> None:
    batch = make_batch(kind)
    assert differences(*pair(kind, config, layer=FormedDelta), batch) == {}
    for dtype in (torch.float64, torch.float32):  # the same formula: only the type rounds
        ours, theirs = pair(kind, config, dtype)
        found = differences(ours, theirs, batch)
        assert found.get("logits", 0) <= rounding(dtype)
        assert max(found.values(), default=0) <= rounding(dtype, depth=2 * DEPTH)
    assert not torch.allclose(ours(**batch).logits, make(kind)(**batch).logits, rtol=1e-2)  # DoRA does do something


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_dropout_equals_peft_under_one_seed(kind: str) -> None:
    ours, theirs = pair(kind, DoRAConfig(dropout=0.3, targets="all-linear"), layer=FormedDelta)
    batch = make_batch(kind)
    plain = ours(**batch).logits
    assert differences(ours.train(), theirs.train(), batch) == {}
    assert not torch.allclose(ours(**batch).logits, plain, rtol=1e-2)
    assert differences(ours.eval(), theirs.eval(), batch) == {}


def ten_steps(ours: nn.Module, theirs: PeftModel, kind: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Train both and return each trained weight of both; each must have moved."""
    start = {name: p.detach().clone() for name, p in trainable_parameters(ours).items()}
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    weights = {name: (trainable_parameters(ours)[name], p) for name, p in peft_trainable(theirs).items()}
    assert not any(torch.equal(mine, start[name]) for name, (mine, _) in weights.items())
    return weights


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ten_steps_give_peft_s_weights(kind: str) -> None:
    for name, both in ten_steps(*pair(kind, layer=FormedDelta), kind).items():
        assert agree(*both, 1e-3), name
    # Adam divides by the size of a gradient, so where it is close to zero rounding may turn a step around: the whole
    # must agree, not each number.
    weights = ten_steps(*pair(kind), kind).values()
    assert relative(*(torch.cat([weight.flatten() for weight in side]) for side in zip(*weights, strict=True))) <= 1e-4


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_the_lengths_are_those_of_the_formed_matrix(kind: str) -> None:
    ours, _ = pair(kind)
    for layer in (m for m in ours.modules() if isinstance(m, DoRALinear)):
        lengths = layer.row_lengths()
        layer.__class__ = FormedDelta
        assert relative(lengths, layer.row_lengths()) <= rounding(depth=3)


def test_rows_that_the_update_undoes_have_no_length_and_not_nan() -> None:
    layer = DoRALinear(nn.Linear(4, 4, bias=False), DoRAConfig(rank=4, alpha=4))
    with torch.no_grad():
        layer.lora_A.weight.copy_(torch.eye(4))
        layer.lora_B.weight.copy_(-layer.base.weight)  # W + B A = 0
    lengths = layer.row_lengths()
    assert lengths.isfinite().all() and lengths.max() < 1e-3


# --- the classic mistakes -------------------------------------------------------------------------------------------


class NotDetached(DoRALinear):
    """The length of the rows takes part in the gradient."""

    row_lengths = FormedDelta.row_lengths.__wrapped__  # type: ignore[attr-defined]  # without @torch.no_grad


class ColumnLengths(DoRALinear):
    """The length of each input's column, as a careless reading of the paper's ‖·‖_c suggests."""

    @torch.no_grad()
    def row_lengths(self) -> torch.Tensor:
        return torch.linalg.norm(self.base.weight + self.delta(), dim=0)


class ScaledBias(DoRALinear):
    """The bias is scaled with the rest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = self.lora_magnitude_vector / self.row_lengths()
        return g * (self.base(x) + self.lora_B(self.lora_A(x)) * self.scaling)


def with_mistake(mistake: type[DoRALinear]) -> dict[str, float]:
    """What the comparison says when one layer of the tiny BERT makes a mistake."""
    ours, theirs = pair("bert", DoRAConfig(rank=4, alpha=8), layer=FormedDelta)
    batch = make_batch("bert")
    assert differences(ours, theirs, batch) == {}
    next(m for m in ours.modules() if isinstance(m, DoRALinear)).__class__ = mistake
    return differences(ours, theirs, batch)


def test_a_missing_detach_shows_in_the_gradients_alone() -> None:
    found = with_mistake(NotDetached)
    layer = "bert.encoder.layer.0.attention.self.query"
    assert set(found) == {f"gradient of {layer}.lora_A.weight", f"gradient of {layer}.lora_B.weight"}
    assert min(found.values()) > 0.05


@pytest.mark.parametrize("mistake", [ColumnLengths, ScaledBias])
def test_a_wrong_formula_shows_in_the_logits(mistake: type[DoRALinear]) -> None:
    assert with_mistake(mistake)["logits"] > 1e-4


# --- merging, half precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_merged_equals_unmerged_and_peft(kind: str) -> None:
    ours, theirs = pair(kind)
    batch = make_batch(kind)
    with torch.no_grad():
        unmerged = ours(**batch).logits
        merged = merge(ours)(**batch).logits
        assert relative(merged, unmerged) <= rounding()
        reference = theirs.merge_and_unload()(**batch).logits
        assert relative(merged, reference) <= rounding()
        assert agree(merge(pair(kind, layer=FormedDelta)[0])(**batch).logits, reference)


@pytest.mark.parametrize(("dtype", "gate"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_half_precision_equals_peft(kind: str, dtype: torch.dtype, gate: float) -> None:
    ours, theirs = pair(kind, CONFIG, dtype, layer=FormedDelta)
    layer = next(m for m in ours.modules() if isinstance(m, DoRALinear))
    x = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    batch = make_batch(kind)
    with torch.no_grad():
        assert ours(**batch).logits.dtype == dtype
        assert agree(ours(**batch).logits, theirs(**batch).logits, gate)
        unmerged = layer(x).float()
        reference = theirs.merge_and_unload().state_dict()
        for name, tensor in merge(ours).state_dict().items():
            assert tensor.dtype == reference[name].dtype
            assert agree(tensor, reference[name], gate), name
        assert relative(layer.base(x).float(), unmerged) <= gate


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_fresh_dora_changes_nothing_in_half_precision_where_peft_rounds_m(kind: str) -> None:
    """The one deviation: peft measures m in the base's own type, we in float32."""
    half, batch = make(kind).to(torch.bfloat16), make_batch(kind)
    expected = half(**batch).logits
    assert torch.equal(inject(half, CONFIG)(**batch).logits, expected)
    theirs = peft_trainable(peft_model(kind, CONFIG, make(kind).to(torch.bfloat16)))
    for name, parameter in trainable_parameters(half).items():
        if "magnitude" in name:
            assert parameter.dtype == theirs[name].dtype == torch.float32
            assert 0 < relative(parameter, theirs[name]) < 2**-8


# --- what is inserted -----------------------------------------------------------------------------------------------


def test_parameter_count_on_bert_base() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    count = count_parameters(inject(model, DoRAConfig(rank=8)))
    assert count.trainable - count.head == 313_344 == 12 * 2 * (8 * (768 + 768) + 768)


def test_a_row_of_zeros_is_refused_and_nothing_changes() -> None:
    model = make("gpt2")
    layer = model.transformer.h[1].attn.c_attn
    layer.weight.data[:, 5] = 0  # Conv1D: (in, out)
    with pytest.raises(MethodError, match="1 of the 96 rows of a target are zero"):
        inject(model, DoRAConfig())
    assert not any(isinstance(m, DoRALinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_settings_are_checked_as_those_of_lora() -> None:
    with pytest.raises(MethodError, match="rank must be a whole number of at least 1, got 0"):
        DoRAConfig(rank=0)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def logits(model: Any, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**make_batch(kind)).logits


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_checkpoints_go_both_ways(kind: str, tmp_path: Path) -> None:
    config = DoRAConfig(rank=4, alpha=2.5, targets="all-linear", rank_stabilized=True)
    ours, theirs = pair(kind, config)
    with torch.no_grad():
        for parameter in (p for name, p in trainable_parameters(ours).items() if "lora_" not in name):
            parameter.mul_(1.5)  # the head is saved too
    expected, of_peft = logits(ours, kind), logits(theirs, kind)
    save(ours, tmp_path / "ours")
    assert relative(logits(PeftModel.from_pretrained(make(kind), tmp_path / "ours"), kind), expected) <= rounding()
    again = load(make(kind), tmp_path / "ours")
    assert torch.equal(logits(again, kind), expected)
    assert isinstance(again.tuning, DoRAConfig)
    theirs.save_pretrained(str(tmp_path / "peft"))
    assert relative(logits(load(make(kind), tmp_path / "peft"), kind), of_peft) <= rounding()
    assert set(load_file(tmp_path / "ours" / "adapter_model.safetensors")) == set(
        load_file(tmp_path / "peft" / "adapter_model.safetensors")
    )


def test_the_magnitude_s_key_with_and_without_weight(tmp_path: Path) -> None:
    model = inject(make("bert"), DoRAConfig())
    fill(model)
    file = save(model, tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    magnitudes = [key for key in tensors if "magnitude" in key]
    assert all(key.endswith(".lora_magnitude_vector") for key in magnitudes)
    renamed = {f"{key}.weight" if key in magnitudes else key: tensor for key, tensor in tensors.items()}
    save_file(renamed, file)
    assert torch.equal(logits(load(make("bert"), tmp_path), "bert"), logits(model, "bert"))
    save_file(renamed | {magnitudes[0]: tensors[magnitudes[0]].clone()}, file)
    with pytest.raises(CheckpointError, match=r"is there twice, with and without \.weight"):
        load(make("bert"), tmp_path)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (DoRAConfig(), {"use_dora": False}, "unexpected .*lora_magnitude_vector"),
        (LoRAConfig(), {"use_dora": True}, "missing .*lora_magnitude_vector"),
        (DoRAConfig(), {"init_lora_weights": "pissa"}, "init_lora_weights='pissa' also changes"),
        (DoRAConfig(), {"bias": "lora_only"}, "bias='lora_only'"),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_refused(
    config: LoRAConfig, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = save(inject(make("bert"), config), tmp_path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    model = make("bert")
    with pytest.raises(CheckpointError, match=message):
        load(model, tmp_path)
    assert list(model.state_dict()) == list(make("bert").state_dict())
    assert not hasattr(model, "tuning")
