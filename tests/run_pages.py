"""Run the Python blocks of pages, each page's in order in one namespace: `python tests/run_pages.py`.

A process of its own, as a reader would have it, and one for many pages, because torch is slow to import. A line of the
input is a page, [name, list of [line, code, expected error or null]], and is answered by a line of the output before
the next one is read: {"seconds" of the processor, "troubles"}.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
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
    """Read a page, run it, answer; what the blocks and their programs read and print is none of it."""
    import torch

    torch.set_num_threads(1)
    pages, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in pages:
        page, blocks = json.loads(line)
        print(json.dumps(run_page(page, blocks)), file=answers, flush=True)


if __name__ == "__main__":
    main()
