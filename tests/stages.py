"""Run all stages of `make test` or `make check`, whatever fails, and say at the end what did, and what each took.

    python tests/stages.py test --jobs 2          # --write: also write tests/stages.json
    python tests/stages.py check --jobs 2

Only the standard library is imported here. A stage is a command. Its processor seconds (user and system, with those of
the processes that it waited for) are held against a budget, because wall time depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "stages.json"
SLOWEST = 25
#: A stage fails when it uses more than this many times its budget.
ROOM = 1.5
#: Processor seconds of each row of the table on the machine on which `spin` takes `REFERENCE` seconds: 10 to 20% above
#: what `make test-times` measured on two cores. What no such run has measured yet has a generous one.
BUDGETS: dict[str, float] = {
    "style": 10,
    "types": 150,
    "imports": 60,
    "notebooks in step": 120,
    "book": 100,
    "fast tests": 120,
    "tests": 1600,
    "pretended device": 170,
    "plain processor": 110,
    "notebooks": 1700,
    "starting pytest": 300,
}
REFERENCE = 0.18
#: Files of tests that are rows of their own.
PARTS = {"tests/test_pretended_device.py": "pretended device", "tests/test_plain_processor.py": "plain processor"}


@dataclass
class Stage:
    """One command.

    Args:
        name: as in the table.
        command: words; it runs in the repository's folder.
        beside: it runs while the next stage does, and what it says is shown when it ends.
        parts: it is a run of pytest, and its tests, notebooks and so on are rows of their own.
    """

    name: str
    command: Sequence[str]
    beside: bool = False
    parts: bool = False


@dataclass
class Row:
    """What a stage, or a part of one, took."""

    name: str
    processor: float
    wall: float | None = None  # a part of a stage runs beside the others
    code: int = 0
    failed: list[str] = field(default_factory=list)
    is_sum: bool = False  # its parts have rows, and budgets, of their own


def run(stages: Sequence[Stage], budgets: dict[str, float], speed: float = 1.0) -> tuple[list[Row], dict[str, Any]]:
    """Run all stages; what runs beside the next one is waited for when that one ends.

    Returns:
        A row for each stage and each part of one; and node → {"unit", "wall", "processor", "failed"} of the tests.
    """
    rows: list[Row] = []
    tests: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        waiting: list[_Running] = []
        for number, stage in enumerate(stages):
            waiting.append(_Running(stage, Path(folder) / str(number)))
            if stage.beside:
                continue
            for running in reversed(waiting):  # the one whose output is seen is the last that was started
                row, found = running.wait()
                rows += [row, *_parts(row, found, running.stage.parts)]
                tests |= found
            waiting = []
    for row in rows:
        budget = budgets.get(row.name)
        if not row.is_sum and budget is not None and row.processor > ROOM * budget * speed:
            row.failed.append(
                f"{row.processor:.0f} processor seconds, more than {ROOM:g} times its budget of {budget * speed:.0f}"
            )
    return rows, tests


class _Running:
    """A stage that was started. What it says goes to the terminal, or, beside another one, to a file first."""

    def __init__(self, stage: Stage, place: Path) -> None:
        self.stage, self.place, self.started = stage, place, time.monotonic()
        print(f"\n== {stage.name}{' (beside the next stage)' if stage.beside else ''}", flush=True)
        environment = os.environ | {"COURSE_TEST_TIMES": f"{place}.json"}
        self.output = open(place, "w+", encoding="utf-8", errors="replace") if stage.beside else None  # noqa: SIM115
        self.process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=self.output, stderr=self.output and subprocess.STDOUT
        )
        self.thread = Thread(target=self._watch)  # so that its wall time ends when it does
        self.thread.start()

    def _watch(self) -> None:
        _, status, self.usage = os.wait4(self.process.pid, 0)
        self.wall = time.monotonic() - self.started
        self.process.returncode = os.waitstatus_to_exitcode(status)

    def wait(self) -> tuple[Row, dict[str, Any]]:
        """Its row, and the times of its tests."""
        self.thread.join()
        code = self.process.returncode
        if self.output:
            self.output.seek(0)
            print(f"\n== {self.stage.name}, which ran beside\n{self.output.read()}", flush=True)
            self.output.close()
        row = Row(self.stage.name, self.usage.ru_utime + self.usage.ru_stime, self.wall, code)
        if code:
            row.failed.append(f"exit code {code}: {shlex.join(self.stage.command)}")
        file = Path(f"{self.place}.json")
        return row, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def part_of(unit: str) -> str:
    """The row of the table to which a unit of the pool belongs."""
    if unit.endswith(".ipynb"):
        return "notebooks"
    file = unit.split("::")[0]
    return PARTS.get(file, "tests")


def _parts(whole: Row, tests: dict[str, Any], split: bool) -> list[Row]:
    """The parts of a run of pytest, and what is left: starting, importing, collecting."""
    if not split:
        whole.failed += [f"failed: {node}" for node, test in tests.items() if test["failed"]]
        return []
    whole.is_sum = True
    rows: dict[str, Row] = {}
    for node, test in tests.items():
        row = rows.setdefault(part_of(test["unit"]), Row(part_of(test["unit"]), 0.0))
        row.processor += test["processor"]
        if test["failed"]:
            row.failed.append(f"failed: {node}")
    rest = whole.processor - sum(row.processor for row in rows.values())
    return [*rows.values(), Row("starting pytest", max(rest, 0.0))]


def units_of(tests: dict[str, Any]) -> dict[str, float]:
    """Processor seconds of each unit of the pool, the longest first."""
    units: dict[str, float] = {}
    for test in tests.values():
        units[test["unit"]] = units.get(test["unit"], 0.0) + test["processor"]
    return dict(sorted(units.items(), key=lambda pair: -pair[1]))


def slowest(tests: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(test, wall seconds, processor seconds) of the slowest; a notebook counts as one test."""
    sums: dict[str, tuple[float, float]] = {}
    for node, test in tests.items():
        name = test["unit"] if test["unit"].endswith(".ipynb") else node
        wall, processor = sums.get(name, (0.0, 0.0))
        sums[name] = (wall + test["wall"], processor + test["processor"])
    rows = [(name, wall, processor) for name, (wall, processor) in sums.items()]
    return sorted(rows, key=lambda row: -row[2])[:SLOWEST]


def report(rows: Sequence[Row], tests: dict[str, Any], budgets: dict[str, float], speed: float) -> str:
    """The end of the log: the table of stages, the slowest tests, what failed."""
    lines = ["", f"{'stage':<28}{'wall s':>9}{'processor s':>13}{'budget':>9}"]
    for row in rows:
        budget = None if row.is_sum else budgets.get(row.name)
        name = row.name if row.wall is not None else f"  {row.name}"
        wall = "" if row.wall is None else f"{row.wall:.0f}"
        lines.append(f"{name:<28}{wall:>9}{row.processor:>13.0f}{'' if budget is None else f'{budget * speed:.0f}':>9}")
    if tests:
        lines += ["", f"the {SLOWEST} slowest tests: wall s, processor s"]
        lines += [f"{wall:>7.1f}{processor:>8.1f}  {name}" for name, wall, processor in slowest(tests)]
    failed = [(row.name, why) for row in rows for why in row.failed]
    lines += ["", "FAILED", *(f"  {name}: {why}" for name, why in failed)] if failed else ["", "== all is well"]
    return "\n".join(lines)


def spin() -> float:
    """Processor seconds of a fixed piece of work: how fast this processor is, whatever else it does."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        sum(number * number % 7 for number in range(4_000_000))
        best = min(best, time.process_time() - started)
    return best


def tree() -> str | None:
    """What git says of the repository's files: a run must leave it as it was."""
    git = ["git", "-c", f"safe.directory={ROOT}"]
    said = [
        subprocess.run([*git, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        for words in (["status", "--porcelain", "--untracked-files=all"], ["diff", "--stat"])
    ]
    return None if any(one.returncode for one in said) else "\n".join(one.stdout for one in said)


def of_test(jobs: int, cell_timeout: int) -> list[Stage]:
    """The stages of `make test`. The types are checked on one core while another builds the book."""
    pool = [sys.executable, "-m", "pytest", "-n", str(jobs), "--dist", "loadgroup", "--no-loadscope-reorder"]
    pool += ["tests", "labs", "solutions", "--whole", "--nbval", f"--nbval-cell-timeout={cell_timeout}"]
    return [
        *_style(),
        Stage("types", [sys.executable, "-m", "mypy"], beside=jobs > 1),
        Stage("book", [os.environ.get("MAKE", "make"), "--no-print-directory", "book-strict"]),
        Stage("tests and notebooks", pool, parts=True),
    ]


def of_check(jobs: int) -> list[Stage]:
    """The stages of `make check`."""
    fast = [sys.executable, "-m", "pytest", "-q", "tests", "--fast"]
    if jobs > 1:  # the types take one core
        fast += ["-n", str(jobs - 1), "--dist", "loadgroup", "--no-loadscope-reorder"]
    return [
        *_style(),
        Stage("imports", [sys.executable, "-m", "deptry", "course_utils", "book/_ext", "solutions", "tests"]),
        Stage("notebooks in step", [sys.executable, "-m", "course_utils", "notebooks", "--check"]),
        Stage("types", [sys.executable, "-m", "mypy"], beside=jobs > 1),
        Stage("fast tests", fast, parts=True),
    ]


def _style() -> list[Stage]:
    check = f"{shlex.quote(sys.executable)} -m ruff format --check; one=$?; {shlex.quote(sys.executable)} -m ruff check"
    return [Stage("style", ["sh", "-c", f"{check} && exit $one"])]


def table(rows: Sequence[Row], tests: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """What is committed: the stages, the slowest tests, and the units that decide about order and `--fast`."""
    return {
        "command": "make test-times",
        "machine": machine,
        "stages": {
            row.name: {"processor": round(row.processor)} | ({} if row.wall is None else {"wall": round(row.wall)})
            for row in rows
        },
        "slowest": [[name, round(wall, 1), round(processor, 1)] for name, wall, processor in slowest(tests)],
        "units": {name: round(seconds, 1) for name, seconds in units_of(tests).items() if seconds >= 0.5},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; 1 when one failed."""
    parser = argparse.ArgumentParser(description="Run all stages, and say what failed and what each took.")
    parser.add_argument("what", choices=["test", "check"])
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="cores to use")
    parser.add_argument("--cell-timeout", type=int, default=600, help="wall seconds that one notebook cell may take")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    stages = of_test(options.jobs, options.cell_timeout) if options.what == "test" else of_check(options.jobs)
    return conduct(stages, write=options.write, jobs=options.jobs)


def conduct(stages: Sequence[Stage], *, write: bool = False, jobs: int = 1) -> int:
    """Run the stages, print the report, and return the exit code."""
    speed, before, started = max(1.0, spin() / REFERENCE), tree(), time.monotonic()
    rows, tests = run(stages, BUDGETS, speed)
    rows.append(Row("all", sum(row.processor for row in rows if row.wall is not None), time.monotonic() - started))
    if (after := tree()) != before:
        rows[-1].failed.append(f"files of the repository were changed by this run:\n{after}")
    print(report(rows, tests, BUDGETS, speed), flush=True)
    if write:
        machine = {"jobs": jobs, "spin": round(spin(), 2)}
        text = json.dumps(table(rows, tests, machine), indent=1, ensure_ascii=False)
        TABLE.write_text(text + "\n", encoding="utf-8")
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
