"""Find a student's answers, whatever became of the notebook on its way.

Editors rename cells, copy them, delete them; Colab drops ids and metadata. An answer is found by
nbgrader's metadata, else by its cell id, else by the comment in its first line, else by the name it
defines. Checks and other cells are always the lesson's own; what a student added is kept.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tools.classroom.assignment import student_notebook
from tools.classroom.exercises import Exercise, Lesson
from tools.classroom.prelude import names, needed, pieces, plain
from tools.classroom.submission import Cell, Unreadable

WAYS: dict[str, Callable[[Cell, Exercise], bool]] = {
    "nbgrader's metadata": lambda cell, e: cell.grade_id == e.grade_id,
    "the ids of the cells": lambda cell, e: cell.id == e.solution_cell,
    "the comments in their first lines": lambda cell, e: _has_line(cell.source, e.comment),
    "the names that their checks call": lambda cell, e: (
        cell.kind == "code" and e.answer in names(plain(cell.source))[0]
    ),
}
*MARKS, BY_NAME = WAYS.values()  # marks are those of the place for an answer, filled in or not


@dataclass
class Restored:
    """What a student handed in, put in order.

    Attributes:
        answers: The source of each answer, by the exercise's name.
        before: The parts of cells that each answer needs, by the exercise's name.
        notes: What was mended, for teacher and student.
        flags: What is the same as in the published lesson, for the teacher.
        found: The ways in which the answers were found.
    """

    answers: dict[str, str] = field(default_factory=dict)
    before: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)


def _same(source: str) -> str:
    """A source for comparison: without what the assignment adds, blank lines, spaces at ends."""
    lines = [line.rstrip() for line in source.split("\n")]
    ours = ("# exercise: lesson ", "# check: lesson ", "from helpers.lessons import checks")
    return "\n".join(line for line in lines if line and not line.startswith(ours))


def _has_line(source: str, wanted: str) -> bool:
    return any(line.strip() == wanted for line in source.split("\n"))


def _is_check(cell: Cell, exercise: Exercise) -> bool:
    marked = cell.grade_id == exercise.test_id or cell.id == exercise.check_cell
    return marked or _has_line(cell.source, exercise.check_comment)


def which_lesson(cells: Sequence[Cell], lessons: Sequence[Lesson]) -> Lesson:
    """The lesson that a notebook has most of: its exercises first, then its cells and names.

    Raises:
        Unreadable: It has nothing of any lesson, or as much of two.
    """
    everything = "\n".join(cell.source for cell in cells)
    scores = []
    for lesson in lessons:
        marks = [{e.grade_id, e.test_id, e.comment, e.check_comment} for e in lesson.exercises]
        texts = {cell.grade_id for cell in cells} | set(everything.split("\n"))
        called = sum(e.call.split("(")[0] + "(" in everything for e in lesson.exercises)
        own = {cell.source.strip() for cell in lesson.notebook.cells}
        defined = sum(BY_NAME(cell, e) for cell in cells for e in lesson.exercises)
        shared = sum(cell.source.strip() in own for cell in cells)
        scores.append((called + sum(len(found & texts) for found in marks), shared + defined))
    best = max(scores)
    if best == (0, 0) or scores.count(best) > 1:
        raise Unreadable("Its lesson cannot be told: name it with --lesson.")
    return lessons[scores.index(best)]


def _find_answers(restored: Restored, cells: list, theirs: list, lesson: Lesson) -> None:
    """Note every exercise's answer, or that there is no place for it any more."""
    for exercise in lesson.exercises:
        for text, way in WAYS.items():
            if answers := [cell.source for cell in theirs if way(cell, exercise)]:
                restored.answers[exercise.name] = answers[-1]
                restored.found += [text] if text not in restored.found else []
                break
        if len(answers) > 1:
            restored.notes.append(
                f"There are {len(answers)} answers to exercise '{exercise.name}': the last counts."
            )
        if not answers and not any(mark(cell, exercise) for cell in cells for mark in MARKS):
            restored.notes.append(f"The cell of exercise '{exercise.name}' is not there: 0 points.")


def _before(lesson: Lesson, exercise: Exercise, cells: list, theirs: list) -> list[str]:
    """What stands before a check but its answer: each own cell behind the lesson's before it."""
    solutions = {e.solution_cell for e in lesson.exercises}
    places = {_same(cell.source): n for n, cell in enumerate(lesson.notebook.cells)}
    own, place = {}, -1
    for cell in cells:
        place = places.get(_same(cell.source), place)
        if _is_check(cell, exercise):
            break
        answers = any(way(cell, exercise) for way in WAYS.values())
        if cell.kind == "code" and cell in theirs and not answers:
            own.setdefault(place, []).append(plain(cell.source))
    parts = own.get(-1, [])
    for place, cell in enumerate(lesson.notebook.cells):
        if cell.id == exercise.check_cell:
            break
        if cell.cell_type == "code" and cell.id not in solutions:
            parts += pieces(cell.source)
        parts += own.get(place, [])
    return parts


def _note_changes(restored: Restored, cells: list, lesson: Lesson, texts: set[str]) -> None:
    """Say which checks were changed, and how the answers were found if metadata was lost."""
    for exercise in lesson.exercises:
        checks = [cell for cell in cells if _is_check(cell, exercise)]
        if any(_same(cell.source) not in texts for cell in checks):
            restored.notes.append(
                f"The check of exercise '{exercise.name}' was changed: the original one was used."
            )
    if not any(cell.grade_id for cell in cells):
        ways = " and ".join(text for text in WAYS if text in restored.found)
        found = f"; its exercises were found by {ways}, and graded" if ways else ""
        restored.notes.append(f"The notebook had lost its cell metadata (Colab does that){found}.")


def _tree(source: str) -> str:
    """The syntax of a source: what is left without comments, spaces and line breaks."""
    try:
        return ast.dump(ast.parse(plain(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source


def _flag(restored: Restored, cells: list, lesson: Lesson) -> None:
    """Note what is the same as in the lesson, where the solutions are published."""
    published = {cell.id: cell.source for cell in lesson.notebook.cells}
    if {_same(cell.source) for cell in cells} >= {_same(s) for s in published.values() if s}:
        restored.flags.append("This is the published lesson.")
        return
    for exercise in lesson.exercises:
        solution = published[exercise.solution_cell]
        if _tree(restored.answers.get(exercise.name, "")) == _tree(solution):
            lines = [line for line in solution.split("\n") if "###" not in line]
            chance = " (one line: it may be chance)" if len(lines) <= 2 else ""
            restored.flags.append(f"'{exercise.name}' is the published solution{chance}.")


def restore(cells: list[Cell], lesson: Lesson) -> Restored:
    """The answers in the cells of a submitted notebook, with what each of them needs."""
    restored = Restored()
    texts = {_same(cell.source) for cell in student_notebook(lesson).cells}
    checks = [cell for cell in cells if any(_is_check(cell, e) for e in lesson.exercises)]
    theirs = [c for c in cells if c not in checks and _same(c.source) not in texts]
    _find_answers(restored, cells, theirs, lesson)
    own = {plain(cell.source) for cell in theirs}
    for exercise in lesson.exercises:
        answer = plain(restored.answers.get(exercise.name, ""))
        parts = _before(lesson, exercise, cells, theirs)
        restored.before[exercise.name] = needed(parts, answer, own)
    _note_changes(restored, cells, lesson, texts)
    _flag(restored, cells, lesson)
    return restored
