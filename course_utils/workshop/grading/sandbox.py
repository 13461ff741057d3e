"""What a process gives up before it runs a student's code: files, network, other processes, memory, time.

Linux offers all of it to every user, without root and without containers:

* **Landlock** (`landlock(7)`, Linux 5.13): only the named folders can be read, one can be written,
* **seccomp** (`seccomp(2)`): no new process, no socket, no signal, no change of another process or of a file's mode,
* **capabilities** are dropped, so that root is a user like any other,
* **limits** (`setrlimit(2)`): memory, processor seconds, file size, no core file.

None of it can be taken back by the process itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from course_utils.models.assets import CACHE_VARIABLE, cache_folder
from course_utils.workshop.grading.system_calls import DENIED, MACHINES, THREAD, clone_numbers

try:
    import resource
except ImportError:  # Windows: `require_limits` says so
    resource = None  # type: ignore[assignment]

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 0b1101  # execute, read a file, read a folder
_FILE_ONLY = 0b101 | 1 << 1 | 1 << 14
_EPERM, _ENOSYS = 1, 38


@dataclass(frozen=True)
class Limits:
    """What one exercise of one submission may use.

    Args:
        seconds: from its first line to the verdict; also the processor seconds.
        megabytes: of memory beyond what Python and PyTorch take by themselves.
        file_megabytes: of the largest file that it may write.
    """

    seconds: float = 30.0
    megabytes: int = 2000
    file_megabytes: int = 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be more than 0, got {value}")


class NoSandbox(RuntimeError):  # noqa: N818 (it says what is missing)
    """This system cannot confine a process; the message says what is missing."""


def require_limits() -> None:
    """Make sure that this system can limit a process at all.

    Raises:
        NoSandbox: it is Windows.
    """
    if resource is None:
        raise NoSandbox("Windows cannot limit what a process uses: grade in WSL 2, in a container, or on Linux")


def enter(home: Path, limits: Limits, protected: bool = True) -> None:
    """Confine this process for good: it keeps a temporary home, the limits, and reading what Python needs.

    Args:
        home: the one folder that it may write to.
        limits: of memory, time and files.
        protected: False sets the limits only, where the system offers no more.

    Raises:
        NoSandbox: the system lacks Landlock or seccomp.
    """
    readable = readable_paths()
    os.environ.update({"HOME": str(home), "TMPDIR": str(home), CACHE_VARIABLE: str(cache_folder())})
    os.chdir(home)
    set_limits(limits)
    if not protected:
        return
    if sys.platform != "linux":
        raise NoSandbox("only Linux can confine a process without help; use it, WSL 2 or a container")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise NoSandbox("prctl(PR_SET_NO_NEW_PRIVS) failed")
    _drop_capabilities(libc)
    _restrict_files(libc, readable, home)
    _restrict_calls(libc)


def set_limits(limits: Limits) -> None:
    """Memory, processor seconds, file size, no core file."""
    require_limits()
    seconds = int(limits.seconds) + 1
    wanted = {
        resource.RLIMIT_CPU: _used_seconds() + seconds,
        resource.RLIMIT_FSIZE: limits.file_megabytes << 20,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # elsewhere the address space is not counted
        wanted[resource.RLIMIT_AS] = _address_space() + (limits.megabytes << 20)
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _used_seconds() -> int:
    return int(sum(os.times()[:2]))


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    return pages * resource.getpagesize()


def readable_paths() -> list[Path]:
    """What a student's code may read: Python, its packages, the course's own code, model and data; nothing else.

    The solutions, the tests with their answers, the other submissions and the rest of the disk are not among them.
    """
    package = Path(__file__).parents[2]
    system = [Path(name) for name in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/zero")]
    python = [Path(sys.prefix), Path(sys.base_prefix), Path("/dev/urandom"), Path("/dev/random")]
    return [path for path in (*system, *python, package, cache_folder()) if path.exists()]


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    if libc.capset(header, bytes(24)):
        raise NoSandbox("capset failed")


def _restrict_files(libc: ctypes.CDLL, readable: list[Path], writable: Path) -> None:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise NoSandbox("Landlock is not there: it needs Linux 5.13, and `landlock` in /sys/kernel/security/lsm")
    handled = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    rules = libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", handled), 8, 0)
    for path, access in [(path, _READ) for path in readable] + [(writable, handled)]:
        if path.is_file() or path.is_char_device():
            access &= _FILE_ONLY & handled
        if path == Path("/dev/null"):
            access |= handled & _FILE_ONLY
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        failed = libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", access, opened), 0)
        os.close(opened)
        if failed:
            raise NoSandbox(f"Landlock refused a rule for {path}: {os.strerror(ctypes.get_errno())}")
    if libc.syscall(_LANDLOCK_RESTRICT, rules, 0):
        raise NoSandbox(f"Landlock refused the rules: {os.strerror(ctypes.get_errno())}")
    os.close(rules)


def _restrict_calls(libc: ctypes.CDLL) -> None:
    machine = platform.machine()
    if machine not in MACHINES:
        raise NoSandbox(f"the numbers of the system calls of {machine} are not known here, only of {list(MACHINES)}")
    program = _filter(machine)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    filled = Program(len(program) // 8, program)
    if libc.prctl(22, 2, ctypes.byref(filled), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise NoSandbox(f"seccomp refused the filter: {os.strerror(ctypes.get_errno())}")


def _filter(machine: str) -> bytes:
    """The program that the kernel runs at each system call (`seccomp(2)`), eight bytes an instruction."""
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    clone, clone3 = clone_numbers(machine)
    steps = [
        *(step(load, 4), step(equal, MACHINES[machine], 1, 0), step(give, kill)),  # another machine's numbers
        *(step(load, 0), step(at_least, 0x40000000, 0, 1), step(give, refuse | _EPERM)),  # x32's numbers
        # A thread is no process. `clone3` hides its flags in memory; glibc takes `clone` when it is missing.
        *(step(equal, clone3, 0, 1), step(give, refuse | _ENOSYS)),
        *(step(equal, clone, 0, 4), step(load, 16), step(bits, THREAD, 0, 1), step(give, allow)),
        step(give, refuse | _EPERM),
    ]
    for number in DENIED[machine]:
        steps += [step(equal, number, 0, 1), step(give, refuse | _EPERM)]
    return b"".join([*steps, step(give, allow)])


def try_out(forbidden: Path) -> dict[str, bool]:
    """Whether each protection holds, tried from inside; call it in a process that has entered the sandbox.

    Args:
        forbidden: a folder that must not be readable.
    """
    attempts: dict[str, Callable[[], object]] = {
        "the solutions cannot be read": lambda: list(forbidden.iterdir()),
        "nothing is written outside a temporary folder": _write_outside,
        "no network": _open_socket,
        "no new processes": _fork,
        "no signals to other processes": lambda: os.kill(os.getppid(), 0),
    }
    return {says: _refused(attempt) for says, attempt in attempts.items()}


def _refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _write_outside() -> None:
    path = Path(__file__).with_suffix(".tried")
    path.write_text("", encoding="utf-8")
    path.unlink()


def _open_socket() -> None:
    import socket

    socket.socket().close()


def _fork() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
