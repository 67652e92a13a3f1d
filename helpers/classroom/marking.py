"""Judge the answers of one submission, and let nbgrader keep the books on them."""

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from helpers.classroom import course
from helpers.classroom.assignment import source_notebook
from helpers.classroom.exercises import Exercise, Lesson
from helpers.classroom.prelude import needed, pieces, plain
from helpers.classroom.restore import ADDED, Restored
from helpers.classroom.sandbox import Limits, judge

PASSED = "Passed, also on other data."
UNANSWERED = "This exercise has not been answered."
PAGE_SECONDS = 120
AGAIN_SECONDS = 0.1


@dataclass(frozen=True)
class Master:
    """What a lesson's submissions are graded with.

    Attributes:
        lesson: The lesson.
        folder: Its nbgrader course; every submission gets a copy.
        tests: The source of each exercise's test by its name, hidden tests included.
        release: The student's version.
    """

    lesson: Lesson
    folder: Path
    tests: Mapping[str, str]
    release: NotebookNode


@dataclass(frozen=True)
class Mark:
    """What came of one answer: whether it passed, what it printed, and what the check says."""

    passed: bool
    printed: str
    message: str


@dataclass(frozen=True)
class Marked:
    """A graded submission: points and marks by exercise; nbgrader's page, if it could make one."""

    points: Mapping[str, float]
    marks: Mapping[str, Mark]
    page: str | None


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds, where the system has such timers.

    Raised again and again until the block ends: Python drops an exception that arrives while a
    finaliser or a callback of the garbage collector runs.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} seconds")

    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def make_master(lesson: Lesson, folder: Path, seed: int) -> Master:
    """The course of a lesson in a new folder, with the hidden tests that the seed chooses."""
    source = source_notebook(lesson, seed)
    release = course.make_course(folder, lesson.assignment, lesson.path.name, source)
    sources = {cell.id: cell.source for cell in source.cells}
    tests = {exercise.name: sources[exercise.check_cell] for exercise in lesson.exercises}
    return Master(lesson, folder, tests, release)


def parts_before(notebook: NotebookNode, exercise: Exercise) -> tuple[list[str], set[str]]:
    """What stands before an exercise's check but its answer, in parts; which the student wrote."""
    parts, own = [], set()
    for cell in notebook.cells:
        if cell.id == exercise.check_cell:
            break
        if cell.cell_type != "code" or cell.id == exercise.solution_cell:
            continue
        if cell.id.startswith(ADDED) or cell.id.endswith("-solution"):  # the student's
            parts.append(plain(cell.source))
            own.add(parts[-1])
        else:
            parts += pieces(cell.source)
    return parts, own


def mark(restored: Restored, exercise: Exercise, test: str, limits: Limits) -> Mark:
    """Run one answer against its test; the test runs here, the answer does not."""
    if exercise.name not in restored.answers:
        return Mark(False, "", UNANSWERED)
    answer = plain(restored.answers[exercise.name])
    parts, own = parts_before(restored.notebook, exercise)
    prelude = needed(parts, answer, own)
    judgement = judge(prelude, answer, test, limits)
    return Mark(judgement.passed, judgement.printed, judgement.error or PASSED)


def outputs(mark: Mark) -> list[NotebookNode]:
    """A mark as the outputs of its test cell; an error is what nbgrader gives no points for."""
    shown = []
    if mark.printed:
        text = f"Your code printed:\n{mark.printed}\n"
        shown.append(nbformat.v4.new_output("stream", name="stdout", text=text))
    if mark.passed:
        shown.append(nbformat.v4.new_output("stream", name="stdout", text=f"{mark.message}\n"))
    else:
        lines = mark.message.splitlines()
        error = {"ename": "Not passed", "evalue": mark.message, "traceback": lines}
        shown.append(nbformat.v4.new_output("error", **error))
    return shown


def _add_notes(notebook: NotebookNode, heading: str, notes: list[str]) -> None:
    """A first cell for the feedback page: whose it is, and what was mended."""
    text = "\n".join([f"**{heading}**\n", *(f"- {note}" for note in notes)])
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(text, id="grading-notes"))


def grade(restored: Restored, master: Master, heading: str, folder: Path, limits: Limits) -> Marked:
    """Judge a restored submission; nbgrader books it and writes the page, in a course of its own.

    Args:
        restored: The submission in the lesson's frame.
        master: What the lesson is graded with.
        heading: First line of the feedback.
        folder: An empty folder for the course.
        limits: What each answer may take.
    """
    exercises, name = master.lesson.exercises, master.lesson.path.name
    marks = {e.name: mark(restored, e, master.tests[e.name], limits) for e in exercises}
    shown = {e.test_id: outputs(marks[e.name]) for e in exercises}

    def show(notebook: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        for cell in notebook.cells:
            grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
            if grade_id in shown:
                cell.outputs = shown[grade_id]
        return notebook, resources

    _add_notes(restored.notebook, heading, restored.notes)
    points = {e.name: float(e.points if marks[e.name].passed else 0) for e in exercises}
    page = None
    try:  # what a student wrote can make a page slow to set; the points stand without it
        with _at_most(PAGE_SECONDS):
            course.copy_course(master.folder, folder)
            course.score(folder, master.lesson.assignment, name, restored.notebook, show)
            page = course.feedback(folder, master.lesson.assignment, name)
    except Exception as error:
        restored.notes.append(f"There is no page of feedback: {type(error).__name__}: {error}")
    return Marked(points, marks, page)
