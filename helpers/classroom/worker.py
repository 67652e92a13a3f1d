"""The process that runs a student's code: `python -m helpers.classroom.worker`.

    ... --fork FD MODULE ...    (Linux) import these, then fork a worker for every socket sent
    ... --once FD MODULE ...    be one worker on this socket (Windows: described on the input)

A worker confines itself, then does what the judge asks and answers with plain values.
"""

import contextlib
import ctypes
import importlib
import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import psutil
import torch
from torch import Tensor

from helpers.classroom import guard, wire

CELL, LESSON = "<your cell>", "<the lesson>"
MESSAGE_CHARS = 2000
PR_SET_CHILD_SUBREAPER = 36
RECEIVED_BYTES = 64  # of a message to the process that forks: one word


class Printed(io.TextIOBase):
    """What was printed, up to a limit; what comes after it is counted and forgotten."""

    def __init__(self, limit: int):
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        self.text, self.cut = "", 0

    def write(self, text: str) -> int:
        kept = text[: self.limit - len(self.text)]
        self.text += kept
        self.cut += len(text) - len(kept)
        return len(text)

    def writable(self) -> bool:
        return True


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts, in an order both sides agree on."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def describe(error: BaseException) -> dict[str, Any]:
    """The error for the judge: its type, its message and the line of the cell it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)]
    names = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inside = [line for line, name in zip(lines, names, strict=True) if name == CELL]
    line, message = (inside or [None])[-1], str(error)
    if isinstance(error, SyntaxError) and error.filename == CELL:
        line, message = error.lineno, error.msg
    return {"type": type(error).__name__, "message": message[:MESSAGE_CHARS], "line": line}


class Student:
    """A student's variables, and what the judge may ask of them."""

    def __init__(self, printed: Printed):
        self.printed = printed
        module = ModuleType("__main__")  # as in a notebook
        sys.modules["__main__"] = module
        self.variables = module.__dict__

    def lesson(self, sources: Sequence[str]) -> None:
        """Run the cells before the exercise; what fails there, or prints, does not matter."""
        for source in sources:
            with contextlib.suppress(Exception, SystemExit):
                exec(compile(source, LESSON, "exec"), self.variables)
        self.printed.clear()

    def cell(self, source: str) -> None:
        """Run the exercise."""
        exec(compile(source, CELL, "exec"), self.variables)

    def get(self, name: str) -> dict[str, Any]:
        """One variable: a value, or that there is none, or that it is a function."""
        if name not in self.variables:
            return {"kind": "missing"}
        found = self.variables[name]
        return {"kind": "function"} if callable(found) else {"kind": "value", "value": found}

    def call(self, name: str, positional: tuple, named: dict[str, Any]) -> dict[str, Any]:
        """What a function returns, and its tensors as they are after the call."""
        tensors = list(tensors_in((positional, named)))
        return {"value": self.variables[name](*positional, **named), "after": tensors}


def serve(channel: wire.Channel) -> None:
    """Confine this process, then answer the judge until it hangs up."""
    folder, limits = channel.request()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        guard.confine(folder, limits, keep=channel.end.fileno())
    except (OSError, RuntimeError) as error:
        return channel.reply({"unguarded": str(error)})
    printed = sys.stdout = sys.stderr = Printed(limits.output_chars)
    student = Student(printed)
    channel.reply({})
    with contextlib.suppress(wire.Closed):
        while True:
            _answer(channel, student)


def _answer(channel: wire.Channel, student: Student) -> None:
    """Do one thing the judge asks for; whatever goes wrong is an answer, too."""
    what, *arguments = channel.request()
    printed = student.printed
    try:
        done = getattr(student, what)(*arguments)
        channel.reply({"done": done, "printed": printed.text, "cut": printed.cut})
    except wire.Closed:
        raise
    except BaseException as error:  # also SystemExit: a student's, not ours
        channel.reply({"error": describe(error), "printed": printed.text, "cut": printed.cut})


def adopt_orphans() -> None:
    """Become the parent of every process below us that loses its own."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def end_children(worker: int) -> int:
    """Kill and bury every process below us; the exit status of the worker."""
    status = 0
    while True:
        for child in psutil.Process().children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        try:
            child, ended = os.wait()
        except ChildProcessError:
            return os.waitstatus_to_exitcode(status)
        status = ended if child == worker else status


def fork_worker(control: socket.socket, end: socket.socket) -> int:
    """The id of a new process that serves this socket and never returns from here."""
    worker = os.fork()
    if worker:
        end.close()
        return worker
    try:
        control.close()
        serve(wire.Channel(end))
    finally:
        os._exit(0)


def fork_on_request(control: socket.socket) -> None:
    """Fork a worker for each socket that comes, end it at the next word, until the judge is gone.

    One worker at a time, so that every process below us is its.
    """
    adopt_orphans()
    control.send(b"ready")
    worker = 0
    while True:
        word, files, _, _ = socket.recv_fds(control, RECEIVED_BYTES, 1)
        if files:
            worker = fork_worker(control, socket.socket(fileno=files[0]))
            continue
        status = end_children(worker)
        if not word:  # the judge has ended, and nobody waits for torch to tidy up
            os._exit(0)
        control.send(str(status).encode())


def main() -> None:
    """Import the modules named on the command line, then do what its first word says."""
    mode, number, *modules = sys.argv[1:]
    for module in modules:  # before there are limits and a clock
        importlib.import_module(module)
    if mode == "--fork":
        return fork_on_request(socket.socket(fileno=int(number)))
    if sys.platform == "win32":
        end = socket.fromshare(sys.stdin.buffer.read())
    else:
        end = socket.socket(fileno=int(number))
    serve(wire.Channel(end))


if __name__ == "__main__":
    main()
