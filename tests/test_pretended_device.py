"""Every method on a device that is only pretended: is a tensor left on the processor?

A process of its own, because the device cannot be taken away again; and a test, so that it shares the cores with all
others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SECONDS = 3600


@pytest.mark.timeout(SECONDS + 60)
def test_every_method_leaves_no_tensor_on_the_processor() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COURSE_TEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "test_every_method.py")]
    done = subprocess.run(
        command,
        cwd=TESTS.parent,
        env=kept | {"COURSE_TEST_DEVICE": "pretend"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
