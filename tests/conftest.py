"""What the tests share: a quiet terminal, one thread, the default backbone, and which of them are for `--whole`."""

from __future__ import annotations

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # two-process tests fork

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pool
import pytest
import torch
from any_order import add_in_any_order
from models import DEVICE
from transformers import PreTrainedTokenizerBase

from course_utils.models.assets import fetch
from course_utils.models.backbones import load_classifier

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Two threads that wait for each other on a busy machine make a tiny model a hundred times slower (measured), so only
# who asks gets more than one: `make test-processors` does.
torch.set_num_threads(int(os.environ.get("COURSE_TEST_THREADS", "1")))
if order := os.environ.get("COURSE_TEST_ORDER"):
    add_in_any_order(int(order))
if DEVICE == "cuda":  # sums in the same order each time, and no rounding of an LSTM's factors to ten binary digits
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False

#: What takes long, and needs a browser, the book's tools or nbgrader. `make test` runs it, and so does naming the file.
WHOLE = [
    f"test_{name}.py"
    for name in [
        "book",
        "claims",
        "grading",
        "grading_checks",
        "grading_copy",
        "grading_nbgrader",
        "packaging",
        "pages",
        "plain_processor",
        "pretended_device",
        "reference_pages",
        "references",
    ]
]
#: What `make check` runs: files that tell soonest that something broke in a room, together less than a minute and a
#: half of processor time. The other files are not even imported.
FAST = [
    f"test_{name}.py"
    for name in [
        "agreement",
        "augment",
        "authoring",
        "data",
        "doctor",
        "evaluation_references",
        "exercises",
        "house",
        "ia3",
        "invariants",
        "lora",
        "metrics",
        "new_chapter",
        "optimizers",
        "registry",
        "selective",
        "wrapping",
    ]
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--whole` and `--fast`."""
    parser.addoption("--whole", action="store_true", help="the tests of the book, the grading and the package, too")
    parser.addoption("--fast", action="store_true", help="only the files that `make check` runs")


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores, and the fixture `network`, as tests/pool.py says."""
    if not config.pluginmanager.has_plugin("pool"):  # `-p pool` has registered it already
        config.pluginmanager.register(pool, "pool")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is left out."""
    return None if config.getoption("--whole") else f"left out, add --whole: {', '.join(WHOLE)}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a long test out, and with `--fast` all but the fast ones, unless a file was asked for by name."""
    named = {Path(argument.split("::")[0]).resolve() for argument in config.args}
    is_long = collection_path.name in WHOLE and not config.getoption("--whole")
    is_not_fast = config.getoption("--fast") and collection_path.match("test_*.py") and collection_path.name not in FAST
    return True if (is_long or is_not_fast) and collection_path not in named else None  # None: whoever else decides


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The default backbone's folder, fetched for real when it is not there yet."""
    return fetch("minilm")


@pytest.fixture(scope="session")
def tokenizer(minilm_folder: Path) -> PreTrainedTokenizerBase:
    """The default backbone's tokenizer."""
    return load_classifier("minilm")[1]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all files that look at the built book: a process can drive no second one beside it."""
    from browser import HTML, NoBrowserError, open_browser  # what opens no page needs no browser's package

    assert (HTML / "index.html").is_file(), "the book is not built: run `make book`"
    try:
        with open_browser() as opened:
            yield opened
    except NoBrowserError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must look at the book in a browser, but {error}")
        pytest.skip(str(error))
