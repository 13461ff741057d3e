"""Prompt tuning and P-Tuning equal peft's, number for number, and differ only where their documentation says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import (
    ALL_MODELS,
    CLASSIFIERS,
    DEPTH,
    DEVICE,
    HIDDEN,
    LANGUAGE_MODELS,
    VOCABULARY,
    Batch,
    agree,
    make,
    make_batch,
    relative,
    rounding,
)
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    MethodConfig,
    MethodError,
    PromptTuningConfig,
    PTuningConfig,
    count_parameters,
    eject,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.methods.prompt_body import VirtualPromptConfig, pools_first_token
from course_utils.methods.prompts import PromptTable
from course_utils.methods.targets import find_body
from course_utils.methods.virtual_tokens import cache_name

K = 5
METHODS: dict[str, VirtualPromptConfig] = {
    "table": PromptTuningConfig(virtual_tokens=K, init="random"),
    "mlp": PTuningConfig(virtual_tokens=K, hidden=24),
    "lstm": PTuningConfig(virtual_tokens=K, encoder="lstm", hidden=12),
}
FIRST_TOKEN = ("bert", "roberta")  # these classifiers pool the first token, the others the last one
GRADIENT = rounding(depth=2 * DEPTH)  # there and back


def config_for(kind: str, method: str, pool: str = "peft") -> VirtualPromptConfig:
    """The settings under which ours computes what peft computes."""
    return replace(METHODS[method], pool=pool if kind in FIRST_TOKEN else "text")


def batch_for(kind: str, **settings: Any) -> Batch:
    """Padded on the right, except for the classifiers that peft lets read a padding position then."""
    batch = make_batch(kind, **settings)
    if kind in ("gpt2", "llama"):
        batch = {key: value if value.ndim == 1 else value[:, :6] for key, value in batch.items()}
        assert batch["attention_mask"].all()
    if kind in LANGUAGE_MODELS:
        batch["labels"][:, 0] = -100  # peft predicts the first real token too
    return batch


def peft_model(kind: str, config: VirtualPromptConfig, model: nn.Module) -> PeftModel:
    """The same model under peft's own method."""
    common: dict[str, Any] = {
        "num_virtual_tokens": config.virtual_tokens,
        "task_type": "SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM",
    }
    settings: Any = peft.PromptTuningConfig(**common)
    if isinstance(config, PTuningConfig):
        settings = peft.PromptEncoderConfig(
            encoder_reparameterization_type=config.encoder.upper(),
            encoder_hidden_size=config.hidden,  # type: ignore[arg-type]
            encoder_num_layers=config.lstm_layers,
            encoder_dropout=config.lstm_dropout,
            **common,
        )
    theirs = get_peft_model(model, settings).eval()
    for module in theirs.modules():
        if isinstance(module, nn.LSTM):
            module.train()  # peft's gradients in evaluation mode need it on a GPU; there is no dropout in it
    return theirs


def prompt_of(model: nn.Module) -> Any:
    return find_body(model)[1].prompt


def peft_trainable(theirs: PeftModel, body: str) -> dict[str, nn.Parameter]:
    """peft's trained parameters under our names."""
    return {
        name.replace("prompt_encoder.default", f"{body}.prompt")
        .removeprefix("base_model.")
        .replace(".modules_to_save.default.", "."): parameter
        for name, parameter in trainable_parameters(theirs).items()
    }


def pair(kind: str, config: VirtualPromptConfig, dtype: torch.dtype = torch.float32) -> tuple[Any, PeftModel]:
    """Ours and peft's with the same weights."""
    ours, theirs = inject(make(kind).to(dtype), config), peft_model(kind, config, make(kind).to(dtype))
    mine, reference = trainable_parameters(ours), peft_trainable(theirs, find_body(ours)[0])
    assert set(mine) == set(reference)
    with torch.no_grad():
        for name, parameter in reference.items():
            parameter.copy_(mine[name])
    return ours, theirs


def text_logits(kind: str, logits: torch.Tensor) -> torch.Tensor:
    """peft's logits without those of the virtual tokens, which a language model of peft's hands out too."""
    return logits[:, K:] if kind in LANGUAGE_MODELS else logits


def same(kind: str, first: torch.Tensor, second: torch.Tensor, gate: float = GRADIENT) -> bool:
    """Equal bit for bit where the head reads one token (see `models.agree`), and elsewhere within the gate.

    The head of a decoder also reads the virtual tokens in peft, k rows more, so its product has another shape there.
    """
    return agree(first, second, gate) or (kind not in FIRST_TOKEN and relative(first, second) <= gate)


def explain_difference(kind: str, ours: Any, theirs: PeftModel, batch: Batch) -> str:
    """The first thing that is not the same (see `same`) between ours and peft's: "" if nothing."""
    if not agree(prompt_of(ours)(), theirs.get_prompt(1)[0]):
        return "another prompt"
    mine, reference = ours(**batch), theirs(**batch)
    if not same(kind, mine.logits, text_logits(kind, reference.logits), rounding()):
        return "other logits"
    if not same(kind, mine.loss, reference.loss, rounding()):
        return "another loss"
    for model, output in ((ours, mine), (theirs, reference)):
        model.zero_grad()
        output.loss.backward()
    for name, parameter in peft_trainable(theirs, find_body(ours)[0]).items():
        gradient = trainable_parameters(ours)[name].grad
        if gradient is None or parameter.grad is None or not same(kind, gradient, parameter.grad):
            return f"another gradient of {name}"
    return ""


# --- equal to peft --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_forward_loss_and_gradients_equal_peft(kind: str, method: str) -> None:
    ours, theirs = pair(kind, config_for(kind, method))
    batch = batch_for(kind)
    assert explain_difference(kind, ours, theirs, batch) == ""
    untuned = make(kind)(**batch).logits
    assert not torch.allclose(ours(**batch).logits, untuned, rtol=1e-2)  # the prompt does do something


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL_MODELS)
def test_ten_steps_give_peft_s_weights(kind: str, method: str) -> None:
    ours, theirs = pair(kind, config_for(kind, method))
    for model in (ours, theirs):
        trained = [p for p in model.parameters() if p.requires_grad]
        # Adam divides a gradient by its size, and makes much of the last digits of a small one: it is for equal bits.
        optimizer = torch.optim.AdamW(trained, lr=1e-2) if kind in FIRST_TOKEN else torch.optim.SGD(trained, lr=0.5)
        for step in range(10):
            optimizer.zero_grad()
            model(**batch_for(kind, seed=step)).loss.backward()
            optimizer.step()
    for name, parameter in peft_trainable(theirs, find_body(ours)[0]).items():
        # What ten steps of SGD add to a weight is ten gradients, shorter together than the weight itself.
        assert same(kind, trainable_parameters(ours)[name], parameter), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-lm"])
def test_half_precision_equals_peft(kind: str, method: str) -> None:
    ours, theirs = pair(kind, config_for(kind, method), torch.bfloat16)
    logits = text_logits(kind, theirs(**batch_for(kind)).logits)
    assert logits.dtype == torch.bfloat16
    assert same(kind, ours(**batch_for(kind)).logits, logits, rounding(torch.bfloat16, terms=1))


@pytest.mark.parametrize("kind", FIRST_TOKEN)
@pytest.mark.parametrize("method", METHODS)
def test_cls_of_the_text_is_pooled_as_by_hand(kind: str, method: str) -> None:
    ours, theirs = pair(kind, config_for(kind, method, pool="text"))
    batch = make_batch(kind)
    prompt = theirs.get_prompt(len(batch["input_ids"]))
    model: Any = theirs.base_model
    inputs = torch.cat((prompt, model.get_input_embeddings()(batch["input_ids"])), dim=1)
    mask = torch.cat((torch.ones(len(prompt), K, device=DEVICE), batch["attention_mask"]), dim=1)
    hidden = model.base_model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state[:, K:]
    expected = model.classifier(model.bert.pooler(hidden) if kind == "bert" else hidden)
    assert agree(ours(**batch).logits, expected)
    assert not torch.allclose(theirs(**batch).logits, expected, rtol=1e-2)


def test_the_second_sentence_of_a_pair_keeps_its_type() -> None:
    ours, theirs = pair("bert", config_for("bert", "table"))
    batch = make_batch("bert")
    types = (torch.arange(9, device=DEVICE) > 4).long().expand(4, -1)
    assert explain_difference("bert", ours, theirs, batch | {"token_type_ids": types}) == ""
    assert not torch.equal(ours(**batch, token_type_ids=types).logits, ours(**batch).logits)


class DetachedTable(PromptTable):
    """A prompt that gets no gradient. The head still learns, so that no error comes."""

    def forward(self) -> torch.Tensor:
        return super().forward().detach()


def test_the_parity_check_names_planted_mistakes() -> None:
    batch = batch_for("bert")
    ours, theirs = pair("bert", config_for("bert", "mlp"))
    assert explain_difference("bert", ours, theirs, batch) == ""
    ours.bert.prompt.mlp_head[1] = nn.Tanh()  # the activation of prefix tuning
    assert explain_difference("bert", ours, theirs, batch) == "another prompt"
    ours, theirs = pair("bert", config_for("bert", "table"))
    ours.bert.pool = "text"
    assert explain_difference("bert", ours, theirs, batch) == "other logits"
    batch = batch_for("llama")
    ours, theirs = pair("llama", config_for("llama", "table"))
    ours.model.prompt = DetachedTable(ours.model.prompt().detach())
    assert explain_difference("llama", ours, theirs, batch) == "another gradient of model.prompt.embedding.weight"


# --- where peft differs ---------------------------------------------------------------------------------------------


def rows_alone(model: Any, batch: Batch) -> torch.Tensor:
    masks = batch["attention_mask"].bool()
    return torch.cat(
        [model(input_ids=ids[mask][None]).logits for ids, mask in zip(batch["input_ids"], masks, strict=True)]
    )


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_peft_misreads_padding_and_ours_does_not(kind: str, left: bool) -> None:
    """Padded on the right, peft pools a padding position; on the left, it moves the prompt away from the text."""
    ours, theirs = pair(kind, config_for(kind, "table"))
    batch = make_batch(kind, left=left)
    alone = rows_alone(ours, batch)
    assert same(kind, rows_alone(theirs, batch), alone, rounding())
    assert relative(ours(**batch).logits, alone) <= rounding()
    wrong = (theirs(**batch).logits - alone).abs().amax(1)
    assert wrong[0] < 1e-5  # the longest row has no padding
    assert (wrong[1:] > (0.03 if left else 0.2)).all()  # of logits around 1


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_peft_also_predicts_the_first_real_token(kind: str) -> None:
    ours, theirs = pair(kind, config_for(kind, "table"))
    batch = make_batch(kind)
    reference = theirs(**batch)
    first = nn.functional.cross_entropy(reference.logits[:, K - 1], batch["input_ids"][:, 0], reduction="sum")
    mine, predicted = ours(**batch).loss, (batch["labels"][:, 1:] != -100).sum()
    rows = len(batch["input_ids"])
    assert torch.allclose((mine * predicted + first) / (predicted + rows), reference.loss, rtol=1e-5)
    assert not torch.allclose(mine, reference.loss, rtol=1e-3)


# --- generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_generation_equals_peft_without_padding(kind: str, beams: int) -> None:
    ours, theirs = pair(kind, config_for(kind, "table"))
    text = make_batch(kind)["input_ids"][:, :6]
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    generated = ours.generate(**inputs, **settings)
    assert torch.equal(generated, theirs.generate(**inputs, **settings))
    assert not torch.equal(generated, make(kind).generate(**inputs, **settings))


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@torch.no_grad()
def test_a_cache_goes_on_where_it_stopped(kind: str) -> None:
    model = inject(make(kind), METHODS["table"])
    batch = make_batch(kind, left=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    whole = model(ids, attention_mask=mask).logits
    start = model(ids[:, :6], attention_mask=mask[:, :6], use_cache=True)
    cache = start[cache_name(model)]
    assert cache.get_seq_length() == K + 6
    rest = model(ids[:, 6:], attention_mask=mask, **{cache_name(model): cache}).logits
    assert relative(torch.cat((start.logits, rest), 1)[mask.bool()], whole[mask.bool()]) <= rounding()


def test_a_static_cache_is_refused() -> None:
    model = inject(make("llama-lm"), METHODS["table"])
    with pytest.raises(MethodError, match=r"this one has a fixed size\. Leave out cache_implementation"):
        model.generate(make_batch("llama-lm")["input_ids"][:1], max_new_tokens=2, cache_implementation="static")  # type: ignore[operator]


# --- what is inserted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PromptTuningConfig(), 15_360),  # k · hidden
        (PTuningConfig(), 1_787_136),  # k · hidden + 3 · (hidden² + hidden)
        (
            PTuningConfig(encoder="lstm", hidden=384),
            20 * 768 + 2 * 2 * 4 * 384 * (768 + 384 + 2) + 2 * (768 * 768 + 768),
        ),
    ],
    ids=["table", "mlp", "lstm"],
)
def test_parameter_count_on_bert_base(config: MethodConfig, expected: int) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    count = count_parameters(inject(model, config))
    assert (count.trainable - count.head, count.head) == (expected, 1_538)


def test_a_prompt_starts_at_words_or_at_random() -> None:
    words = make("bert").get_input_embeddings().weight
    table = prompt_of(inject(make("bert"), PromptTuningConfig(virtual_tokens=30)))()
    assert (table[:, None] == words).all(-1).any(1).all()  # each row is some word's
    assert len(table.unique(dim=0)) > 15
    random = prompt_of(inject(make("bert"), PromptTuningConfig(virtual_tokens=30, init="random")))()
    assert abs(random.std().item() - 1) < 0.05
    assert not (random[:, None] == words).all(-1).any()


@pytest.mark.parametrize("text", ["good", "good or bad", "good or bad and why or why not good"])
def test_a_prompt_starts_at_a_text_as_in_peft(text: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {word: 10 + index for index, word in enumerate(sorted({"[UNK]", *text.split()}))}
    backend = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path)
    settings = peft.PromptTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=K,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(tmp_path),
    )
    theirs = get_peft_model(make("bert"), settings)
    ids = tuple(tokenizer(text)["input_ids"])
    ours = inject(make("bert"), PromptTuningConfig(virtual_tokens=K, init="text", initial_tokens=ids))
    assert torch.equal(prompt_of(ours)(), theirs.get_prompt(1)[0])
    prompt_of(ours).embedding.weight.data.zero_()  # the table is a copy: the words stay as they were
    assert make("bert").get_input_embeddings().weight.equal(ours.get_input_embeddings().weight)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_the_model_around_sees_no_virtual_tokens(kind: str) -> None:
    model: Any = inject(make(kind), METHODS["table"])
    batch = make_batch(kind)
    output = model(**batch, output_hidden_states=True)
    assert all(state.shape == (4, 9, HIDDEN) for state in output.hidden_states)
    embedded = model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"][:1]))
    assert relative(embedded.logits, model(batch["input_ids"][:1]).logits) <= rounding()
    assert torch.equal(model(**batch, return_dict=False)[1], output.logits)
    name, body = find_body(model)
    assert body.config is model.config
    assert body.dtype == torch.float32
    pretrained: Any = body.base
    assert model.get_input_embeddings() is pretrained.get_input_embeddings()
    assert find_body(eject(model)) == (name, pretrained)


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_prompt_cannot_be_merged(kind: str) -> None:
    with pytest.raises(MethodError, match="PromptBody computes something that no single weight can hold: no merge"):
        merge(inject(make(kind), PromptTuningConfig()))


@pytest.mark.parametrize(("kind", "room"), [("bert", 35), ("roberta", 33), ("gpt2", 35), ("gpt2-lm", 35)])
def test_a_text_that_is_too_long_is_refused(kind: str, room: int) -> None:
    model = inject(make(kind), METHODS["table"])
    model(**make_batch(kind, length=room))
    message = f"the model has {room + K} positions and 5 of them .* may have {room} tokens, got {room + 1}. Truncate"
    with pytest.raises(MethodError, match=message):
        model(**make_batch(kind, length=room + 1))
    with pytest.raises(MethodError, match=rf"has {room + K} positions and {room + K} of them"):
        inject(make(kind), PromptTuningConfig(virtual_tokens=room + K))


def test_generation_stops_where_the_positions_end() -> None:
    model: Any = inject(make("gpt2-lm"), METHODS["table"])
    text = make_batch("gpt2-lm", rows=1, length=30)["input_ids"]
    assert model.generate(text, max_new_tokens=6, eos_token_id=None).shape == (1, 36)  # the last one is not read
    with pytest.raises(MethodError, match="may have 35 tokens, got 36"):
        model.generate(text, max_new_tokens=7, eos_token_id=None)


def test_a_rotary_model_has_no_last_position() -> None:
    model = inject(make("llama"), METHODS["table"])
    assert model(**make_batch("llama", length=60)).logits.isfinite().all()


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL_MODELS)
@torch.no_grad()
def test_checkpoints_go_both_ways(kind: str, method: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    ours, theirs = pair(kind, config_for(kind, method))
    for name, parameter in trainable_parameters(ours).items():
        if name in ("classifier.weight", "score.weight"):
            parameter.mul_(1.5)  # the head travels too
    batch = batch_for(kind)
    expected = ours(**batch).logits
    loaded = PeftModel.from_pretrained(make(kind), str(save(ours, tmp_path / "ours")))

    def equal(first: torch.Tensor, second: torch.Tensor) -> bool:
        return relative(first, second) <= rounding() if method == "lstm" else same(kind, first, second, rounding())

    assert equal(text_logits(kind, loaded(**batch).logits), expected)
    assert not [warning for warning in recwarn if "Unexpected keyword" in str(warning.message)]

    theirs.save_pretrained(str(tmp_path / "theirs"))
    restored = load(make(kind), tmp_path / "theirs")
    assert equal(restored(**batch).logits, text_logits(kind, theirs(**batch).logits))
    assert type(restored.tuning) is PromptTuningConfig  # peft drops the encoder, so the table is all there is
    assert restored.tuning.pool == ("peft" if kind in FIRST_TOKEN else "text")


def test_a_checkpoint_says_that_cls_is_pooled_and_peft_warns(tmp_path: Path) -> None:
    ours = inject(make("bert"), METHODS["table"])
    folder = save(ours, tmp_path)
    batch = make_batch("bert")
    restored = load(make("bert"), folder)
    assert restored.tuning == replace(METHODS["table"], head=("classifier",))
    assert torch.equal(restored(**batch).logits, ours(**batch).logits)
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['pool'\]"):
        theirs = PeftModel.from_pretrained(make("bert"), str(folder))
    ours.bert.pool = "peft"  # type: ignore[union-attr]
    assert torch.equal(theirs(**batch).logits, ours(**batch).logits)


@pytest.mark.parametrize("method", ["mlp", "lstm"])
def test_the_encoder_lies_beside_the_table_and_training_goes_on(method: str, tmp_path: Path) -> None:
    def train(model: Any, steps: range) -> None:
        for step in steps:
            model.zero_grad()
            model(**make_batch("bert", seed=step)).loss.backward()
            with torch.no_grad():
                for parameter in trainable_parameters(model).values():
                    assert parameter.grad is not None
                    parameter.sub_(0.1 * parameter.grad)

    straight, stopped = (inject(make("bert"), METHODS[method]) for _ in range(2))
    train(straight, range(6))
    train(stopped, range(3))
    resumed = load(make("bert"), save(stopped, tmp_path))
    assert resumed.tuning == replace(METHODS[method], head=("classifier",))
    train(resumed, range(3, 6))
    for name, parameter in trainable_parameters(straight).items():
        assert torch.equal(trainable_parameters(resumed)[name], parameter), name


@pytest.mark.skipif(DEVICE == "pretend", reason="PyTorch's LSTM in steps leaves the dropout out")
def test_the_table_is_saved_without_the_dropout_of_the_encoder(tmp_path: Path) -> None:
    config = PTuningConfig(virtual_tokens=K, encoder="lstm", hidden=16, lstm_dropout=0.5)
    ours = inject(make("bert"), config).train()
    save(ours, tmp_path)
    assert prompt_of(ours).training
    table = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].to(DEVICE)
    assert not torch.allclose(table, prompt_of(ours)(), atol=1e-3)
    assert relative(table, prompt_of(ours.eval())()) <= rounding()  # torch's LSTM rounds otherwise without gradients


def test_the_encoder_must_compute_the_table(tmp_path: Path) -> None:
    ours = inject(make("bert"), METHODS["mlp"])
    save(ours, tmp_path)
    encoder = tmp_path / "prompt_encoder.safetensors"
    sound = load_file(encoder)
    for name, tensor in {"embedding.weight": sound["embedding.weight"].flip(0)}.items():
        save_file(sound | {name: tensor}, encoder)
        with pytest.raises(CheckpointError, match="does not compute prompt_embeddings: the two files are of different"):
            load(make("bert"), tmp_path)
    for tensors in (
        {k: t for k, t in sound.items() if k != "embedding.weight"},
        sound | {"surplus": torch.zeros(2)},
        sound | {"mlp_head.0.weight": torch.zeros(2, 2)},
    ):
        save_file(tensors, encoder)
        with pytest.raises(CheckpointError, match=r"prompt_encoder\.safetensors does not fit the settings"):
            load(make("bert"), tmp_path)
    encoder.unlink()
    restored = load(make("bert"), tmp_path)
    assert torch.equal(restored(**make_batch("bert")).logits, ours(**make_batch("bert")).logits)


def test_an_older_encoder_does_not_stay_in_the_folder(tmp_path: Path) -> None:
    save(inject(make("bert"), METHODS["mlp"]), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    save(inject(make("bert"), METHODS["table"]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_part_of_the_body_can_be_trained_and_saved_beside_the_prompt(tmp_path: Path) -> None:
    config = PromptTuningConfig(virtual_tokens=K, init="random", head=("bert.pooler", "classifier"))
    ours: Any = inject(make("bert"), config)
    with torch.no_grad():
        ours.bert.base.pooler.dense.weight.mul_(1.5)
    folder = save(ours, tmp_path)
    assert "base_model.bert.pooler.dense.weight" in load_file(folder / "adapter_model.safetensors")
    restored = load(make("bert"), folder)
    assert restored.tuning == config
    assert torch.equal(restored(**make_batch("bert")).logits, ours(**make_batch("bert")).logits)


@pytest.mark.parametrize("method", ["table", "mlp"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompt_embeddings", "prompt_embedding", "prompt_embedding"),
        ("base_model.classifier.bias", "base_model.model.classifier.bias", "unexpected model.classifier.bias"),
        ("base_model.classifier.bias", "classifier.bias", "classifier.bias"),
        ("base_model.classifier.bias", None, "missing classifier.bias"),
    ],
)
def test_wrong_keys_are_refused(method: str, old: str, new: str | None, message: str, tmp_path: Path) -> None:
    folder = save(inject(make("bert"), METHODS[method]), tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensor = tensors.pop(old)
    save_file(tensors | ({} if new is None else {new: tensor}), folder / "adapter_model.safetensors")
    model = make("bert")
    with pytest.raises(CheckpointError, match=message):
        load(model, folder)
    assert not hasattr(model, "tuning")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_transformer_submodules": 2}, "encoder and decoder"),
        ({"cpt_token_ids": [1]}, "uses cpt_token_ids"),
        ({"num_virtual_tokens": 7}, r"shape \(5, 32\) in the checkpoint and \(7, 32\)"),
        ({"pool": "first"}, "pool must be one of 'text', 'peft', got 'first'"),
        ({"num_virtual_tokens": "5"}, "virtual_tokens must be a whole number"),
    ],
    ids=str,
)
def test_headers_of_another_kind_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    header = save(inject(make("bert"), METHODS["table"]), tmp_path) / "adapter_config.json"
    header.write_text(json.dumps(json.loads(header.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load(make("bert"), tmp_path)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (PromptTuningConfig, {"virtual_tokens": 0}, "virtual_tokens must be a whole number of at least 1, got 0"),
        (PTuningConfig, {"virtual_tokens": 2.0}, "virtual_tokens must be a whole number"),
        (PromptTuningConfig, {"pool": "cls"}, "pool must be one of 'text', 'peft', got 'cls'"),
        (PromptTuningConfig, {"init": "TEXT"}, "init must be one of 'vocabulary', 'text', 'random', got 'TEXT'"),
        (PromptTuningConfig, {"init": "text"}, "go together"),
        (PromptTuningConfig, {"initial_tokens": (4, 5)}, "go together"),
        (PromptTuningConfig, {"init": "text", "initial_tokens": ()}, "must be a tuple of token ids"),
        (PromptTuningConfig, {"init": "text", "initial_tokens": "good"}, "must be a tuple of token ids"),
        (PromptTuningConfig, {"init": "text", "initial_tokens": (4, -1)}, "must be a tuple of token ids"),
        (PTuningConfig, {"encoder": "MLP"}, "encoder must be one of 'mlp', 'lstm', got 'MLP'"),
        (PTuningConfig, {"hidden": 0}, "hidden must be a whole number"),
        (PTuningConfig, {"lstm_layers": 0}, "lstm_layers must be a whole number"),
        (PTuningConfig, {"lstm_dropout": 1.0}, "lstm_dropout is a share from 0 to below 1"),
        (PTuningConfig, {"lstm_dropout": 0.1, "lstm_layers": 1}, "leaves no between"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(config: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        config(**settings)


def test_models_that_do_not_fit_are_refused() -> None:
    words = PromptTuningConfig(init="text", initial_tokens=(4, VOCABULARY))
    images = ViTForImageClassification(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    cases: list[tuple[nn.Module, MethodConfig, str]] = [
        (make("bert"), words, "holds the id 64, but the model's vocabulary has 64 tokens"),
        (make("llama"), PTuningConfig(pool="peft"), "LlamaForSequenceClassification does not. Leave pool at 'text'"),
        (make("bert").bert, PromptTuningConfig(), "has no body below a head"),
        (images, PromptTuningConfig(), "ViTModel is no plain encoder or decoder of text"),
    ]
    for model, config, message in cases:
        modules = list(model.modules())
        with pytest.raises(MethodError, match=message):
            inject(model, config)
        assert list(model.modules()) == modules
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert [pools_first_token(make(kind)) for kind in ALL_MODELS] == [True, True, False, False, False, False]
