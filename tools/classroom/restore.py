"""Find a student's answers, whatever became of the notebook on its way, and what each one needs.

Editors rename cells, copy them, delete them; Colab drops ids and metadata. An answer is found by
nbgrader's metadata, else by its cell id, else by the comment in its first line, else by the name it
defines. Checks and other cells are always the lesson's own; what a student added is kept.

An answer runs apart from its notebook, behind those cells that define a name it uses. Cells that
only explore, plot or load a model are left out, so that they cost no time and cannot fail.
"""

import ast
import functools
import symtable
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from tools.classroom.assignment import student_notebook
from tools.classroom.exercises import Exercise, Lesson
from tools.classroom.submission import Cell, Unreadable

LOADERS = {"load_model", "load_untrained", "shared_model"}  # there is no model where answers run
INVALID = (SyntaxError, ValueError, RecursionError, MemoryError)  # what is no Python raises one
WAYS: dict[str, Callable[[Cell, Exercise], bool]] = {
    "nbgrader's metadata": lambda cell, e: cell.grade_id == e.grade_id,
    "the ids of the cells": lambda cell, e: cell.id == e.solution_cell,
    "the comments in their first lines": lambda cell, e: e.comment in _lines(cell),
    "the names that their checks call": lambda cell, e: (
        cell.kind == "code" and e.answer in names(plain(cell.source))[0]
    ),
}
*MARKS, BY_NAME = WAYS.values()  # marks are those of the place for an answer, filled in or not


@dataclass
class Restored:
    """What a student handed in, put in order; dicts go by the names of exercises."""

    answers: dict[str, str] = field(default_factory=dict)  # their sources
    before: dict[str, list[str]] = field(default_factory=dict)  # the parts of cells they need
    notes: list[str] = field(default_factory=list)  # what was mended, for teacher and student
    flags: list[str] = field(default_factory=list)  # what is published, for the teacher
    found: list[str] = field(default_factory=list)  # the ways in which the answers were found


def _same(source: str) -> str:
    """A source for comparison: without what the assignment adds, blank lines, spaces at ends."""
    lines = [line.rstrip() for line in source.split("\n")]
    ours = ("# exercise: lesson ", "# check: lesson ", "from helpers.lessons import checks")
    return "\n".join(line for line in lines if line and not line.startswith(ours))


def _lines(cell: Cell) -> list[str]:
    return [line.strip() for line in cell.source.split("\n")]


def _is_check(cell: Cell, e: Exercise) -> bool:
    marked = cell.grade_id == e.test_id or cell.id == e.check_cell
    return marked or e.check_comment in _lines(cell)


def which_lesson(cells: Sequence[Cell], lessons: Sequence[Lesson]) -> Lesson:
    """The lesson that a notebook has most of: its exercises first, then its cells and names.

    Raises:
        Unreadable: It has nothing of any lesson, or as much of two.
    """
    everything = "\n".join(cell.source for cell in cells)
    texts = {cell.grade_id for cell in cells} | set(everything.split("\n"))
    scores = []
    for lesson in lessons:
        own = {cell.source.strip() for cell in lesson.notebook.cells}
        marked, shared = 0, sum(cell.source.strip() in own for cell in cells)
        for e in lesson.exercises:
            marked += len({e.grade_id, e.test_id, e.comment, e.check_comment} & texts)
            marked += e.call.split("(")[0] + "(" in everything
            shared += sum(BY_NAME(cell, e) for cell in cells)
        scores.append((marked, shared))
    best = max(scores)
    if best == (0, 0) or scores.count(best) > 1:
        raise Unreadable("Its lesson cannot be told: name it with --lesson.")
    return lessons[scores.index(best)]


def _find_answer(restored: Restored, exercise: Exercise, cells: list, theirs: list) -> None:
    """Note an exercise's answer, or that there is no place for it any more."""
    name = exercise.name
    for text, way in WAYS.items():
        if answers := [cell.source for cell in theirs if way(cell, exercise)]:
            restored.answers[name] = answers[-1]
            restored.found += [text] if text not in restored.found else []
            if len(answers) > 1:
                several = f"There are {len(answers)} answers to exercise '{name}': the last counts."
                restored.notes.append(several)
            return
    if not any(mark(cell, exercise) for cell in cells for mark in MARKS):
        restored.notes.append(f"The cell of exercise '{name}' is not there: 0 points.")


def _before(lesson: Lesson, exercise: Exercise, cells: list, theirs: list) -> list[str]:
    """What stands before a check but its answer: each own cell behind the lesson's before it."""
    solutions, parts = {e.solution_cell for e in lesson.exercises}, []
    places = {_same(cell.source): n for n, cell in enumerate(lesson.notebook.cells)}
    for end, cell in enumerate(lesson.notebook.cells):
        if cell.id == exercise.check_cell:
            break
        if cell.cell_type == "code" and cell.id not in solutions:
            parts += [(end, piece) for piece in pieces(cell.source)]
    place = -1
    for cell in cells:
        place = places.get(_same(cell.source), place)
        if _is_check(cell, exercise):
            break
        answers = any(way(cell, exercise) for way in WAYS.values())
        if cell.kind == "code" and cell in theirs and not answers:
            parts.append((place, plain(cell.source)))
    return [part for place, part in sorted(parts, key=lambda part: part[0]) if place < end]


def _flag(restored: Restored, cells: list, lesson: Lesson) -> None:
    """Note what is the same as in the lesson, where the solutions are published."""
    published = {cell.id: cell.source for cell in lesson.notebook.cells}
    if {_same(cell.source) for cell in cells} >= {_same(s) for s in published.values() if s}:
        restored.flags.append("This is the published lesson.")
        return
    for exercise in lesson.exercises:
        solution = published[exercise.solution_cell]
        if syntax(plain(restored.answers.get(exercise.name, ""))) == syntax(plain(solution)):
            lines = [line for line in solution.split("\n") if "###" not in line]
            chance = " (one line: it may be chance)" if len(lines) <= 2 else ""
            restored.flags.append(f"'{exercise.name}' is the published solution{chance}.")


def restore(cells: list[Cell], lesson: Lesson) -> Restored:
    """The answers in the cells of a submitted notebook, with what each of them needs."""
    restored = Restored()
    texts = {_same(cell.source) for cell in student_notebook(lesson).cells}
    checks = [cell for cell in cells if any(_is_check(cell, e) for e in lesson.exercises)]
    theirs = [c for c in cells if c not in checks and _same(c.source) not in texts]
    own = {plain(cell.source) for cell in theirs}
    for exercise in lesson.exercises:
        _find_answer(restored, exercise, cells, theirs)
        answer = plain(restored.answers.get(exercise.name, ""))
        parts = _before(lesson, exercise, cells, theirs)
        restored.before[exercise.name] = needed(parts, answer, own)
    for exercise in lesson.exercises:
        if any(_is_check(cell, exercise) and _same(cell.source) not in texts for cell in checks):
            what = f"The check of exercise '{exercise.name}' was changed"
            restored.notes.append(f"{what}: the original one was used.")
    if not any(cell.grade_id for cell in cells):
        ways = " and ".join(text for text in WAYS if text in restored.found)
        found = f"; its exercises were found by {ways}, and graded" if ways else ""
        restored.notes.append(f"The notebook had lost its cell metadata (Colab does that){found}.")
    _flag(restored, cells, lesson)
    return restored


@functools.lru_cache(4096)  # a cell is looked at once for every exercise
def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a source defines, and those it uses; none if it is no valid Python."""
    try:
        tables = [top := symtable.symtable(source, "cell", "exec")]
    except INVALID:
        return set(), set()
    defined, used = set(), set()
    for table in tables:  # which grows
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                if symbol.is_assigned() or symbol.is_imported():
                    defined.add(symbol.get_name())
                if symbol.is_referenced():
                    used.add(symbol.get_name())
    return defined, used


def syntax(source: str) -> str:
    """The syntax of a source without comments, spaces and line breaks; "" if it is not valid."""
    try:
        return ast.dump(ast.parse(source))
    except INVALID:
        return ""


@functools.lru_cache(4096)
def plain(source: str) -> str:
    """A cell without IPython's commands (`%time`, `!ls`), its lines where they were."""
    if syntax(source):
        return source
    lines = source.split("\n")
    return "\n".join(f"# {s}" if s.lstrip()[:1] in ("%", "!") else s for s in lines)


def pieces(source: str) -> list[str]:
    """A lesson's cell as parts that can run alone: imports, and the rest if it loads no model."""
    body = ast.parse(source).body
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = ast.Module([node for node in body if node not in imports], type_ignores=[])
    parts = [*map(ast.unparse, imports), ast.unparse(rest)]
    return [part for part in parts if part and not names(part)[1] & LOADERS]


def needed(parts: Sequence[str], answer: str, own: Set[str] = frozenset()) -> list[str]:
    """Those parts, in order, that define what the answer uses, or what another such part uses.

    Of the student's `own` parts also those that only use such a name: they may change its value.
    """
    wanted, kept = names(answer)[1], []
    for part in reversed(parts):
        defined, used = names(part)
        touched = defined | used if part in own else defined
        if touched & wanted or " import *" in part:
            kept.append(part)
            wanted = wanted | used
    return kept[::-1]
