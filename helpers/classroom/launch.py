"""Start and end the processes that run students' code.

On Linux one process imports everything once and forks a worker for every judgement, in a few
milliseconds, and becomes the parent of whatever a worker leaves behind. Elsewhere forking a process
that has imported torch is not safe: every judgement starts Python anew, in some seconds.
"""

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from typing import Protocol

import psutil

from helpers.classroom import guard

START_SECONDS = 300  # to import torch and the lessons' packages on a slow disk
END_SECONDS = 60  # to end the processes of a worker
PRELOADED = ("helpers.checks", "helpers.notebook")  # what lessons import first
COMMAND = [sys.executable, "-m", "helpers.classroom.worker"]


class Worker(Protocol):
    """A running worker: its end of the line, and how to be rid of it."""

    end: socket.socket

    def stop(self) -> int:
        """End the worker and all it started; its exit status, negative for a signal."""


def _start(option: str, number: int, **settings: object) -> subprocess.Popen:
    """The worker's program with an environment of its own."""
    command = [*COMMAND, option, str(number), *PRELOADED]
    return subprocess.Popen(command, cwd=guard.ROOT, env=guard.environment(), **settings)


class Forked:
    """A worker forked by the process that `Nursery` keeps."""

    def __init__(self, parent: "Nursery"):
        self.parent = parent
        self.end, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(parent.control, [b"fork"], [theirs.fileno()])

    def stop(self) -> int:
        """End the worker and every process that came from it, also those that left its group."""
        self.end.close()
        try:
            self.parent.control.send(b"end")
            return int(self.parent.control.recv(64))
        except BaseException as error:  # it is gone, or we are interrupted and lose the thread
            self.parent.close()  # and with it all its processes
            if isinstance(error, OSError | ValueError):
                return -signal.SIGKILL
            raise


class Nursery:
    """The process that forks workers; started when first needed, and again if it should die."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def fork(self) -> Forked:
        """A new worker.

        Raises:
            RuntimeError: The process does not start.
        """
        if self.process is None or self.process.poll() is not None:
            self._start()
        return Forked(self)

    def _start(self) -> None:
        self.control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.control.settimeout(START_SECONDS)
        with theirs:
            number = theirs.fileno()
            settings = {"pass_fds": [number], "stdin": subprocess.DEVNULL}
            self.process = _start("--fork", number, start_new_session=True, **settings)
        self._wait_until_ready()
        self.control.settimeout(END_SECONDS)

    def _wait_until_ready(self) -> None:
        try:
            ready = self.control.recv(64)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            ready = b""
        if not ready:
            self.close()
            command = " ".join([*COMMAND, *PRELOADED])
            raise guard.NoWorker(f"The process that runs exercises does not start: {command}")

    def close(self) -> None:
        """End the process and every worker; it leaves by itself when its line is cut."""
        if self.process is None:
            return
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        self.process.kill()  # nothing happens if it has ended
        self.process.wait()
        self.process = None


class Single:
    """A worker that is a program of its own, for systems where forking is not safe."""

    def __init__(self) -> None:
        self.end, theirs = socket.socketpair()
        with theirs:
            if sys.platform == "win32":
                self.process = _start("--once", 0, stdin=subprocess.PIPE)
                self.process.stdin.write(theirs.share(self.process.pid))
                self.process.stdin.close()
            else:
                number = theirs.fileno()
                settings = {"pass_fds": [number], "stdin": subprocess.DEVNULL}
                self.process = _start("--once", number, start_new_session=True, **settings)

    def stop(self) -> int:
        """End the worker, its children and its process group; what left both stays."""
        self.end.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


@functools.cache
def nursery() -> Nursery:
    """The one process of this program that forks workers; it ends with the program."""
    kept = Nursery()
    atexit.register(kept.close)
    return kept


def start() -> Worker:
    """A new worker, not yet confined: it waits for its folder and limits."""
    return nursery().fork() if sys.platform.startswith("linux") else Single()
