"""Any model class of transformers, tiny: configurations by a general rule, and inputs that the class takes.

No family is named here. A rule makes every size of a configuration small that it knows by name or by its value; the
first rule is taken with which the class is built and computes something.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from models import HIDDEN, PAD, VOCABULARY
from transformers import AutoConfig, PreTrainedConfig

#: Numbers of a model that counts as tiny.
LARGEST = 4_000_000

_SPECIAL = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
_SIZES: dict[str, Any] = (
    {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 48, "max_position_embeddings": 40}
    | _SPECIAL
)
#: The names that some families have for their sizes.
_OTHER_SIZES: dict[str, Any] = (
    {"d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_inner": 48}
    | {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    | {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "n_inner": 48}
    | {"dim": HIDDEN, "n_layers": 2, "n_layer": 2, "n_heads": 4, "n_head": 4, "hidden_dim": 48, "emb_dim": HIDDEN}
    | {"embedding_size": HIDDEN, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "n_embd": HIDDEN}
    | {"num_hidden_groups": 2, "attention_types": [[["global", "local"], 1]], "n_positions": 40}
    | {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "moe_intermediate_size": 16, "num_experts": 4}
    | {"num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "ffn_hidden_size": 48}
    | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16}
    | {
        "chunk_size": 8,
        "mamba_chunk_size": 8,
        "n_group": 1,
        "topk_group": 1,
        "depth": 2,
        "hidden_size_per_layer_input": 8,
    }
)
_LAYERS = re.compile(r"(?!.*feat_extract)(num_|n_)?(\w+_)?(layers?|blocks|depth)$")
_WIDTH = re.compile(r"(?!.*(vocab|position|token|image_size|patch|_id$|sample|rate|bins|labels|kernel|stride|window))")


@dataclass(frozen=True)
class Rule:
    """How a configuration is made small.

    Args:
        divisor: every width is divided by it; None gives the sizes of `_SIZES` by their names instead.
        image: pixels of an image's side; None leaves the family's own.
        layers: of each stack. Among eight there is one of each kind where a family mixes them; each head then has keys
            of its own, and rotary positions are those of three directions.
    """

    divisor: int | None
    image: int | None
    layers: int = 2


RULES = (Rule(None, 64), Rule(16, 64), Rule(None, 64, 8), Rule(16, None), Rule(4, 64), Rule(4, None, 4), Rule(1, None))


def tiny_config(family: str, model_class: Any, rule: Rule) -> PreTrainedConfig:
    """A small configuration of a family, or of the part of it that the class is made for."""
    default = AutoConfig.for_model(family)
    own = getattr(model_class, "config_class", None)
    if isinstance(own, type) and own in [type(part) for part in _parts(default)]:
        default = own()
    return type(default)(**_settings(default, rule))


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [part for part in parts if isinstance(part, PreTrainedConfig)]


def _settings(default: PreTrainedConfig, rule: Rule) -> dict[str, Any]:
    """The small values of all the settings that the rule knows, by name; those of a part of the model among them."""
    known, found = default.to_dict(), dict[str, Any]()
    mapped = getattr(type(default), "attribute_map", {})
    if rule.divisor is None:
        sizes = _SIZES if "vocab_size" in known or "hidden_size" in known or mapped else {}
        sizes = sizes | {name: size for name, size in _OTHER_SIZES.items() if name in known}
        sizes = {name: min(size, rule.layers) if _LAYERS.match(name) else size for name, size in sizes.items()}
        if rule.layers > 2:
            sizes |= {name: rule.layers for name in sizes if name in {"num_hidden_layers", "num_layers", "n_layer"}}
            sizes |= {name: 4 for name in sizes if name == "num_key_value_heads"}
            if isinstance(rope := known.get("rope_parameters", 0) or {}, dict):
                sizes["rope_parameters"] = {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    **rope,
                    "mrope_section": [2, 1, 1],
                }
        found = {n: s for n, s in sizes.items() if n in known or n in mapped}
        found = {n: s for n, s in found.items() if n not in mapped or mapped[n] not in sizes}
        found = {n: s for n, s in found.items() if not isinstance(known.get(n), (list, tuple)) or isinstance(s, list)}
    else:
        found = {name: _smaller(name, value, rule) for name, value in known.items()}
        found = {name: value for name, value in found.items() if value is not None}
    for name, value in known.items():
        if rule.image is not None and name == "image_size" and value:
            found[name] = rule.image if isinstance(value, int) else [rule.image] * len(value)
        if "vocab" in name and isinstance(value, int) and value > 10_000:
            found[name] = VOCABULARY
        if (
            isinstance(value, dict) and "mrope_section" in value
        ):  # how many of a head's numbers turn with time and place
            section = [n // rule.divisor for n in value["mrope_section"]] if rule.divisor else [2, 1, 1]
            found[name] = value | {"mrope_section": section}
    for name in getattr(default, "sub_configs", {}):
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            found[name] = {"model_type": part.model_type} | _settings(part, rule)
    return found


def _smaller(name: str, value: Any, rule: Rule) -> Any:
    """The small value of a setting, or None where it stays."""
    divisor = rule.divisor or 1
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name == "vocab_size":
        return VOCABULARY
    if isinstance(value, bool) or name == "layer_types":
        return None
    if isinstance(value, int) and _LAYERS.match(name):
        return min(value, rule.layers)
    if isinstance(value, (list, tuple)) and name in {"depths", "num_blocks", "layers"} and value:
        return [1 if isinstance(n, int) else n for n in value]
    if isinstance(value, int) and value >= 64 and _WIDTH.match(name):
        return value // divisor
    if isinstance(value, (list, tuple)) and value and all(isinstance(n, int) for n in value) and _WIDTH.match(name):
        return [n // divisor for n in value] if min(value) >= divisor and max(value) >= 48 else None
    return None


def inputs_for(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """What the class might read, the smallest first: three tokens, an image, a film, a sound, or two of them."""
    takes = set(inspect.signature(model.forward).parameters)
    text = _text(model) if "input_ids" in takes else {}
    if text:
        yield text
        yield {name: _in_three_parts(model, ids) for name, ids in text.items()}
    others = [*_images(model, takes), *_sounds(model, takes)]
    answers = {"decoder_input_ids": torch.tensor([[5, 7]])} if "decoder_input_ids" in takes and not text else {}
    if text and "bbox" in takes:
        yield text | {"bbox": torch.zeros(*text["input_ids"].shape, 4, dtype=torch.long)}
    for other in others:
        yield other | answers
    if text:
        for other in others:
            yield text | other


def _text(model: Any) -> dict[str, torch.Tensor]:
    """Three tokens, and the end of the text where there is one: BART's head reads there."""
    config = model.config.get_text_config()
    end = getattr(config, "eos_token_id", None)
    end = end[0] if isinstance(end, list) and end else end
    ids = torch.tensor([[5, 7, 9, *([end] if isinstance(end, int) and end < VOCABULARY else [11])]])
    inputs = {"input_ids": ids[None] if type(model).__name__.endswith("MultipleChoice") else ids}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = ids
    return inputs


def _in_three_parts(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """A longer text: the tokens, with three ends of sentences among them."""
    separator = getattr(model.config, "sep_token_id", None)
    between = ids.new_full((*ids.shape[:-1], 1), separator if isinstance(separator, int) else 6)
    return torch.cat((ids[..., :2], between, ids[..., :1], between, ids[..., 1:2], between, ids[..., 2:]), -1)


def _images(model: Any, takes: set[str]) -> Iterator[dict[str, torch.Tensor]]:
    if not takes & {"pixel_values", "pixel_values_videos"}:
        return
    parts = [model.config, *(getattr(model.config, n, None) for n in ("vision_config", "backbone_config", "encoder"))]
    size = next((s for part in parts if (s := getattr(part, "image_size", None))), 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = next((c for part in parts if (c := getattr(part, "num_channels", None))), 3)
    frames = next((f for part in parts if (f := getattr(part, "num_frames", None))), 2)
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, channels, height, width, generator=generator)
    film = torch.randn(1, frames, channels, height, width, generator=generator)
    if "bool_masked_pos" in takes:
        patch = next((p for part in parts if (p := getattr(part, "patch_size", None))), 16)
        rows, columns = (height // patch, width // patch) if isinstance(patch, int) else (height // patch[-1],) * 2
        hidden = torch.arange(rows * columns)[None] % 2 == 0
        yield {"pixel_values": image, "bool_masked_pos": hidden}
        yield {"pixel_values": film, "bool_masked_pos": hidden.repeat(1, max(frames // 2, 1))}
    for name in ("pixel_values", "pixel_values_videos"):
        if name in takes:
            yield {name: image}
            yield {name: film}


def _sounds(model: Any, takes: set[str]) -> Iterator[dict[str, torch.Tensor]]:
    config, generator = model.config, torch.Generator().manual_seed(3)
    parts = [config, *(getattr(config, n, None) for n in ("encoder_config", "audio_config", "encoder"))]
    names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "feature_projection_input_dim")
    bins = next((b for part in parts for n in names if (b := getattr(part, n, None))), 80)
    frames = 2 * getattr(config, "max_source_positions", 32)
    shapes = ((1, 2000), (1, 12000), (1, getattr(config, "max_length", 64), bins), (1, bins, frames))
    for name in ("input_values", "input_features"):
        for shape in (*shapes, (1, 64, bins), (1, 1, 2000)) if name in takes else ():
            yield {name: torch.randn(shape, generator=generator)}
