"""Outside the box: run the trusted check on the values that an answer gave back inside.

A record was written beside a student's code, so nothing in it is believed but its values, and those
are read as plain data.
"""

import contextlib
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.output import without_places
from tools.classroom.record import MESSAGE_CHARS, PLAIN, run_checks, tensors_in

PASSED = "Passed, also on other data."
OTHER_DATA = "On other data: "
TYPE_AND_SHAPE = "does your answer have the right type and shape?"
MAX_VALUES = 100_000  # in one record


class StudentError(Exception):
    """What the student's code did wrong, as it is raised inside a check."""


def readable(text: str) -> str:
    """A student's text without characters that steer a terminal, folders, or too many words."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[:10_000])
    text = without_places(text)
    return text if len(text) <= MESSAGE_CHARS else text[:MESSAGE_CHARS] + " ..."


def load(blob: bytes, limit: int) -> dict[str, Any]:
    """A record as plain values and ordinary tensors, of at most `limit` bytes together.

    Raises:
        StudentError: No honest record looks like this.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as parts:
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist())
        if packed or len(blob) > limit:
            raise ValueError("it would grow")
        found = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
        _require_plain(found, limit)
        return dict(found)
    except Exception as error:
        reason = f"what your code gave back cannot be read ({type(error).__name__})"
        raise StudentError(reason) from error


def _require_plain(value: Any, limit: int) -> None:
    """Raise a TypeError unless a value is plain data that takes no more room than it seems to."""
    left, count, size = [value], 0, 0
    while left:
        item = left.pop()
        count += 1
        if type(item) is Tensor and item.layout == torch.strided:
            size += item.numel() * item.element_size()  # it may be expanded
        elif type(item) is dict:
            left += [*item.keys(), *item.values()]
        elif type(item) in (list, tuple):
            left += item
        elif type(item) not in PLAIN:
            raise TypeError(f"a {type(item).__name__}")
        if count > MAX_VALUES or size > limit:
            raise TypeError("too much")


def worded(error: Any) -> str:
    """A recorded exception, as the student shall read it."""
    kind, message, line = (str(error.get(key)) for key in ("type", "message", "line"))
    place = f" (line {line} of your cell)" if line.isdecimal() else ""
    text = f"{kind}: {message}" if message else kind
    if kind == "NotImplementedError":
        return f"not answered yet: {text}{place}"
    if kind == "SystemExit":
        return f"{text}: your code ends the program{place}"
    return text + place


def _replay(calls: Sequence[dict]) -> Callable:
    """A function that gives back what was recorded, call by call."""
    left = iter(calls)

    def call(*positional: Any, **named: Any) -> Any:
        recorded = next(left, None)
        if recorded is None:
            raise StudentError("your code stopped the check before its end")
        if "error" in recorded:
            raise StudentError(worded(recorded["error"]))
        ours = list(tensors_in((positional, named)))
        for place, new in recorded["changed"].items():
            ours[place].data = new
        return recorded["value"]

    return call


def _answer(record: dict[str, Any]) -> Any:
    """What stands for the student's answer in a check."""
    if "error" in record:
        raise StudentError(worded(record["error"]))
    if "missing" in record:
        name = record["missing"]
        raise StudentError(f"NameError: name '{name}' is not defined: did you rename it?")
    return _replay(record["calls"]) if "calls" in record else record["value"]


def judge(blob: bytes, name: str, checks: Sequence[str], limit: int) -> tuple[bool, str]:
    """Whether an answer passes all its checks, and what to tell the student.

    Args:
        blob: Its record.
        name: What the checks call it.
        checks: The calls of its checks; the first one is the visible check.
        limit: How many bytes the record may have.
    """
    done = 0
    try:
        answer = _answer(load(blob, limit))
        with contextlib.redirect_stdout(io.StringIO()):
            for done, check in enumerate(checks):
                run_checks([check], name, answer)
    except (AssertionError, StudentError) as error:
        message = str(error) or "the check found a mistake"
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {error} (in the check: {TYPE_AND_SHAPE})"
    else:
        return True, PASSED
    return False, readable(OTHER_DATA * (done > 0) + message)
