"""All tests and notebooks on processors that this one can be made to be: `make test-processors`, hours on two cores.

    python tests/processors.py             # everything; what passed for the same files is remembered and left out
    python tests/processors.py equality    # the comparisons with peft, on the plainest of these processors: minutes;
                                           # `make test` runs them, too
    python tests/processors.py table       # what was found so far
    python tests/processors.py --only "AVX2, 1 thread"

PyTorch, oneDNN and MKL choose their kernels by the processor's instructions, and a variable forbids each of them the
newer ones. So a processor with AVX-512 computes as one with AVX2 does, or as one with neither. The last row is no
processor but all of them: products are added in another order, see `any_order.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "processors"
CHUNK = 6  # files that are run together: to import the course takes as long as the tests of many a file
CELL_SECONDS = 1200  # the plainest processor emulates bfloat16

PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
#: What asks for bits: ours beside peft's or a stored model's.
EQUALITY = [
    f"tests/test_{name}.py"
    for name in [
        "adalora",
        "bottleneck",
        "checkpoints",
        "dora",
        "ia3",
        "lora",
        "lora_plus",
        "pissa",
        "prefix",
        "prompts",
        "qlora",
        "quantization",
        "selective",
        "vera",
    ]
]
#: These look at the built book in a browser, and compute nothing.
SHOWN = ["tests/test_api_pages.py", "tests/test_book.py"]


@dataclass(frozen=True)
class Variant:
    """One way to compute.

    Args:
        name: of the row.
        environment: variables that make it so.
        threads: of each process.
        has_notebooks: False where the variables mean nothing outside of the tests.
    """

    name: str
    environment: dict[str, str]
    threads: int
    has_notebooks: bool = True

    def run(self, files: list[str], log: Path, jobs: int | None = None) -> bool:
        """Whether pytest passes with these files; what it prints goes to the log.

        Args:
            files: of tests, or notebooks.
            log: to be written.
            jobs: processes, 0 for none beside pytest's own; None for as many as there are cores for.
        """
        threads = {"OMP_NUM_THREADS": str(self.threads), "COURSE_TEST_THREADS": str(self.threads)}
        if jobs is None:
            jobs = max(1, min(4, os.cpu_count() or 1) // self.threads)
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-n", str(jobs), "--dist", "loadfile", *files]
        if files[0].endswith(".ipynb"):
            command += ["tests/conftest.py", "--nbval", f"--nbval-cell-timeout={CELL_SECONDS}"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            # Another pytest may have started this one, and its variables are not meant for it.
            kept = {
                name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COURSE_TEST_"))
            }
            environment = kept | {"TQDM_DISABLE": "1"} | threads | self.environment
            return subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output).returncode == 0


VARIANTS = [
    Variant(f"{name}, {threads} thread{'s' * (threads > 1)}", environment, threads)
    for name, environment in (("no AVX", PLAIN), ("AVX2", AVX2), ("this processor", {}))
    for threads in (1, 2)
] + [Variant("another order of sums", {"COURSE_TEST_ORDER": "1"}, 1, has_notebooks=False)]
#: What `make test` runs, too (test_plain_processor.py): all that differs, at once.
PLAIN_IN_ANY_ORDER = Variant("equality", PLAIN | {"COURSE_TEST_ORDER": "1"}, threads=1, has_notebooks=False)


def tree() -> str:
    """The hash of all files that git knows or would take, as they are now."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GIT_INDEX_FILE": f"{folder}/index"}
        subprocess.run(["git", "add", "--all"], cwd=ROOT, env=environment, check=True)
        written = subprocess.run(
            ["git", "write-tree"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
    return written.stdout.strip()


def chunks() -> list[list[str]]:
    """All test files and all notebooks, a few at a time; a solution with its lab, which trains for both."""
    tests, labs, solutions = (
        sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
        for pattern in ("tests/test_*.py", "labs/*.ipynb", "solutions/*.ipynb")
    )
    tests = [name for name in tests if name not in SHOWN]
    half = CHUNK // 2
    return [tests[i : i + CHUNK] for i in range(0, len(tests), CHUNK)] + [
        labs[i : i + half] + solutions[i : i + half] for i in range(0, len(labs), half)
    ]


class Memory:
    """What passed and what failed, for one state of the files.

    Args:
        state: the hash of the files, see `tree`.
    """

    def __init__(self, state: str) -> None:
        self.file = FOLDER / f"{state[:16]}.json"
        self.found: dict[str, dict[str, bool]] = (
            json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        )

    def put(self, variant: Variant, files: list[str], passed: bool) -> None:
        self.found.setdefault(variant.name, {})[files[0]] = passed
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def of(self, variant: Variant, files: list[str]) -> bool | None:
        """True for passed, False for failed, None for not run."""
        return self.found.get(variant.name, {}).get(files[0])


def log_of(variant: Variant, files: list[str]) -> Path:
    """Where the output of one run lies."""
    name = f"{variant.name} {Path(files[0]).parent} {Path(files[0]).stem}"
    return FOLDER / f"{name.replace(',', '').replace(' ', '-')}.log"


def wanted(variant: Variant) -> list[list[str]]:
    """What is to be run with it."""
    return [files for files in chunks() if variant.has_notebooks or files[0].startswith("tests/")]


def table(memory: Memory) -> bool:
    """Print what passed, and each failure; whether everything has passed."""
    print(f"\n{'':24}{'passed':>8}{'failed':>8}{'not run':>9}   groups of {CHUNK} files")
    failures, complete = [], True
    for variant in VARIANTS:
        found = [memory.of(variant, files) for files in wanted(variant)]
        print(f"{variant.name:24}{found.count(True):8}{found.count(False):8}{found.count(None):9}")
        complete &= all(found)
        failures += [log_of(variant, files) for files in wanted(variant) if memory.of(variant, files) is False]
    for log in failures:
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        print(
            f"\n{log.relative_to(ROOT)}", *(line for line in lines if line.startswith(("FAILED", "ERROR"))), sep="\n  "
        )
    return complete


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("all", "equality", "table"), default="all")
    parser.add_argument("--only", choices=[variant.name for variant in VARIANTS], help="one row of the table")
    options = parser.parse_args()
    what = options.what
    if what == "equality":
        log = FOLDER / "equality.log"
        passed = PLAIN_IN_ANY_ORDER.run(EQUALITY, log)
        print(log.read_text(encoding="utf-8") if not passed else log.read_text(encoding="utf-8").splitlines()[-1])
        return int(not passed)
    memory = Memory(tree())
    for variant in VARIANTS if what == "all" else []:
        if options.only not in (None, variant.name):
            continue
        for files in wanted(variant):
            if not memory.of(variant, files):
                print(f"{variant.name}: {files[0]} to {files[-1]}", end=" ", flush=True)
                memory.put(variant, files, passed=variant.run(files, log_of(variant, files)))
                print("passed" if memory.of(variant, files) else "FAILED", flush=True)
    return int(not table(memory))


if __name__ == "__main__":
    sys.exit(main())
