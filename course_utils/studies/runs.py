"""The runs of a study in one result file: each is written down when it is done, and no run is made twice.

Several processes may share the work, each with other experiments or other seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from course_utils import results
from course_utils.metrics import mean_and_spread

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

    def add(self, row: Row) -> None:
        """Write one run down with its device, in place of an older one with the same fields."""
        new = {**row, "device": results.device()}
        self._change(lambda rows: [*(old for old in rows if not self._same(old, row)), new])

    def drop(self, arms: Sequence[str], seeds: Sequence[int]) -> None:
        """Throw the runs of these arms and seeds away."""
        self._change(lambda rows: [row for row in rows if not (row["arm"] in arms and row["seed"] in seeds)])

    def refresh(self) -> None:
        """Make the summary anew."""
        self._change(lambda rows: rows)

    def _same(self, one: Row, other: Row) -> bool:
        return all(one.get(key) == other.get(key) for key in self.keys)

    def _change(self, change: Callable[[list[Row]], list[Row]]) -> None:
        def content(stored: Row) -> Row:
            rows = change(stored.get("runs", []))
            ordered = sorted(rows, key=lambda row: [str(row.get(key, "")).zfill(8) for key in self.keys])
            return {**self.summary(ordered), "runs": ordered}

        results.update(self.name, self.command, content)


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
