"""Which lesson a submitted notebook belongs to, by what it holds."""

from collections.abc import Sequence

from tools.classroom.exercises import Lesson
from tools.classroom.prelude import names, plain
from tools.classroom.submission import Cell, Unreadable


def _marks(lesson: Lesson) -> tuple[set[str], set[str]]:
    """What no other lesson has: nbgrader's names; and texts such as its comments and checks."""
    grade_ids = {name for e in lesson.exercises for name in (e.grade_id, e.test_id)}
    comments = {text for e in lesson.exercises for text in (e.comment, e.check_comment)}
    return grade_ids, comments | {e.call.split("(")[0] + "(" for e in lesson.exercises}


def _score(cells: Sequence[Cell], lesson: Lesson) -> tuple[int, int]:
    """How much of a lesson is in a notebook: its marks; then its texts and its answers' names."""
    grade_ids, texts = _marks(lesson)
    everything = "\n".join(cell.source for cell in cells)
    marks = sum(cell.grade_id in grade_ids for cell in cells)
    marks += sum(text in everything for text in texts)
    own = {cell.source.strip() for cell in lesson.notebook.cells}
    defined = {name for c in cells if c.kind == "code" for name in names(plain(c.source))[0]}
    shared = sum(cell.source.strip() in own for cell in cells)
    return marks, shared + sum(exercise.answer in defined for exercise in lesson.exercises)


def which_lesson(cells: Sequence[Cell], lessons: Sequence[Lesson]) -> Lesson:
    """The lesson that a notebook has most of.

    Raises:
        Unreadable: It has nothing of any lesson, or as much of two.
    """
    scores = {lesson.number: _score(cells, lesson) for lesson in lessons}
    best = max(scores.values())
    found = [lesson for lesson in lessons if scores[lesson.number] == best]
    if best == (0, 0) or len(found) > 1:
        raise Unreadable("Its lesson cannot be told: name it with --lesson.")
    return found[0]
