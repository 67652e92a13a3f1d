"""What a worker gives up before it runs a student's code.

On Linux with Landlock (6.2 or newer, x86_64 or aarch64) the kernel itself refuses, for good and
also to root: to write outside the worker's folder, to read outside Python, this package and its
data, to start a process or a program, to open a socket, to touch another process, and to change
owners or modes. Capabilities are dropped, so that root is nobody special.

With an older Landlock the same is tried, but files can be emptied through a gap. Elsewhere only
limits (where there are any) and a hook in Python remain. They stop accidents and
simple tricks, not a determined attacker, and reading is not restricted: there, grade only code of
people you trust not to attack you.

Nowhere covered: the number of files below the worker's folder (each is limited in size, and all are
removed with it, which takes a while if they are many), what can be learned of other files by asking
only for their size and dates, and a student who reads the text of the checks.
"""

import contextlib
import ctypes
import math
import os
import signal
import site
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from helpers.classroom import hook, landlock, seccomp

ROOT = Path(__file__).resolve().parent.parent.parent
# The only variables that the worker's process is started with.
KEPT = (
    "HOME LANG LC_ALL LC_CTYPE LD_LIBRARY_PATH PATH PYTHONPATH SYSTEMROOT TEMP TMP TZ USERPROFILE"
).split()
DEVICES = ("/dev/null", "/dev/zero")
SYSTEM = (
    "/usr /lib /lib32 /lib64 /dev/urandom /dev/random /etc/ld.so.cache /etc/localtime /etc/fonts "
    "/proc/cpuinfo /proc/meminfo /proc/self /sys/devices/system/cpu"
).split()
OPEN_FILES = 256
PROCESSES = 4096  # of the user, threads too: stops a fork bomb, disturbs nobody; not for root
CAPABILITY_VERSION = 0x20080522
WITHOUT_GAPS = 3  # the first version of Landlock that guards files against being emptied
PR_SET_PDEATHSIG = 1


class NoWorker(RuntimeError):
    """No student's code can be run on this machine; the message says why."""


@dataclass(frozen=True)
class Limits:
    """How much of everything one judgement may take.

    Attributes:
        seconds: For all of it, from the first cell to the last check.
        memory_bytes: What the worker may take beyond what Python and torch take anyway.
        file_bytes: Of one file.
        output_chars: Of what is printed; the rest is cut.
    """

    seconds: float = 20
    memory_bytes: int = 4 * 2**30
    file_bytes: int = 2**20
    output_chars: int = 10_000


def strength() -> str:
    """Who stands guard here: "kernel", or only "python" (see the top of this file)."""
    return "kernel" if landlock.version() >= WITHOUT_GAPS and seccomp.available() else "python"


def environment() -> dict[str, str]:
    """The variables for a worker: few, no secrets, one thread."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    # Arrow's usual allocator starts a thread, which could not be confined.
    quiet = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MPLBACKEND": "agg", "TQDM_DISABLE": "1"}
    return kept | threads | quiet | {"PYTHONUTF8": "1"}


def readable() -> list[str]:
    """What a worker may read besides its folder: Python, its packages, the helpers, their data."""
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    own = [str(ROOT / "helpers"), str(ROOT / "data")]
    return [*SYSTEM, sys.prefix, sys.base_prefix, *packages, *own]


def confine(folder: str, limits: Limits, keep: int) -> None:
    """Give everything up that a student's code does not need. There is no way back.

    Args:
        folder: The worker's own folder; it becomes its working, home and temporary folder.
        limits: What it may take.
        keep: The file descriptor that stays open: the line to the judge.

    Raises:
        OSError, NoWorker: Something cannot be given up; then no student's code may run.
    """
    _move_to(folder)
    _close_files(keep)
    if sys.platform.startswith("linux"):
        _be_expendable()
    with contextlib.suppress(ImportError):  # no such module on Windows
        _limit(limits)
    if landlock.version() and seccomp.available():
        _require_one_thread()
        landlock.restrict([folder], readable(), DEVICES)
        _drop_capabilities()
        seccomp.restrict()
    hook.install(folder, doors=strength() == "kernel")


def _move_to(folder: str) -> None:
    """Work, and keep temporary files, in this folder; forget the judge's variables."""
    os.chdir(folder)
    os.environ.clear()
    homes = ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    os.environ.update(_STARTED_WITH | {name: folder for name in homes})
    tempfile.tempdir = folder  # it may remember another one


_STARTED_WITH = environment()


def _close_files(keep: int) -> None:
    """No open file but the line to the judge; input is empty, and output goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    os.closerange(3, keep)
    os.closerange(keep + 1, max(keep, nowhere, OPEN_FILES) + 4096)


def _be_expendable() -> None:
    """End with the process that started us; be the first to go when memory runs out."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)):
        raise OSError(ctypes.get_errno(), "the worker cannot be tied to its parent")
    with contextlib.suppress(OSError):  # some containers show it, but do not let it be written
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit(limits: Limits) -> None:
    """Set the limits that the system enforces for a process."""
    import resource  # not on Windows

    def limit(name: str, value: int) -> None:
        if hasattr(resource, name):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is an error, not the end
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_CPU", math.ceil(time.process_time() + limits.seconds) + 2)
    limit("RLIMIT_FSIZE", limits.file_bytes)
    limit("RLIMIT_NOFILE", OPEN_FILES)
    limit("RLIMIT_NPROC", PROCESSES)
    if sys.platform.startswith("linux"):  # elsewhere address space says little about memory
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit("RLIMIT_AS", pages * resource.getpagesize() + limits.memory_bytes)


def _require_one_thread() -> None:
    """The kernel's rules hold for the thread that asks for them, and for those it starts."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise NoWorker(f"a worker with {threads} threads cannot be confined")


def _drop_capabilities() -> None:
    """Make root an ordinary user that happens to have the number 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(ctypes.byref(header), ctypes.byref(none)):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
