"""Every row of the table of architectures with every method: the same as in peft, or refused in words?

    python tests/every_architecture.py --out tests/every_architecture.json     all of it; `make test` runs a sample

A case is a family, a task and a method, on a tiny random model in float64. It is `equal` if, with the same numbers in
both, ours and peft's give the same logits, gradients, ten steps of AdamW, generated text and merged model, and each
reads the checkpoint of the other. A method that peft does not have `holds` if it trains, comes back from its checkpoint
and comes out again. A method that does not fit is `refused` with a sentence. All else `fails`.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
import transformers
from models import DEVICE, HIDDEN, PAD, VOCABULARY, noise, relative
from torch import nn
from transformers import AutoConfig

from course_utils.checkpoints import load, save
from course_utils.errors import CourseError
from course_utils.methods import (
    AdaLoRAConfig,
    BitFitConfig,
    DoRAConfig,
    HoulsbyConfig,
    IA3Config,
    LastLayersConfig,
    LoRAConfig,
    MethodConfig,
    ParallelAdapterConfig,
    PfeifferConfig,
    PiSSAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    VeRAConfig,
    eject,
    find_targets,
    inject,
    merge,
    trainable_parameters,
)
from course_utils.methods.architectures import ARCHITECTURES
from course_utils.methods.base import AdaptedLayer
from course_utils.methods.prefix_body import prefix_shape
from course_utils.methods.prompt_body import VirtualPromptConfig, pools_first_token
from course_utils.methods.targets import find_head
from course_utils.methods.virtual_tokens import find_stack, word_embeddings

# --- tiny models ----------------------------------------------------------------------------------------------------

_COMMON: dict[str, Any] = (
    {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 48, "max_position_embeddings": 40, "initializer_range": 0.1}
    | {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
)
_SHARED_KEYS = {"num_key_value_heads": 2}
_WIDE_HEADS = _SHARED_KEYS | {"head_dim": 16}
# Three layers: with an even number peft's prefix gives one pair of keys and values to two of them.
_BART = (
    {
        "d_model": HIDDEN,
        "num_hidden_layers": 3,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "init_std": 0.1,
    }
    | {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2}
    | {"forced_eos_token_id": None}
)
_T5 = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_hidden_layers": 3, "num_decoder_layers": 3, "num_heads": 4} | {
    "decoder_start_token_id": 2,
    "initializer_factor": 1.0,
}
_MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_PICTURES = {"image_size": 8, "patch_size": 4, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = _COMMON | _WIDE_HEADS
#: What a configuration needs beside `_COMMON`, so that the model is tiny and each setting of the row shows.
SETTINGS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": HIDDEN, "num_hidden_groups": 2},
    "bart": _BART,
    "blip-2": {
        "vision_config": _PICTURES | {"intermediate_size": 48},
        "qformer_config": _COMMON | {"encoder_hidden_size": HIDDEN},
        "text_config": _COMMON | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
        "num_query_tokens": 2,
        "image_token_index": 60,
    },
    "codegen": {"n_inner": 48, "rotary_dim": 4},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "distilbert": {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": HIDDEN},
    "gemma": _WIDE_HEADS,
    "gemma2": _WIDE_HEADS,
    "gemma3_text": _WIDE_HEADS,
    "gemma4": {
        "text_config": _TEXT | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
        "vision_config": _PICTURES | {"head_dim": 8, "intermediate_size": 48, "pooling_kernel_size": 2},
        "audio_config": None,
    },
    "gpt_bigcode": {"n_inner": 48},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_inner": 48, "rotary_dim": 4},
    "llama": _SHARED_KEYS,
    "llama4": {
        "text_config": _TEXT | _MIXTURE | {"intermediate_size_mlp": 48},
        "vision_config": _PICTURES
        | {"intermediate_size": 64, "vision_output_dim": HIDDEN, "projector_input_dim": HIDDEN}
        | {"projector_output_dim": HIDDEN, "num_channels": 3, "pixel_shuffle_ratio": 0.5},
        "image_token_index": 60,
    },
    "llama4_text": _WIDE_HEADS | _MIXTURE | {"intermediate_size_mlp": 48},
    "marian": _BART,
    "mbart": _BART,
    "mistral": _SHARED_KEYS,
    "mixtral": _SHARED_KEYS | _MIXTURE,
    "mpt": {"d_model": HIDDEN, "n_layers": 2, "n_heads": 4, "max_seq_len": 40, "expansion_ratio": 2},
    "mt5": _T5,
    "nemotron_h": _WIDE_HEADS
    | {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4, "mamba_num_heads": 4}
    | {"mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
    "pegasus": _BART,
    "phi3": _SHARED_KEYS,
    "qwen2": _SHARED_KEYS,
    "qwen3": _WIDE_HEADS,
    "rwkv": {"attention_hidden_size": HIDDEN, "context_length": 40},
    "smollm3": _SHARED_KEYS,
    "stablelm": _SHARED_KEYS,
    "t5": _T5,
    "vit": {"image_size": 8, "patch_size": 4},
}
#: Kernels that know float64.
_EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
_AUTO = {
    "classifier": ("SequenceClassification", "ImageClassification"),
    "language model": ("Seq2SeqLM", "CausalLM"),
    "pictures and text": ("ImageTextToText", "MultimodalLM"),
}


def tasks_of(family: str) -> tuple[str, ...]:
    """Classifier, language model, or both; encoders are classifiers only."""
    config = type(AutoConfig.for_model(family))
    found = tuple(task for task in _AUTO if _auto_class(config, task) is not None)
    if "pictures and text" in found:
        return ("pictures and text",)
    return found[:1] if "classifier" in ARCHITECTURES[family].head else found


def _auto_class(config: type, task: str) -> Any:
    classes = (getattr(transformers, f"AutoModelFor{name}") for name in _AUTO[task])
    return next((auto for auto in classes if config in auto._model_mapping), None)


def make_tiny(family: str, task: str | None = None, **settings: Any) -> Any:
    """A random model of this family with hidden size 32, in evaluation mode; a classifier, if nothing else is asked."""
    task = task or tasks_of(family)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **_COMMON | SETTINGS.get(family, {}) | settings)
        model: Any = _auto_class(type(config), task).from_config(config, **_EAGER)
        for parameter in model.parameters():  # biases and normalisations start at 0 and 1: a mistake there would hide
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(DEVICE).eval()


def make_batch(model: Any, *, padded: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """Three texts of seven tokens, the last padded with two; or three pictures."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values" and model.config.model_type == "vit":
        batch = {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator, dtype=model.dtype)}
        return {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    tokens = torch.randint(4, VOCABULARY - 8, (3, 7), generator=generator)
    mask = torch.ones_like(tokens)
    mask[2, 5:] = 0 if padded else 1
    tokens[:, 4] = 3  # the end of the sentence, which BART's head reads; one in each row
    tokens[:, 5:][tokens[:, 5:] == 3] = 4
    batch = {"input_ids": tokens.masked_fill(mask == 0, PAD), "attention_mask": mask}
    if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:
        batch["decoder_input_ids"] = torch.randint(4, VOCABULARY, (3, 5), generator=generator)
    if model.config.model_type == "blip-2":
        batch["input_ids"][:, :2] = model.config.image_token_index  # the places of a picture
        batch["pixel_values"] = torch.randn(3, 3, 8, 8, generator=generator, dtype=model.dtype)
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


# --- methods --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """A method of ours and the same in peft.

    Args:
        ours: our settings.
        theirs: the name of peft's settings; "" for a method that peft does not have.
        arguments: of peft's settings, beside the places.
    """

    ours: MethodConfig
    theirs: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()


def _twin(ours: MethodConfig, theirs: str, **arguments: Any) -> Twin:
    return Twin(ours, theirs, tuple(arguments.items()))


_RANK = {"r": 3, "lora_alpha": 7}
METHODS: dict[str, Twin] = {
    "LoRA": _twin(LoRAConfig(rank=3, alpha=7), "LoraConfig", **_RANK),
    "LoRA, all linear": _twin(LoRAConfig(rank=3, alpha=7, targets="all-linear"), "LoraConfig", **_RANK),
    "rsLoRA": _twin(LoRAConfig(rank=3, alpha=7, rank_stabilized=True), "LoraConfig", use_rslora=True, **_RANK),
    "DoRA": _twin(DoRAConfig(rank=3, alpha=7), "LoraConfig", use_dora=True, **_RANK),
    "PiSSA": _twin(PiSSAConfig(rank=3, alpha=7), "LoraConfig", init_lora_weights="pissa", **_RANK),
    "VeRA": _twin(VeRAConfig(rank=8, initial_d=0.5), "VeraConfig", r=8, d_initial=0.5),
    "AdaLoRA": _twin(
        AdaLoRAConfig(init_rank=4, target_rank=2, total_steps=9, initial_steps=2, final_steps=2, alpha=7),
        "AdaLoraConfig",
        init_r=4,
        target_r=2,
        total_step=9,
        tinit=2,
        tfinal=2,
        lora_alpha=7,
    ),
    "(IA)³": _twin(IA3Config(), "IA3Config"),
    "prompt tuning": _twin(PromptTuningConfig(virtual_tokens=3), "PromptTuningConfig"),
    "P-Tuning": _twin(PTuningConfig(virtual_tokens=3, hidden=24), "PromptEncoderConfig", encoder_hidden_size=24),
    "prefix tuning": _twin(PrefixTuningConfig(virtual_tokens=3), "PrefixTuningConfig"),
    "BitFit": Twin(BitFitConfig()),
    "last layers": Twin(LastLayersConfig(layers=1)),
    "Houlsby adapters": Twin(HoulsbyConfig(size=5)),
    "Pfeiffer adapters": Twin(PfeifferConfig(size=5)),
    "parallel adapters": Twin(ParallelAdapterConfig(size=5)),
}
_TASK_TYPES = {"SequenceClassification": "SEQ_CLS", "CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None} | {
    "return_dict_in_generate": True,
    "output_logits": True,
}
STEPS = 10
#: Both compute the same in float64, but for what a model does in float32 by itself.
GATE = 1e-6


class RefusalError(Exception):
    """The sentence of a method that does not fit."""


def ours_for(method: str, family: str, model: nn.Module) -> MethodConfig:
    """The settings of this method on this model, with peft's choice where the course makes another one."""
    config = METHODS[method].ours
    if isinstance(config, IA3Config):
        return replace(config, queries=ARCHITECTURES[family].thirds)
    if isinstance(config, VirtualPromptConfig) and pools_first_token(model):
        return replace(config, pool="peft")
    return config


def twin_of(method: str, family: str, model: Any) -> Any:
    """peft's settings of this method for a bare model."""
    twin = METHODS[method]
    config: Any = ours_for(method, family, model)
    head, arguments = list(find_head(model)) or None, dict(twin.arguments)
    task = next((t for end, t in _TASK_TYPES.items() if type(model).__name__.endswith(end)), None)
    if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:
        task = "SEQ_2_SEQ_LM"
    if hasattr(config, "virtual_tokens"):
        # The rows of prompts that peft has for the decoder, and never uses, are left out.
        submodules = 2 if task == "SEQ_2_SEQ_LM" and isinstance(config, PrefixTuningConfig) else 1
        arguments |= {"num_virtual_tokens": 3, "task_type": task, "num_transformer_submodules": submodules}
        return getattr(peft, twin.theirs)(**arguments | prefix_sizes(config, model))
    if isinstance(config, IA3Config):
        outputs, inputs = config.find_layers(model)
        arguments |= {"target_modules": [*outputs, *inputs], "feedforward_modules": list(inputs)}
    else:
        arguments["target_modules"] = peft_targets(family, model, config.targets)
    if not isinstance(config, VeRAConfig):
        arguments["fan_in_fan_out"] = family == "gpt2"
    elif family == "gpt2":
        arguments["fan_in_fan_out"] = True
    return getattr(peft, twin.theirs)(**arguments, task_type=task, modules_to_save=head)


def prefix_sizes(config: MethodConfig, model: Any) -> dict[str, Any]:
    """What peft does not see of every model: the size of its vectors; the keys' heads, how many they are, how wide."""
    if not isinstance(config, PrefixTuningConfig):
        words = word_embeddings(find_stack(model, "encoder")[1])
        return {"num_layers": 2, "num_attention_heads": 4, "token_dim": words.embedding_dim}
    layers, heads, size = prefix_shape(find_stack(model, "decoder")[1].config)
    return {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * size}


def peft_targets(family: str, model: nn.Module, targets: Any) -> Any:
    """What peft is told: nothing where its default is ours, else every layer in full."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    row = ARCHITECTURES[family]
    theirs = DEFAULTS.get(family)
    if targets is None and theirs == (
        row.lora_targets if isinstance(row.lora_targets, str) else list(row.lora_targets)
    ):
        return theirs
    # peft adapts Mixtral's router and experts as well, which are no linear layers; ours says which share it leaves out.
    if targets == "all-linear" and not find_head(model) and family != "mixtral":
        return targets
    return list(find_targets(model, targets))


# --- a case ---------------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """peft's name of a parameter → ours."""
    name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
    name = name.removeprefix("base_model.model.").removeprefix("base_model.").replace(".base_layer.", ".base.")
    return name.replace(".modules_to_save.", ".").replace(".default", "")


def match(ours: nn.Module, theirs: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Our trained parameters and peft's, by our names; all of peft's must be among them."""
    mine = trainable_parameters(ours)
    stems = {name.rpartition(f".{part}.")[0] for name in mine for part in ("prompt", "prefix") if f".{part}." in name}
    found: dict[str, nn.Parameter] = {}
    for name, parameter in theirs.named_parameters():
        plain = plain_name(name)
        if plain.startswith("prompt_encoder."):
            part = "prefix" if any(".prefix." in own for own in mine) else "prompt"
            plain = f"{next(iter(stems))}.{part}.{plain.removeprefix('prompt_encoder.')}"
        if plain in mine and ".original_module." not in name:
            found[plain] = parameter
        elif parameter.requires_grad and ".ranknum." not in name:
            raise AssertionError(f"peft trains {name}, and ours does not")
    assert set(found) == set(mine), f"ours trains {sorted(set(mine) - set(found))[:3]}, and peft has no such"
    return {name: (parameter, found[name]) for name, parameter in mine.items()}


def results(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of the text: peft's have those of the virtual tokens before them."""
    state = {"use_cache": False} if model.config.model_type == "rwkv" else {}  # it changes its state in place
    logits: torch.Tensor = model(**batch, **state).logits
    if logits.ndim == 3 and "decoder_input_ids" not in batch and "pixel_values" not in batch:
        logits = logits[:, -batch["input_ids"].shape[1] :]
    return logits


def objective(logits: torch.Tensor) -> torch.Tensor:
    return (logits * noise(logits, 3)).mean() + 0.1 * logits.square().mean()


def as_in_peft(name: str, tensor: torch.Tensor, model: Any) -> torch.Tensor:
    """A parameter or its gradient as peft has it: in an encoder-decoder it takes layer 2 l mod L of a prefix for l."""
    if ".prefix." not in name or not model.config.is_encoder_decoder:
        return tensor
    count = prefix_shape(find_stack(model, "decoder")[1].config)[0]
    theirs = torch.empty_like(tensor).view(len(tensor), count, -1)
    for layer, part in enumerate(tensor.view(len(tensor), count, -1).unbind(1)):
        theirs[:, 2 * layer % count] = part
    return theirs.view_as(tensor)


@torch.no_grad()
def disturb(model: nn.Module, pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] | None = None) -> None:
    """Add noise to everything that is trained, and copy it into peft's."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainable_parameters(model).items():
        parameter.add_(0.1 * noise(parameter, generator))
        if pairs is not None:
            pairs[name][1].copy_(as_in_peft(name, parameter, model))
            pairs[name][1].requires_grad_(True)


def close(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    difference = relative(got, expected)
    assert difference <= (GATE if got.dtype == torch.float64 else 1e-4), f"{what} differ by {difference:.1e}"


def bare(family: str, task: str, method: str = "") -> Any:
    """The pretrained model, in float64; PiSSA is for float32 in peft."""
    return make_tiny(family, task).to(torch.float32 if method == "PiSSA" else torch.float64)


def fresh(family: str, task: str, method: str) -> tuple[Any, MethodConfig]:
    model = bare(family, task, method)
    config = ours_for(method, family, model)
    try:
        return inject(model, config), config
    except CourseError as error:
        raise RefusalError(str(error)) from error


def check_twin(family: str, task: str, method: str, folder: Path) -> None:
    """Ours and peft's: logits, gradients, ten steps, text, merged model, checkpoints both ways."""
    ours, config = fresh(family, task, method)
    virtual = hasattr(config, "virtual_tokens")
    theirs: Any = peft.get_peft_model(
        bare(family, task, method), twin_of(method, family, bare(family, task, method))
    ).eval()
    theirs.to(ours.dtype)  # peft makes its prompts in float32
    if isinstance(config, VeRAConfig):
        _same_projections(ours, theirs)
    pairs = match(ours, theirs)
    untuned = results(bare(family, task, method), make_batch(ours))
    disturb(ours, pairs)
    padded = not virtual or bool(ours.config.is_encoder_decoder)
    batch = make_batch(ours, padded=padded)
    mine, his = results(ours, batch), results(theirs, batch)
    close(mine, his, "logits")
    if padded:
        assert relative(mine, untuned) > 1e-3, "it changes nothing"
    for logits in (mine, his):
        objective(logits).backward()
    for name, (one, other) in pairs.items():
        if "vision" in name and one.grad is None and other.grad is None:
            continue  # the texts have no picture
        assert one.grad is not None and other.grad is not None, f"{name} has no gradient"
        if float(other.grad.norm()) > 1e-12:
            close(as_in_peft(name, one.grad, ours), other.grad, f"gradients of {name}")
    if "language" in task:
        _same_text(ours, theirs, batch)
    _ten_steps(ours, theirs, pairs, padded)
    _checkpoints(ours, theirs, family, task, method, folder, batch)
    if not virtual:
        expected = results(ours, batch)
        close(results(merge(copy.deepcopy(ours)), batch), expected, "logits of the merged model")
        try:
            merged = theirs.merge_and_unload()
        except AttributeError:  # beside a head of several layers peft's VeRA and (IA)³ do not come out again
            return
        close(results(merged, batch), expected, "logits of peft's merged model")


def _same_projections(ours: nn.Module, theirs: Any) -> None:
    shared: Any = next(module.projections for module in ours.modules() if hasattr(module, "projections"))
    shared.A.copy_(theirs.base_model.vera_A["default"])
    shared.B.copy_(theirs.base_model.vera_B["default"])


def _same_text(ours: Any, theirs: Any, batch: dict[str, torch.Tensor]) -> None:
    inputs = {name: batch[name][:2, :6] for name in ("input_ids", "attention_mask")}  # two without padding
    settings = GREEDY | ({"use_cache": False} if ours.config.model_type == "rwkv" else {})  # its state is not exact
    found, expected = (model.generate(**inputs, **settings) for model in (ours, theirs))
    assert torch.equal(found.sequences[:, -4:], expected.sequences[:, -4:]), "other text"
    close(torch.stack(found.logits), torch.stack(expected.logits), "logits of the text that is written")


def _ten_steps(ours: Any, theirs: Any, pairs: dict[str, tuple[nn.Parameter, nn.Parameter]], padded: bool) -> None:
    for place, model in enumerate((ours, theirs)):
        optimizer = torch.optim.AdamW([pair[place] for pair in pairs.values()], lr=1e-3)
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            objective(results(model, make_batch(ours, padded=padded, seed=step))).backward()
            optimizer.step()
            if place == 0:
                try:
                    ours.tuning.after_step(ours, step)
                except CourseError as error:
                    raise RefusalError(str(error)) from error
            elif hasattr(theirs.base_model, "update_and_allocate"):
                theirs.base_model.update_and_allocate(step)
    batch = make_batch(ours, padded=padded, seed=99)
    close(results(ours, batch), results(theirs, batch), "logits after ten steps")


def _checkpoints(
    ours: Any, theirs: Any, family: str, task: str, method: str, folder: Path, batch: dict[str, torch.Tensor]
) -> None:
    expected = results(ours, batch)
    save(ours, folder / "ours")
    back = peft.PeftModel.from_pretrained(bare(family, task, method), folder / "ours").eval()
    close(results(back, batch), expected, "logits of our checkpoint in peft")
    close(results(load(bare(family, task, method), folder / "ours"), batch), expected, "logits of our checkpoint")
    theirs.save_pretrained(str(folder / "theirs"))
    if hasattr(ours.tuning, "virtual_tokens"):  # peft may leave a part of the head out of the file (DeBERTa's pooler)
        expected = results(peft.PeftModel.from_pretrained(bare(family, task, method), folder / "theirs").eval(), batch)
    close(results(load(bare(family, task, method), folder / "theirs"), batch), expected, "logits of peft's checkpoint")


def check_own(family: str, task: str, method: str, folder: Path) -> None:
    """A method that peft does not have: it trains, comes back from its checkpoint, and comes out again."""
    ours, _ = fresh(family, task, method)
    batch = make_batch(ours)
    untuned = results(bare(family, task, method), batch)
    start = {name: p.detach().clone() for name, p in trainable_parameters(ours).items()}
    optimizer = torch.optim.AdamW(trainable_parameters(ours).values(), lr=1e-3)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        objective(results(ours, make_batch(ours, seed=step))).backward()
        optimizer.step()
    still = [n for n, p in trainable_parameters(ours).items() if torch.equal(p, start[n]) and not n.endswith("bias")]
    assert not still, f"{still[:3]} did not move"
    disturb(ours)
    expected = results(ours, batch)
    assert relative(expected, untuned) > 1e-3, "it changes nothing"
    save(ours, folder / "ours")
    close(results(load(bare(family, task, method), folder / "ours"), batch), expected, "logits of our checkpoint")
    if any(isinstance(module, AdaptedLayer) for module in ours.modules()):
        head = tuple(f"{name}." for name in find_head(ours))
        old = dict(bare(family, task, method).named_parameters())
        with torch.no_grad():
            for name, parameter in eject(ours).named_parameters():
                if name.startswith(head):
                    parameter.copy_(old[name])
        close(results(ours, batch), untuned, "logits without the method")


# --- all cases ------------------------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, str, str]]:
    """Family, task and method."""
    for family in ARCHITECTURES:
        for task in tasks_of(family):
            for method in METHODS:
                yield family, task, method


def outcome(family: str, task: str, method: str) -> tuple[str, str]:
    """What a case is, and why."""
    with TemporaryDirectory() as folder:
        try:
            if METHODS[method].theirs:
                check_twin(family, task, method, Path(folder))
                return "equal", ""
            check_own(family, task, method, Path(folder))
        except RefusalError as refusal:
            return "refused", str(refusal)
        except Exception as error:
            return "fails", f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return "holds", ""


def run(chosen: Iterator[tuple[str, str, str]] | list[tuple[str, str, str]]) -> dict[str, Any]:
    """The report of these cases."""
    found = {case: outcome(*case) for case in chosen}
    reasons: dict[str, dict[str, list[str]]] = {}
    for case, (kind, reason) in found.items():
        if reason:
            reasons.setdefault(kind, {}).setdefault(reason, []).append(", ".join(case))
    by_method = {
        method: dict(sorted(Counter(kind for case, (kind, _) in found.items() if case[2] == method).items()))
        for method in METHODS
    }
    return {
        "versions": {
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "families": len({case[0] for case in found}),
        "models": len({case[:2] for case in found}),
        "counts": dict(sorted(Counter(kind for kind, _ in found.values()).items())),
        "by method": by_method,
    } | {kind: dict(sorted(by_reason.items())) for kind, by_reason in sorted(reasons.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", help="only these, with commas")
    parser.add_argument("--methods", help="only these, with semicolons")
    parser.add_argument("--out", type=Path, help="where the report goes; default: the screen")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    families = options.families.split(",") if options.families else list(ARCHITECTURES)
    methods = options.methods.split(";") if options.methods else list(METHODS)
    report = run([case for case in cases() if case[0] in families and case[2] in methods])
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
