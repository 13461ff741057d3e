"""Any backbone by one argument: the default, a folder, a Hub id; and clear errors for the rest."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants as hub
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.prediction import predict
from course_utils.methods import LoRAConfig, inject
from course_utils.models.assets import AssetError
from course_utils.models.backbones import BackboneError, load_causal_lm, load_classifier
from course_utils.training import TrainingConfig, fit

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def train_tokenizer(special: dict[str, str], ends: tuple[str, str] | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that has learnt from some of the tweets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(load_sentiment()["train"]["text"][:200], trainer)
    if ends:
        pairs = [(token, tokenizer.token_to_id(token)) for token in ends]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{ends[0]} $A {ends[1]}", special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_bert(folder: Path) -> None:
    tokenizer = train_tokenizer(
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}, ("[CLS]", "[SEP]")
    )
    save(BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SMALL)), tokenizer, folder)


def save_roberta(folder: Path) -> None:
    tokenizer = train_tokenizer(
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}, ("<s>", "</s>")
    )
    assert tokenizer.pad_token_id == 1
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **SMALL)
    save(RobertaModel(config), tokenizer, folder)


def save_gpt2(folder: Path) -> None:
    tokenizer = train_tokenizer({"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}, None)
    assert tokenizer.pad_token is None
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, **ends)
    save(GPT2LMHeadModel(config), tokenizer, folder)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {"bert": save_bert, "roberta": save_roberta, "gpt2": save_gpt2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tiny model of each family with a tokenizer of its own."""
    root = tmp_path_factory.mktemp("models")
    for family, write in FAMILIES.items():
        torch.manual_seed(0)
        write(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that nobody can reach: a port of this machine where nothing listens."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")


# --- the default -----------------------------------------------------------------------------------------------------


def test_the_default_backbone() -> None:
    model, tokenizer = load_classifier()
    assert model.config.model_type == "bert"
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_986
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert tokenizer.model_max_length == 512
    assert tokenizer.decode(tokenizer("Good MORNING")["input_ids"]) == "[CLS] good morning [SEP]"


def test_the_seed_gives_the_head_and_leaves_your_own_random_state_alone() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first, second, other = (load_classifier(seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    different = {name for name in first if not torch.equal(first[name], other[name])}
    assert different == {"classifier.weight"}  # the body is the pretrained one; the head's bias starts at zero


def test_from_scratch_has_the_same_shape_and_other_weights() -> None:
    pretrained, scratch, again = (
        load_classifier(pretrained=pretrained)[0].state_dict() for pretrained in (True, False, False)
    )
    assert {name: value.shape for name, value in pretrained.items()} == {
        name: value.shape for name, value in scratch.items()
    }
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(pretrained[name], scratch[name])
    assert all(torch.equal(scratch[name], again[name]) for name in scratch)


def test_dtype_and_number_of_labels(folders: dict[str, Path]) -> None:
    for pretrained in (True, False):
        model, _ = load_classifier(folders["bert"], num_labels=5, dtype=torch.bfloat16, pretrained=pretrained)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.config.num_labels == len(model.get_parameter("classifier.weight")) == 5


# --- other families, through the same code ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*longer than 64 tokens")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_local_folder_trains_like_the_default(family: str, folders: dict[str, Path]) -> None:
    model, tokenizer = load_classifier(folders[family])
    assert model.config.model_type == family
    assert tokenizer.pad_token_id == model.config.pad_token_id
    inject(model, LoRAConfig(rank=2))
    loader = make_loader(load_sentiment()["train"].select(range(16)), tokenizer, 8, shuffle=True)
    history = fit(model, loader, loader, TrainingConfig(epochs=1, learning_rate=1e-2, warmup=0, device="cpu"))
    assert len(history.steps) == 2
    assert all(row["gradient_norm"] > 0 for row in history.steps)


@pytest.mark.filterwarnings("ignore:.*longer than 64 tokens")
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_answer(family: str, folders: dict[str, Path]) -> None:
    """For GPT-2 this holds only when the model knows its padding token: it reads the last real one."""
    model, tokenizer = load_classifier(folders[family])
    part = load_sentiment()["test"].select(range(6))
    together = predict(model, make_loader(part, tokenizer, 6))
    alone = predict(model, make_loader(part, tokenizer, 1))
    assert together[1] == pytest.approx(alone[1], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_that_a_model_takes(family: str, folders: dict[str, Path]) -> None:
    """All three take 64 tokens; RoBERTa's table of positions says 66."""
    model, tokenizer = load_classifier(folders[family])
    assert tokenizer.model_max_length == 64
    part = load_sentiment()["test"].select([0]).map(lambda row: {"text": "many words " * 60})
    with pytest.warns(UserWarning, match="longer than 64 tokens"):
        loader = make_loader(part, tokenizer, 1)
    assert next(iter(loader))["input_ids"].shape == (1, 64)
    assert torch.isfinite(torch.tensor(predict(model, loader)[1])).all()


# --- clear errors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which nobody waits for."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("name", ["minilmm", "bert-base-uncased-x", "nobody/nothing", "./no/such/folder"])
def test_an_unknown_name_fails_fast_without_a_network(name: str, no_hub: None, slept: list[float]) -> None:
    with pytest.raises(BackboneError, match=r"could not load the backbone .*Expected 'minilm'") as raised:
        load_classifier(name)
    assert sum(slept) < 20
    assert repr(name) in str(raised.value)


def test_a_proxy_that_does_not_answer(no_hub: None, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    with pytest.raises(BackboneError, match="could not load the backbone 'nobody/nothing'"):
        load_classifier("nobody/nothing")
    assert sum(slept) < 20


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"holds no config\.json"):
        load_classifier(tmp_path)


def test_a_single_label(folders: dict[str, Path]) -> None:
    with pytest.raises(BackboneError, match="at least 2 labels, got 1"):
        load_classifier(folders["bert"], num_labels=1)


@pytest.mark.parametrize("damage", ["weights cut", "weights gone", "config broken", "type unknown", "tokenizer gone"])
def test_a_damaged_folder(damage: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["bert"], folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    match damage:
        case "weights cut":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "weights gone":
            weights.unlink()
        case "config broken":
            config.write_text("{", encoding="utf-8")
        case "type unknown":
            config.write_text(
                json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"model_type": "nonsense"}),
                encoding="utf-8",
            )
        case "tokenizer gone":
            (folder / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match="could not load the backbone") as raised:
        load_classifier(folder)
    assert str(folder) in str(raised.value)


def test_the_ratings_are_no_backbone() -> None:
    with pytest.raises((BackboneError, AssetError), match="ratings"):
        load_classifier("ratings")


# --- a model that was fine-tuned before ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a folder with a head of its own, whose classes have the names that are given."""

    def write(family: str, *names: str) -> Path:
        folder = tmp_path_factory.mktemp("tuned")
        model, tokenizer = load_classifier(folders[family], num_labels=len(names), seed=9)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_its_own_stays_with_its_own_names(family: str, tuned: Callable[..., Path]) -> None:
    folder = tuned(family, "POSITIVE", "NEGATIVE")
    first, second = (load_classifier(folder, seed=seed)[0] for seed in (0, 1))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert first.config.id2label == {0: "POSITIVE", 1: "NEGATIVE"}
    assert first.config.label2id == {"POSITIVE": 0, "NEGATIVE": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_head_is_named_by_the_course(family: str, tuned: Callable[..., Path], tmp_path: Path) -> None:
    """Fresh because all is drawn anew, or because the body was saved alone, as the message below advises."""
    folder = tuned(family, "POSITIVE", "NEGATIVE")
    scratch, _ = load_classifier(folder, pretrained=False)
    model, tokenizer = load_classifier(folder)
    body: Any = model.base_model
    body.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (first, _), (second, _) = (load_classifier(tmp_path, seed=seed) for seed in (0, 1))
    for fresh in (scratch, first):
        assert fresh.config.id2label == {0: "negative", 1: "positive"}
        assert fresh.config.label2id == {"negative": 0, "positive": 1}
    changed = {name for name, value in first.state_dict().items() if not torch.equal(value, second.state_dict()[name])}
    assert changed and all(name.startswith(("classifier", "score", "bert.pooler")) for name in changed)
    assert load_classifier(tmp_path, num_labels=3)[0].config.num_labels == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_for_another_number_of_classes(family: str, tuned: Callable[..., Path]) -> None:
    folder = tuned(family, "bad", "fair", "good")
    with pytest.raises(BackboneError, match="has a head for 3 classes, and 2 were asked for: give num_labels=3"):
        load_classifier(folder)
    assert load_classifier(folder, num_labels=3)[0].config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert load_classifier(folder, num_labels=5, pretrained=False)[0].config.num_labels == 5


def test_a_weight_of_another_shape_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for family, loads in (("bert", load_classifier), ("gpt2", load_causal_lm)):
        folder = tmp_path / family
        shutil.copytree(folders[family], folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 7}), encoding="utf-8")
        with pytest.raises(BackboneError, match=r"has the shape \(\d+, 32\) in the file, but .* asks for \(7, 32\)"):
            loads(folder)


def test_a_language_model_without_its_output_layer(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its answers would be drawn at random, without a word."""
    shutil.copytree(folders["gpt2"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8"
    )
    with pytest.raises(BackboneError, match=r"holds no weights for lm_head\.weight"):
        load_causal_lm(tmp_path / "model")


# --- language models ------------------------------------------------------------------------------------------------


def test_the_default_language_model_answers(capfd: pytest.CaptureFixture[str]) -> None:
    load_causal_lm()  # fetched and unpacked, if they were not
    capfd.readouterr()
    model, tokenizer = load_causal_lm()
    assert "unpacking" not in capfd.readouterr().err
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.training and model.config.model_type == "llama" and tokenizer.padding_side == "left"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs: Any = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in str(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :]))


def test_a_language_model_from_a_folder(folders: dict[str, Path]) -> None:
    model, tokenizer = load_causal_lm(folders["gpt2"], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    inputs = tokenizer(["good", "a longer text"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"][0, 0] == 0
    with torch.no_grad():
        assert model(**inputs).logits.shape == (*inputs["input_ids"].shape, len(tokenizer))


def test_an_encoder_is_no_language_model(folders: dict[str, Path]) -> None:
    with pytest.raises(BackboneError, match=r"Expected 'smollm2'.*bert model reads in both directions"):
        load_causal_lm(folders["bert"])
