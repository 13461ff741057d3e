"""The runner of `make test` and `make check`, with stages that are tiny commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pool
import pytest
import stages
from stages import Row, Stage

BUSY = "import time\nwhile time.process_time() < 0.6: pass"


def shell(name: str, line: str, **settings: Any) -> Stage:
    return Stage(name, ["sh", "-c", line], **settings)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder as the repository."""
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages, "TABLE", tmp_path / "stages.json")
    monkeypatch.setattr(stages, "BUDGETS", {"first": 60, "second": 60, "busy": 0.1, "last": 60})
    monkeypatch.setattr(stages, "REFERENCE", 100.0)  # no processor counts as slower than that
    return tmp_path


def test_all_stages_run_and_what_failed_is_named_each_time(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = [
        shell("first", "echo 1 >> ran; exit 3"),
        shell("second", "echo 2 >> ran"),
        Stage("busy", [sys.executable, "-c", BUSY]),
        shell("last", "echo 4 >> ran"),
    ]
    for run in (1, 2):
        assert stages.conduct(given) == 1
        assert (place / "ran").read_text(encoding="utf-8").split() == ["1", "2", "4"] * run
        said = capfd.readouterr().out
        table, failed = said.split("FAILED")
        assert "first: exit code 3: sh -c 'echo 1 >> ran; exit 3'" in failed
        assert "busy: 1 processor seconds, more than 1.5 times its budget of 0" in failed
        assert "second" in table and "second:" not in failed and "last:" not in failed and "all is well" not in said
    assert stages.conduct(given[1::2]) == 0
    assert "all is well" in capfd.readouterr().out


def test_a_budget_is_exceeded_by_half_before_it_fails_and_grows_on_a_slow_processor() -> None:
    busy = [Stage("busy", [sys.executable, "-c", BUSY])]
    (row,), _ = stages.run(busy, {"busy": 0.1})
    assert 0.6 <= row.processor < 30 and row.failed
    (row,), _ = stages.run(busy, {"busy": row.processor / 1.2})
    assert not row.failed
    (row,), _ = stages.run(busy, {"busy": 0.1}, speed=100.0)
    assert not row.failed


def test_processor_seconds_are_those_of_the_whole_family() -> None:
    """The worker's child counts, and sleeping does not."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
    (family, asleep), _ = stages.run(
        [Stage("family", [sys.executable, "-c", parent]), shell("asleep", "sleep 0.7")], {}
    )
    assert family.processor >= 0.6 and asleep.processor < 0.5
    assert asleep.wall is not None and asleep.wall >= 0.7


def test_a_stage_beside_another_is_shown_at_its_end_and_waited_for(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wait = "for i in 1 2 3 4 5 6 7 8 9; do test -f go && break; sleep 1; done; "
    given = [
        shell("first", wait + "test -f go && echo both; exit 5", beside=True),
        shell("second", "touch go; echo here"),
    ]
    assert stages.conduct(given) == 1
    said = capfd.readouterr().out
    assert said.index("here\n") < said.index("which ran beside\nboth\n") and "first: exit code 5" in said


def test_a_run_that_changes_the_repository_fails(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    assert stages.conduct([shell("first", "true")]) == 0
    assert stages.conduct([shell("first", "touch left_behind")]) == 1
    assert "files of the repository were changed by this run:\n?? left_behind" in capfd.readouterr().out


TIMES = {
    "tests/test_a.py::test_x[1]": {"unit": "tests/test_a.py::test_x", "wall": 3.0, "processor": 2.0, "failed": False},
    "tests/test_a.py::test_x[2]": {"unit": "tests/test_a.py::test_x", "wall": 9.0, "processor": 1.0, "failed": True},
    "tests/test_pretended_device.py::test_y": {
        "unit": "tests/test_pretended_device.py::test_y", "wall": 9.0, "processor": 9.0, "failed": False,
    },
    "labs/01.ipynb::Cell 0": {"unit": "labs/01.ipynb", "wall": 1.0, "processor": 4.0, "failed": False},
    "labs/01.ipynb::Cell 1": {"unit": "labs/01.ipynb", "wall": 1.0, "processor": 3.5, "failed": False},
}  # fmt: skip


def test_the_parts_of_the_pool_are_rows_with_budgets_of_their_own(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "times").write_text(json.dumps(TIMES), encoding="utf-8")
    pool_stage = shell("pool", 'cp times "$COURSE_TEST_TIMES"; exit 1', parts=True)
    rows, tests = stages.run([pool_stage], {"notebooks": 4.0, "tests": 60})
    assert tests == TIMES
    by_name = {row.name: row for row in rows}
    assert list(by_name) == ["pool", "tests", "pretended device", "notebooks", "starting pytest"]
    assert by_name["tests"].failed == ["failed: tests/test_a.py::test_x[2]"] and by_name["tests"].processor == 3.0
    assert "more than 1.5 times its budget of 4" in by_name["notebooks"].failed[0]
    assert not by_name["pretended device"].failed and by_name["pool"].failed
    slowest = stages.slowest(tests)
    assert slowest[:2] == [("tests/test_pretended_device.py::test_y", 9.0, 9.0), ("labs/01.ipynb", 2.0, 7.5)]
    assert "9.0     9.0  tests/test_pretended_device.py::test_y" in stages.report(rows, tests, {}, 1.0)


def test_the_table_is_written_when_asked_for_and_only_then(place: Path) -> None:
    (place / "times").write_text(json.dumps(TIMES), encoding="utf-8")
    given = [shell("pool", 'cp times "$COURSE_TEST_TIMES"', parts=True)]
    stages.conduct(given)
    assert not stages.TABLE.exists()
    stages.conduct(given, write=True)
    written = json.loads(stages.TABLE.read_text(encoding="utf-8"))
    assert written["units"]["labs/01.ipynb"] == 7.5 and next(iter(written["units"])).endswith("test_y")
    assert {"pool", "tests", "notebooks", "all"} <= set(written["stages"])


def test_every_stage_has_a_budget() -> None:
    parts = {"tests", "notebooks", *stages.PARTS.values(), "starting pytest"}
    assert all((Path(__file__).parents[1] / file).is_file() for file in stages.PARTS)
    for given in (stages.of_test(2, 600), stages.of_check(2), stages.of_check(1)):
        names = {stage.name for stage in given if stage.name != "tests and notebooks"}
        assert names <= set(stages.BUDGETS)
        assert not given[-1].beside, "nobody would wait for it"
    assert set(stages.BUDGETS) == parts | {stage.name for stage in [*stages.of_test(2, 600)[:-1], *stages.of_check(2)]}
    assert not Row("x", 1.0).failed


# --- the pool ---------------------------------------------------------------------------------------------------------

SUITE = """
import os
import subprocess
import sys
import time
import pytest

@pytest.fixture(scope="module")
def shared():
    return 1

def busy():
    while time.process_time() < 0.5: pass

@pytest.fixture(scope="session")
def cheap():
    busy = "import time\\nwhile time.process_time() < 1.2: pass\\nprint(flush=1)\\ninput()"
    child = subprocess.Popen([sys.executable, "-c", busy], stdin=-1, stdout=-1)
    yield child
    child.communicate(b"end")

@pytest.mark.parametrize("n", [1, 2])
def test_alone(n): os.environ["LEFT_BEHIND"] = "by a test"

@pytest.mark.spread
@pytest.mark.parametrize("n", [1, 2])
def test_spread(n, cheap): cheap.stdout.readline() if n == 1 else None

@pytest.mark.xdist_group("named")
def test_named(shared): ...

def test_shares(shared): ...
def test_shares_too(shared): ...
def test_asks(network): ...
def test_slow(): subprocess.run(["sh", "-c", "exit 0"]); assert not os.environ.get("FAIL")
def test_waits(): subprocess.run(["sleep", "9"], timeout=0.1)
"""
NOTEBOOK = """{"cells": [
 {"cell_type": "code", "id": "a", "execution_count": 1, "metadata": {},
  "source": "import os, time\\nprint(os.environ.get('LEFT_BEHIND'))",
  "outputs": [{"output_type": "stream", "name": "stdout", "text": "None\\n"}]},
 {"cell_type": "code", "id": "b", "execution_count": 2, "metadata": {}, "outputs": [],
  "source": "while time.process_time() < 2: pass"}],
 "metadata": {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
 "nbformat": 4, "nbformat_minor": 5}"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "test_it.py").write_text(SUITE, encoding="utf-8")
    (tmp_path / "z.ipynb").write_text(NOTEBOOK, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv(pool.VARIABLE, str(tmp_path / "times.json"))
    (tmp_path / "conftest.py").write_text(
        "import json, pathlib, pool\n"
        "pool.TABLE = pathlib.Path(__file__).with_name('stages.json')\n"
        "def pytest_addoption(parser): parser.addoption('--fast', action='store_true')\n"
        "def pytest_configure(config): config.pluginmanager.register(pool)\n",
        encoding="utf-8",
    )
    (tmp_path / "stages.json").write_text(json.dumps({"units": {"test_it.py::test_slow": 50.0}}), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = network: asks\n", encoding="utf-8")
    return tmp_path


def run(suite: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr, json.loads((suite / "times.json").read_text(encoding="utf-8"))


def test_one_pool_holds_tests_and_notebooks(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("CI", raising=False)
    said, times = run(suite, "-v", "-rs", "-n", "1", "--dist", "loadgroup", "--no-loadscope-reorder", "--nbval", ".")
    assert "1 failed, 10 passed, 1 skipped" in said, said
    assert "pip reaches no package index: ERROR" in said
    units = {node: row["unit"] for node, row in times.items()}
    assert units == {
        "test_it.py::test_alone[1]": "test_it.py::test_alone",
        "test_it.py::test_alone[2]": "test_it.py::test_alone",
        "test_it.py::test_spread[1]": "test_it.py::test_spread[1]",
        "test_it.py::test_spread[2]": "test_it.py::test_spread[2]",
        "test_it.py::test_named": "named",
        "test_it.py::test_shares": "test_it.py",
        "test_it.py::test_shares_too": "test_it.py",
        "test_it.py::test_asks": "test_it.py::test_asks",
        "test_it.py::test_slow": "test_it.py::test_slow",
        "test_it.py::test_waits": "test_it.py::test_waits",
        "z.ipynb::Cell 0": "z.ipynb",
        "z.ipynb::Cell 1": "z.ipynb",
    }
    assert [name for name, _ in zip(times, range(3), strict=False)] == [
        "test_it.py::test_slow", "z.ipynb::Cell 0", "z.ipynb::Cell 1",
    ], "the longest first"  # fmt: skip
    # The kernel's seconds count, although the kernel is no test.
    assert sum(row["processor"] for row in times.values() if row["unit"] == "z.ipynb") >= 2
    # So do those of a process that lives on, for the test that used it.
    assert times["test_it.py::test_spread[1]"]["processor"] >= 1
    assert [node for node, row in times.items() if row["failed"]] == ["test_it.py::test_waits"]
    assert "slow machine or hang" in said and "It does not say that a result is wrong" in said


def test_a_unit_stays_on_one_core(suite: Path) -> None:
    """With three cores: a notebook's second cell needs the kernel that ran the first."""
    three = ("-v", "-n", "3", "--dist", "loadgroup", "--no-loadscope-reorder", "--nbval")
    said, _ = run(suite, *three, "-m", "not network", ".")
    cores: dict[str, set[str]] = {}
    for core, unit in re.findall(r"^\[(gw\d)\].* \S+::.*@(\S+)", said, re.MULTILINE):
        cores.setdefault(unit, set()).add(core)
    assert len(cores) == 8 and {len(those) for those in cores.values()} == {1}, said
    assert len(set().union(*cores.values())) == 3


def test_a_kernel_starts_with_the_first_environment(suite: Path) -> None:
    """In the order of the files a test has left a variable behind when the notebook starts."""
    said, times = run(suite, "--nbval", ".", "-m", "not network", "--deselect", "test_it.py::test_waits")
    assert "test_it.py::test_asks" not in times
    assert list(times)[-1] == "z.ipynb::Cell 1" and "failed" not in said, said


def test_fast_leaves_out_what_is_known_as_slow(suite: Path) -> None:
    _, times = run(suite, "--fast", "test_it.py")
    assert "test_it.py::test_slow" not in times and "test_it.py::test_alone[1]" in times
