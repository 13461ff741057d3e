"""What other families of models could do to a method without a word: each is right, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from every_architecture import GREEDY, bare, disturb, make_batch, make_tiny, objective, results
from models import relative
from torch import nn
from transformers import (
    BigBirdConfig,
    BigBirdForSequenceClassification,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    XLMConfig,
    XLMForSequenceClassification,
)

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    LoRAConfig,
    MethodConfig,
    MethodError,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    TargetError,
    VeRAConfig,
    dequantize,
    eject,
    find_targets,
    inject,
    merge,
    quantize,
    trainable_parameters,
)
from course_utils.methods.virtual_tokens import behind_padding, find_stack, position_range, window

LAST = (PromptTuningConfig(virtual_tokens=3), PTuningConfig(virtual_tokens=3), PrefixTuningConfig(virtual_tokens=3))
ids = pytest.mark.parametrize("config", LAST, ids=lambda config: config.name)


def tuned(family: str, config: MethodConfig, task: str = "language model", **settings: Any) -> Any:
    model = inject(make_tiny(family, task, **settings).double(), config)
    disturb(model)
    return model


# --- saving and checkpointing ---------------------------------------------------------------------------------------


def test_save_pretrained_is_refused_while_it_would_lose_layers(tmp_path: Path) -> None:
    model: Any = inject(make_tiny("bert"), LoRAConfig())
    with pytest.raises(MethodError, match=r"draw those layers at random.*merge"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    expected = results(merge(model), make_batch(model))
    model.save_pretrained(tmp_path)
    assert relative(results(type(model).from_pretrained(tmp_path).eval(), make_batch(model)), expected) < 1e-6

    eject(inject(model, LoRAConfig()))
    model.save_pretrained(tmp_path)
    quantize(model)
    with pytest.raises(MethodError, match="weights in 4 bits"):
        model.save_pretrained(tmp_path)
    dequantize(model)
    model.save_pretrained(tmp_path)
    assert not model._forward_pre_hooks or len(model._forward_pre_hooks) == 1


@pytest.mark.parametrize("family", ["vit", "bert", "llama", "t5"])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_re_entrant_checkpointing_loses_no_gradient(family: str, before: bool) -> None:
    gradients: list[dict[str, Any]] = []
    for reentrant in (None, True):
        model = make_tiny(family).double().train()
        if reentrant and before:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        disturb(inject(model, LoRAConfig(targets="all-linear")))
        if reentrant and not before:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        torch.manual_seed(0)  # dropout
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        objective(results(model, make_batch(model))).backward()
        gradients.append({name: p.grad for name, p in trainable_parameters(model).items()})
    plain, saving = gradients
    for name, gradient in plain.items():
        assert saving[name] is not None, name
        assert relative(saving[name], gradient) < 1e-6 or gradient.norm() < 1e-12, name


def test_a_model_whose_embeddings_nobody_names_is_refused_under_re_entrant_checkpointing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = inject(make_tiny("vit"), LoRAConfig()).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    monkeypatch.setattr(model, "enable_input_require_grads", lambda: setattr(model, "_require_grads_hooks", []))
    with pytest.raises(MethodError, match="use_reentrant=True drops the gradients of ViTForImageClassification"):
        model(**make_batch(model))


# --- which layers ---------------------------------------------------------------------------------------------------


def test_what_is_excluded_stays_as_it_is() -> None:
    model = make_tiny("bert")
    everything = find_targets(model, "all-linear")
    without = find_targets(model, "all-linear", exclude=("query", "output.dense"))
    assert set(everything) - set(without) == {n for n in everything if n.endswith(("query", "output.dense"))}
    assert find_targets(model, "all-linear", exclude=r".*\.(query|dense)").keys() == {
        name for name in everything if name.endswith(("key", "value"))
    }
    with pytest.raises(TargetError, match="exclude names 'quary', and no module of BertForSequenceClassification"):
        find_targets(model, None, exclude=("quary",))
    with pytest.raises(TargetError, match="leaves out all that targets"):
        find_targets(model, ("query",), exclude=("query",))
    with pytest.raises(TargetError, match="is no regular expression"):
        find_targets(model, None, exclude="(")
    with pytest.raises(TargetError, match="exclude must be a tuple of names, a pattern or None, got 3"):
        find_targets(model, None, exclude=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(targets="all-linear", exclude=("query", "output.dense")),
        VeRAConfig(rank=8, targets="all-linear", exclude=r".*\.key"),
    ],
    ids=lambda config: config.name,
)
def test_an_exclusion_goes_to_peft_and_comes_back(config: MethodConfig, tmp_path: Path) -> None:
    model = inject(make_tiny("bert"), config)
    disturb(model)
    batch, folder = make_batch(model), save(model, tmp_path)
    assert torch.equal(results(load(make_tiny("bert"), folder), batch), results(model, batch))
    theirs = peft.PeftModel.from_pretrained(make_tiny("bert"), folder).eval()
    assert relative(results(theirs, batch), results(model, batch)) < 1e-6


def test_peft_s_exclusion_is_read(tmp_path: Path) -> None:
    settings: Any = {"target_modules": "all-linear", "exclude_modules": ["query", "output.dense", "pooler.dense"]}
    theirs = peft.get_peft_model(make_tiny("bert"), peft.LoraConfig(**settings, task_type="SEQ_CLS")).eval()
    disturb(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours: Any = load(make_tiny("bert"), tmp_path)
    batch = make_batch(theirs)
    assert set(ours.tuning.exclude) == set(settings["exclude_modules"])
    assert relative(results(ours, batch), results(theirs, batch)) < 1e-6


# --- virtual tokens -------------------------------------------------------------------------------------------------

WINDOWED: dict[str, Any] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "gpt_neo": {"window_size": 6},
}


def test_the_window_of_a_model() -> None:
    assert [window(make_tiny(family, **settings).config) for family, settings in WINDOWED.items()] == [6, 6, 6]
    assert [window(make_tiny(family).config) for family in ("bert", "llama", "qwen2")] == [None, None, None]


@pytest.mark.parametrize("family", WINDOWED)
@ids
def test_a_row_padded_on_the_left_behind_a_window_is_the_row_alone(family: str, config: MethodConfig) -> None:
    model = tuned(family, config, **WINDOWED[family]).float()  # in float64 a row that sees nothing is NaN there
    tokens = torch.arange(4, 13)[None]
    mask = torch.ones_like(tokens)
    padded = torch.cat((torch.ones(1, 5, dtype=torch.long), tokens), 1)
    padded_mask = torch.cat((torch.zeros(1, 5, dtype=torch.long), mask), 1)
    if isinstance(config, PrefixTuningConfig):
        with pytest.raises(MethodError, match="6 positions at a time, and padding on the left would push the prefix"):
            model(input_ids=padded, attention_mask=padded_mask)
        model(input_ids=tokens, attention_mask=mask)
        return
    alone = model(input_ids=tokens, attention_mask=mask).logits
    together = model(input_ids=padded, attention_mask=padded_mask).logits[:, 5:]
    assert relative(together, alone) < 1e-5
    settings: Any = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(tokens, attention_mask=mask, **settings)[:, -4:]
    assert torch.equal(model.generate(padded, attention_mask=padded_mask, **settings)[:, -4:], expected)


def test_positions_move_behind_the_padding() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    extended = torch.tensor([[10, 20, 1, 2, 3, 4], [10, 20, 1, 2, 3, 4]])
    assert behind_padding(extended, mask, 2).tolist() == [[1, 2, 10, 20, 3, 4], [10, 20, 1, 2, 3, 4]]


@pytest.mark.parametrize("family", ["gemma", "bart", "bert"])
def test_a_prompt_of_words_is_what_the_model_reads_for_them(family: str) -> None:
    """Gemma multiplies each row of its table by √hidden, and BART can."""
    task = "classifier" if family == "bert" else "language model"
    settings: dict[str, Any] = {"scale_embedding": True} if family == "bart" else {}
    model = make_tiny(family, task, **settings)
    words = model.get_input_embeddings()(torch.tensor([5, 7, 9])).detach()
    inject(model, PromptTuningConfig(virtual_tokens=3, init="text", initial_tokens=(5, 7, 9)))
    table = next(p for name, p in trainable_parameters(model).items() if "prompt" in name)
    assert torch.equal(table, words)


def test_the_positions_of_a_model() -> None:
    for family, expected in {"bart": range(40), "mbart": range(40), "bert": range(40), "t5": None}.items():
        task = "classifier" if family == "bert" else "language model"
        assert position_range(find_stack(make_tiny(family, task), "encoder")[1]) == expected
    distances = make_tiny("deberta-v2", position_buckets=20, position_biased_input=False)  # 40 rows of distances
    assert position_range(distances.deberta) is None
    with pytest.raises(MethodError, match="has 40 positions and 3 of them are taken"):
        tuned("bart", PromptTuningConfig(virtual_tokens=3))(
            input_ids=torch.full((1, 38), 5), decoder_input_ids=torch.tensor([[2]])
        )


@ids
def test_a_model_that_passes_by_the_body_is_refused(config: MethodConfig) -> None:
    with pytest.raises(MethodError, match="OPTForCausalLM passes by"):
        inject(make_tiny("opt", "language model"), config)


# --- encoder and decoder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "bart"])
@ids
def test_an_encoder_decoder_reads_padding_as_nothing(family: str, config: MethodConfig) -> None:
    model = tuned(family, config)
    text, answer = torch.arange(4, 10)[None], torch.tensor([[2, 5, 6]])
    alone = model(input_ids=text, attention_mask=torch.ones_like(text), decoder_input_ids=answer).logits
    right = torch.cat((text, torch.ones(1, 3, dtype=torch.long)), 1)
    padded = model(input_ids=right, attention_mask=(right != 1).long(), decoder_input_ids=answer).logits
    assert relative(padded, alone) < 1e-6
    if family == "t5":  # its distances are relative: padding on the left is nothing, too
        left = right.roll(3, 1)
        padded = model(input_ids=left, attention_mask=(left != 1).long(), decoder_input_ids=answer).logits
        assert relative(padded, alone) < 1e-6


@pytest.mark.parametrize("family", ["t5", "bart"])
@ids
def test_generation_is_that_of_the_forward_pass(family: str, config: MethodConfig) -> None:
    model = tuned(family, config)
    text = torch.arange(4, 10)[None]
    mask = torch.ones_like(text)
    written = model.generate(text, attention_mask=mask, **GREEDY)
    without_cache = model.generate(text, attention_mask=mask, use_cache=False, **GREEDY)
    logits = model(input_ids=text, attention_mask=mask, decoder_input_ids=written.sequences[:, :-1]).logits
    for found in (written, without_cache):
        assert relative(torch.stack(found.logits, 1), logits) < 1e-6
    untuned = bare(family, "language model").generate(text, attention_mask=mask, **GREEDY)
    assert relative(untuned.logits[0], written.logits[0]) > 1e-3
    eject(model)
    assert torch.equal(model.generate(text, attention_mask=mask, **GREEDY).logits[0], untuned.logits[0])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_prefix_of_peft_s_for_an_even_number_of_layers_is_read_and_ours_is_refused(
    family: str, tmp_path: Path
) -> None:
    """peft takes layer 2 l mod L of its table for layer l: with L = 2, layer 0 for both."""
    depth: Any = {"num_hidden_layers": 2, "num_layers": 2, "num_decoder_layers": 2} if family == "t5" else {}
    depth |= {} if family == "t5" else {"num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2}

    def make() -> Any:
        return make_tiny(family, "language model", **depth).double()

    settings: Any = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 3}
    theirs: Any = peft.get_peft_model(make(), peft.PrefixTuningConfig(**settings)).eval().double()
    theirs.save_pretrained(str(tmp_path))
    ours, batch = load(make(), tmp_path), make_batch(theirs)
    # peft's network draws the table in float32 and computes with it in float64 here.
    assert relative(results(ours, batch), results(theirs, batch)) < 1e-6
    again = save(ours, tmp_path / "again")  # both layers have the same, as in peft
    assert relative(results(peft.PeftModel.from_pretrained(make(), again).eval(), batch), results(ours, batch)) < 1e-6
    disturb(ours)
    with pytest.raises(CheckpointError, match=r"peft cannot hold this prefix.*an even number of layers, 2"):
        save(ours, tmp_path / "other")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_rows_that_peft_never_uses_are_left_out(family: str, tmp_path: Path) -> None:
    settings: Any = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 3}
    theirs: Any = peft.get_peft_model(bare(family, "language model"), peft.PromptTuningConfig(**settings))
    theirs.eval().double()
    assert theirs.prompt_encoder["default"].embedding.weight.shape[0] == 6
    theirs.save_pretrained(str(tmp_path))
    ours, batch = load(bare(family, "language model"), tmp_path), make_batch(theirs)
    assert [tuple(p.shape) for p in trainable_parameters(ours).values()] == [(3, 32)]
    assert relative(results(ours, batch), results(theirs, batch)) < 1e-6


@pytest.mark.parametrize("family", ["t5", "bart"])
@ids
def test_a_classifier_of_two_stacks_takes_no_virtual_tokens(family: str, config: MethodConfig) -> None:
    with pytest.raises(MethodError, match="no plain encoder or decoder of text, and no encoder-decoder that writes"):
        inject(make_tiny(family, "classifier"), config)


# --- families that no row names -------------------------------------------------------------------------------------


def mamba() -> Any:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    return MambaForCausalLM(config).eval()


def test_a_layer_whose_weight_a_kernel_takes_is_refused() -> None:
    """On a processor the layer is called, so a trial there would see no fault. peft refuses `out_proj`, too."""
    with pytest.raises(MethodError, match=r"x_proj stands in a MambaMixer.*exclude=\('x_proj',\)"):
        inject(mamba(), LoRAConfig(targets="all-linear"))
    model = inject(mamba(), LoRAConfig(targets="all-linear", exclude=("x_proj", "dt_proj", "out_proj")))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable_parameters(model)} == {"in_proj"}


@pytest.mark.parametrize("config", LAST[:2], ids=lambda config: config.name)
def test_a_state_in_the_place_of_a_cache_is_refused_when_it_comes(config: MethodConfig) -> None:
    """Each step of `generate` would read the virtual tokens again."""
    model: Any = inject(mamba(), config)
    text = torch.arange(4, 9)[None]
    with pytest.raises(MethodError, match=r"MambaModel was given cache_params.*use_cache=False"):
        model.generate(text, **GREEDY)
    written = model.generate(text, use_cache=False, **GREEDY)
    logits = model(input_ids=written.sequences[:, :-1]).logits[:, -4:]
    assert relative(torch.stack(written.logits, 1), logits) < 1e-4


def test_a_layer_that_peft_takes_for_experts_is_saved_in_our_own_format(tmp_path: Path) -> None:
    """Qwen2's mixture has a plain feed-forward network beside its experts, whose layers have their old names."""
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}

    def make() -> Any:
        torch.manual_seed(0)
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=64, num_experts=4, **sizes)).eval()

    with pytest.warns(UserWarning, match="hold several matrices in one tensor"):
        model = inject(make(), LoRAConfig(rank=2, targets="all-linear"))
    disturb(model)
    with pytest.warns(UserWarning, match="shared_expert.gate_proj for experts of the mixture"):
        folder = save(model, tmp_path / "all")
    assert not (folder / "adapter_config.json").exists()
    batch = {"input_ids": torch.arange(4, 13)[None]}
    with pytest.warns(UserWarning, match="hold several matrices in one tensor"):
        assert torch.equal(results(load(make(), folder), batch), results(model, batch))

    attention = inject(make(), LoRAConfig(rank=2, targets=("q_proj", "o_proj")))
    disturb(attention)
    theirs = peft.PeftModel.from_pretrained(make(), save(attention, tmp_path / "attention")).eval()
    assert relative(results(theirs, batch), results(attention, batch)) < 1e-6


def test_xlm_pools_the_first_token_as_bert_does() -> None:
    config = XLMConfig(vocab_size=64, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=40)

    def make() -> Any:
        torch.manual_seed(0)
        return XLMForSequenceClassification(config).eval()

    ours = inject(make(), PromptTuningConfig(virtual_tokens=3, pool="peft"))
    settings: Any = {"num_virtual_tokens": 3, "task_type": "SEQ_CLS", "token_dim": 32, "num_layers": 2}
    theirs: Any = peft.get_peft_model(make(), peft.PromptTuningConfig(**settings, num_attention_heads=4)).eval()
    with torch.no_grad():
        table = next(p for name, p in trainable_parameters(ours).items() if "prompt" in name)
        theirs.prompt_encoder["default"].embedding.weight.copy_(table)
    batch = {"input_ids": torch.arange(4, 13)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    assert relative(results(ours, batch), results(theirs, batch)) < 1e-6
    text = inject(make(), PromptTuningConfig(virtual_tokens=3))
    assert relative(results(text, batch), results(theirs, batch)) > 1e-3


def test_a_prefix_before_attention_in_blocks_is_refused() -> None:
    sizes: Any = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BigBirdForSequenceClassification(BigBirdConfig(**sizes, intermediate_size=48))
    with pytest.raises(MethodError, match="BigBirdModel is computed in blocks of the text alone"):
        inject(model, PrefixTuningConfig(virtual_tokens=3))


def test_a_cache_of_another_shape_is_refused() -> None:
    """DeepSeek's keys are as wide as its values here only by the model's own count."""
    sizes: Any = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "kv_lora_rank": 8, "q_lora_rank": 8, "first_k_dense_replace": 2}
    sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes))
    with pytest.raises(MethodError, match="computes a token without prefix tuning and fails with it"):
        inject(model, PrefixTuningConfig(virtual_tokens=3))
    inject(model, PromptTuningConfig(virtual_tokens=3))
