"""Put a student's answers back into the lesson, whatever became of the notebook on its way.

Editors rename cells, copy them, delete them; Colab drops ids and metadata. nbgrader finds cells by
metadata alone, and without it grades nothing. Here the lesson's own release version is the frame:
an answer is found by nbgrader's metadata, else by its cell id, else by the comment in its first
line, else by the name it defines. Everything else in the frame is the lesson's; what the student
added is kept, in its place.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import nbformat
from nbformat import NotebookNode

from tools.classroom.exercises import Exercise
from tools.classroom.prelude import names, plain
from tools.classroom.submission import Cell

WAYS = {
    "metadata": "nbgrader's metadata",
    "id": "the ids of the cells",
    "comment": "the comments in their first lines",
    "name": "the names that their checks call",
}
ADDED = "added-"  # start of the id of a cell that the student added


@dataclass
class Restored:
    """A submission in the lesson's frame.

    Attributes:
        notebook: The lesson's release version with the student's answers and added cells.
        answers: The exercises that were answered, by name, with the answer's source.
        notes: What was mended, for teacher and student.
        found: The ways in which the answers were found.
    """

    notebook: NotebookNode
    answers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    found: set[str] = field(default_factory=set)


def _same(source: str) -> str:
    """A source for comparison: without what the assignment adds, blank lines, spaces at ends."""
    lines = [line.rstrip() for line in source.split("\n")]
    ours = ("# exercise: lesson ", "# check: lesson ", "from helpers import checks")
    return "\n".join(line for line in lines if line and not line.startswith(ours))


def _has_line(source: str, wanted: str) -> bool:
    return any(line.strip() == wanted for line in source.split("\n"))


def _matches(cell: Cell, exercise: Exercise) -> dict[str, bool]:
    """Whether a cell is the answer of an exercise, by each way to find out, the surest first."""
    return {
        "metadata": cell.grade_id == exercise.grade_id,
        "id": cell.id == exercise.solution_cell,
        "comment": _has_line(cell.source, exercise.comment),
        "name": cell.kind == "code" and exercise.answer in names(plain(cell.source))[0],
    }


def _is_marked(cell: Cell, exercise: Exercise) -> bool:
    """Whether a cell is, or was before it was filled in, the place for an exercise's answer."""
    matches = _matches(cell, exercise)
    return matches["metadata"] or matches["id"] or matches["comment"]


def _is_check(cell: Cell, exercise: Exercise) -> bool:
    marked = cell.grade_id == exercise.test_id or cell.id == exercise.check_cell
    return marked or _has_line(cell.source, exercise.check_comment)


def _find_answers(cells: Sequence[Cell], exercise: Exercise) -> tuple[list[Cell], str]:
    """The cells that answer an exercise, and the way they were found."""
    for way in WAYS:
        if answers := [cell for cell in cells if _matches(cell, exercise)[way]]:
            return answers, way
    return [], ""


class _Frame:
    """Where the cells of the lesson stand, to find the home of a submitted cell."""

    def __init__(self, release: NotebookNode, exercises: Sequence[Exercise]) -> None:
        self.exercises = exercises
        self.place = {cell.id: number for number, cell in enumerate(release.cells)}
        self.text = {_same(cell.source): number for number, cell in enumerate(release.cells)}

    def home(self, cell: Cell) -> int | None:
        """The place of the lesson's cell that a submitted one stems from, if any."""
        for exercise in self.exercises:
            if _is_check(cell, exercise):
                return self.place[exercise.check_cell]
            if _is_marked(cell, exercise):
                return self.place[exercise.solution_cell]
        return self.text.get(_same(cell.source), self.place.get(cell.id))

    def is_own(self, cell: Cell) -> bool:
        """Whether a submitted cell is the lesson's: its text, or one of its checks."""
        checks = any(_is_check(cell, exercise) for exercise in self.exercises)
        return checks or _same(cell.source) in self.text


def _added(cell: Cell, number: int) -> NotebookNode:
    """A cell of the student's for the restored notebook; text is shown as it is, not rendered."""
    if cell.kind == "code":
        return nbformat.v4.new_code_cell(cell.source, id=f"{ADDED}{number}")
    as_typed = "\n".join(f"    {line}" for line in cell.source.split("\n"))
    return nbformat.v4.new_markdown_cell(as_typed, id=f"{ADDED}{number}")


def _place_answers(restored: Restored, cells: Sequence[Cell], frame: _Frame) -> list[Cell]:
    """Put every answer into its cell; returns the submitted cells that were used."""
    targets, used = {cell.id: cell for cell in restored.notebook.cells}, []
    theirs = [cell for cell in cells if not frame.is_own(cell)]
    for exercise in frame.exercises:
        answers, way = _find_answers(theirs, exercise)
        if answers:
            used.append(answers[-1])
            targets[exercise.solution_cell].source = answers[-1].source
            restored.answers[exercise.name] = answers[-1].source
            restored.found.add(way)
        elif not any(_is_marked(cell, exercise) for cell in cells):
            restored.notes.append(f"The cell of exercise '{exercise.name}' is not there: 0 points.")
        if len(answers) > 1:
            restored.notes.append(
                f"There are {len(answers)} answers to exercise '{exercise.name}': the last counts."
            )
    return used


def _keep_others(
    restored: Restored, cells: Sequence[Cell], used: Sequence[Cell], frame: _Frame
) -> None:
    """Insert the student's other cells behind the lesson's cells that they stood behind."""
    others, place = {}, -1
    for cell in cells:
        home = frame.home(cell)
        place = place if home is None else home
        if not frame.is_own(cell) and not any(cell is taken for taken in used):
            others.setdefault(place, []).append(cell)
    lesson, kept = restored.notebook.cells, 0
    restored.notebook.cells = []
    for place in range(-1, len(lesson)):
        restored.notebook.cells += [lesson[place]] if place >= 0 else []
        for cell in others.get(place, ()):
            kept += 1
            restored.notebook.cells.append(_added(cell, kept))


def _note_changes(restored: Restored, cells: Sequence[Cell], frame: _Frame) -> None:
    """Say which checks were changed, and how the answers were found if metadata was lost."""
    for exercise in frame.exercises:
        checks = [cell for cell in cells if _is_check(cell, exercise)]
        if any(_same(cell.source) not in frame.text for cell in checks):
            restored.notes.append(
                f"The check of exercise '{exercise.name}' was changed: the original one was used."
            )
    if any(cell.grade_id for cell in cells):
        return
    ways = " and ".join(text for way, text in WAYS.items() if way in restored.found)
    found = f"; its exercises were found by {ways}, and graded" if ways else ""
    restored.notes.append(f"The notebook had lost its cell metadata (Colab does that){found}.")


def restore(
    cells: Sequence[Cell], release: NotebookNode, exercises: Sequence[Exercise]
) -> Restored:
    """A submission as a complete nbgrader submission of the lesson's release version.

    Args:
        cells: The submitted cells.
        release: The release version of the lesson, with nbgrader's metadata.
        exercises: The lesson's exercises.
    """
    frame, restored = _Frame(release, exercises), Restored(copy.deepcopy(release))
    used = _place_answers(restored, cells, frame)
    _keep_others(restored, cells, used, frame)
    _note_changes(restored, cells, frame)
    return restored
