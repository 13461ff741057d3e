"""The servers as seen from the command: give each a job at a time, and take what comes back in any order."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from course_utils.errors import CourseError
from course_utils.workshop.authoring.notebooks import ROOT
from course_utils.workshop.grading.channel import Channel, Closed

#: What a server gets of the environment. The rest may hold passwords, and a student's error message can quote it.
_KEPT = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "COURSE_CACHE"}
#: One thread, set before PyTorch is imported: a process with several threads cannot be forked safely.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "PYTHONHASHSEED": "0",  # sets have one order, so that the same input gives the same scores
}


class ServerError(CourseError, RuntimeError):
    """A server did not start; its own error stands above on the terminal."""


class Server:
    """One process of `course_utils.workshop.grading.server`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "course_utils.workshop.grading.server"]
        kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
        environment = {**kept, **_ENVIRONMENT}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin and self._process.stdout
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.protections: dict[str, bool] | str = self._channel.receive()["protections"]

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """Have one exercise judged."""
        os.write(self._channel.writing, b"j")
        self._channel.send(job)
        found: dict[str, Any] = self._channel.receive()
        return found

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._process.wait(timeout=60)


class Pool:
    """Several servers; use it in a `with` statement.

    Args:
        workers: how many.

    Raises:
        ServerError: one did not start.
    """

    def __init__(self, workers: int) -> None:
        with_all: list[Server] = []
        starting = [threading.Thread(target=lambda: with_all.append(Server())) for _ in range(workers)]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        if len(with_all) < workers:
            raise ServerError("a server of the grader did not start; its error stands above")
        self._servers = with_all
        self.protections = with_all[0].protections

    def map(self, jobs: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(job, verdict), as they are done."""
        waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        count = 0
        for job in jobs:
            waiting.put(job)
            count += 1
        done: queue.SimpleQueue[tuple[dict[str, Any], dict[str, Any]]] = queue.SimpleQueue()
        for server in self._servers:
            threading.Thread(target=_serve, args=(server, waiting, done.put), daemon=True).start()
        for _ in range(count):
            yield done.get()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()


def _serve(
    server: Server,
    waiting: queue.SimpleQueue[dict[str, Any]],
    tell: Callable[[tuple[dict[str, Any], dict[str, Any]]], None],
) -> None:
    while True:
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            tell((job, server.do(job)))
        except (Closed, BrokenPipeError, ValueError):
            tell((job, {"status": "not graded", "message": "The grader's server ended."}))
