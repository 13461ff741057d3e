"""The committed result files: every number in the book that no lab computes comes from one of them.

A result file is JSON in `book/results/` and says which command made it, with which versions and on which machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock

_INSTALLED = Path(__file__).parent / "measured"  # where pip has put the files, without the repository around them
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "book" / "results"


def read(name: str) -> dict[str, Any]:
    """The content of `book/results/<name>.json`.

    Raises:
        FileNotFoundError: no such file; the message names those that exist.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        existing = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json"))) or "none"
        raise FileNotFoundError(f"there are no results {name!r} in {FOLDER}; there are: {existing}")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def stored(name: str) -> dict[str, Any]:
    """The content of a result file; {} where there is none yet."""
    return read(name) if (FOLDER / f"{name}.json").is_file() else {}


def write(name: str, command: str, content: dict[str, Any]) -> Path:
    """Write a result file in one step, with the command that made it, versions and machine."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    partial = path.with_suffix(".partial")
    text = json.dumps({"command": command, **_facts(), **content}, indent=1)
    # A list of numbers is one line.
    text = re.sub(r"\[\n([-\d.e,\s]+)\n\s*\]", lambda list_: "[" + " ".join(list_[1].split()) + "]", text)
    partial.write_text(text + "\n")
    os.replace(partial, path)
    return path


def update(name: str, command: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Replace a result file by what `change` makes of its content ({} where there is none), as one step.

    Several processes may do this with one file at the same time: each waits for the other, and no result is lost.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f".{name}.lock"):
        return write(name, command, change(stored(name)))


def device() -> str:
    """What this process computes on, in words."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"


@cache
def commit(root: Path) -> str | None:
    """The commit that is checked out at `root`; "…, changed" where our code differs from it, None where there is none.

    Asked once a process: its code was read at its start.
    """
    if shutil.which("git") is None:
        return None
    here = ["git", "-C", str(root)]
    found = subprocess.run([*here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if found.returncode:
        return None
    changes = [*here, "status", "--porcelain", "--untracked-files=no", "--", "course_utils"]
    changed = subprocess.run(changes, capture_output=True, text=True, check=False).stdout
    return found.stdout.strip() + (", changed" if changed else "")


def _facts() -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "accelerate", "datasets")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": commit(FOLDER.parents[1]),
        "machine": {
            "device": device(),
            "threads": torch.get_num_threads(),
            "architecture": platform.machine(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9),
            "system": platform.system(),
        },
    }
