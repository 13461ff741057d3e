"""How all tests and notebooks share the cores in one run of pytest, and what each of them used.

`conftest.py` registers this module. Five things happen here:

* **Units.** With `--dist loadgroup` a free core takes the next unit from one queue, the longest first. A notebook is a
  unit, because one kernel serves it. So are the tests of a file that share a fixture of its module: what took long to
  make is made once. A session's fixture binds nobody, each core that needs it makes its own; so a file gives that scope
  to what is cheap, such as a browser. Every other test function is a unit of its own: with all its parameters, or, with
  the marker `spread`, each of them. The marker `xdist_group` names a unit across files.
* **Processor seconds.** After each test its report gets the seconds (user and system) that its process has used since
  the one before, with those of its children: of the ended ones, and of those that live on, like a browser.
* **The network.** Who needs a package index asks for the fixture `network`.
* **What lab and solution train alike** is trained once (`remembered.py`).
* **Fast tests.** Of the files that `conftest.py` names, `--fast` leaves out what `tests/stages.json` knows as slow: the
  same tests on every computer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import remembered

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "stages.json"
#: `--fast` takes the units that used less than this; one that the table does not know counts as fast.
FAST_SECONDS = 2.0
#: Where the times of one run are written, when this variable names a file.
VARIABLE = "COURSE_TEST_TIMES"
_environment: dict[str, str] = {}
_kernels: dict[str, str] = {}  # further variables that only notebooks get
_times: dict[str, dict[str, Any]] = {}
_before = 0.0
_UNIT = pytest.StashKey[str]()
_REMEMBERED = pytest.StashKey[str]()


def table() -> dict[str, Any]:
    """The committed table of stages: `stages`, `slowest`, and `units` with at least half a processor second."""
    read: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {"units": {}}
    return read


def used() -> float:
    """Processor seconds of this process and of its children, whether they ended or live."""
    return sum(os.times()[:4]) + sum(map(_seconds, psutil.Process().children(recursive=True)))


def _seconds(process: psutil.Process) -> float:
    """Of a living process and of the children that it has waited for; 0 where it ended meanwhile."""
    try:
        return sum(process.cpu_times()[:4])
    except psutil.Error:
        return 0.0


def is_notebook(item: pytest.Item) -> bool:
    """Whether a test is a cell of a notebook."""
    return item.path.suffix == ".ipynb"


def unit(item: pytest.Item) -> str:
    """The name of what must stay on one core: `labs/09_lora.ipynb`, `tests/test_x.py`, or `tests/test_x.py::test_y`."""
    if _UNIT not in item.stash:  # xdist adds the unit to the test's name later
        item.stash[_UNIT] = _unit(item)
    return item.stash[_UNIT]


def _unit(item: pytest.Item) -> str:
    if group := item.get_closest_marker("xdist_group"):
        return str(group.args[0])
    file, *names = item.nodeid.split("::")
    info = getattr(item, "_fixtureinfo", None)  # a cell of a notebook has none
    if is_notebook(item) or not info:
        return file
    for definitions in info.name2fixturedefs.values():
        if definitions[-1].scope == "module" and definitions[-1].baseid.split("::")[0] == file:
            return file
    name = "::".join([file, *names])
    return name if item.get_closest_marker("spread") else name.split("[")[0]


# --- what runs, and in which order -----------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the fast tests, and put units in order: the longest first, so that no core idles at the end."""
    global _before
    _before = used()
    seconds: dict[str, float] = table()["units"]
    units = {item: unit(item) for item in items}
    if config.getoption("--fast", default=False):
        slow = [item for item in items if seconds.get(units[item], 0) >= FAST_SECONDS or is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    if getattr(config.option, "loadgroup", False):  # in a worker of xdist
        for item in items:
            _say_unit(item, units[item])
        # A notebook that nobody has measured takes long, a test does not.
        items.sort(key=lambda item: -seconds.get(units[item], 40.0 if is_notebook(item) else 0.5))
        first = {name: place for place, name in reversed(list(enumerate(units[item] for item in items)))}
        items.sort(key=lambda item: first[units[item]])


def _say_unit(item: Any, name: str) -> None:
    """Put the unit behind the test's identifier, where xdist looks for it.

    xdist 3.8 does that itself for the marker `xdist_group`, but writes into a field that pytest 9.2 no longer reads. So
    every test was a unit of its own, and the cells of a notebook met two kernels.
    """
    said = f"{item.nodeid}@{name}"
    if hasattr(item, "_id"):
        item._id = type(item._id).parse(said)
    else:
        item._nodeid = said


def is_slow(item: pytest.Item) -> bool:
    """Whether a test can be no fast one, whatever it used when it was measured."""
    return item.get_closest_marker("network") is not None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A kernel starts with the environment that this process had: a test may have left something there."""
    for name in _kernels:
        os.environ.pop(name, None)
    if is_notebook(item):
        for name in set(os.environ) - set(_environment) - {"PYTEST_CURRENT_TEST"}:
            del os.environ[name]
        os.environ.update(_environment | _kernels)


# --- the network -----------------------------------------------------------------------------------------------------


def pytest_itemcollected(item: pytest.Item) -> None:
    """Who asks for the fixture `network` gets the marker, so that `-m "not network"` leaves it out."""
    if "network" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.network)


@pytest.fixture(scope="session")
def network() -> None:
    """A package index that pip can reach, asked once; without one a test is skipped, except where `CI` is set."""
    ask = [sys.executable, "-m", "pip", "index", "versions", "pip", "--quiet", "--retries", "0", "--timeout", "20"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"pip reaches no package index: {(done.stderr.strip().splitlines() or ['it does not say why'])[-1]}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


# --- what it used ----------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Remember the environment, say what `spread` means, and let the notebooks of one run share what they train."""
    config.addinivalue_line("markers", "spread: each parameter of the test may run on another core")
    _environment.update({name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"})
    if config.getoption("nbval", default=False) and os.environ.get("COURSE_REMEMBER") != "0":
        folder = getattr(config, "workerinput", {}).get("remembered")
        if folder is None:
            folder = tempfile.mkdtemp(prefix="remembered-")
            remembered.prepare(Path(folder))
            config.stash[_REMEMBERED] = folder
        _kernels.update({"IPYTHONDIR": folder, remembered.FOLDER: folder})


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The workers of xdist share the folder of the process that starts them."""
    if _REMEMBERED in node.config.stash:
        node.workerinput["remembered"] = node.config.stash[_REMEMBERED]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forget what was trained."""
    if _REMEMBERED in config.stash:
        shutil.rmtree(config.stash[_REMEMBERED], ignore_errors=True)


#: What the report of a limit of wall time says; it is not the result that is wrong.
PATIENCE = (
    "A limit of wall time was reached: a slow or busy machine, or a hang. It does not say that a result is wrong."
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the processor seconds, and say what a timeout means."""
    global _before
    report: Any = yield
    report.processor_seconds, report.unit = 0.0, unit(item)
    if call.when == "teardown":  # counted once for a test, because to look for its children takes milliseconds
        now = used()
        # What a browser used is no longer seen once it has ended.
        report.processor_seconds, _before = max(0.0, now - _before), now
    if call.excinfo and report.failed and ran_out_of_time(call.excinfo):
        report.sections.append(("slow machine or hang", PATIENCE))
    return report


def ran_out_of_time(error: pytest.ExceptionInfo[BaseException]) -> bool:
    """Whether a limit of wall time ended a test: of a test, a subprocess, a socket, a browser or a notebook's cell."""
    words = str(error.value)
    kinds = {kind.__name__ for kind in type(error.value).__mro__}
    return bool(kinds & {"TimeoutExpired", "TimeoutError"}) or "from pytest-timeout" in words or "timed out" in words


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather the reports where all of them arrive: in the process that started the others."""
    if not hasattr(report, "processor_seconds"):
        return
    row = _times.setdefault(
        report.nodeid.removesuffix(f"@{report.unit}"),
        {"unit": report.unit, "wall": 0.0, "processor": 0.0, "failed": False},
    )
    row["wall"] += report.duration
    row["processor"] += report.processor_seconds
    row["failed"] |= report.failed


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the times, for whoever asked for them."""
    if (file := os.environ.get(VARIABLE)) and not hasattr(session.config, "workerinput"):
        Path(file).write_text(json.dumps(_times), encoding="utf-8")
