"""What the tests share: a quiet terminal, the machine's cores, and the course's default backbone."""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # two-process tests fork

from pathlib import Path

import pytest
import torch
from models import DEVICE
from transformers import PreTrainedTokenizerBase

from course_utils.assets import fetch
from course_utils.backbones import load_classifier

# Two threads that wait for each other on a busy machine make a tiny model a hundred times slower (measured).
torch.set_num_threads(1)
if DEVICE == "cuda":  # sums in the same order each time, and no rounding of an LSTM's factors to ten binary digits
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The default backbone's folder, fetched for real when it is not there yet."""
    return fetch("minilm")


@pytest.fixture(scope="session")
def tokenizer(minilm_folder: Path) -> PreTrainedTokenizerBase:
    """The default backbone's tokenizer."""
    return load_classifier("minilm")[1]
