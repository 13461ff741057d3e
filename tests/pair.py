"""Processes that train together, for the tests: forked from one that has imported the library already.

`torchrun` imports PyTorch once itself and the library once in each process, which takes longer than what the tests do
there. The processes here find the same environment and come together in the same way. That the page's own command
starts them as well is a test by itself (`test_accelerate_launch_trains_as_one_process_and_saves_once`). Tests that call
`together` carry `IN_PAIRS`, which keeps them on one core: the process that they are forked from starts once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from course_utils.workshop.experiments import parallel

_CONTEXT = get_context("forkserver")  # it forks before it has threads, and has never met a GPU
# By its module, not by a string: a name that does not exist would be ignored, and each process would import again.
_CONTEXT.set_forkserver_preload([parallel.__name__])
IN_PAIRS = pytest.mark.xdist_group("tests in pairs of processes")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def together(work: Callable[..., object], *arguments: object, folder: Path, processes: int = 2) -> str:
    """Call a function in several processes of one group, and return what they wrote to standard error.

    Args:
        work: a function of a module; each process calls it with the arguments.
        arguments: what can be pickled.
        folder: for the file of what they write.
        processes: how many.

    Raises:
        RuntimeError: a process failed; the message holds the end of what they wrote.
    """
    said = folder / "stderr.txt"
    _start_server()
    port = _free_port()
    group = [
        _CONTEXT.Process(target=_join, args=(work, arguments, rank, processes, port, str(said)), daemon=True)
        for rank in range(processes)
    ]
    for process in group:
        process.start()
    until = time.monotonic() + PATIENCE
    for process in group:
        process.join(timeout=max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in group]
    for process in group:
        process.kill()
    text = said.read_text(encoding="utf-8")
    if any(code != 0 for code in codes):  # None: one did not end
        raise RuntimeError(f"the processes ended with {codes}:\n{text[-3000:]}")
    return text


def _start_server() -> None:
    """With progress bars, which `tqdm` decides on when it is imported."""
    kept = dict(os.environ)
    os.environ.update(_ENVIRONMENT)
    os.environ.pop("TQDM_DISABLE", None)
    try:
        ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _join(
    work: Callable[..., object], arguments: tuple[Any, ...], rank: int, processes: int, port: int, said: str
) -> None:
    """What `torchrun` sets, and then the work."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    work(*arguments)
