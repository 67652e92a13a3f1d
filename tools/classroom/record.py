"""Inside the box: run every answer against its check, and note what it gave back.

    python -m tools.classroom.record      a job on the input, a line of JSON an answer goes out

Nothing that is found here decides a point: outside, the check runs again on the recorded values
(see `replay`). One process imports torch and forks another for every answer.
"""

import base64
import contextlib
import functools
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import numpy as np
import psutil
import torch
from torch import Tensor

CELL, LESSON = "<your cell>", "<the lesson>"
MESSAGE_CHARS = 2000
MAX_BYTES = 16 * 2**20  # of one record
SENT = 42  # exit status of a process that has sent its record


def all_in(value: Any) -> Iterator[Any]:
    """A value, and all in nested lists, tuples and dicts, in an order that never changes."""
    yield value
    if isinstance(value, list | tuple | dict):
        for item in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from all_in(item)


def plain(value: Any) -> Any:
    """A copy whose tensors have neither history nor shared memory; arrays become tensors."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        if value.numel() * value.element_size() > MAX_BYTES:  # it may be expanded
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is too large to be checked")
        return value.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(map(plain, value))
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def describe(error: BaseException) -> str:
    """An exception for its student, with the line of the cell that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == CELL), None)
    kind, message = type(error).__name__, str(error)[:MESSAGE_CHARS]
    if isinstance(error, SyntaxError) and error.filename == CELL:
        line, message = error.lineno, error.msg
    text = f"{kind}: {message}" if message else kind
    text = f"not answered yet: {text}" if isinstance(error, NotImplementedError) else text
    text += ": your code ends the program" if isinstance(error, SystemExit) else ""
    return f"{text} (line {line} of your cell)" if line else text


def watched(answer: Callable, calls: list[dict[str, Any]]) -> Callable:
    """The answer, with what every call of it gives back, or changes in place, added to `calls`."""

    def call(*positional: Any, **named: Any) -> Any:
        tensors = [part for part in all_in((positional, named)) if isinstance(part, Tensor)]
        before = [tensor.clone() for tensor in tensors]
        try:
            value = answer(*positional, **named)
            pairs = zip(before, tensors, strict=True)
            kept = [old.dtype == new.dtype and torch.equal(old, new) for old, new in pairs]
            changed = {n: plain(tensor) for n, tensor in enumerate(tensors) if not kept[n]}
            calls.append({"value": plain(value), "changed": changed})
        except BaseException as error:
            calls.append({"error": describe(error)})
            raise
        return value

    return call


@functools.cache
def all_checks() -> SimpleNamespace:
    """The checks as they are at the first call: before any student's code can change them."""
    from helpers.lessons import checks

    return SimpleNamespace(**{name: getattr(checks, name) for name in checks.__all__})


def run_checks(calls: Sequence[str], name: str, answer: Any) -> None:
    """Run checks such as "checks.check_split(split, seed=1)" on what `name` shall stand for."""
    for call in calls:
        eval(call, {"checks": all_checks(), name: answer})


def record(exercise: dict[str, Any], seconds: float = 20) -> dict[str, Any]:
    """Run the cells before an answer, the answer, and its checks; note what it did.

    The cells before have half of the time. What fails there, or comes too late, does not matter.
    """
    module = sys.modules["__main__"] = ModuleType("__main__")  # as in a notebook
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # no package takes this for an error
        signal.setitimer(signal.ITIMER_REAL, seconds / 2)
        for source in exercise["before"]:
            with contextlib.suppress(Exception, SystemExit):
                exec(compile(source, LESSON, "exec"), module.__dict__)
        signal.setitimer(signal.ITIMER_REAL, 0)
    name, calls = exercise["name"], []
    try:
        exec(compile(exercise["answer"], CELL, "exec"), module.__dict__)
        if name not in module.__dict__:
            return {"error": f"NameError: name '{name}' is not defined: did you rename it?"}
        answer = module.__dict__[name]
        if not callable(answer):
            return {"value": plain(answer)}
    except BaseException as error:
        return {"error": describe(error)}
    with contextlib.suppress(BaseException):  # outside the check fails at the same place
        run_checks(exercise["checks"], name, watched(answer, calls))
    return {"calls": calls}


def _answer(exercise: dict[str, Any], line: TextIO, seconds: float) -> None:
    """What the answer's process does: it has no input, and no output but its record."""
    os.setsid()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is an error, not the end
    sys.stdout = sys.stderr = open(os.devnull, "r+", errors="replace")
    for standard in range(3):
        os.dup2(sys.stdout.fileno(), standard)
    torch.manual_seed(0)
    torch.save(record(exercise, seconds), content := io.BytesIO())
    blob = base64.b64encode(content.getvalue()).decode()
    print(json.dumps({"exercise": exercise["exercise"], "record": blob}), file=line, flush=True)
    os._exit(SENT)


def main() -> None:
    """Do the job that comes on the input: its exercises, one after the other."""
    job = json.load(sys.stdin)
    torch.set_num_threads(1)
    all_checks()  # imported once for all answers, and before there is a clock
    line = os.fdopen(os.dup(1), "w")
    print("ready", file=line, flush=True)
    for exercise in job["exercises"]:
        child = os.fork()
        if not child:
            try:
                _answer(exercise, line, job["seconds"])
            finally:
                os._exit(1)
        try:
            code = psutil.Process(child).wait(job["seconds"])
            how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
            problem = "" if code == SENT else f"your code ended its own process ({how})"
        except psutil.TimeoutExpired:
            problem = f"no answer in {job['seconds']:g} seconds: is there a loop that does not end?"
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if problem:
            said = {"exercise": exercise["exercise"], "problem": problem}
            print(json.dumps(said), file=line, flush=True)


if __name__ == "__main__":
    main()
