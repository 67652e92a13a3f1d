"""Inside the box: run every answer against its check, and note what it gave back.

    python -m tools.classroom.record      a job comes on the input, one record an answer goes out

Nothing that is found here decides a point: outside, the check runs again on the recorded values
(see `replay`). One process imports torch and forks another for every answer.
"""

import builtins
import contextlib
import io
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

CELL, LESSON = "<your cell>", "<the lesson>"
LENGTH = struct.Struct("!Q")  # before a record, on its way from the answer's process
MESSAGE_CHARS = 2000
LAST_MOMENT = 1.0  # seconds for a process that has closed its end to be gone
PLAIN = (type(None), bool, int, float, complex, str)


class Nowhere(io.TextIOBase):
    """Where an answer prints to: gigabytes take no time."""

    def write(self, text: str) -> int:
        return len(text)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts, in an order that never changes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def plain(value: Any, limit: int) -> Any:
    """A copy made of tensors, numbers, texts, lists, tuples and dicts; arrays become tensors.

    Raises:
        TypeError: Something else is in it.
        ValueError: A tensor is larger than `limit` bytes.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value.item()
    if isinstance(value, Tensor):
        if value.numel() * value.element_size() > limit:  # it may be expanded: before it is copied
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is too large to be checked")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise TypeError("an ordinary dense tensor on the CPU is expected")
        return value.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
    if isinstance(value, list | tuple):
        items = [plain(item, limit) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {plain(key, limit): plain(item, limit) for key, item in value.items()}
    for kind in PLAIN:
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    kind = type(value).__name__
    raise TypeError(f"a value of type {kind} cannot be checked: give a tensor or plain values")


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as its type, its message and the line of the student's cell that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == CELL), None)
    message = str(error)
    if isinstance(error, SyntaxError) and error.filename == CELL:
        line, message = error.lineno, error.msg
    return {"type": type(error).__name__, "message": message[:MESSAGE_CHARS], "line": line}


class Recorder:
    """What an answer did, call by call."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.calls: list[dict[str, Any]] = []

    def watched(self, answer: Callable) -> Callable:
        """The answer, with every call of it noted."""

        def call(*positional: Any, **named: Any) -> Any:
            tensors = list(tensors_in((positional, named)))
            before = [tensor.clone() for tensor in tensors]
            try:
                value = answer(*positional, **named)
                pairs = enumerate(zip(before, tensors, strict=True))
                changed = {n: plain(new, self.limit) for n, (old, new) in pairs if _differ(old, new)}
                self.calls.append({"value": plain(value, self.limit), "changed": changed})
            except BaseException as error:
                self.calls.append({"error": describe(error)})
                raise
            return value

        return call


def _differ(old: Tensor, new: Tensor) -> bool:
    return old.shape != new.shape or old.dtype != new.dtype or not torch.equal(old, new)


def record(exercise: dict[str, Any], limit: int) -> dict[str, Any]:
    """Run the cells before, the answer, and its checks; what the answer did in them."""
    module = ModuleType("__main__")  # as in a notebook
    sys.modules["__main__"] = module
    for source in exercise["before"]:
        with contextlib.suppress(Exception, SystemExit):  # a plot, perhaps: it does not matter
            exec(compile(source, LESSON, "exec"), module.__dict__)
    name, recorder = exercise["name"], Recorder(limit)
    try:
        exec(compile(exercise["answer"], CELL, "exec"), module.__dict__)
        answer = module.__dict__.get(name, builtins)
        if answer is builtins:
            return {"missing": name}
        if not callable(answer):
            return {"value": plain(answer, limit)}
    except BaseException as error:
        return {"error": describe(error)}
    with contextlib.suppress(BaseException):  # outside the check fails at the same place
        run_checks(exercise["checks"], name, recorder.watched(answer))
    return {"calls": recorder.calls}


def run_checks(calls: Sequence[str], name: str, answer: Any) -> None:
    """Run checks such as "checks.check_split(split, seed=1)" on what `name` shall stand for."""
    from helpers import checks

    for call in calls:
        eval(call, {"checks": checks, name: answer})


def _limit_process(limits: dict[str, int]) -> None:
    """What the system holds this process to; it has no right to more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits["seconds"] + 5,
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: 256,
    }
    if pages:  # elsewhere address space says little about memory
        wanted[resource.RLIMIT_AS] = pages * resource.getpagesize() + limits["memory_bytes"]
        wanted[resource.RLIMIT_NPROC] = 4096  # with all that this user runs, where nothing divides
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _child(exercise: dict[str, Any], limits: dict[str, int], writer: int) -> None:
    """The answer's process: no input, no output but its record."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    sys.stdout = sys.stderr = Nowhere()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is an error, not the end
    _limit_process(limits)
    torch.manual_seed(0)
    content = io.BytesIO()
    torch.save(record(exercise, limits["record_bytes"]), content)
    with open(writer, "wb") as pipe:
        pipe.write(LENGTH.pack(content.tell()) + content.getvalue())


def _read(reader: int, deadline: float, limit: int) -> bytes | None:
    """A record, complete or not; None if it is late."""
    data, whole = bytearray(), limit
    while len(data) < whole:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return None
        part = os.read(reader, 2**20)
        if not part:
            break
        data += part
        if len(data) >= LENGTH.size:
            whole = min(limit, LENGTH.size + LENGTH.unpack_from(data)[0])
    return bytes(data)


def _ended(child: int) -> str:
    """Why a process is gone that has sent nothing."""
    until = time.monotonic() + LAST_MOMENT
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
            return f"your code ended its own process ({how})"
        time.sleep(0.01)
    return "your code ended its own process"


def answer_in_child(exercise: dict[str, Any], limits: dict[str, int]) -> tuple[bytes, str]:
    """An answer's record, or none and the reason."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            _child(exercise, limits, writer)
        finally:
            os._exit(0)
    os.close(writer)
    whole = LENGTH.size + limits["record_bytes"]
    data, problem = _read(reader, time.monotonic() + limits["seconds"], whole + 1), ""
    if data is None:
        seconds = limits["seconds"]
        problem = f"no answer in {seconds:g} seconds: is there a loop that does not end?"
    elif len(data) > whole:
        problem = "your answer gives back too much to be checked"
    elif len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack_from(data)[0]:
        problem = _ended(child)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    os.close(reader)
    return (b"" if problem else data[LENGTH.size :]), problem


def main() -> None:
    """Do the job that comes on the input: its exercises, one after the other."""
    job = json.load(sys.stdin)
    torch.set_num_threads(1)
    from helpers import checks  # noqa: F401  before there is a clock, and once for all answers

    output = sys.stdout.buffer
    output.write(b"ready\n")
    output.flush()
    for exercise in job["exercises"]:
        blob, problem = answer_in_child(exercise, job["limits"])
        head = {"exercise": exercise["exercise"], "problem": problem, "size": len(blob)}
        output.write(json.dumps(head).encode() + b"\n" + blob)
        output.flush()


if __name__ == "__main__":
    main()
