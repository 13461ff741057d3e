"""Run the Python blocks of pages, each page's in order in one namespace: `python tests/run_pages.py < pages.json`.

A process of its own, as a reader would have it, and one for all pages, because torch is slow to import. Input: page →
list of [line, code, expected error or null]. Output, the last line: page → {"seconds" of the processor, "troubles"}.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run_block(name: str, code: str, namespace: dict[str, Any], expected: str | None) -> str | None:
    """Run one block; return what is wrong with it, or None."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)  # so that tracebacks show it
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            exec(compile(code, name, "exec"), namespace)
    except BaseException as error:  # sys.exit in a page is a mistake as well
        got = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        if expected is None:
            return f"{name}: {got}\n{traceback.format_exc()[-1500:]}"
        got = f"{type(error).__name__}: {error}"
        return None if got.startswith(expected) else f"{name}: the page says {expected!r}, Python says {got!r}"
    return f"{name}: the page says {expected!r}, but the block runs" if expected else None


def run_page(page: str, blocks: list[tuple[int, str, str | None]]) -> dict[str, Any]:
    """Run a page's blocks in an empty folder; after the first that fails the others would only follow suit."""
    started, before = sum(os.times()[:4]), Path.cwd()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    troubles: list[str] = []
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for line, code, expected in blocks:
                if trouble := run_block(f"{page}:{line}", code, namespace, expected):
                    troubles.append(trouble)
                    break
        finally:
            os.chdir(before)
    return {"seconds": round(sum(os.times()[:4]) - started, 1), "troubles": troubles}


def main() -> None:
    """Read pages, run them, print the report."""
    import torch

    torch.set_num_threads(1)
    pages = json.load(sys.stdin)
    print(json.dumps({page: run_page(page, blocks) for page, blocks in pages.items()}))


if __name__ == "__main__":
    main()
