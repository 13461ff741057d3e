"""Load a pretrained backbone by one name: the course's own, a Hub id, or a local folder."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from filelock import FileLock
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from course_utils.checkpoints.class_names import name_classes
from course_utils.errors import CourseError
from course_utils.methods.errors import TargetError
from course_utils.methods.targets import find_head
from course_utils.models.assets import ASSETS, AssetError, fetch

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # at run time it costs a second, which loading a model pays soon enough

DEFAULT_BACKBONE = "minilm"
DEFAULT_LANGUAGE_MODEL = "smollm2"


class BackboneError(CourseError, ValueError):
    """The backbone is unknown, cannot be reached, or cannot be loaded."""


def load_classifier(
    name: str | Path = DEFAULT_BACKBONE,
    *,
    num_labels: int = 2,
    pretrained: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A backbone with a classification head, and its tokenizer.

    The head is a fresh one, drawn by `seed`, and its two classes are "negative" and "positive". But a model that comes
    with a head of its own (one that was fine-tuned, and saved with `save_pretrained`) keeps it, together with the names
    that it was trained with: look at `model.config.id2label` before you compare its answers with your labels. For a
    fresh head on such a model, save its body alone: `model.base_model.save_pretrained(folder)`.

    Args:
        name: "minilm" (the course's default: BERT architecture, 6 layers, 22.7 million weights, no hub needed), any
            Hub id such as "bert-base-uncased" or "FacebookAI/roberta-base", or a local folder with a model.
        num_labels: classes; those of the saved head, where there is one.
        pretrained: False keeps the architecture and draws all weights at random (training from scratch).
        seed: of a fresh head, and of the whole model when not pretrained. Your own random state is left as it was.
        dtype: of the weights.

    Returns:
        The model in training mode with every weight trainable, and the tokenizer.

    Raises:
        BackboneError: nothing of that name exists or can be reached, or its head is for another number of classes.
        AssetError: the default backbone could not be fetched.
    """
    if num_labels < 2:
        raise BackboneError(f"a classifier needs at least 2 labels, got {num_labels}")
    source = _locate(name)
    # The hub's client tries for most of a minute; a laptop in a train should hear at once.
    offline = not Path(source).is_dir() and not _hub_reachable()
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
            config = AutoConfig.from_pretrained(source, local_files_only=offline)
            saved = config.num_labels
            if num_labels != saved:  # which names the classes anew; equal, it leaves a saved head its own names
                config.num_labels = num_labels
            _limit_length(tokenizer, config)
            if pretrained:
                model, drawn = _load(
                    AutoModelForSequenceClassification, source, config=config, dtype=dtype, local_files_only=offline
                )
            else:
                model, drawn = AutoModelForSequenceClassification.from_config(config).to(dtype), ["everything"]
            if drawn and num_labels == len(LABELS):
                name_classes(model, LABELS)
        except _OtherShapeError as error:
            if num_labels != saved:
                raise BackboneError(
                    f"{str(name)!r} has a head for {saved} classes, and {num_labels} were asked for: give "
                    f"num_labels={saved} to use that head. For a fresh one save the body alone, with "
                    "model.base_model.save_pretrained(folder), and load that folder"
                ) from error
            raise BackboneError(_explain(name, error)) from error
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise BackboneError(_explain(name, error)) from error
    if tokenizer.pad_token is None:  # GPT-2 and Llama come without one
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    with suppress(TargetError):  # of a part that is half new `inject` says more
        model.new_modules = find_head(model)  # a copy of the model no longer shows what the checkpoint lacked
    return model.train(), tokenizer


def load_causal_lm(
    name: str | Path = DEFAULT_LANGUAGE_MODEL, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained language model that writes text, and its tokenizer.

    Args:
        name: "smollm2" (the course's default: Llama architecture, 30 layers, 135 million weights, no hub needed), any
            Hub id of a decoder such as "gpt2" or "meta-llama/Llama-3.2-1B", or a local folder with a model.
        dtype: of the weights.

    Returns:
        The model in training mode with every weight trainable, and the tokenizer, which pads on the left: a model that
        writes on must end each row of a batch with text. Where the tokenizer has no token for padding, the one for the
        end of a text serves; mask padding by position then, or the model never learns to stop.

    Raises:
        BackboneError: nothing of that name exists or can be reached, or it is no such model.
        AssetError: the default model could not be fetched.
    """
    source = _locate(name)
    offline = not Path(source).is_dir() and not _hub_reachable()
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
            config = AutoConfig.from_pretrained(source, local_files_only=offline)
            if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
                raise ValueError(f"a {config.model_type} model reads in both directions and cannot write on")
            model, drawn = _load(AutoModelForCausalLM, source, dtype=dtype, local_files_only=offline)
            if drawn:
                raise ValueError(f"it holds no weights for {', '.join(drawn)}, so it could only write at random")
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise BackboneError(_explain(name, error, DEFAULT_LANGUAGE_MODEL, "gpt2")) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    _limit_length(tokenizer, model.config)
    return model.train(), tokenizer


class _OtherShapeError(CourseError, RuntimeError):
    """A weight in the file has another shape than in the model; transformers' own error says only to look above."""


def _load(model_class: Any, source: str, **settings: Any) -> tuple[Any, list[str]]:
    """A pretrained model, and the names of the weights that its files do not hold and that were drawn at random."""
    model, said = model_class.from_pretrained(
        source, ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    for weight, there, here in said["mismatched_keys"]:
        raise _OtherShapeError(
            f"{weight} has the shape {tuple(there)} in the file, but config.json asks for {tuple(here)}"
        )
    return model, sorted(said["missing_keys"])


def _unpack_gguf(folder: Path) -> Path:
    """Turn a model of 4-bit numbers into an ordinary one, once: to unpack it takes a quarter of a minute each time.

    It is kept in 16 bits: a weight is a number of 4 bits times a scale of 16, so more would hold next to nothing.
    """
    target = folder.with_name(f"{folder.name}-unpacked")
    partial = folder.with_name(f"{folder.name}.partial-unpacked")  # `fetch` too sweeps such a folder away
    if target.is_dir():  # a class shares a cache that it cannot write to, not even a lock
        return target
    (file,) = folder.glob("*.gguf")
    try:
        with FileLock(f"{target}.lock"):
            if target.is_dir():  # another process was quicker
                return target
            print("unpacking the language model, once ...", file=sys.stderr, flush=True)
            shutil.rmtree(partial, ignore_errors=True)  # from an interrupted run; we hold the lock
            with _quiet():
                unpacked = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float16)
                settings = unpacked.config.to_dict()
                settings.pop("quantization_config", None)
                model: Any = type(unpacked)(type(unpacked.config)(**settings))
                model.to(torch.float16)
                model.load_state_dict(unpacked.state_dict())
                model.save_pretrained(partial)
                AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(partial)
            os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise AssetError(
            f"could not unpack the language model into {target}: {error}. It needs 300 MB of disk: free some, or "
            "set COURSE_CACHE to a folder that you may write to. Where somebody else keeps that folder for you, ask "
            "them to run in it: python -m course_utils fetch --all"
        ) from error
    return target


def prepare(name: str) -> Path:
    """Fetch one of the course's models or data sets, unpack it where it needs that, and return its folder.

    Raises:
        AssetError: it could not be fetched or unpacked.
    """
    folder = fetch(name)
    return _unpack_gguf(folder) if any(folder.glob("*.gguf")) else folder


def _locate(name: str | Path) -> str:
    if str(name) in ASSETS:
        return str(prepare(str(name)))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackboneError(f"the folder {folder} holds no config.json, so it is no saved model")
        return str(folder)
    return str(name)


def _hub_reachable() -> bool:
    if hub.is_offline_mode():
        return False
    address = urlsplit(hub.ENDPOINT)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(str(address.hostname)):
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _limit_length(tokenizer: PreTrainedTokenizerBase, config: object) -> None:
    """Let the tokenizer know the longest text that the model takes; saved tokenizers often do not."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions:
        # RoBERTa's table begins with two rows that no token uses.
        unused = config.pad_token_id + 1 if getattr(config, "model_type", "") in _OFFSET_POSITIONS else 0  # type: ignore[attr-defined]
        tokenizer.model_max_length = min(int(tokenizer.model_max_length), positions - unused)


_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert"}


def _explain(
    name: str | Path, error: Exception, default: str = DEFAULT_BACKBONE, example: str = "bert-base-uncased"
) -> str:
    said = str(error).strip() or type(error).__name__
    return (
        f"could not load the backbone {str(name)!r}. Expected {default!r} (comes with the course), a folder with a "
        f"saved model, or a Hub id such as {example!r} (needs the network, or a model fetched before). "
        f"The loader said: {said.splitlines()[0]}"
    )


class _quiet:  # noqa: N801 (used like a function)
    """Silence transformers' loading bars and its note that the head is new: here it always is."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()


LABELS = ("negative", "positive")
