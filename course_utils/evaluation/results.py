"""The committed result files: every number in the book that no lab computes comes from one of them.

A result file is JSON in `book/results/` and says which command made it, with which versions and on which machine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

_INSTALLED = Path(__file__).parents[1] / "measured"  # where pip has put the files, without the repository around them
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "book" / "results"


def read(name: str) -> dict[str, Any]:
    """The content of `book/results/<name>.json`.

    Raises:
        FileNotFoundError: no such file; the message names those that exist.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        existing = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json"))) or "none"
        raise FileNotFoundError(f"there are no results {name!r} in {FOLDER}; there are: {existing}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def stored(name: str) -> dict[str, Any]:
    """The content of a result file; {} where there is none yet."""
    return read(name) if (FOLDER / f"{name}.json").is_file() else {}


def device() -> str:
    """What this process computes on, in words."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
