"""Load a pretrained backbone by one name: the course's own, a Hub id, or a local folder."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from course_utils.assets import ASSETS, fetch
from course_utils.data import LABELS

DEFAULT_BACKBONE = "minilm"


class BackboneError(ValueError):
    """The backbone is unknown, cannot be reached, or cannot be loaded."""


def load_classifier(
    name: str | Path = DEFAULT_BACKBONE,
    *,
    num_labels: int = 2,
    pretrained: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A backbone with a fresh classification head, and its tokenizer.

    Args:
        name: "minilm" (the course's default: BERT architecture, 6 layers, 22.7 million weights, no hub needed), any
            Hub id such as "bert-base-uncased" or "FacebookAI/roberta-base", or a local folder with a model.
        num_labels: classes.
        pretrained: False keeps the architecture and draws all weights at random (training from scratch).
        seed: of the head, and of the whole model when not pretrained. Your own random state is left as it was.
        dtype: of the weights.

    Returns:
        The model in training mode with every weight trainable, and the tokenizer.

    Raises:
        BackboneError: nothing of that name exists or can be reached.
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
            config.num_labels = num_labels
            if num_labels == len(LABELS):
                config.id2label = dict(enumerate(LABELS))
                config.label2id = {label: index for index, label in enumerate(LABELS)}
            _limit_length(tokenizer, config)
            if pretrained:
                model = AutoModelForSequenceClassification.from_pretrained(
                    source, config=config, dtype=dtype, local_files_only=offline
                )
            else:
                model = AutoModelForSequenceClassification.from_config(config).to(dtype)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise BackboneError(_explain(name, error)) from error
    if tokenizer.pad_token is None:  # GPT-2 and Llama come without one
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.train(), tokenizer


def _locate(name: str | Path) -> str:
    if str(name) in ASSETS:
        return str(fetch(str(name)))
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


def _explain(name: str | Path, error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return (
        f"could not load the backbone {str(name)!r}. Expected 'minilm' (comes with the course), a folder with a saved "
        f"model, or a Hub id such as 'bert-base-uncased' (needs the network, or a model fetched before). "
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
