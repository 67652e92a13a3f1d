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

from tools.classroom.record import MAX_BYTES, MESSAGE_CHARS, all_in, run_checks
from tools.places import without_places

PASSED = "Passed, also on other data."
IN_THE_CHECK = "(in the check: does your answer have the right type and shape?)"
UNREADABLE = """\
your answer cannot be checked: give a tensor, a number, a text, or a list, tuple or dict of them,
and not more than a few megabytes"""
PLAIN = (type(None), bool, int, float, complex, str, list, tuple, dict)
MAX_VALUES = 100_000  # in one record


class StudentError(Exception):
    """What the student's code did wrong, as it is raised inside a check."""


def readable(text: str) -> str:
    """A student's text without characters that steer a terminal, folders, or too many words."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[:10_000])
    text = without_places(text)
    return text if len(text) <= MESSAGE_CHARS else text[:MESSAGE_CHARS] + " ..."


def load(blob: bytes) -> dict[str, Any]:
    """A record as plain values and ordinary tensors of at most `MAX_BYTES`, or a StudentError."""
    try:
        parts = zipfile.ZipFile(io.BytesIO(blob)).infolist()
        if len(blob) > MAX_BYTES or any(p.compress_type != zipfile.ZIP_STORED for p in parts):
            raise ValueError("it would grow")
        content, size = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True), 0
        for number, value in enumerate(all_in(content)):
            if type(value) is Tensor and value.layout == torch.strided and not value.is_quantized:
                size += value.numel() * value.element_size()  # it may be expanded
            elif type(value) not in PLAIN:
                raise TypeError(f"a {type(value).__name__}")
            if number > MAX_VALUES or size > MAX_BYTES:
                raise ValueError("too much")
        return dict(content)
    except Exception as error:
        raise StudentError(UNREADABLE) from error


def _replayed(calls: Sequence[dict]) -> Callable:
    left = iter(calls)

    def call(*positional: Any, **named: Any) -> Any:
        recorded = next(left, {"error": "your code stopped the check before its end"})
        if "error" in recorded:
            raise StudentError(str(recorded["error"]))
        ours = [part for part in all_in((positional, named)) if isinstance(part, Tensor)]
        for place, new in recorded["changed"].items():
            ours[place].data = new
        return recorded["value"]

    return call


def judge(blob: bytes, name: str, checks: Sequence[str]) -> tuple[bool, str]:
    """Whether an answer's record passes its checks, which call it by name, and what to tell."""
    passed = 0
    try:
        record = load(blob)
        if "error" in record:
            raise StudentError(str(record["error"]))
        answer = _replayed(record["calls"]) if "calls" in record else record["value"]
        with contextlib.redirect_stdout(io.StringIO()):
            for check in checks:
                run_checks([check], name, answer)
                passed += 1
    except (AssertionError, StudentError) as error:
        message = str(error) or "the check found a mistake"
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {error} {IN_THE_CHECK}"
    else:
        return True, PASSED
    return False, readable("On other data: " * (passed > 0) + message)
