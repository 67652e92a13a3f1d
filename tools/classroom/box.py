"""The box that answers run in: bubblewrap's, or Docker's where only that is there.

It has no network, no rights, no other processes, and nothing to read but Python, its packages,
`helpers`, `tools` and `data`: neither the lessons with their solutions nor other students'
notebooks. It can write to a small folder in memory, which goes with it.

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
import time
import uuid
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import NamedTuple

import psutil

from helpers.output.files import ROOT
from tools.classroom.assignment import ClassroomError, fails
from tools.classroom.record import MAX_BYTES

PACKAGES = str(Path(find_spec("torch").origin).parent.parent)
PYTHONPATH = os.pathsep.join([str(ROOT), PACKAGES])
OWN = ("helpers", "tools", "data")
SYSTEM = """/usr /bin /lib /lib32 /lib64 /etc/alternatives /etc/fonts /etc/ld.so.cache
    /etc/localtime /sys/devices/system/cpu""".split()
VARIABLES = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": os.defpath, "TMPDIR": "/tmp"}
VARIABLES |= {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
VARIABLES |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1", "PYTHONPATH": PYTHONPATH}
BWRAP = "bwrap --unshare-all --cap-drop ALL --clearenv --die-with-parent --new-session"
DOCKER = """docker run --rm --interactive --init --network none --read-only --cap-drop ALL
    --user 65534:65534 --security-opt no-new-privileges --workdir /tmp"""
IMAGE = "subspace-illusion-grading"
START_SECONDS, WATCH_SECONDS = 300, 0.2  # 300 to import torch on a slow disk
EXTRA_SECONDS = 3  # for every answer, beside its own time
INSTALL = """\
There is no box for the students' code here: {reason}
  Debian, Ubuntu, WSL:  apt-get install bubblewrap  (0.8 or newer)
  macOS, Windows:       install and start Docker
Or grade without a box, and only notebooks of people who may do anything on this machine: TRUST=1
(the option --trust)."""


class Limits(NamedTuple):
    """What is allowed: seconds for each answer, bytes of each file; the rest for the whole box."""

    seconds: float = 20
    memory_bytes: int = 4 * 2**30
    processes: int = 16
    file_bytes: int = 64 * 2**20


class Record(NamedTuple):
    """What came back for one answer: a record to be judged, or none and the reason."""

    blob: bytes = b""
    problem: str = ""


def _bubblewrap(limits: Limits) -> list[str]:
    """The command that runs Python in bubblewrap; `nice`, so that whoever watches comes first."""
    packages = [*site.getsitepackages(), site.getusersitepackages(), PACKAGES]
    places = [*SYSTEM, sys.base_prefix, sys.prefix, *packages, *(str(ROOT / own) for own in OWN)]
    size, room = limits.file_bytes, 4 * limits.memory_bytes
    return [
        *f"nice -n 10 prlimit --core=0 --nofile=256 --fsize={size} --as={room}".split(),
        *f"{BWRAP} --proc /proc --dev /dev".split(),
        *(part for place in places for part in ("--ro-bind-try", place, place)),
        *f"--size {size} --tmpfs /tmp --remount-ro /dev --remount-ro / --chdir /tmp".split(),
        *(part for variable in VARIABLES.items() for part in ("--setenv", *variable)),
        sys.executable,
    ]


def _docker(limits: Limits, name: str) -> list[str]:
    """The command that runs Python in Docker."""
    memory, variables = limits.memory_bytes, VARIABLES | {"PYTHONPATH": "/course"}
    return [
        *f"{DOCKER} --name {name} --pids-limit {limits.processes}".split(),
        *f"--memory={memory} --memory-swap={memory} --tmpfs /tmp:size={limits.file_bytes}".split(),
        *(f"--volume={ROOT / own}:/course/{own}:ro" for own in OWN),
        *(f"--env={variable}={value}" for variable, value in variables.items()),
        *(IMAGE, "python"),
    ]


def find_box(trust: bool = False) -> str:
    """The best box here: "bubblewrap", "docker", "none" for those who trust; or ClassroomError."""
    reason = "neither bubblewrap nor a running Docker was found."
    if shutil.which("bwrap") and not (reason := fails([*_bubblewrap(Limits()), "-c", ""])):
        return "bubblewrap"
    if shutil.which("docker") and not fails(["docker", "info"]):
        with tempfile.TemporaryDirectory() as folder:  # with the tested packages, made once
            for file in (ROOT / "requirements-tested.txt", Path(__file__).with_name("Dockerfile")):
                shutil.copy(file, folder)
            if not (reason := fails(["docker", "build", "--quiet", "--tag", IMAGE, folder])):
                return "docker"
    if trust and hasattr(os, "fork"):
        return "none"
    raise ClassroomError(INSTALL.format(reason=reason))


def _too_much(process: psutil.Popen, limits: Limits) -> str:
    """Which limit the processes below this one break, in words for the student.

    What a process shares with the one it was forked from counts twice. To know better takes locks
    that somebody who forks without end does not give back in time.
    """
    processes, memory = process.children(recursive=True), 0
    for child in processes:
        with contextlib.suppress(psutil.Error):  # it has ended
            found = child.memory_info()
            memory += found.rss - getattr(found, "shared", 0)
    if len(processes) > limits.processes:
        return f"your code started more than {limits.processes} processes"
    if memory > limits.memory_bytes:
        return f"your code took more than {limits.memory_bytes / 2**30:g} GB of memory"
    return ""


@contextlib.contextmanager
def _started(box: str, job: dict, limits: Limits) -> Iterator[psutil.Popen]:
    """A box at work on a job, ended with all that is in it when the block ends."""
    name = f"grading-{uuid.uuid4().hex}"
    commands = {"bubblewrap": _bubblewrap(limits), "docker": _docker(limits, name)}
    command = [*commands.get(box, [sys.executable]), "-m", "tools.classroom.record"]
    environment = VARIABLES if box == "none" else None
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with psutil.Popen(command, env=environment, **pipes) as process:
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(job).encode())  # read before any answer runs
            yield process
        finally:
            if box == "docker":
                fails(["docker", "kill", name])
            below = process.children(recursive=True)
            for child in (process, *below):
                with contextlib.suppress(psutil.Error):
                    child.kill()
    psutil.wait_procs(below, timeout=10)


def _listen(box: str, exercises: list, limits: Limits, stop: Event) -> tuple[bytes, str]:
    """All that a box sends while it works on some exercises, and why it sends no more."""
    data, deadline = bytearray(), time.monotonic() + START_SECONDS
    with _started(box, {"exercises": exercises, "seconds": limits.seconds}, limits) as process:
        while not stop.is_set():
            if select.select([process.stdout], [], [], WATCH_SECONDS)[0]:
                part = os.read(process.stdout.fileno(), 2**20)
                if not part:
                    return bytes(data), "your code ended the box that it ran in"
                if not data:  # it is ready
                    deadline = time.monotonic() + len(exercises) * (limits.seconds + EXTRA_SECONDS)
                data += part
            problem = "" if box == "docker" else _too_much(process, limits)
            if time.monotonic() > deadline:
                problem = "no answer in time: your code has stopped its box"
            if problem or len(data) > 2 * MAX_BYTES * len(exercises):
                return bytes(data), problem or "your code sends more than a box may"
    return b"", "grading was interrupted"


def _parsed(data: bytes) -> dict[str, Record]:
    """The records among what a box has sent; of what is no record nothing is kept."""
    records = {}
    for line in data.split(b"\n")[1:-1]:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            said = {"record": "", "problem": ""} | json.loads(line)
            blob = base64.b64decode(said["record"], validate=True)
            records[str(said["exercise"])] = Record(blob, str(said["problem"]))
    return records


def run_answers(box: str, jobs: Sequence[dict], limits: Limits, stop: Event) -> dict[str, Record]:
    """Run the answers of one notebook, each in a process of its own, in as few boxes as possible.

    Each has the name of its exercise as `exercise`, the `name` that its `checks` call, the source
    of the `answer` and of the cells `before`. Set `stop` to have them end. A box that does not
    start raises a ClassroomError.
    """
    records, left = {}, list(jobs)
    while left and not stop.is_set():
        data, problem = _listen(box, left, limits, stop)
        if not data.startswith(b"ready") and not stop.is_set():
            raise ClassroomError(f"The box ({box}) does not start: is there enough memory?")
        records |= _parsed(data)
        left = [e for e in left if e["exercise"] not in records]
        if left:  # the first of them was running when the box ended
            records[left.pop(0)["exercise"]] = Record(problem=problem)
    return records
