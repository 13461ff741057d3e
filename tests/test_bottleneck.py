"""Houlsby, Pfeiffer and parallel adapters equal those of the library `adapters`, and do what their documentation says.

What they share with every other method (training, checkpoints, padding, generation ...) is in `test_every_method.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import move
from golden.make_adapters import ACTIVATIONS, FILE, KINDS, SIZE, STEPS, fill, is_norm, train
from models import ALL_MODELS, DEVICE, HIDDEN, LAYERS, make, make_batch, relative, rounding
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from course_utils.methods import MethodError, count_parameters, inject, merge, trainable_parameters
from course_utils.methods.adapter_layers import (
    AdaptedFeedForward,
    AdaptedOutput,
    AdapterAfter,
    NormAndInput,
    TrainedNorm,
)
from course_utils.methods.adapters import HoulsbyConfig, ParallelAdapterConfig, PfeifferConfig
from course_utils.methods.bottleneck import Bottleneck, BottleneckConfig

METHODS: dict[str, type[BottleneckConfig]] = {
    "houlsby": HoulsbyConfig,
    "pfeiffer": PfeifferConfig,
    "parallel": ParallelAdapterConfig,
}
GOLDEN = load_file(FILE)
GATE = 1e-6  # the golden file was computed in float64 and holds float32


def canonical(name: str) -> str:
    """Our name of a trained parameter → its name in the golden file."""
    if ".adapter." not in name:
        return name.replace(".trained.", ".")
    block = re.search(r"\.(\d+)\.", name)
    assert block is not None
    sublayer = "attention" if re.search(r"attention\.output|attn", name) else "feed_forward"
    return f"{block[1]}.{sublayer}.adapter.{name.split('.adapter.')[1]}"


def filled(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """The tiny model with the golden file's weights."""
    model = make(kind).to(dtype)
    fill(dict(model.named_parameters()))
    return model


def run(
    kind: str, config: BottleneckConfig, dtype: torch.dtype = torch.float64, steps: int = STEPS
) -> dict[str, torch.Tensor]:
    """All that the golden file holds of one method on one model, computed by ours."""
    model = inject(filled(kind, dtype), config)
    parameters = {canonical(name): p for name, p in trainable_parameters(model).items()}
    fill({name: p for name, p in parameters.items() if ".adapter." in name})
    return train(model, parameters, [make_batch(kind, seed=seed) for seed in range(steps)])


def config_for(kind: str, method: str, **settings: Any) -> BottleneckConfig:
    golden: dict[str, Any] = {"size": SIZE, "activation": ACTIVATIONS[kind], "head": ()}
    return METHODS[method](**golden | settings)


def difference(ours: dict[str, torch.Tensor], prefix: str, gate: float = GATE) -> str:
    """What of ours is missing or further than the gate from the golden file, or ""."""
    golden = {name.removeprefix(prefix): tensor for name, tensor in GOLDEN.items() if name.startswith(prefix)}
    if set(ours) != set(golden):
        return f"other names: {sorted(set(ours) ^ set(golden))[:3]}"
    errors = {name: relative(ours[name], expected) for name, expected in golden.items()}
    worst = max(errors, key=lambda name: errors[name])
    return f"{worst}: {errors[worst]:.1e}" if errors[worst] > gate else ""


# --- equal to `adapters` --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_are_those_of_the_golden_file(kind: str) -> None:
    tokens = torch.stack([make_batch(kind, seed=seed)["input_ids"] for seed in range(STEPS)])
    assert torch.equal(tokens.cpu(), GOLDEN["input_ids"].long())
    assert relative(filled(kind)(**make_batch(kind)).logits, GOLDEN[f"{kind}/plain"]) <= GATE
    for method in METHODS:  # the adapters weigh enough to be seen
        assert relative(GOLDEN[f"{kind}/{method}/logits"], GOLDEN[f"{kind}/plain"]) > 0.1
    assert FILE.stat().st_size < 200_000


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_gradients_and_ten_steps_equal_adapters(kind: str, method: str) -> None:
    ours = run(kind, config_for(kind, method))
    assert difference(ours, f"{kind}/{method}/") == ""
    adapters = 4 if method == "houlsby" else 2
    assert sum(".adapter." in name for name in ours) == 2 * 4 * adapters  # gradients and weights of D, b, U, c
    if method == "houlsby":
        norms = {f"gradient/{name}" for name, _ in make(kind).named_parameters() if is_norm(name)}
        assert norms == {name for name in ours if name.startswith("gradient/") and ".adapter." not in name}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_loss_equal_adapters_in_single_precision_too(kind: str, method: str) -> None:
    ours = run(kind, config_for(kind, method), torch.float32, steps=1)
    for name in ("logits", "loss"):
        assert relative(ours[name], GOLDEN[f"{kind}/{method}/{name}"]) <= rounding(), name


def _no_shortcut(self: Any, z: torch.Tensor) -> torch.Tensor:
    return self.adapter(self.base(z))


def _reads_h(self: Any, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    h = self.base.dropout(self.base.dense(hidden))
    return self.base.LayerNorm(h + self.adapter(h) + x)


def _reads_normalised(self: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    h = self.base(inputs[0])
    return h + self.adapter(inputs[0])


MISTAKES: list[tuple[str, str, type[nn.Module], Callable[..., torch.Tensor]]] = [
    ("bert", "houlsby", AdapterAfter, _no_shortcut),
    ("bert", "pfeiffer", AdaptedOutput, _reads_h),
    ("roberta", "parallel", AdaptedOutput, _reads_h),
    ("llama", "parallel", AdaptedFeedForward, _reads_normalised),
    ("gpt2", "pfeiffer", AdaptedFeedForward, _reads_normalised),
    # The trained copy takes part, or `inject` would refuse it by itself.
    ("llama", "houlsby", TrainedNorm, lambda self, z: self.base(z) + 0 * self.trained(z)),
]


@pytest.mark.parametrize(("kind", "method", "layer", "forward"), MISTAKES)
def test_the_comparison_finds_a_wrong_forward(
    kind: str, method: str, layer: type[nn.Module], forward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer, "forward", forward)
    assert difference(run(kind, config_for(kind, method)), f"{kind}/{method}/") != ""


@pytest.mark.parametrize(
    ("method", "settings"),
    [("parallel", {"scaling": 1.0}), ("houlsby", {"activation": "gelu"}), ("pfeiffer", {"activation": "relu"})],
    ids=str,
)
def test_the_comparison_finds_a_wrong_setting(method: str, settings: dict[str, Any]) -> None:
    found = difference(run("bert", config_for("bert", method, **settings)), f"bert/{method}/")
    assert re.search(r"\d\.\de[+-]\d\d$", found)


# --- where they start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_no_standard_deviation_starts_exactly_from_the_pretrained_model(kind: str, method: str) -> None:
    plain, batch = make(kind, dropout=0.2), make_batch(kind)
    model = inject(make(kind, dropout=0.2), METHODS[method](size=SIZE, initial_std=None))
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    logits = []
    for trained in (plain.train(), model.train()):  # and the model's own dropout falls as it did
        torch.manual_seed(0)
        logits.append(trained(**batch).logits)
    assert torch.equal(*logits)
    model(**batch).loss.backward()
    for adapter in (m for m in model.modules() if isinstance(m, Bottleneck)):
        bound = HIDDEN**-0.5
        assert 0.9 * bound < adapter.down.weight.abs().max() <= bound
        assert adapter.up.weight.grad is not None
        assert adapter.up.weight.grad.any()  # so that training can begin


@pytest.mark.parametrize(("method", "std"), [("houlsby", 0.001), ("pfeiffer", 0.02)])
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_the_papers_start_near_the_pretrained_model(kind: str, method: str, std: float) -> None:
    model, batch = inject(make(kind), METHODS[method](size=SIZE)), make_batch(kind)
    distance = relative(model(**batch).logits, make(kind)(**batch).logits)
    assert 0 < distance < std
    for adapter in (m for m in model.modules() if isinstance(m, Bottleneck)):
        for layer in (adapter.down, adapter.up):
            assert layer.weight.abs().max() <= 2 * std
            assert 0.7 * std < layer.weight.std() < std  # cutting off at two standard deviations leaves 0.88 of one
            assert not layer.bias.any()


# --- what is inserted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "adapters", "norms"),
    [
        (HoulsbyConfig(), 1_789_056, 38_400),
        (PfeifferConfig(), 894_528, 0),
        (ParallelAdapterConfig(), 7_091_712, 0),
        (PfeifferConfig(size=64), 1_189_632, 0),
    ],
    ids=str,
)
def test_parameter_count_on_bert_base(config: BottleneckConfig, adapters: int, norms: int) -> None:
    with torch.device("meta"):
        model = inject(BertForSequenceClassification(BertConfig()), config)
    count = count_parameters(model)
    assert (count.trainable - count.head, count.head) == (adapters + norms, 1_538)
    assert count.total == 109_483_778 + adapters + norms
    size = config.size or 768 // config.reduction
    places = 24 if isinstance(config, HoulsbyConfig) else 12
    assert adapters == places * (2 * size * 768 + size + 768)
    assert norms in (0, 25 * 2 * 768)  # the embeddings' and two in each block


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_sizes_follow_the_model_and_never_reach_zero(kind: str) -> None:
    for config, size in [
        (HoulsbyConfig(), HIDDEN // 16),
        (ParallelAdapterConfig(), HIDDEN // 2),
        (PfeifferConfig(size=7), 7),
    ]:
        adapters = [m for m in inject(make(kind), config).modules() if isinstance(m, Bottleneck)]
        assert len(adapters) == LAYERS * (2 if isinstance(config, HoulsbyConfig) else 1)
        assert {tuple(m.down.weight.shape) for m in adapters} == {(size, HIDDEN)}
        assert {tuple(m.up.weight.shape) for m in adapters} == {(HIDDEN, size)}
    narrow = inject(make("bert", hidden_size=8), PfeifferConfig())
    assert {m.down.out_features for m in narrow.modules() if isinstance(m, Bottleneck)} == {1}


TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 1,
}
RELATIVES: list[Callable[[], Any]] = [
    lambda: MistralForSequenceClassification(MistralConfig(**TINY, num_key_value_heads=2)),
    lambda: Qwen2ForSequenceClassification(Qwen2Config(**TINY, num_key_value_heads=2)),
    lambda: XLMRobertaForSequenceClassification(XLMRobertaConfig(**TINY)),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", RELATIVES, ids=["mistral", "qwen2", "xlm-roberta"])
def test_relatives_of_the_models_work(build: Callable[[], Any], method: str) -> None:
    model, batch = build().to(DEVICE).eval(), make_batch("bert")
    expected = model(**batch).logits
    inject(model, METHODS[method](size=SIZE, initial_std=None))
    assert sum(isinstance(m, Bottleneck) for m in model.modules()) == LAYERS * (2 if method == "houlsby" else 1)
    assert torch.equal(model(**batch).logits, expected)
    move(model)
    assert relative(model(**batch).logits, expected) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_recorded_hidden_states_are_those_that_the_model_uses(method: str) -> None:
    model, batch = inject(make("llama"), METHODS[method](size=SIZE)), make_batch("llama")
    move(model)
    entering: list[torch.Tensor] = []
    model.model.layers[1].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))  # type: ignore[union-attr, index]
    states = model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(states[1], entering[0])
    plain = make("llama")(**batch, output_hidden_states=True).hidden_states
    assert relative(states[1], plain[1]) > 1e-3


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_merging_is_refused_with_the_reason(method: str) -> None:
    for kind in ("bert", "llama"):
        model = inject(make(kind), METHODS[method]())
        with pytest.raises(MethodError, match=r"cannot be merged: .* a non-linear function between its two matrices"):
            merge(model)
        assert model.tuning == METHODS[method]()


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_architecture_is_refused_and_unchanged(method: str) -> None:
    unknown = FNetForSequenceClassification(
        FNetConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    )
    for model, named in ((unknown, "'fnet'"), (nn.Sequential(nn.Linear(2, 2)), "'Sequential'")):
        names = [name for name, _ in model.named_modules()]
        with pytest.raises(
            MethodError, match=rf"adapters must know how a block is built, and {named} is unknown.*bert,"
        ):
            inject(model, METHODS[method]())
        assert [name for name, _ in model.named_modules()] == names
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size must be a whole number of at least 1, got 0"),
        ({"size": 4.0}, "size must be a whole number of at least 1, got 4.0"),
        ({"activation": "silly"}, "activation must be one of relu, gelu, swish, tanh, got 'silly'"),
        ({"activation": None}, "activation must be one of"),
        ({"scaling": 0}, "scaling must be a number above 0, got 0"),
        ({"scaling": "learned"}, "scaling must be a number above 0, got 'learned'"),
        ({"initial_std": 0.0}, "initial_std must be a number above 0, got 0.0. To start exactly .* write None"),
        ({"initial_std": -0.1}, "initial_std must be a number above 0, got -0.1"),
        ({"initial_std": float("nan")}, "initial_std must be a number above 0, got nan"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_settings_that_make_no_sense_are_refused(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        METHODS[method](**settings)


def test_the_norm_before_hands_on_its_input() -> None:
    norm = NormAndInput(nn.LayerNorm(4))
    x = torch.randn(2, 4)
    normalised, same = norm(x)
    assert same is x
    assert torch.equal(normalised, norm.base(x))
