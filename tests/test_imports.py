"""What an import costs, told in a fresh process: no lab waits for a library that it does not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

#: The first cell of chapter 9's lab, which needs as much as any.
LAB = next(
    cell.source
    for cell in jupytext.read(Path(__file__).parents[1] / "solutions" / "09_lora.py").cells
    if cell.cell_type == "code" and "from course_utils import" in cell.source
)
EXERCISES = "import course_utils.exercises"
#: None of them is needed before the first call of something that uses it.
HEAVY = (
    "peft",
    "bitsandbytes",
    "sklearn",
    "scipy",
    "torch._inductor",
    "transformers.modeling_utils",
    "transformers.trainer",
)
#: Processor seconds as a multiple of those of `import torch`, so that no machine is too slow. Where torch takes 1.1 s,
#: exercises took 7.8 s and a lab's cell about 8 s; now they take 1.1 and 2.9 s.
LIMITS = {EXERCISES: 1.5, LAB: 4.0}


def fresh(code: str) -> str:
    """What code prints in a new process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "absent"),
    [(EXERCISES, (*HEAVY, "pandas", "transformers", "matplotlib")), (LAB, HEAVY)],
    ids=["exercises", "lab"],
)
def test_what_is_not_imported(code: str, absent: tuple[str, ...]) -> None:
    assert fresh(f"{code}\nimport sys\nprint(sorted({set(absent)} & sys.modules.keys()))") == "[]"


def test_a_check_imports_its_own_chapter_only() -> None:
    code = """
import sys
from course_utils.exercises import exercises, run_check
run_check("lora.count", None)
print(sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith("course_utils.exercises.")))
assert len({name.partition(".")[0] for name in exercises()}) == 24
"""
    assert fresh(code) == "['checking', 'crashes', 'lora']"


@pytest.mark.parametrize("code", LIMITS, ids=["exercises", "lab"])
def test_processor_seconds(code: str) -> None:
    before, after = "import time, torch\nalone = time.process_time()", "print(time.process_time() / alone)"
    timed = f"{before}\n{code}\n{after}"
    assert min(float(fresh(timed)) for _ in range(2)) < LIMITS[code]
