"""The header of a checkpoint, field by field beside the one that peft itself writes for the same method and model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models import make, noise, relative, rounding
from peft import PeftModel, get_peft_model
from test_heads import ENCODER, TOKENS
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
    ElectraConfig,
    ElectraForTokenClassification,
)

from course_utils.checkpoints import load, save
from course_utils.checkpoints.formats import task_of
from course_utils.methods import (
    AdaLoRAConfig,
    DoRAConfig,
    IA3Config,
    LoRAConfig,
    MethodConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    PTuningV2Config,
    VeRAConfig,
    inject,
    trainable_parameters,
)


def build(model_class: Any, config: Any) -> Callable[[], Any]:
    """The same random model each time it is called."""

    def draw() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model_class(config).eval()

    return draw


MODELS: dict[str, Callable[[], Any]] = {
    "SEQ_CLS": lambda: make("bert"),
    "TOKEN_CLS": build(BertForTokenClassification, BertConfig(**ENCODER)),
    "QUESTION_ANS": build(BertForQuestionAnswering, BertConfig(**ENCODER)),
    "CAUSAL_LM": lambda: make("gpt2-lm"),
}
AT_THE_FRONT: list[tuple[MethodConfig, Any, dict[str, Any]]] = [
    (PromptTuningConfig(virtual_tokens=3, init="random"), peft.PromptTuningConfig, {"num_virtual_tokens": 3}),
    (PTuningConfig(virtual_tokens=3), peft.PromptEncoderConfig, {"num_virtual_tokens": 3}),
    (PrefixTuningConfig(virtual_tokens=3), peft.PrefixTuningConfig, {"num_virtual_tokens": 3}),
    (PTuningV2Config(virtual_tokens=3), peft.PrefixTuningConfig, {"num_virtual_tokens": 3}),
]
IN_LAYERS: list[tuple[MethodConfig, Any, dict[str, Any]]] = [
    (LoRAConfig(rank=4, alpha=8), peft.LoraConfig, {"r": 4, "lora_alpha": 8}),
    (DoRAConfig(rank=4, alpha=8), peft.LoraConfig, {"r": 4, "lora_alpha": 8, "use_dora": True}),
    (
        AdaLoRAConfig(total_steps=9, initial_steps=2, final_steps=2, alpha=8),
        peft.AdaLoraConfig,
        {"total_step": 9, "tinit": 2, "tfinal": 2, "lora_alpha": 8},
    ),
    (VeRAConfig(rank=4), peft.VeraConfig, {"r": 4}),
    (IA3Config(), peft.IA3Config, {}),
]
#: What ours says in other words: each layer and each trained module by its full name, so that no ending takes more.
IN_FULL = {"target_modules", "feedforward_modules", "modules_to_save"}
#: Fields that ours leaves out. They say which peft it was, how training began, or what only another setting looks at.
LEFT_OUT = {"peft_version", "init_lora_weights", "init_ia3_weights", "init_weights", "megatron_core", "runtime_config"}
LEFT_OUT |= {"qalora_group_size", "encoder_dropout"}
#: Fields of ours that peft does not have, and warns of.
OWN = {"pool", "prefix_dropout", "scale_queries"}


def header(model: Any, folder: Path) -> dict[str, Any]:
    if hasattr(model, "save_pretrained") and isinstance(model, PeftModel):
        model.save_pretrained(str(folder))
    else:
        save(model, folder)
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize(
    ("ours", "theirs", "settings"), [*AT_THE_FRONT, *IN_LAYERS], ids=lambda v: getattr(v, "name", "")
)
def test_the_header_says_what_peft_s_own_says(
    task: str, ours: MethodConfig, theirs: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    one = header(inject(MODELS[task](), ours), tmp_path / "ours")
    two = header(get_peft_model(MODELS[task](), theirs(task_type=task, **settings)), tmp_path / "theirs")
    assert one["task_type"] == task
    for name in two.keys() - IN_FULL - LEFT_OUT:
        off = name not in one and two[name] in (None, False, "", [], {})
        unread = ours.name == "AdaLoRA" and name == "r"
        assert off or unread or one[name] == two[name], f"{name}: {one.get(name)!r} in ours, {two[name]!r} in peft's"
    assert one.keys() - two.keys() <= OWN
    for name in IN_FULL & two.keys():
        full, ends = one[name] or [], tuple(two[name] or [])
        assert all(long.endswith(ends) for long in full), f"{name}: {full} in ours, {ends} in peft's"


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
@pytest.mark.parametrize(("ours", "theirs", "settings"), AT_THE_FRONT, ids=lambda v: getattr(v, "name", ""))
def test_virtual_tokens_before_every_task_of_peft_s_cross_both_ways(
    task: str, ours: MethodConfig, theirs: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    model, bare = moved(inject(MODELS[task](), ours)), MODELS[task]()
    save(model, tmp_path / "ours")
    there = PeftModel.from_pretrained(MODELS[task](), str(tmp_path / "ours")).eval()
    for got, expected, before in zip(outputs(there), outputs(model), outputs(bare), strict=True):
        assert relative(text_only(got), expected) < rounding()
        assert relative(before, expected) > 0.01
    other = moved(get_peft_model(MODELS[task](), theirs(task_type=task, **settings)))
    other.save_pretrained(str(tmp_path / "theirs"))
    for got, expected in zip(outputs(load(MODELS[task](), tmp_path / "theirs")), outputs(other), strict=True):
        assert relative(got, text_only(expected)) < rounding()


def moved(model: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * noise(parameter, generator))
    return model.eval()


def outputs(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS))
    return [found.logits] if "logits" in found else [found.start_logits, found.end_logits]


def text_only(logits: torch.Tensor) -> torch.Tensor:
    """Without the positions of the virtual tokens, which peft leaves in."""
    return logits[:, -TOKENS.shape[1] :]


@pytest.mark.parametrize("model_class", [BertForMultipleChoice, BertForMaskedLM])
@pytest.mark.parametrize("ours", [row[0] for row in AT_THE_FRONT], ids=lambda config: config.name)
def test_virtual_tokens_before_a_task_that_peft_has_not_are_in_our_own_format(
    model_class: Any, ours: MethodConfig, tmp_path: Path
) -> None:
    draw = build(model_class, BertConfig(**ENCODER))
    tokens = TOKENS[:, None] if model_class is BertForMultipleChoice else TOKENS
    model = moved(inject(draw(), ours))
    assert task_of(model) is None
    with pytest.warns(UserWarning, match=rf"peft has no task for {model_class.__name__}.*the course's own format"):
        save(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"tuning_config.json", "tuning_model.safetensors"}
    again = load(draw(), tmp_path)
    assert again.tuning == ours
    assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert not torch.equal(draw()(input_ids=tokens).logits, model(input_ids=tokens).logits)


@pytest.mark.parametrize(
    "draw",
    [
        build(ElectraForTokenClassification, ElectraConfig(**ENCODER, embedding_size=16)),
        build(
            DistilBertForTokenClassification,
            DistilBertConfig(
                vocab_size=ENCODER["vocab_size"],
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=48,
                max_position_embeddings=40,
            ),
        ),
    ],
    ids=["ELECTRA", "DistilBERT"],
)
def test_the_sizes_that_peft_cannot_guess_are_in_the_header(draw: Callable[[], Any], tmp_path: Path) -> None:
    """ELECTRA's embeddings are narrower than its layers; DistilBERT calls its width `dim`."""
    model = moved(inject(draw(), PromptTuningConfig(virtual_tokens=3)))
    save(model, tmp_path)
    theirs = PeftModel.from_pretrained(draw(), str(tmp_path)).eval()
    assert relative(text_only(outputs(theirs)[0]), outputs(model)[0]) < rounding()
