"""The runs of a study in one result file: each is written down when it is done, and no run is made twice.

Several processes may share the work, each with other experiments or other seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock

from course_utils.evaluation import results
from course_utils.evaluation.intervals import mean_and_spread

Row = dict[str, Any]


class Runs:
    """The result file `book/results/<name>.json`, whose `runs` grow one by one.

    Args:
        name: of the file.
        command: that makes it.
        keys: the fields that tell one run from all others.
        summary: makes the rest of the file's content out of all runs.
    """

    def __init__(self, name: str, command: str, keys: Sequence[str], summary: Callable[[list[Row]], Row]) -> None:
        self.name, self.command, self.keys, self.summary = name, command, tuple(keys), summary

    def rows(self) -> list[Row]:
        """All finished runs, those of other processes too."""
        rows: list[Row] = results.stored(self.name).get("runs", [])
        return rows

    def has(self, key: Row) -> bool:
        """Whether the run with these fields is finished."""
        return any(self._same(row, key) for row in self.rows())

    def key(self, row: Row) -> tuple[Any, ...]:
        """The values of the fields that tell a run from all others."""
        return tuple(row.get(key) for key in self.keys)

    def add(self, row: Row) -> None:
        """Write one run down with its device, in place of an older one with the same fields."""
        new = {**row, "device": results.device()}
        self._change(lambda rows: [*(old for old in rows if not self._same(old, row)), new])

    def drop(self, unwanted: Callable[[Row], bool]) -> None:
        """Throw the runs away of which `unwanted` is true."""
        self._change(lambda rows: [row for row in rows if not unwanted(row)])

    def refresh(self) -> None:
        """Make the summary anew."""
        self._change(lambda rows: rows)

    def _same(self, one: Row, other: Row) -> bool:
        return all(one.get(key) == other.get(key) for key in self.keys)

    def _change(self, change: Callable[[list[Row]], list[Row]]) -> None:
        def content(stored: Row) -> Row:
            rows = change(stored.get("runs", []))
            ordered = sorted(rows, key=lambda row: [_by_size(row.get(key, "")) for key in self.keys])
            return {**self.summary(ordered), "runs": ordered}

        update(self.name, self.command, content)


def _by_size(value: Any) -> tuple[bool, float, str]:
    """Sorts texts by the alphabet and numbers by size; numbers come first."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, "" if is_number else str(value)


def options(
    command: str, says: str | None, experiments: Mapping[str, Any], seeds: Sequence[int], arguments: list[str]
) -> argparse.Namespace:
    """Read the command line: names of experiments, `--seeds`, `--again`."""
    parser = argparse.ArgumentParser(prog=command, description=says)
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"default: all of {', '.join(experiments)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help=f"default: {', '.join(map(str, seeds))}")
    parser.add_argument("--again", action="store_true", help="throw away the stored runs of these first")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.experiments) - set(experiments):
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; choose from {', '.join(experiments)}")
    chosen.experiments = chosen.experiments or list(experiments)
    chosen.seeds = list(seeds) if chosen.seeds is None else chosen.seeds
    if wrong := set(chosen.seeds) - set(seeds):
        parser.error(f"unknown seed {', '.join(map(str, sorted(wrong)))}; choose from {', '.join(map(str, seeds))}")
    return chosen


def over_seeds(rows: Sequence[Row], keys: Sequence[str]) -> Row:
    """Mean, spread, lowest and highest of some numbers over runs that differ in their seed alone."""
    summary: Row = {"seeds": len(rows)}
    for key in keys:
        values = [row[key] for row in rows]
        mean, spread = mean_and_spread(values)
        summary[key] = {"mean": mean, "spread": spread, "low": min(values), "high": max(values)}
    return summary


def write(name: str, command: str, content: dict[str, Any]) -> Path:
    """Write a result file in one step, with the command that made it, versions and machine."""
    results.FOLDER.mkdir(parents=True, exist_ok=True)
    path = results.FOLDER / f"{name}.json"
    partial = path.with_suffix(".partial")
    text = json.dumps({"command": command, **_facts(), **content}, indent=1)
    # A list of numbers is one line.
    text = re.sub(r"\[\n([-\d.e,\s]+)\n\s*\]", lambda list_: "[" + " ".join(list_[1].split()) + "]", text)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def update(name: str, command: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Replace a result file by what `change` makes of its content ({} where there is none), as one step.

    Several processes may do this with one file at the same time: each waits for the other, and no result is lost.
    """
    results.FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(results.FOLDER / f".{name}.lock"):
        return write(name, command, change(results.stored(name)))


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
        "commit": commit(results.FOLDER.parents[1]),
        "machine": {
            "device": results.device(),
            "threads": torch.get_num_threads(),
            "architecture": platform.machine(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9),
            "system": platform.system(),
        },
    }
