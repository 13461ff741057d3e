"""A process that imported PyTorch once and forks for every exercise: `python -m course_utils.workshop.grading.server`.

Importing takes seconds, a fork milliseconds. For each job it forks a judge, and the judge forks the student's process.
Only the judge reads the job, so this process never holds a student's code, and one submission cannot find another's in
its memory. When a job is done, both are gone with all that they held.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

# What a lab imports, and what a check imports when it is called, is here before the first fork.
import scipy.optimize  # noqa: F401
import scipy.special  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
import transformers.modeling_utils  # noqa: F401

import course_utils.methods  # noqa: F401
import course_utils.training  # noqa: F401
from course_utils.exercises import exercises
from course_utils.workshop.authoring import notebooks
from course_utils.workshop.grading import in_process, judge, sandbox, screen, student
from course_utils.workshop.grading.channel import Channel, Closed
from course_utils.workshop.grading.place import place

#: Seconds that a judge has beyond the student's limit.
_GRACE = 20.0
_READY = "ready"


def main() -> int:
    """Serve jobs from standard input until it is closed; answers go to standard output."""
    jobs, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a check prints is no answer
    torch.set_num_threads(1)
    exercises()  # those of all chapters
    in_process.remember()
    gc.collect()
    gc.freeze()  # so that collecting does not copy the shared memory
    channel = Channel(jobs, answers)
    channel.send({"protections": _try_protections()})
    while os.read(jobs, 1):
        channel.send(_in_a_fork(channel))
    return 0


def _in_a_fork(jobs: Channel) -> dict[str, Any]:
    """Fork a judge, which reads the job, and return its verdict."""
    reading, writing = os.pipe()
    home = Path(tempfile.mkdtemp(prefix="grade-"))
    child = os.fork()
    if child == 0:
        os.close(reading)
        _leave_after(lambda: Channel(-1, writing).send(_work(jobs.receive(), home)))
    os.close(writing)
    verdicts = Channel(reading, -1)
    verdict = {}
    with contextlib.suppress(Closed, ValueError):
        verdict = dict(verdicts.receive())
    os.close(reading)
    _, ended = os.waitpid(child, 0)
    shutil.rmtree(home, ignore_errors=True)
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGALRM:
        return {"status": "wrong", "message": "What your code returned kept the grader busy for too long."}
    return verdict or {"status": "not graded", "message": "The grader's own process ended; see its error above."}


def _leave_after(work: Any) -> None:
    """Do the work of a forked process, and end it here and now, whatever happens."""
    code = 1
    try:
        work()
        code = 0
    except Closed:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end(child: int) -> None:
    for kill in (os.killpg, os.kill):  # its group too: where nothing forbids it, it may have started others
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _work(job: dict[str, Any], home: Path) -> dict[str, Any]:
    """Judge one exercise of one submission."""
    limits = sandbox.Limits(**job["limits"])
    signal.alarm(int(limits.seconds + 2 * _GRACE))  # ends the judge, should a value be made to keep it busy
    placed = place(job["lab"], [(str(cell_id), str(code)) for cell_id, code in job["cells"]], job["exercise"])
    facts = {"note": placed.note}
    if placed.untouched:
        return {"status": "not attempted", "message": "not attempted yet", **facts}
    if placed.error:
        return {"status": "wrong", "message": f"Your answer cannot run: {placed.error}.", **facts}
    code = [piece.code for piece in placed.pieces]
    if job["beside"]:
        reaches = [says for piece in placed.pieces if piece.own for says in screen.suspicious(piece.code)]
        if reaches:
            message = f"A person has to look at this answer: it uses {', '.join(reaches[:4])}."
            return {"status": "to review", "message": message, **facts}
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        _leave_after(lambda: _be_the_student(there, home, limits, job["protected"], code, placed.answer))
    there.close()
    channel = Channel(here.fileno(), here.fileno(), most=32 << 20)
    try:
        # Before the student's code runs: where the sandbox fails, the grader is at fault and not the student.
        channel.deadline = time.monotonic() + _GRACE
        if channel.receive() != _READY:
            raise sandbox.NoSandbox("the student's process did not get ready")
        channel.deadline = time.monotonic() + limits.seconds
        verdict = judge.decide(job["exercise"], channel, job)
    finally:
        _end(child)
    return {**verdict, **facts}


def _be_the_student(
    there: socket.socket, home: Path, limits: sandbox.Limits, protected: bool, code: list[str], answer: str
) -> None:
    """Confine this process, keep one connection to the judge, and run the code."""
    signal.alarm(0)
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with its judge
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    connection = os.dup2(there.fileno(), 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)
    there.detach()
    tempfile.tempdir = None
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
    sandbox.enter(home, limits, protected)
    channel = Channel(connection, connection)
    channel.send(_READY)
    student.serve(channel, code, answer)


def _try_protections() -> dict[str, bool] | str:
    """Try each protection in a fork; what is missing as a sentence where the system offers none."""
    here, there = socket.socketpair()
    home = Path(tempfile.mkdtemp(prefix="grade-"))
    child = os.fork()
    if child == 0:

        def attempt() -> None:
            channel = Channel(there.fileno(), there.fileno())
            try:
                sandbox.enter(home, sandbox.Limits())
                channel.send(sandbox.try_out(notebooks.ROOT / "solutions"))
            except sandbox.NoSandbox as missing:
                channel.send(str(missing))

        _leave_after(attempt)
    there.close()
    try:
        found: dict[str, bool] | str = Channel(here.fileno(), here.fileno()).receive()
        return found
    except Closed:
        return "the process that tried the protections ended"
    finally:
        here.close()
        _end(child)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
