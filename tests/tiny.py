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
import transformers
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
)
_LAYERS = re.compile(r"(?!.*feat_extract)(num_|n_)?(\w+_)?(layers?|blocks|depth)$")
_WIDTH = re.compile(r"(?!.*(vocab|position|token|image_size|patch|_id$|sample|rate|bins|labels|kernel|stride|window))")


@dataclass(frozen=True)
class Rule:
    """How a configuration is made small.

    Args:
        divisor: every width is divided by it; None gives the sizes of `_SIZES` by their names instead.
        image: pixels of an image's side; None leaves the family's own.
    """

    divisor: int | None
    image: int | None


RULES = (Rule(None, 64), Rule(16, 64), Rule(16, None), Rule(4, 64), Rule(4, None), Rule(1, None))


def tiny_config(family: str, rule: Rule) -> PreTrainedConfig:
    """A small configuration of a family."""
    default = AutoConfig.for_model(family)
    return type(default)(**_settings(default, rule))


def _settings(default: PreTrainedConfig, rule: Rule) -> dict[str, Any]:
    """The small values of all the settings that the rule knows, by name; those of a part of the model among them."""
    known, found = default.to_dict(), dict[str, Any]()
    mapped = getattr(type(default), "attribute_map", {})
    if rule.divisor is None:
        sizes = (_SIZES if "vocab_size" in known or "hidden_size" in known or mapped else {}) | {
            name: size for name, size in _OTHER_SIZES.items() if name in known
        }
        found = {n: s for n, s in sizes.items() if n not in mapped or mapped[n] not in sizes}
    else:
        found = {name: _smaller(name, value, rule.divisor) for name, value in known.items()}
        found = {name: value for name, value in found.items() if value is not None}
    for name, value in known.items():
        if rule.image is not None and name == "image_size" and value:
            found[name] = rule.image if isinstance(value, int) else [rule.image] * len(value)
    for name in getattr(default, "sub_configs", {}):
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            found[name] = {"model_type": part.model_type} | _settings(part, rule)
    return found


def _smaller(name: str, value: Any, divisor: int) -> Any:
    """The small value of a setting, or None where it stays."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name == "vocab_size":
        return VOCABULARY
    if isinstance(value, bool) or name == "layer_types":
        return None
    if isinstance(value, int) and _LAYERS.match(name):
        return min(value, 2)
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
    others = [*_images(model, takes), *_sounds(model, takes)]
    answers = {"decoder_input_ids": torch.tensor([[5, 7]])} if "decoder_input_ids" in takes and not text else {}
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


def _images(model: Any, takes: set[str]) -> Iterator[dict[str, torch.Tensor]]:
    if "pixel_values" not in takes:
        return
    parts = [model.config, *(getattr(model.config, n, None) for n in ("vision_config", "backbone_config", "encoder"))]
    size = next((s for part in parts if (s := getattr(part, "image_size", None))), 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = next((c for part in parts if (c := getattr(part, "num_channels", None))), 3)
    frames = next((f for part in parts if (f := getattr(part, "num_frames", None))), 2)
    generator = torch.Generator().manual_seed(3)
    yield {"pixel_values": torch.randn(1, channels, height, width, generator=generator)}
    yield {"pixel_values": torch.randn(1, frames, channels, height, width, generator=generator)}


def _sounds(model: Any, takes: set[str]) -> Iterator[dict[str, torch.Tensor]]:
    config, generator = model.config, torch.Generator().manual_seed(3)
    parts = [config, *(getattr(config, n, None) for n in ("encoder_config", "audio_config", "encoder"))]
    bins = next(
        (
            b
            for part in parts
            for n in ("num_mel_bins", "feature_size", "input_feat_per_channel")
            if (b := getattr(part, n, None))
        ),
        80,
    )
    for name in ("input_values", "input_features"):
        if name in takes:
            frames = 2 * getattr(config, "max_source_positions", 32)
            for shape in (
                (1, 2000),
                (1, getattr(config, "max_length", 64), bins),
                (1, bins, frames),
                (1, 64, bins),
                (1, 1, 2000),
            ):
                yield {name: torch.randn(shape, generator=generator)}
