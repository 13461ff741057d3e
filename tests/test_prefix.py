"""Prefix tuning and P-Tuning v2 equal peft's, number for number, and do what their documentation says."""

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
    LANGUAGE_MODELS,
    LAYERS,
    Batch,
    make,
    make_batch,
    noise,
    relative,
    rounding,
)
from peft import PeftModel, PrefixTuningConfig as PeftPrefixConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import dropout
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DynamicCache,
)

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    MethodError,
    PrefixTuningConfig,
    PTuningV2Config,
    count_parameters,
    inject,
    trainable_parameters,
)
from course_utils.methods.prefix_body import PrefixBody
from course_utils.methods.targets import find_body
from course_utils.methods.virtual_tokens import cache_name

K = 5
DIRECT = PrefixTuningConfig(virtual_tokens=K)
NETWORK = PrefixTuningConfig(virtual_tokens=K, reparameterize=True)
VARIANTS = [DIRECT, NETWORK, PrefixTuningConfig(virtual_tokens=3, reparameterize=True, mid_dim=24)]


def body(model: nn.Module) -> PrefixBody:
    """The wrapped transformer below the head."""
    wrapped = find_body(model)[1]
    assert isinstance(wrapped, PrefixBody)
    return wrapped


def tuned(kind: str, config: PrefixTuningConfig = DIRECT, **settings: Any) -> Any:
    """A tiny model with a prefix."""
    return inject(make(kind, **settings), config)


def peft_model(kind: str, config: PrefixTuningConfig, model: Any = None) -> PeftModel:
    """The same model under peft's own prefix tuning."""
    settings = PeftPrefixConfig(
        num_virtual_tokens=config.virtual_tokens,
        prefix_projection=config.reparameterize,
        encoder_hidden_size=config.mid_dim,  # type: ignore[arg-type]
        init_weights="zero" if config.init == "zero" else None,
        task_type="SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM",
    )
    return get_peft_model(make(kind) if model is None else model, settings).eval()


def peft_trainable(model: PeftModel) -> dict[str, nn.Parameter]:
    """peft's trained parameters under our names."""
    ours = f"{model.base_model.base_model_prefix}.prefix."
    names = {
        name: name.replace("prompt_encoder.default.", ours).replace(".modules_to_save.default", "")
        for name in trainable_parameters(model)
    }
    return {names[name].removeprefix("base_model."): p for name, p in trainable_parameters(model).items()}


def fill(model: nn.Module, seed: int = 1) -> None:
    """Draw the prefix at random. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in body(model).prefix.parameters():
            parameter.copy_(noise(parameter, generator))


def pair(kind: str, config: PrefixTuningConfig) -> tuple[Any, PeftModel]:
    """Ours and peft's with the same prefix."""
    ours, theirs = tuned(kind, config), peft_model(kind, config)
    fill(ours)
    mine, reference = trainable_parameters(ours), peft_trainable(theirs)
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])
    return ours, theirs


def tolerance(config: PrefixTuningConfig, depth: int = DEPTH + 2) -> float:
    """How far ours may lie from peft's: no bit, but for a network, which peft runs anew for each row of the batch.

    So its two products have other shapes there, and every processor may add in another order. A GPU may cut two equal
    products into different pieces.

    Args:
        config: with or without a network.
        depth: sums one behind another; by default those of the model and of the network.
    """
    return 0.0 if DEVICE == "cpu" and not config.reparameterize else rounding(depth=depth)


GRADIENT = 2 * (DEPTH + 2)  # there and back


def explain_difference(ours: Any, theirs: PeftModel, batch: Batch) -> str:
    """What differs between ours and peft's with the same weights: "" if nothing, else the place of the mistake."""
    rows = len(batch["input_ids"])
    for layer, (mine, (keys, values, _)) in enumerate(
        zip(body(ours).keys_and_values(rows), theirs.get_prompt(rows), strict=True)
    ):
        for name, got, expected in (("keys", mine[0], keys), ("values", mine[1], values)):
            if got.shape != expected.shape or relative(got, expected) > tolerance(ours.tuning, 2):
                return f"layer {layer}: other {name}"
    same = relative(ours(**batch).logits, theirs(**batch).logits) <= tolerance(ours.tuning)
    return "" if same else "the logits differ"


# --- equal to peft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", VARIANTS, ids=["direct", "network", "narrow network"])
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_forward_and_gradients_equal_peft(kind: str, config: PrefixTuningConfig) -> None:
    ours, theirs = pair(kind, config)
    batch = make_batch(kind)
    assert explain_difference(ours, theirs, batch) == ""
    mine, reference = ours(**batch), theirs(**batch)
    assert relative(mine.loss, reference.loss) <= tolerance(config)
    assert relative(mine.logits, make(kind)(**batch).logits) > 1e-2  # the prefix does do something
    mine.loss.backward()
    reference.loss.backward()
    for name, parameter in peft_trainable(theirs).items():
        gradient = trainable_parameters(ours)[name].grad
        assert gradient is not None
        assert gradient.any()
        assert parameter.grad is not None
        assert relative(gradient, parameter.grad) <= tolerance(config, GRADIENT), name


@pytest.mark.parametrize(
    ("kind", "config"),
    [*((kind, DIRECT) for kind in ALL_MODELS), *((kind, NETWORK) for kind in ("bert", "gpt2-lm", "llama"))],
    ids=lambda value: value if isinstance(value, str) else ["direct", "network"][value.reparameterize],
)
def test_ten_steps_give_peft_s_weights(kind: str, config: PrefixTuningConfig) -> None:
    ours, theirs = pair(kind, config)
    for model in (ours.train(), theirs.train()):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(10):
            optimizer.zero_grad()
            model(**make_batch(kind, seed=step)).loss.backward()
            optimizer.step()
    for name, parameter in peft_trainable(theirs).items():
        assert relative(trainable_parameters(ours)[name], parameter) <= tolerance(config, 10 * GRADIENT), name


@pytest.mark.parametrize("init", ["normal", "zero"])
@pytest.mark.parametrize("reparameterize", [False, True])
def test_the_same_seed_draws_what_peft_draws(reparameterize: bool, init: str) -> None:
    config = PrefixTuningConfig(virtual_tokens=K, reparameterize=reparameterize, init=init)
    ours = inject(make("llama", dropout=0.1), config, seed=4)  # without dropout, zeros are refused
    torch.manual_seed(4)
    theirs = peft_model("llama", config)
    for name, expected in peft_trainable(theirs).items():
        assert torch.equal(trainable_parameters(ours)[name], expected), name
    assert (not any(keys.any() or values.any() for keys, values in body(ours).keys_and_values(1))) == (init == "zero")


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_half_precision_equals_peft(kind: str) -> None:
    ours, theirs = inject(make(kind).bfloat16(), DIRECT), peft_model(kind, DIRECT, make(kind).bfloat16())
    fill(ours)
    with torch.no_grad():
        for name, parameter in peft_trainable(theirs).items():
            parameter.copy_(trainable_parameters(ours)[name])
    assert explain_difference(ours, theirs, make_batch(kind)) == ""
    assert body(ours).prefix.get_parameter("embedding.weight").dtype == torch.float32


class ValuesFirst(PrefixBody):
    """A classic mistake: keys and values in the wrong order."""

    def keys_and_values(self, batch: int) -> Any:
        return [(values, keys) for keys, values in super().keys_and_values(batch)]


class HeadsAndTokensSwapped(PrefixBody):
    """A classic mistake: `view` straight to (heads, k), which needs a transposition."""

    def keys_and_values(self, batch: int) -> Any:
        return [tuple(t.transpose(1, 2).reshape(t.shape) for t in both) for both in super().keys_and_values(batch)]


class PrefixMasked(PrefixBody):
    """A classic mistake: the mask is filled with zeros for the virtual tokens, as if they were padding."""

    def forward(self, *args: Any, attention_mask: Any = None, **inputs: Any) -> Any:
        def hide(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            mask = kwargs["attention_mask"].clone()
            mask[:, : self.prefix.virtual_tokens] = 0
            return args, kwargs | {"attention_mask": mask}

        handle = self.base.register_forward_pre_hook(hide, with_kwargs=True)
        output = super().forward(*args, attention_mask=attention_mask, **inputs)
        handle.remove()
        return output


class PositionsNotMoved(PrefixBody):
    """A classic mistake: the text keeps positions 0, 1, 2 ..., which here are k less than `forward` adds."""

    def forward(self, input_ids: Any = None, *, position_ids: Any = None, **inputs: Any) -> Any:
        own = (
            torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
            - self.prefix.virtual_tokens
        )
        return super().forward(input_ids, **inputs | {"position_ids": own})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (ValuesFirst, "layer 0: other keys"),
        (HeadsAndTokensSwapped, "layer 0: other keys"),
        (PrefixMasked, "the logits differ"),
        (PositionsNotMoved, "the logits differ"),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-lm"])
def test_the_parity_check_finds_a_planted_mistake(kind: str, mistake: type[PrefixBody], message: str) -> None:
    if mistake is PositionsNotMoved and kind == "llama-lm":
        message = "the logits differ"  # rotary: the prefix has no rotation of its own, so the distance still counts
    ours, theirs = pair(kind, DIRECT)
    assert explain_difference(ours, theirs, make_batch(kind)) == ""
    body(ours).__class__ = mistake
    assert explain_difference(ours, theirs, make_batch(kind)) == message


# --- what it computes, without peft ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_it_is_the_model_s_own_cache_filled_with_slices_of_the_table(kind: str) -> None:
    model, plain, batch = tuned(kind), make(kind), make_batch(kind)
    fill(model)
    heads, size = (2, 8) if kind.startswith("llama") else (4, 8)
    table = body(model).prefix.get_parameter("embedding.weight")
    assert table.shape == (K, 2 * LAYERS * heads * size)
    slices = table.split(size, dim=1)  # one head's keys or values in one layer, (k, head size)
    rows = len(batch["input_ids"])
    blocks = [torch.stack(slices[i : i + heads]).expand(rows, -1, -1, -1) for i in range(0, len(slices), heads)]
    cache = DynamicCache([(blocks[2 * layer], blocks[2 * layer + 1]) for layer in range(LAYERS)])
    seen = torch.ones(rows, K, dtype=torch.long, device=DEVICE)
    mask = torch.cat((seen, batch["attention_mask"]), dim=1)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, cache_name(plain.base_model): cache}
    with torch.no_grad():
        part = plain.base_model(**inputs) if kind in ("bert", "roberta") else plain(**inputs)
        if kind == "bert":
            expected = plain.classifier(part.pooler_output)
        elif kind == "roberta":
            expected = plain.classifier(part.last_hidden_state)
        else:
            expected = part.logits
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_prefix_can_stand_for_real_tokens(kind: str) -> None:
    """With the keys and values that the model computes for k real tokens, the text goes on as if it had read them."""
    plain, model, tokens = make(kind), tuned(kind), make_batch(kind, rows=1, length=12)["input_ids"]
    with torch.no_grad():
        expected = plain(tokens).logits[:, K:]
        cache = plain(tokens[:, :K], use_cache=True)[cache_name(plain)]
        columns = [t[0].transpose(0, 1).flatten(1) for layer in cache.layers for t in (layer.keys, layer.values)]
        body(model).prefix.get_parameter("embedding.weight").copy_(torch.cat(columns, dim=1))
        assert relative(model(tokens[:, K:]).logits, expected) <= rounding()
        assert not torch.allclose(plain(tokens[:, K:]).logits, expected, atol=1e-2)


def test_a_prefix_of_zeros_is_no_identity() -> None:
    """A key of zeros has the score 0, which is not little: it takes its share of the attention and gives nothing."""
    batch = make_batch("bert", rows=1)
    model = tuned("bert", PTuningV2Config(virtual_tokens=K, init="zero"), attn_implementation="eager")
    plain = make("bert", attn_implementation="eager")
    with torch.no_grad():
        share = model(**batch, output_attentions=True).attentions[0]  # (1, heads, tokens, k + tokens)
        assert torch.allclose(share.sum(-1), torch.ones(()))
        assert torch.allclose(share[..., :1].expand(-1, -1, -1, K), share[..., :K])  # the same for each virtual token
        assert share[..., :K].sum(-1).mean() > 0.2
        assert relative(model(**batch).logits, plain(**batch).logits) > 1e-2


def test_zeros_that_nothing_tells_apart_are_refused() -> None:
    """Equal rows get equal gradients: without dropout on the attention or the prefix, k of them are one for ever."""
    llama = make("llama")
    with pytest.raises(MethodError, match="can never tell them apart"):
        inject(llama, PrefixTuningConfig(virtual_tokens=K, init="zero"))
    for config in (
        PrefixTuningConfig(virtual_tokens=1, init="zero"),
        PrefixTuningConfig(virtual_tokens=K, init="zero", reparameterize=True),
        PTuningV2Config(virtual_tokens=K, init="zero", dropout=0.5),
        PrefixTuningConfig(virtual_tokens=K),
    ):
        model = make("llama")
        inject(model, config)
        torch.manual_seed(0)
        optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
        for _ in range(3):
            batch = make_batch("llama")
            optimizer.zero_grad()
            model.train()(**batch).logits.square().sum().backward()
            optimizer.step()
        rows = body(model).prefix()
        assert len(rows.unique(dim=0)) == config.virtual_tokens


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_no_cache_outlives_its_text(kind: str) -> None:
    model, batch = tuned(kind), make_batch(kind)
    with torch.no_grad():
        first = model(**batch).logits
        model(**make_batch(kind, seed=1, rows=2, length=7))
        assert torch.equal(model(**batch).logits, first)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_without_a_mask_everything_is_seen(kind: str, attention: str) -> None:
    model = tuned(kind, attn_implementation=attention)
    batch = make_batch(kind, rows=1)
    with torch.no_grad():
        assert batch["attention_mask"].all()
        unmasked = model(input_ids=batch["input_ids"]).logits
        assert relative(unmasked, model(**batch).logits) <= rounding()


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_given_embeddings_and_positions_are_used(kind: str) -> None:
    model, batch = tuned(kind), make_batch(kind, rows=1)
    tokens = batch.pop("input_ids")
    first = 2 if kind == "roberta" else 0  # RoBERTa counts from the padding token's id + 1
    positions = torch.arange(first, first + tokens.shape[1], device=DEVICE)[None]
    with torch.no_grad():
        embedded = {"inputs_embeds": model.get_input_embeddings()(tokens), "position_ids": positions}
        expected = model(input_ids=tokens, **batch).logits
        assert relative(model(**embedded, **batch).logits, expected) <= rounding()
        assert relative(model(input_ids=tokens, position_ids=positions, **batch).logits, expected) <= rounding()


@pytest.mark.parametrize(
    "kind", ["gpt2", "llama", "gpt2-lm", "llama-lm"]
)  # BERT reads its first position: no left padding
def test_padding_on_the_left_changes_nothing_but_in_peft(kind: str) -> None:
    """In peft the text moves away from the prefix, which moves even Llama, whose positions are relative."""
    batch = make_batch(kind, left=True)
    del batch["labels"]
    alone = {key: value[3:, 3:] for key, value in batch.items()}
    difference = []
    for model in pair(kind, DIRECT):
        with torch.no_grad():
            together, expected = model(**batch).logits[3], model(**alone).logits[0]
        difference.append(relative(together[3:] if kind in LANGUAGE_MODELS else together, expected))
    assert difference[0] <= rounding()
    assert difference[1] > 1e-2


def test_autocast() -> None:
    for kind in ALL_MODELS:
        model, batch = tuned(kind), make_batch(kind)
        expected = model(**batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**batch)
        output.loss.backward()
        assert relative(output.logits.float(), expected) < 0.1, kind
        assert body(model).prefix.get_parameter("embedding.weight").grad is not None


# --- P-Tuning v2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_dropout_falls_on_the_keys_and_values(kind: str) -> None:
    config = PTuningV2Config(virtual_tokens=K, dropout=0.4)
    model, same, batch = tuned(kind, config), tuned(kind), make_batch(kind)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, same(**batch).logits)  # in evaluation nothing is dropped
        torch.manual_seed(3)
        dropped = dropout(same.base_model.prefix().expand(4, -1, -1), 0.4, training=True)
        torch.manual_seed(3)
        keys, values = next(model.train().base_model.keys_and_values(4))
    width = keys.shape[1] * keys.shape[3]
    assert torch.equal(keys.transpose(1, 2).flatten(2), dropped[..., :width])
    assert torch.equal(values.transpose(1, 2).flatten(2), dropped[..., width : 2 * width])
    assert 0.2 < (keys == 0).float().mean() < 0.6
    assert not torch.equal(*keys[:2])  # each row of the batch has its own draw


def test_the_defaults_are_the_papers() -> None:
    assert PTuningV2Config().dropout == 0.1
    assert not PTuningV2Config().reparameterize
    assert PTuningV2Config.name == "P-Tuning v2"


# --- how much is trained --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PrefixTuningConfig(), 20 * 2 * 12 * 768),
        (PTuningV2Config(), 368_640),
        (
            PrefixTuningConfig(reparameterize=True),  # the embedding, and two layers with their biases
            20 * 768 + (768 * 768 + 768) + (768 * 18_432 + 18_432),
        ),
        (PrefixTuningConfig(reparameterize=True, mid_dim=512), 20 * 768 + (768 * 512 + 512) + (512 * 18_432 + 18_432)),
    ],
    ids=str,
)
def test_parameter_count_on_bert_base(config: PrefixTuningConfig, expected: int) -> None:
    with torch.device("meta"):
        count = count_parameters(inject(BertForSequenceClassification(BertConfig()), config))
    assert (count.trainable - count.head, count.head) == (expected, 1_538)
    if config == PrefixTuningConfig(reparameterize=True):
        assert expected == 14_780_160


# --- generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_generation_equals_peft(kind: str) -> None:
    ours, theirs = pair(kind, DIRECT)
    batch = make_batch(kind, left=True)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    tokens = ours.generate(**inputs, **settings)
    assert torch.equal(tokens, theirs.generate(**inputs, **settings))
    assert torch.equal(tokens, ours.generate(**inputs, **settings, use_cache=False))
    if kind == "llama-lm":  # peft then takes Llama's cache for one that it has to go on with
        with pytest.raises(RuntimeError, match=r"shape|size"):
            theirs.generate(**inputs, **settings, use_cache=False)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_beams_and_the_end_of_the_positions(kind: str) -> None:
    model, batch = tuned(kind), make_batch(kind, left=True)
    fill(model)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    beams = model.generate(**inputs, **settings, max_new_tokens=5, num_beams=3)[:, 9:]
    alone = model.generate(batch["input_ids"][3:, 3:], **settings, max_new_tokens=5, num_beams=3)[:, 6:]
    assert torch.equal(beams[3:], alone)
    with pytest.raises(MethodError, match="need a key-value cache that grows"):
        model.generate(**inputs, **settings, max_new_tokens=2, cache_implementation="static")
    if kind == "gpt2-lm":  # 40 positions: 5 virtual tokens, 9 of the text, and the last new one is not read again
        assert model.generate(**inputs, **settings, max_new_tokens=27).shape == (4, 36)
        with pytest.raises(MethodError, match="the model has 40 positions and 5 of them are taken by virtual tokens"):
            model.generate(**inputs, **settings, max_new_tokens=28)


@pytest.mark.parametrize(("kind", "usable"), [("bert", 35), ("roberta", 33), ("gpt2", 35), ("llama", None)])
def test_the_longest_text_is_k_tokens_shorter(kind: str, usable: int | None) -> None:
    model = tuned(kind)
    if usable is None:  # rotary positions need no table
        model(**make_batch(kind, length=60))
        return
    assert model(**make_batch(kind, rows=1, length=usable)).logits.isfinite().all()
    with pytest.raises(MethodError, match=f"so a text may have {usable} tokens, got {usable + 1}"):
        model(**make_batch(kind, rows=1, length=usable + 1))


# --- checkpoints: what `test_every_method.py` does not see ----------------------------------------------------------


def logits(model: Any, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**make_batch(kind)).logits


def trained(kind: str, config: PrefixTuningConfig) -> Any:
    """A model with a prefix and a head far from where they began."""
    model = tuned(kind, config)
    fill(model)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if ".prefix." not in name:
                parameter.mul_(1.5)
    return model


@pytest.mark.parametrize(
    "config", [DIRECT, NETWORK, PTuningV2Config(virtual_tokens=K)], ids=["direct", "network", "v2"]
)
@pytest.mark.parametrize("kind", ALL_MODELS)
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")  # prefix_dropout, which peft does not know
def test_checkpoints_go_both_ways(kind: str, config: PrefixTuningConfig, tmp_path: Path) -> None:
    ours = trained(kind, config)
    theirs = PeftModel.from_pretrained(make(kind), save(ours, tmp_path / "ours"))
    gate = tolerance(config)
    assert relative(logits(theirs, kind), logits(ours, kind)) <= gate
    restored = load(make(kind), tmp_path / "ours")
    assert torch.equal(logits(restored, kind), logits(ours, kind))
    assert type(restored.tuning) is type(config)
    assert restored.tuning.reparameterize == config.reparameterize

    _, source = pair(kind, config)
    source.save_pretrained(tmp_path / "theirs")
    loaded = load(make(kind), tmp_path / "theirs")
    assert relative(logits(loaded, kind), logits(source, kind)) <= gate
    assert loaded.tuning == PrefixTuningConfig(virtual_tokens=K, head=loaded.tuning.head)


def test_the_network_has_its_own_file_and_is_not_needed(tmp_path: Path) -> None:
    config = PrefixTuningConfig(virtual_tokens=K, reparameterize=True, mid_dim=24, head=("bert.pooler", "classifier"))
    model = trained("bert", config)
    folder = save(model, tmp_path)
    tensors, network = load_file(folder / "adapter_model.safetensors"), folder / "prompt_encoder.safetensors"
    head = [
        f"base_model.{module}.{end}" for module in ("bert.pooler.dense", "classifier") for end in ("bias", "weight")
    ]
    assert sorted(tensors) == [*head, "prompt_embeddings"]
    assert tensors["prompt_embeddings"].shape == (K, 2 * LAYERS * 32)
    assert {name: tuple(t.shape) for name, t in load_file(network).items()} == {
        "embedding.weight": (K, 32),
        "transform.0.weight": (24, 32),
        "transform.0.bias": (24,),
        "transform.2.weight": (128, 24),
        "transform.2.bias": (128,),
    }
    resumed = load(make("bert"), folder)
    assert resumed.tuning == config
    assert set(trainable_parameters(resumed)) == set(trainable_parameters(model))

    network.unlink()
    plain = load(make("bert"), folder)
    assert plain.tuning == PrefixTuningConfig(virtual_tokens=K, head=config.head)
    assert relative(logits(plain, "bert"), logits(model, "bert")) <= rounding()
    save(tuned("bert"), folder)
    assert not network.exists()


def test_a_network_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    folder, other = save(trained("bert", NETWORK), tmp_path / "one"), tuned("bert", NETWORK)
    fill(other, seed=2)
    (save(other, tmp_path / "two") / "prompt_encoder.safetensors").replace(folder / "prompt_encoder.safetensors")
    with pytest.raises(CheckpointError, match="does not compute prompt_embeddings: the two files are of different"):
        load(make("bert"), folder)
    direct = save(trained("bert", DIRECT), tmp_path / "three")
    (folder / "prompt_encoder.safetensors").replace(direct / "prompt_encoder.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected key 'embedding\.weight'"):
        load(make("bert"), direct)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 2}, "num_attention_heads is 2 in the checkpoint and 4 in the model"),
        ({"num_layers": 3}, "num_layers is 3 in the checkpoint and 2 in the model"),
        ({"token_dim": 64}, "token_dim is 64 in the checkpoint and 32 in the model"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2 in the checkpoint and 1 in the model"),
        ({"num_virtual_tokens": 4}, "prefix.embedding.weight has the shape"),
        ({"surprise": 1}, "uses surprise=1"),
    ],
    ids=str,
)
def test_headers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = save(tuned("bert"), tmp_path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    model = make("bert")
    with pytest.raises(CheckpointError, match=message):
        load(model, tmp_path)
    assert list(model.state_dict()) == list(make("bert").state_dict())
    assert not hasattr(model, "tuning")


def test_a_wrong_key_is_refused_and_a_short_header_is_enough(tmp_path: Path) -> None:
    model = trained("gpt2-lm", DIRECT)
    folder = save(model, tmp_path)
    header = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": K}
    (folder / "adapter_config.json").write_text(json.dumps(header), encoding="utf-8")
    assert torch.equal(logits(load(make("gpt2-lm"), folder), "gpt2-lm"), logits(model, "gpt2-lm"))
    weights = folder / "adapter_model.safetensors"
    save_file({"base_model.model.prompt_embeddings": load_file(weights)["prompt_embeddings"]}, weights)
    with pytest.raises(CheckpointError, match=r"missing transformer\.prefix\.embedding.*; unexpected model\.prompt"):
        load(make("gpt2-lm"), folder)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"virtual_tokens": 0}, "virtual_tokens must be a whole number of at least 1, got 0"),
        ({"virtual_tokens": 2.0}, "virtual_tokens must be a whole number of at least 1, got 2.0"),
        ({"init": "ones"}, "init must be one of normal, zero, got 'ones'"),
        ({"reparameterize": True, "mid_dim": 0}, "mid_dim must be a whole number of at least 1, got 0"),
        ({"mid_dim": 512}, "mid_dim is the width of the network, which is off; set reparameterize=True"),
        ({"dropout": 1.0}, "dropout is a share from 0 to below 1, got 1.0"),
        ({"dropout": "0.1"}, "dropout is a share from 0 to below 1, got '0.1'"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        PTuningV2Config(**settings)


def test_models_that_take_no_prefix_are_refused() -> None:
    distilbert = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=64, dim=16, n_heads=2, n_layers=1, hidden_dim=16)
    )
    with pytest.raises(MethodError, match="DistilBertModel cannot start from given keys and values"):
        inject(distilbert, DIRECT)
    with pytest.raises(MethodError, match="has no body below a head"):
        inject(make("bert").bert, DIRECT)
    with pytest.raises(MethodError, match="so a text may have 0 tokens, got 1"):
        tuned("bert", PrefixTuningConfig(virtual_tokens=40))


def test_gradient_checkpointing_is_refused_before_and_after() -> None:
    model = make("gpt2")
    model.gradient_checkpointing_enable()
    with pytest.raises(MethodError, match=r"gradient checkpointing.*gradient_checkpointing_disable\(\)"):
        inject(model, DIRECT)
    assert not isinstance(model.transformer, PrefixBody)
    model.gradient_checkpointing_disable()
    inject(model, DIRECT).train()
    model.gradient_checkpointing_enable()
    with pytest.raises(MethodError, match="drop all given keys and values"):
        model(**make_batch("gpt2"))
    assert model.eval()(**make_batch("gpt2")).logits.isfinite().all()  # checkpointing acts in training only
