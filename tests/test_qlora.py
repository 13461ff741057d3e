"""QLoRA equals LoRA on dequantised weights, and peft's LoRA on bitsandbytes' 4-bit layers, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import QuantState, quantize_4bit
from models import (
    ALL_MODELS,
    DEPTH,
    DEVICE,
    LANGUAGE_MODELS,
    Batch,
    agree,
    fill_lora,
    make,
    make_batch,
    relative,
    rounding,
)
from peft import PeftModel
from test_every_method import assert_unchanged, logits, snapshot, train
from test_lora import peft_model, peft_trainable
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.evaluation.invariants import check_invariants
from course_utils.methods import (
    BitFitConfig,
    DoRAConfig,
    FullConfig,
    LastLayersConfig,
    LoRAConfig,
    MethodConfig,
    MethodError,
    NF4Linear,
    PiSSAConfig,
    QLoRAConfig,
    TargetError,
    count_parameters,
    dequantize,
    eject,
    find_targets,
    inject,
    merge,
    quantize,
    trainable_parameters,
)
from course_utils.methods.double_quantization import DYNAMIC_LEVELS
from course_utils.methods.targets import replace_module

#: The factor is no power of two: the order of the products shows in the last bit.
CONFIG = QLoRAConfig(rank=3, alpha=7)
DOUBLE = pytest.mark.parametrize("double", [False, True], ids=["one", "double"])


def qlora(kind: str, config: QLoRAConfig = CONFIG, model: Any = None) -> Any:
    """A QLoRA model whose update is far from zero."""
    model = inject(make(kind) if model is None else model, config)
    fill_lora(model)
    return model


def larger(kind: str) -> Any:
    """Rows of whole blocks: on AVX512, bitsandbytes 0.50 takes wrong scales for a block that ends in the next row."""
    sizes = {"n_embd": 64} if kind.startswith("gpt2") else {"hidden_size": 64, "intermediate_size": 128}
    return make(kind, **sizes)


def packed(model: nn.Module) -> dict[str, NF4Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, NF4Linear)}


def bitsandbytes_layer(layer: nn.Linear | Conv1D, double: bool) -> bitsandbytes.nn.Linear4bit:
    """What bitsandbytes makes of a layer; a `Conv1D` is transposed, as transformers does."""
    if DEVICE == "pretend":
        pytest.skip("bitsandbytes' parameters are a class of their own, and so are the pretended device's tensors")
    weight = (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).detach().contiguous()
    codes, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    if double:
        # Its own float32 path looks the 8-bit levels up approximately; given float64, on the processor, it searches.
        mean = state.absmax.mean()
        exact = (state.absmax - mean).double().cpu()
        eight, scales = (
            tensor.to(weight.device) for tensor in torch.ops.bitsandbytes.quantize_blockwise(exact, DYNAMIC_LEVELS, 256)
        )
        second = QuantState(absmax=scales, code=DYNAMIC_LEVELS.to(weight.device), blocksize=256, dtype=torch.float32)
        state = QuantState(eight, weight.shape, state.code, 64, "nf4", weight.dtype, mean, second)
    new = bitsandbytes.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=layer.bias is not None, quant_type="nf4")
    new.weight = bitsandbytes.nn.Params4bit(
        codes, requires_grad=False, quant_state=state, quant_type="nf4", bnb_quantized=True, module=new
    )
    new.bias, new.quant_state = layer.bias, state
    # Else some processors repack the weights at the first forward pass and compute in bfloat16.
    new.support_avx512bf16_for_cpu = False
    return new


def on_bitsandbytes(kind: str, config: QLoRAConfig) -> PeftModel:
    """peft's LoRA on bitsandbytes' layers."""
    reference = peft_model(kind, config, bitsandbytes_model(kind, config.double))
    wrapped = [m for m in reference.modules() if isinstance(getattr(m, "base_layer", None), bitsandbytes.nn.Linear4bit)]
    assert len(wrapped) == len(find_targets(make(kind), "all-linear"))
    return reference


def bitsandbytes_model(kind: str, double: bool) -> Any:
    model = larger(kind)
    for name, layer in find_targets(model, "all-linear").items():
        replace_module(model, name, bitsandbytes_layer(layer, double))
    model.is_loaded_in_4bit = True
    return model


def copy_trained(ours: nn.Module, theirs: PeftModel) -> None:
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])


def difference(
    ours: nn.Module, theirs: nn.Module, batch: Batch, reference: dict[str, nn.Parameter], gate: float = 0.0
) -> str:
    """What differs in the logits or a gradient: "" if all agree, see `models.agree`, or lie within the gate."""
    ours.zero_grad()
    theirs.zero_grad()
    mine, expected = ours(**batch), theirs(**batch)
    if not (agree(mine.logits, expected.logits) or relative(mine.logits, expected.logits) <= gate):
        return f"the logits differ by {relative(mine.logits, expected.logits):.2g} of their size"
    mine.loss.backward()
    expected.loss.backward()
    for name, parameter in trainable_parameters(ours).items():
        got, wanted = parameter.grad, reference[name].grad
        assert got is not None
        assert wanted is not None
        # A key's bias changes no attention: its gradient is 0, and on a GPU two different roundings of it.
        is_zero = DEVICE != "cpu" and max(got.norm(), wanted.norm()) < 1e-6
        if not (agree(got, wanted) or relative(got, wanted) <= gate or is_zero):
            return f"the gradient of {name} differs by {relative(got, wanted):.2g} of its size"
    return ""


# --- equal to the references ----------------------------------------------------------------------------------------


@DOUBLE
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_forward_gradients_and_steps_equal_peft_on_bitsandbytes(kind: str, double: bool) -> None:
    config = QLoRAConfig(rank=3, alpha=7, double=double)
    ours, theirs = qlora(kind, config, larger(kind)), on_bitsandbytes(kind, config)
    copy_trained(ours, theirs)
    batch = make_batch(kind)
    assert difference(ours, theirs, batch, peft_trainable(theirs)) == ""
    assert relative(logits(ours, batch), logits(larger(kind), batch)) > 0.1
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    for name, parameter in peft_trainable(theirs).items():
        assert agree(trainable_parameters(ours)[name], parameter, 1e-3), name


@DOUBLE
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_it_is_lora_on_the_dequantised_weights(kind: str, double: bool) -> None:
    settings: dict[str, Any] = {"rank": 3, "alpha": 7, "targets": "all-linear"}
    ours = qlora(kind, QLoRAConfig(**settings, double=double))
    plain = inject(dequantize(quantize(make(kind), double=double)), LoRAConfig(**settings))
    fill_lora(plain)
    assert not packed(plain)
    batch = make_batch(kind)
    # GPT-2 keeps a weight the other way round, (in, out), and a product may run through it in another order.
    gate = rounding(depth=2 * DEPTH) if kind.startswith("gpt2") else 0.0
    assert difference(ours, plain, batch, trainable_parameters(plain), gate) == ""
    assert relative(logits(eject(plain), batch), logits(make(kind), batch)) > 1e-3  # something was rounded


def test_the_comparison_finds_planted_mistakes() -> None:
    config = QLoRAConfig(rank=3, alpha=7, double=False)
    ours, theirs = qlora("bert", config, larger("bert")), on_bitsandbytes("bert", config)
    copy_trained(ours, theirs)
    batch, reference = make_batch("bert"), peft_trainable(theirs)
    layer = ours.bert.encoder.layer[0].attention.self.query.base
    codes, absmax = layer.codes, layer.absmax
    layer.codes = codes << 4 | codes >> 4  # the low half of a byte first
    assert difference(ours, theirs, batch, reference).startswith("the logits differ")
    layer.codes = codes
    layer.absmax = absmax.flip(0)  # each block with the scale of another
    assert difference(ours, theirs, batch, reference).startswith("the logits differ")
    layer.absmax = absmax
    assert difference(ours, theirs, batch, reference) == ""
    with torch.no_grad():
        ours.bert.encoder.layer[1].output.dense.base.bias.add_(1e-3)  # bits of the bias
    assert difference(ours, theirs, batch, reference).startswith("the logits differ")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-lm"])
def test_computing_in_bfloat16(kind: str) -> None:
    batch = make_batch(kind)
    exact = qlora(kind, CONFIG, larger(kind))
    coarse = qlora(kind, QLoRAConfig(rank=3, alpha=7, compute_dtype=torch.bfloat16), larger(kind))
    expected, got = logits(exact, batch), logits(coarse, batch)
    assert got.dtype == torch.float32
    assert 1e-4 < relative(got, expected) < 0.03
    coarse(**batch).loss.backward()
    assert {p.grad.dtype for p in trainable_parameters(coarse).values() if p.grad is not None} == {torch.float32}
    theirs = on_bitsandbytes(kind, QLoRAConfig(rank=3, alpha=7))
    for module in theirs.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = torch.bfloat16, True
    copy_trained(coarse, theirs)
    assert relative(got, logits(theirs, batch)) < 0.01
    with torch.autocast("cpu", torch.bfloat16):
        loss = exact(**batch).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable_parameters(exact).values())


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_training_leaves_codes_and_scales_alone_and_eject_gives_the_quantised_layers_back(kind: str) -> None:
    model, batch = quantize(make(kind)), make_batch(kind)
    untuned, layers = logits(model, batch), packed(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    inject(model, QLoRAConfig(rank=3, head=()))
    assert torch.equal(logits(model, batch), untuned)  # at the start it is the quantised model, bit for bit
    assert all("lora_" in name for name in trainable_parameters(model))
    train(model, kind)
    assert not torch.equal(logits(model, batch), untuned)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("lora_" in name), name
    assert torch.equal(logits(eject(model), batch), untuned)
    assert packed(model) == layers
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())


def test_no_dequantised_weight_is_kept_for_the_backward_pass() -> None:
    def kept(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(**make_batch("llama-lm", rows=1, length=2))
        return sum(sizes.values())

    config = LoRAConfig(rank=1, targets="all-linear")
    saving = inject(quantize(make("llama-lm")), config)
    plain = inject(dequantize(quantize(make("llama-lm"))), config)
    # The inputs of the first layer need no gradient, so that its weights are not kept in either case.
    first = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
    numbers = sum(layer.packed_parameters for name, layer in packed(saving).items() if not name.startswith(first))
    assert kept(plain) - kept(saving) == 4 * numbers


def test_a_bias_beside_packed_weights_can_be_trained() -> None:
    saving, plain = (
        inject(model, BitFitConfig()) for model in (quantize(make("bert")), dequantize(quantize(make("bert"))))
    )
    assert difference(saving, plain, make_batch("bert"), trainable_parameters(plain)) == ""


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama-lm"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str, reentrant: bool) -> None:
    plain, saving, batch = qlora(kind).train(), qlora(kind).train(), make_batch(kind)
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    saving.enable_input_require_grads()  # the re-entrant kind needs it with frozen embeddings
    for model in (plain, saving):
        model(**batch).loss.backward()
    for name, parameter in trainable_parameters(saving).items():
        expected = trainable_parameters(plain)[name].grad
        assert expected is not None
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, expected, rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_generation(kind: str) -> None:
    model = inject(make(kind), CONFIG)
    fill_lora(model, size=0.3)
    batch = make_batch(kind, left=True)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    padded = model.generate(**inputs, **settings)[:, 9:]  # type: ignore[operator]
    for row in range(4):
        text = inputs["input_ids"][row : row + 1, row:]
        alone = model.generate(text, attention_mask=torch.ones_like(text), **settings)  # type: ignore[operator]
        assert torch.equal(alone[0, text.shape[1] :], padded[row])
    assert torch.equal(merge(model).generate(**inputs, **settings)[:, 9:], padded)  # type: ignore[operator]


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_merging_is_exact_and_quantising_again_is_not(kind: str) -> None:
    model, batch = qlora(kind).double(), make_batch(kind)
    unmerged = logits(model, batch)
    merged = merge(model)
    assert relative(logits(merged, batch), unmerged) <= rounding(torch.float64)
    assert list(merged.state_dict()) == list(make(kind).state_dict())
    assert {name: type(m) for name, m in merged.named_modules()} == {n: type(m) for n, m in make(kind).named_modules()}
    weights = {name: layer.weight.clone() for name, layer in find_targets(merged, "all-linear").items()}
    for name, layer in packed(quantize(merged)).items():
        restored = layer.dequantized().weight
        assert 0.05 < relative(restored, weights[name]) < 0.13  # NF4's error on normal numbers is 0.09
    assert relative(logits(merged, batch), unmerged) > 0.01


def test_a_small_update_is_lost_when_the_merged_weight_is_quantised_again() -> None:
    """What was learnt is finer than the steps of four bits."""
    model = quantize(make("bert"))
    before = {name: (layer.codes, layer.weight) for name, layer in packed(model).items()}
    inject(model, CONFIG)
    fill_lora(model, size=0.01)
    merge(model)
    merged = {name: model.get_parameter(f"{name}.weight") for name in before}
    changed = numbers = 0
    for name, layer in packed(quantize(model)).items():
        codes, weight = before[name]
        changed, numbers = changed + int((codes != layer.codes).sum()), numbers + codes.numel()
        assert (layer.weight - merged[name]).norm() > 0.8 * (merged[name] - weight).norm()  # the error is the update
    assert changed < 0.01 * numbers


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_merge_equals_peft_on_plain_layers(kind: str) -> None:
    ours = qlora(kind)
    theirs = peft_model(kind, CONFIG, dequantize(quantize(make(kind))))
    copy_trained(ours, theirs)
    expected = theirs.merge_and_unload().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merge(ours).state_dict().items())


def test_other_methods_work_on_a_quantised_model() -> None:
    batch = make_batch("bert")
    model = inject(quantize(make("bert")), DoRAConfig(rank=3, targets=("query", "value")))
    fill_lora(model)
    unmerged = logits(model.double(), batch)
    assert len(packed(merge(model))) == len(find_targets(make("bert"), "all-linear")) - 4
    assert relative(logits(model, batch), unmerged) <= 1e-6


@pytest.mark.parametrize("config", [FullConfig(), LastLayersConfig(), PiSSAConfig(rank=2)], ids=lambda c: c.name)
def test_methods_that_change_the_weight_itself_are_refused(config: MethodConfig) -> None:
    model = quantize(make("bert"))
    before = snapshot(model)
    with pytest.raises(MethodError, match=r"are stored in 4 bits. Call dequantize\(model\) first"):
        inject(model, config)
    assert_unchanged(model, before)
    assert inject(dequantize(model), config).tuning == config


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_checkpoint_is_a_plain_lora_both_ways(kind: str, tmp_path: Path) -> None:
    model, batch = qlora(kind, CONFIG, larger(kind)), make_batch(kind)
    expected, folder = logits(model, batch), save(model, tmp_path / "ours")
    restored = load(quantize(larger(kind)), folder)
    assert type(restored.tuning) is LoRAConfig
    assert torch.equal(logits(restored, batch), expected)
    plain = logits(load(larger(kind), folder), batch)  # the original weights: nearly the same
    assert 1e-4 < relative(plain, expected) < 1

    theirs = PeftModel.from_pretrained(bitsandbytes_model(kind, double=True), folder).eval()
    assert torch.equal(logits(theirs, batch), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(larger(kind), folder).eval(), batch), plain)

    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(load(quantize(larger(kind)), tmp_path / "theirs"), batch), expected)
    assert torch.equal(logits(load(larger(kind), tmp_path / "theirs"), batch), plain)


def test_the_invariants_hold_on_a_quantised_backbone() -> None:
    """A checkpoint of QLoRA belongs to a backbone that is quantised before it is loaded."""
    report = check_invariants(
        lambda: make("bert"),
        CONFIG,
        make_batch("bert"),
        identity=False,
        load=lambda model, folder: load(quantize(model), folder),
    )
    assert report.ok, str(report)


def test_a_checkpoint_of_another_backbone_changes_nothing(tmp_path: Path) -> None:
    folder = save(qlora("bert"), tmp_path)
    model = quantize(make("bert", hidden_size=48))
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="another backbone"):
        load(model, folder)
    assert_unchanged(model, before)


# --- what is stored -------------------------------------------------------------------------------------------------


def test_quantised_weights_are_counted() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    count = count_parameters(inject(model, QLoRAConfig(rank=8)))
    layer: Any = model.get_submodule("bert.encoder.layer.0.intermediate.dense.base")
    per_layer = 4 * 8 * (768 + 768) + 2 * 8 * (768 + 3072)
    assert count.trainable - count.head == 12 * per_layer + 8 * (768 + 768) == 1_339_392
    assert count.total == 109_483_778 + 1_339_392
    assert layer.codes.is_meta
    assert layer.bits_per_parameter == pytest.approx(4.127, abs=5e-4)
    assert "in_features=768, out_features=3072, bias=True, bits_per_parameter=4.127" in str(layer)
    once = NF4Linear(nn.Linear(320, 256), double=False)
    assert once.bits_per_parameter == 4.5
    for kind in ALL_MODELS:
        assert count_parameters(quantize(make(kind))).total == count_parameters(make(kind)).total


@DOUBLE
def test_moving_casting_and_copying_keep_codes_and_scales(double: bool) -> None:
    model = quantize(make("bert"), double=double)
    layers, batch = packed(model), make_batch("bert")
    weights = {name: layer.weight for name, layer in layers.items()}
    stored = {name: buffer.clone() for name, buffer in model.named_buffers()}
    expected = logits(model, batch)

    half = copy.deepcopy(model).to(torch.bfloat16)
    for name, layer in packed(half).items():
        assert layer.weight.dtype == torch.bfloat16
        assert torch.equal(layer.weight, weights[name].to(torch.bfloat16))
    assert logits(half, batch).dtype == torch.bfloat16
    assert relative(logits(half, batch), expected) < 0.05
    for again in (half.float(), copy.deepcopy(model).half().double().to(DEVICE).float()):
        for name, buffer in again.named_buffers():
            assert buffer.dtype == stored[name].dtype
            assert torch.equal(buffer, stored[name]), name
        assert all(torch.equal(layer.weight, weights[name]) for name, layer in packed(again).items())

    other = quantize(make("bert", seed=1), double=double)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, batch), expected)
    assert {b.device.type for b in copy.deepcopy(model).to("meta").buffers()} == {"meta"}
    assert torch.equal(logits(model, batch), expected)  # the original was never touched


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_model_in_bfloat16(kind: str) -> None:
    batch = make_batch(kind)
    model = inject(make(kind).to(torch.bfloat16), CONFIG)
    fill_lora(model)
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    unmerged = logits(model, batch)
    assert unmerged.dtype == torch.bfloat16
    assert {p.dtype for p in merge(model).parameters()} == {torch.bfloat16}
    assert relative(logits(model, batch), unmerged) < 0.03


def test_the_head_and_the_output_layer_stay() -> None:
    for kind in ALL_MODELS:
        model = quantize(make(kind))
        assert list(packed(model)) == list(find_targets(make(kind), "all-linear"))
        assert model.training is False
    other_head = inject(make("bert"), QLoRAConfig(head=("bert.pooler",)))
    assert type(other_head.get_submodule("classifier.base")) is nn.Linear  # with LoRA, but not quantised
    assert "bert.pooler.dense" not in packed(quantize(make("bert"), skip=("classifier", "bert.pooler")))
    some = inject(make("bert"), QLoRAConfig(targets=("query",)))
    assert len(packed(some)) == 13
    assert len([name for name in trainable_parameters(some) if "lora_A" in name]) == 2


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"block_size": 0}, MethodError, "block_size must be a whole number of at least 1, got 0"),
        ({"compute_dtype": torch.int8}, MethodError, "compute_dtype must be torch.float32, bfloat16, float16 or None"),
        ({"rank": 0}, MethodError, "rank must be a whole number"),
        ({"targets": ("nothing",)}, TargetError, "no linear layer is called 'nothing'"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_change_nothing(config: dict[str, Any], error: type, message: str) -> None:
    model = make("bert")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        inject(model, QLoRAConfig(**config))
    assert_unchanged(model, before)


def test_quantising_twice_or_under_a_method_is_refused() -> None:
    model = quantize(make("bert"))
    with pytest.raises(MethodError, match="no linear layer left to quantise"):
        quantize(model)
    tuned = inject(make("bert"), LoRAConfig())
    before = snapshot(tuned)
    with pytest.raises(MethodError, match="quantise first and inject after that"):
        quantize(tuned)
    assert_unchanged(tuned, before)
    with pytest.raises(MethodError, match="block_size"):
        quantize(make("bert"), block_size=-1)
