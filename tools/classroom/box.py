"""The box that answers run in: bubblewrap's, or Docker's where only that is there.

Both give a box no network, no rights, no other processes, and nothing to read but Python, its
packages, `helpers`, `tools` and `data`; it can write to a small folder in memory, which goes with
it. So it sees neither the lessons with their solutions nor other students' notebooks.

Time, memory and processes of the whole box are watched from outside, and one that takes too much
is ended. Then the answer that was running has lost, and a new box runs those after it.
"""

import contextlib
import json
import os
import select
import shutil
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from tools.classroom.exercises import ClassroomError

ROOT = Path(__file__).resolve().parent.parent.parent
OWN = ("helpers", "tools", "data")
SYSTEM = (
    "/usr /bin /lib /lib32 /lib64 /etc/ld.so.cache /etc/localtime /etc/fonts "
    "/etc/alternatives /sys/devices/system/cpu"
).split()
VARIABLES = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "PATH": os.defpath,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "TMPDIR": "/tmp",
    "TQDM_DISABLE": "1",
}
RECORD = ["-m", "tools.classroom.record"]
POLITE = ["nice", "-n", "10"]  # who watches comes first
IMAGE = "subspace-illusion-grading"
START_SECONDS = 300  # to import torch on a slow disk
EXTRA_SECONDS = 3  # for every answer, beside its own time
WATCH_SECONDS = 0.2
HEAD_BYTES = 2000  # before a record
INSTALL = """\
There is no box for the students' code here: {reason}
  Debian, Ubuntu, WSL:  apt-get install bubblewrap  (0.8 or newer)
  macOS, Windows:       install and start Docker
Or grade without a box, and only notebooks of people who may do anything on this machine: TRUST=1
(the option --trust)."""


@dataclass(frozen=True)
class Limits:
    """What a box may take: seconds and bytes of a record for each answer, the rest for all of it.

    Bytes of files are for one file and for all together.
    """

    seconds: float = 20
    memory_bytes: int = 4 * 2**30
    processes: int = 16
    file_bytes: int = 64 * 2**20
    record_bytes: int = 16 * 2**20


@dataclass(frozen=True)
class Record:
    """What came back for one answer: a record to be judged, or none and the reason."""

    blob: bytes
    problem: str


def _bubblewrap(limits: Limits) -> list[str]:
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    packages.append(str(Path(find_spec("torch").origin).parent.parent))
    command = [*POLITE, "bwrap", "--unshare-all", "--cap-drop", "ALL", "--clearenv", "--die-with-parent"]
    command += ["--new-session", "--proc", "/proc", "--dev", "/dev"]
    for place in (*SYSTEM, sys.base_prefix, sys.prefix, *packages, *(ROOT / n for n in OWN)):
        command += ["--ro-bind-try", str(place), str(place)]
    command += ["--size", str(limits.file_bytes), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(ROOT / "data")]
    path = os.pathsep.join([str(ROOT), packages[-1]])
    for name, value in (VARIABLES | {"PYTHONPATH": path}).items():
        command += ["--setenv", name, value]
    return [*command, sys.executable]


def _docker(limits: Limits) -> list[str]:
    command = "docker run --rm --interactive --init --network none --read-only --cap-drop ALL".split()
    command += ["--security-opt", "no-new-privileges", "--user", "65534:65534"]
    command += ["--pids-limit", str(limits.processes), "--memory", str(limits.memory_bytes)]
    command += ["--memory-swap", str(limits.memory_bytes)]
    command += ["--tmpfs", f"/tmp:size={limits.file_bytes}", "--workdir", "/course/data"]
    for name in OWN:
        command += ["--volume", f"{ROOT / name}:/course/{name}:ro"]
    for name, value in (VARIABLES | {"PYTHONPATH": "/course"}).items():
        command += ["--env", f"{name}={value}"]
    return [*command, IMAGE, "python"]


def _build_image() -> None:
    """The image with the tested packages; Docker keeps it for the next time."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (ROOT / "requirements-tested.txt", Path(__file__).with_name("Dockerfile")):
            shutil.copy(file, folder)
        _run(["docker", "build", "--quiet", "--tag", IMAGE, folder])


def _run(command: Sequence[str]) -> str:
    """Run a short program; why it failed, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        return f"{command[0]} cannot be run ({error.strerror})"
    return "" if done.returncode == 0 else done.stderr.strip()[-300:] or f"{command[0]} failed"


def _without(limits: Limits) -> list[str]:
    return [sys.executable]


BOXES = {"bubblewrap": _bubblewrap, "docker": _docker, "none": _without}


def find_box(trust: bool = False, limits: Limits = Limits()) -> str:  # noqa: B008  frozen
    """The best box that works here: "bubblewrap", "docker", or "none" for those who trust.

    Raises:
        ClassroomError: There is none, and no trust.
    """
    if shutil.which("bwrap"):
        reason = _run([*_bubblewrap(limits), "-c", ""])
        if not reason:
            return "bubblewrap"
        reason = f"bubblewrap does not work ({reason})."
    else:
        reason = "neither bubblewrap nor a running Docker was found."
    if shutil.which("docker") and not _run(["docker", "info"]):
        _build_image()
        return "docker"
    if trust and hasattr(os, "fork"):
        return "none"
    raise ClassroomError(INSTALL.format(reason=reason))


class Stopped(Exception):
    """Grading ends early."""


class _Running:
    """One box at work: what it has sent so far, and why it was ended if it was."""

    def __init__(self, box: str, exercises: Sequence[dict], limits: Limits) -> None:
        self.box, self.limits = box, limits
        self.room = len(exercises) * (limits.record_bytes + HEAD_BYTES)
        self.data, self.problem = bytearray(), "your code ended the box that it ran in"
        self.deadline = time.monotonic() + START_SECONDS
        self.seconds = len(exercises) * (limits.seconds + EXTRA_SECONDS)
        self.job = tempfile.TemporaryFile()
        self.job.write(json.dumps({"exercises": exercises, "limits": asdict(limits)}).encode())
        self.job.seek(0)

    def run(self, stop: threading.Event) -> bytes:
        """Whatever it sends until it ends or is ended."""
        own = {} if self.box != "none" else {"env": VARIABLES | {"PYTHONPATH": str(ROOT)}}
        command = [*BOXES[self.box](self.limits), *RECORD]
        with self.job, subprocess.Popen(
            command, stdin=self.job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **own
        ) as process:
            try:
                while self._listen(process) and not self._takes_too_much(process.pid):
                    if stop.is_set():
                        raise Stopped
            finally:
                _end(process)
        return bytes(self.data)

    def _listen(self, process: subprocess.Popen) -> bool:
        """Take what has come in the meantime; whether more may come."""
        if not select.select([process.stdout], [], [], WATCH_SECONDS)[0]:
            return True
        part = os.read(process.stdout.fileno(), 2**20)
        if not self.data and part:  # it is ready
            self.deadline = time.monotonic() + self.seconds
        self.data += part
        return bool(part)

    def _takes_too_much(self, pid: int) -> bool:
        processes, memory = (0, 0) if self.box == "docker" else usage(pid)
        reasons = {
            "your code sends more than its box may": len(self.data) > self.room,
            "no answer in time: your code has stopped its box": time.monotonic() > self.deadline,
            f"your code started more than {self.limits.processes} processes": processes
            > self.limits.processes,
            f"your code took more than {self.limits.memory_bytes / 2**30:g} GB of memory": memory
            > self.limits.memory_bytes,
        }
        self.problem = next((why for why, true in reasons.items() if true), self.problem)
        return any(reasons.values())


def usage(pid: int) -> tuple[int, int]:
    """The number of processes below this one, and how many bytes of memory they have for themselves.

    What a process shares with the one it was forked from counts twice. To know better takes locks
    that somebody who forks without end does not give back in time.
    """
    memory = 0
    try:
        processes = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0, 0
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it has ended
            found = process.memory_info()
            memory += found.rss - getattr(found, "shared", 0)
    return len(processes), memory


def _end(process: subprocess.Popen) -> None:
    """End a box with all that is in it."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    process.kill()
    for child in below:  # the first of them is the box's own first process: all others go with it
        try:
            child.kill()
        except psutil.Error:
            continue
    process.stdout.close()
    process.wait()
    psutil.wait_procs(below, timeout=10)


def _parts(data: bytes, known: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """The records that a box sent, in order, up to the first that is not whole."""
    _, found, data = data.partition(b"ready\n")
    for name in known:
        head, found, data = data.partition(b"\n")
        try:
            said = json.loads(head) if found else {}
            size = int(said["size"])
            if said["exercise"] != name or not 0 <= size <= len(data):
                return
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        yield name, Record(data[:size], str(said.get("problem", ""))[:HEAD_BYTES])
        data = data[size:]


def run_answers(
    box: str, exercises: Sequence[dict[str, Any]], limits: Limits, stop: threading.Event
) -> dict[str, Record]:
    """Run the answers of one notebook, each in a process of its own, in as few boxes as possible.

    Args:
        box: What `find_box` found.
        exercises: For each its `exercise`, the `name` that its `checks` call, the source of its
            `answer` and of the cells `before`.
        limits: What they may take.
        stop: Set it to have them end.

    Raises:
        ClassroomError: The box does not start.
        Stopped: `stop` was set.
    """
    records, left = {}, [exercise["exercise"] for exercise in exercises]
    while left:
        running = _Running(box, [e for e in exercises if e["exercise"] in left], limits)
        data = running.run(stop)
        if not data.startswith(b"ready"):
            raise ClassroomError(f"The box ({box}) does not start: is there enough memory?")
        records |= dict(_parts(data, left))
        left = [name for name in left if name not in records]
        if left:  # the one that was running has ended its box
            records[left.pop(0)] = Record(b"", running.problem)
    return records
