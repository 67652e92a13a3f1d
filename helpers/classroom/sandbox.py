"""Judge a student's answer: their code runs in one process, the test in another.

A submission may loop, raise, exit, print without end, overwrite the checks or attack the machine:
it loses the points of what it broke, and nothing else happens. The test sees only values, which it
compares in this process, so nothing done to the worker can turn a wrong answer into a pass.
What the worker may do at all is said in `guard`. Gradients do not cross: tensors come detached.
"""

import builtins
import contextlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from helpers.classroom.guard import Limits
from helpers.classroom.prelude import names
from helpers.classroom.session import Session, StudentError, shortened

__all__ = ["Judgement", "Limits", "judge"]

LESSON_SHARE = 0.5  # of the time, for the cells before the exercise
LEFT_OUT = "(The cells before this one took too long, or ended their process, and were left out.)\n"
NO_LIMITS_GIVEN = Limits()
_one_at_a_time = threading.Lock()  # what the test prints is caught, and that is global


@dataclass(frozen=True)
class Judgement:
    """What became of one answer.

    Attributes:
        passed: Whether the test found nothing wrong.
        printed: What the student's code printed, and how much of it was cut.
        error: What went wrong, for the student to read; None if nothing did.
    """

    passed: bool
    printed: str
    error: str | None = None


def judge(
    prelude: Sequence[str], cell: str, test: str, limits: Limits = NO_LIMITS_GIVEN
) -> Judgement:
    """Run a student's cell apart from everything else, then a trusted test on what it defined.

    Args:
        prelude: Cells to run before; errors in them are ignored. If they take more than half of the
            time, or end the process, all is done once more without them.
        cell: The exercise as the student left it.
        test: Source to run here. Every name that it uses but does not define is the student's: a
            function is called in the worker, other things come as values. An exception in it is a
            failed judgement.
        limits: What the student's code may take.

    Raises:
        NoWorker: No worker can be started, or it cannot be confined.
    """
    with _one_at_a_time:
        judgement = _attempt(prelude, cell, test, limits)
        if judgement is None:  # the first half of the time is spent
            rest = replace(limits, seconds=limits.seconds * (1 - LESSON_SHARE))
            judgement = _attempt((), cell, test, rest)
            judgement = replace(judgement, printed=LEFT_OUT + judgement.printed)
        return judgement


def _attempt(prelude: Sequence[str], cell: str, test: str, limits: Limits) -> Judgement | None:
    """One judgement in one worker; None if the prelude did not come to an end."""
    with Session(limits) as session:
        session.give(limits.seconds * LESSON_SHARE)
        try:
            session.ask("lesson", list(prelude))
        except StudentError:
            return None
        session.give(limits.seconds * (1 - LESSON_SHARE))
        error = _error(session, cell, test)
        return Judgement(error is None, session.printed_text(), error)


def _error(session: Session, cell: str, test: str) -> str | None:
    """What is wrong with an answer, or None."""
    try:
        session.ask("cell", cell)
        with contextlib.redirect_stdout(io.StringIO()):
            _run_test(session, test)
        if session.ended:  # also if the test did not mind
            raise session.ended
    except (AssertionError, StudentError) as error:
        return shortened(str(error) or "the check found a mistake")
    except (Exception, SystemExit) as error:
        hint = "does your answer have the right type and shape?"
        return shortened(f"{type(error).__name__}: {error} (in the check: {hint})")
    return None


def _run_test(session: Session, test: str) -> None:
    """Run the trusted test in a namespace with the student's answers."""
    namespace: dict[str, Any] = {"__name__": "test"}
    code = compile(test, "<test>", "exec")
    namespace |= {name: session.get(name) for name in free_names(test)}
    exec(code, namespace)


def free_names(source: str) -> list[str]:
    """The names that some source reads but does not define or import, and that are no builtins."""
    defined, read = names(source)
    return sorted(read - defined - set(dir(builtins)))
