"""A conversation with one worker: from its start to the end of all its processes."""

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers.classroom import launch, wire
from helpers.classroom.guard import Limits, NoWorker
from helpers.classroom.worker import tensors_in
from helpers.classroom.workshop import remove
from helpers.output import without_places

ERROR_CHARS = 2000


class StudentError(Exception):
    """What the student's code did wrong, as it is raised inside a test."""


class Ended(StudentError):
    """The student's process is gone, stuck or talks nonsense: there are no more answers."""


def plain(text: str) -> str:
    """The text without characters that steer a terminal or cannot be written to a file."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def shortened(text: str) -> str:
    """An error's text, plain, without the machine's folders, and not too long."""
    text = without_places(plain(text[: 4 * ERROR_CHARS]))
    return text if len(text) <= ERROR_CHARS else text[:ERROR_CHARS] + " ..."


def _worded(error: dict[str, Any]) -> str:
    """A worker's account of an exception, as the student shall read it."""
    kind, message, line = str(error["type"]), str(error["message"]), error.get("line")
    place = f" (line {line} of your cell)" if isinstance(line, int) else ""
    text = f"{kind}: {message}" if message else kind
    if kind == "NotImplementedError":
        return f"not answered yet: {text}{place}"
    if kind == "SystemExit":
        return f"{text}: your code ends the program{place}"
    return text + place


class Session:
    """A worker in a folder of its own, for one `with` block.

    Attributes:
        ended: Why the worker answers no more, once that is so.

    Raises:
        RuntimeError: The worker does not start, or cannot be confined.
    """

    def __init__(self, limits: Limits):
        self.limits, self.printed, self.cut = limits, "", 0
        self.given = self.left = 0.0  # seconds
        self.ended: Ended | None = None

    def __enter__(self) -> "Session":
        self.worker = launch.start()
        self.folder = tempfile.mkdtemp(prefix="exercise-")
        self.status: int | None = None
        try:
            self.channel = wire.Channel(self.worker.end, time.monotonic() + launch.START_SECONDS)
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        remove(self.folder)

    def _begin(self) -> None:
        """Have the worker confine itself; no student's code has run before it answers."""
        try:
            self.channel.ask((self.folder, self.limits))
            problem = self.channel.answer().get("unguarded")
        except (wire.Closed, TimeoutError) as error:
            raise NoWorker(f"The worker does not start: {error}") from error
        if problem:
            raise NoWorker(f"The worker cannot be confined: {problem}")

    def _stop(self) -> int:
        """End the worker, once; its exit status."""
        if self.status is None:
            self.status = self.worker.stop()
        return self.status

    def give(self, seconds: float) -> None:
        """Let the worker have more time. Only waiting for it counts, not what the test does."""
        self.given += seconds
        self.left += seconds

    def ask(self, what: str, *arguments: Any) -> Any:
        """What the worker makes of a request (see `worker.Student`).

        Raises:
            StudentError: The student's code raised an exception.
            Ended: There is no answer, and there will be none.
        """
        if self.ended:
            raise self.ended
        start = time.monotonic()
        self.channel.deadline = start + self.left
        try:
            self.channel.ask((what, *arguments))
            answer = self.channel.answer()
            self.left -= time.monotonic() - start
            self._keep_printed(answer["printed"], answer["cut"])
            problem = _worded(answer["error"]) if "error" in answer else None
            done = None if problem else answer["done"]
        except Exception as error:
            self.ended = Ended(self._why(error))
            raise self.ended from error
        if problem:
            raise StudentError(problem.replace(self.folder, "."))
        return done

    def _why(self, error: Exception) -> str:
        """Why there is no answer, in words for the student."""
        if isinstance(error, TimeoutError):
            return f"no answer in {self.given:g} seconds: is there a loop that does not end?"
        if not isinstance(error, wire.Closed):
            return f"your code's answer cannot be read ({type(error).__name__})"
        status = self._stop()
        if status >= 0:
            return f"your code ended its own process (exit status {status})"
        with contextlib.suppress(ValueError):
            return f"your code's process was ended ({signal.Signals(-status).name})"
        return "your code's process was ended"

    def _keep_printed(self, text: str, cut: int) -> None:
        limit = self.limits.output_chars
        self.printed, self.cut = str(text)[:limit], int(cut)

    def printed_text(self) -> str:
        """What was printed up to the last answer, and how much was cut."""
        cut = f"\n... and {self.cut:,} characters more" if self.cut > 0 else ""
        return without_places(plain(self.printed.replace(self.folder, "."))) + cut

    def get(self, name: str) -> Any:
        """The student's variable of this name: a value, or a function that calls theirs.

        Raises:
            StudentError: There is none, or its value cannot be sent.
        """
        found = self.ask("get", name)
        kind = found.get("kind") if isinstance(found, dict) else None
        if kind == "missing":
            raise StudentError(f"NameError: name '{name}' is not defined: did you rename it?")
        return self._function(name) if kind == "function" else found.get("value")

    def _function(self, name: str) -> Callable:
        """A function here that calls the student's there."""

        def call(*positional: Any, **named: Any) -> Any:
            reply = self.ask("call", name, positional, named)
            try:
                _copy_back(list(tensors_in((positional, named))), reply["after"])
                return reply["value"]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self.ended = Ended(self._why(error))
                raise self.ended from error

        call.__name__ = name
        return call


def _copy_back(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Do to our arguments what the student's function did to its copies of them."""
    for mine, new in zip(ours, theirs, strict=True):
        if mine.shape != new.shape or mine.dtype != new.dtype:
            mine.data = new
        elif not torch.equal(mine, new):
            with torch.no_grad():
                mine.copy_(new)
