"""The box that answers run in: bubblewrap's, or Docker's where only that is there.

Both give a box no network, no rights, no other processes, and nothing to read but Python, its
packages, `helpers`, `tools` and `data`; it can write to a small folder in memory, which goes with
it. So it sees neither the lessons with their solutions nor other students' notebooks.

Time, memory and processes of the whole box are watched from outside, and one that takes too much
is ended. Then the answer that was running has lost, and a new box runs those after it.
"""

import base64
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
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from tools.classroom.exercises import ClassroomError
from tools.classroom.record import MAX_BYTES

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = str(Path(find_spec("torch").origin).parent.parent)
PYTHONPATH = os.pathsep.join([str(ROOT), PACKAGES])
OWN = ("helpers", "tools", "data")
SYSTEM = (
    "/usr /bin /lib /lib32 /lib64 /etc/alternatives /etc/fonts /etc/ld.so.cache /etc/localtime "
    "/sys/devices/system/cpu"
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
BWRAP = "--unshare-all --cap-drop ALL --clearenv --die-with-parent --new-session".split()
DOCKER = "--rm --interactive --init --network none --read-only --cap-drop ALL".split()
IMAGE = "subspace-illusion-grading"
START_SECONDS = 300  # to import torch on a slow disk
EXTRA_SECONDS = 3  # for every answer, beside its own time
WATCH_SECONDS = 0.2
INSTALL = """\
There is no box for the students' code here: {reason}
  Debian, Ubuntu, WSL:  apt-get install bubblewrap  (0.8 or newer)
  macOS, Windows:       install and start Docker
Or grade without a box, and only notebooks of people who may do anything on this machine: TRUST=1
(the option --trust)."""
NO_BOX = "neither bubblewrap nor a running Docker was found."


@dataclass(frozen=True)
class Limits:
    """What is allowed: seconds for each answer, bytes of each file; the rest for the whole box."""

    seconds: float = 20
    memory_bytes: int = 4 * 2**30
    processes: int = 16
    file_bytes: int = 64 * 2**20


@dataclass(frozen=True)
class Record:
    """What came back for one answer: a record to be judged, or none and the reason."""

    blob: bytes = b""
    problem: str = ""


def _bubblewrap(limits: Limits) -> list[str]:
    """The command that runs Python in bubblewrap; `nice`, so that whoever watches comes first."""
    packages = [*site.getsitepackages(), site.getusersitepackages(), PACKAGES]
    command = ["nice", "-n", "10", "prlimit", "--core=0", "--nofile=256"]
    command += [f"--fsize={limits.file_bytes}", f"--as={4 * limits.memory_bytes}"]
    command += ["bwrap", *BWRAP, "--proc", "/proc", "--dev", "/dev"]
    for place in (*SYSTEM, sys.base_prefix, sys.prefix, *packages, *(ROOT / n for n in OWN)):
        command += ["--ro-bind-try", str(place), str(place)]
    command += ["--size", str(limits.file_bytes), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    for name, value in (VARIABLES | {"PYTHONPATH": PYTHONPATH}).items():
        command += ["--setenv", name, value]
    return [*command, sys.executable]


def _docker(limits: Limits, name: str) -> list[str]:
    """The command that runs Python in Docker."""
    command = ["docker", "run", *DOCKER, "--name", name, "--user", "65534:65534"]
    command += ["--security-opt", "no-new-privileges", "--pids-limit", str(limits.processes)]
    command += [f"--memory={limits.memory_bytes}", f"--memory-swap={limits.memory_bytes}"]
    command += ["--tmpfs", f"/tmp:size={limits.file_bytes}", "--workdir", "/tmp"]
    for own in OWN:
        command += ["--volume", f"{ROOT / own}:/course/{own}:ro"]
    for variable, value in (VARIABLES | {"PYTHONPATH": "/course"}).items():
        command += ["--env", f"{variable}={value}"]
    return [*command, IMAGE, "python"]


def _fails(command: Sequence[str]) -> str:
    """Why a short program fails, or nothing if it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return "" if done.returncode == 0 else done.stderr.strip()[-300:] or f"{command[0]} failed"


def _build_image() -> str:
    """Make the image with the tested packages, once; why it cannot be made, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (ROOT / "requirements-tested.txt", Path(__file__).with_name("Dockerfile")):
            shutil.copy(file, folder)
        return _fails(["docker", "build", "--quiet", "--tag", IMAGE, folder])


def find_box(trust: bool = False) -> str:
    """The best box that works here: "bubblewrap", "docker", or "none" for those who trust.

    Raises:
        ClassroomError: There is none, and no trust.
    """
    reason = NO_BOX
    if shutil.which("bwrap"):
        reason = _fails([*_bubblewrap(Limits()), "-c", ""])
        if not reason:
            return "bubblewrap"
    if shutil.which("docker") and not _fails(["docker", "info"]):
        reason = _build_image()
        if not reason:
            return "docker"
    if trust and hasattr(os, "fork"):
        return "none"
    raise ClassroomError(INSTALL.format(reason=reason))


def usage(pid: int) -> tuple[int, int]:
    """How many processes are below this one, and how many bytes of memory they have.

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


def _too_much(pid: int, limits: Limits) -> str:
    """Which limit the processes below this one break, in words for the student."""
    processes, memory = usage(pid)
    if processes > limits.processes:
        return f"your code started more than {limits.processes} processes"
    if memory > limits.memory_bytes:
        return f"your code took more than {limits.memory_bytes / 2**30:g} GB of memory"
    return ""


@contextlib.contextmanager
def _started(box: str, job: dict[str, Any], limits: Limits):
    """A box at work on a job, ended with all that is in it when the block ends."""
    name = f"grading-{uuid.uuid4().hex}"
    commands = {"bubblewrap": _bubblewrap(limits), "docker": _docker(limits, name)}
    command = [*commands.get(box, [sys.executable]), "-m", "tools.classroom.record"]
    environment = VARIABLES | {"PYTHONPATH": PYTHONPATH} if box == "none" else None
    with tempfile.TemporaryFile() as given:
        given.write(json.dumps(job).encode())
        given.seek(0)
        pipes = {"stdin": given, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment, **pipes)
    try:
        yield process
    finally:
        if box == "docker":
            _fails(["docker", "kill", name])
        below = psutil.Process(process.pid).children(recursive=True)
        for child in (process, *below):
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.stdout.close()
        process.wait()
        psutil.wait_procs(below, timeout=10)


def _listen(box: str, exercises: list, limits: Limits, stop: threading.Event) -> tuple[bytes, str]:
    """All that a box sends while it works on some exercises, and why it sends no more."""
    data, deadline = bytearray(), time.monotonic() + START_SECONDS
    most = 2 * MAX_BYTES * len(exercises)
    with _started(box, {"exercises": exercises, "seconds": limits.seconds}, limits) as process:
        while not stop.is_set():
            if select.select([process.stdout], [], [], WATCH_SECONDS)[0]:
                part = os.read(process.stdout.fileno(), 2**20)
                if not part:
                    return bytes(data), "your code ended the box that it ran in"
                if not data:  # it is ready
                    deadline = time.monotonic() + len(exercises) * (limits.seconds + EXTRA_SECONDS)
                data += part
            problem = "" if box == "docker" else _too_much(process.pid, limits)
            if time.monotonic() > deadline:
                problem = "no answer in time: your code has stopped its box"
            if problem or len(data) > most:
                return bytes(data), problem or "your code sends more than a box may"
    return b"", "grading was interrupted"


def _parsed(data: bytes) -> dict[str, Record]:
    """The records among what a box has sent; of what is no record nothing is kept."""
    records = {}
    for line in data.split(b"\n")[1:-1]:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            said = dict(json.loads(line))
            blob = base64.b64decode(said.get("record", ""), validate=True)
            records[str(said["exercise"])] = Record(blob, str(said.get("problem", "")))
    return records


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
    """
    records, left = {}, list(exercises)
    while left and not stop.is_set():
        data, problem = _listen(box, left, limits, stop)
        if not data.startswith(b"ready") and not stop.is_set():
            raise ClassroomError(f"The box ({box}) does not start: is there enough memory?")
        found = _parsed(data)
        ended = next((e for e in left if e["exercise"] not in found), None)
        if ended:  # it was running when the box ended
            found[ended["exercise"]] = Record(problem=problem)
        records |= found
        left = [e for e in left if e["exercise"] not in records]
    return records
