"""Ours equals peft on the plainest processor that this one can be made to be, with products added in another order.

Who writes a comparison sees only a processor of his own, on which bits may be equal by chance. Here PyTorch, oneDNN and
MKL are forbidden the newer instructions, and each sum is taken in two pieces (`processors.py`). A process of its own,
because the instructions are chosen when PyTorch is imported.
"""

from __future__ import annotations

from pathlib import Path

import processors
import pytest

PARTS = 2  # so that two cores share them; each part imports the course once
SECONDS = 3600


@pytest.mark.spread
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("part", range(PARTS))
def test_ours_equals_peft_on_the_plainest_processor(part: int, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    passed = processors.PLAIN_IN_ANY_ORDER.run(processors.EQUALITY[part::PARTS], log, jobs=0)
    assert passed, log.read_text(encoding="utf-8")[-8000:]


def test_what_is_run_exists() -> None:
    assert all((processors.ROOT / file).is_file() for file in [*processors.EQUALITY, *processors.SHOWN])
