"""Read what students handed in, trusting nothing about it, and find their answers.

Of a notebook's file only the text of cells, their ids and nbgrader's names are taken, with limits;
never outputs. Editors rename cells, copy them, delete them; Colab drops ids and metadata. An answer
is found by nbgrader's metadata, else by its cell id, else by the comment in its first line, else by
the name it defines. Checks and other cells are the lesson's own; what a student added is kept.

An answer runs apart from its notebook, behind those cells that define a name it uses. Cells that
only explore, plot or load a model are left out, so that they cost no time and cannot fail.
"""

import ast
import functools
import json
import os
import re
import symtable
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from tools.classroom.assignment import Exercise, Lesson, student_notebook

MAX_FILE = 20 * 2**20  # bytes
MAX_TEXT = 2**20  # characters of all cells together, without outputs: lessons have a tenth of it
MAX_CELLS = 1000
LOADERS = {"load_model", "load_untrained", "shared_model"}  # there is no model where answers run
INVALID = (SyntaxError, ValueError, RecursionError, MemoryError)  # what is no Python raises one


class Unreadable(Exception):
    """A submission that cannot be graded; the message says why."""


# smithanna_12345_67890_03_catch_the_illusion-1.ipynb; the third part grows with time
CANVAS = re.compile(r"([^_]+)(?:_LATE)?_(\d+)_(\d+)_.*?(?:-(\d+))?\.ipynb")
MOODLE = re.compile(r"(.+)_(\d+)_assignsubmission_file_?")  # a folder for every student


class Submission(NamedTuple):
    """A notebook that was handed in."""

    student: str
    path: Path
    file: str = ""  # its path from the folder of submissions on, as text that can be written
    id: str = ""  # the student's number in Canvas or Moodle, if the name tells
    age: tuple[int, ...] = ()  # grows with the time when it was handed in, for one student
    canvas: bool = False  # whether its name is one that Canvas gives


class Cell(NamedTuple):
    """What is taken from a cell: all of it text, and none of it trusted."""

    kind: str  # "code" or "markdown"
    source: str
    id: str = ""
    grade_id: str = ""


def find_submissions(folder: Path) -> list[Submission]:
    """Every notebook below a folder that is not hidden; links are listed, not followed.

    `anna.ipynb` and `anna/anything.ipynb` are Anna's; names of Canvas and Moodle are understood.
    """
    found = []
    for place, folders, files in os.walk(folder):
        notebooks = [name for name in (*files, *folders) if name.endswith(".ipynb")]
        folders[:] = [n for n in folders if not n.startswith(".") and n not in notebooks]
        found += [_submission(Path(place) / n, folder) for n in notebooks if not n.startswith(".")]
    return sorted(found, key=lambda found: (found.student, found.path))


def _submission(path: Path, folder: Path) -> Submission:
    """A notebook below a folder; Canvas and Moodle put more into the first part of its path."""
    file = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")
    first, age = file.split("/")[0], (path.lstat().st_mtime_ns,)
    if named := CANVAS.fullmatch(first):
        student, number, sent, again = named.groups()
        return Submission(student, path, file, number, (int(sent), int(again or 0)), canvas=True)
    if named := MOODLE.fullmatch(first):
        return Submission(named[1], path, file, named[2], age)
    return Submission(first.removesuffix(".ipynb"), path, file, age=age)


def _text(value: Any, *keys: str) -> str:
    """A text as notebooks store it, by its keys: a string, or the list of its lines; else ""."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, list):
        value = "".join(line for line in value if isinstance(line, str))
    # Halves of characters, which JSON may hold, cannot be written anywhere.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _cell(raw: Any) -> Cell:
    if not isinstance(raw, dict):
        raise Unreadable("It is not a notebook: one of its cells is damaged.")
    kind = "code" if raw.get("cell_type") == "code" else "markdown"
    source = _text(raw, "source").replace("\r\n", "\n").replace("\0", "")
    return Cell(kind, source, _text(raw, "id"), _text(raw, "metadata", "nbgrader", "grade_id"))


def read_cells(path: Path) -> list[Cell]:
    """The cells of a submitted notebook that are not empty, or Unreadable, which says why."""
    if path.is_symlink():
        raise Unreadable("It is a link to another file, not a notebook.")
    if not path.is_file():
        raise Unreadable("It is no file.")
    try:
        if path.stat().st_size > MAX_FILE:
            raise Unreadable(f"It is larger than {MAX_FILE // 2**20} MB: clear its outputs.")
        notebook = json.loads(path.read_bytes())
    except OSError as error:
        raise Unreadable(f"It cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable("It is not a notebook: its content is not JSON.") from error
    if not isinstance(notebook, dict) or "nbformat" not in notebook:
        raise Unreadable("It is not a notebook: it has no nbformat.")
    try:
        notebook = nbformat.convert(nbformat.from_dict(notebook), 4)
    except Exception as error:  # whatever an old or broken format makes nbformat stumble over
        raise Unreadable(f"Notebook format {notebook['nbformat']!r:.20} cannot be read.") from error
    if not isinstance(raw := notebook.get("cells"), list):
        raise Unreadable("It is not a notebook: it has no cells.")
    if len(raw) > MAX_CELLS:
        raise Unreadable(f"It has more than {MAX_CELLS} cells.")
    cells = [cell for cell in map(_cell, raw) if cell.source.strip()]
    if sum(len(cell.source) for cell in cells) > MAX_TEXT:
        raise Unreadable(f"Its cells hold more than {MAX_TEXT:,} characters.")
    return cells


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
    """The lesson that a notebook has most of (exercises, then cells and names), or Unreadable."""
    everything = "\n".join(f"{cell.grade_id}\n{cell.source}" for cell in cells)
    scores = []
    for lesson in lessons:
        own = {cell.source.strip() for cell in lesson.notebook.cells}
        marked, shared = 0, sum(cell.source.strip() in own for cell in cells)
        for e in lesson.exercises:
            marks = (e.grade_id, e.test_id, e.comment, e.check_comment, e.call.split("(")[0] + "(")
            marked += sum(mark in everything for mark in marks)
            shared += sum(BY_NAME(cell, e) for cell in cells)
        scores.append((marked, shared))
    best = max(scores)
    if len(lessons) > 1 and best == (0, 0) or scores.count(best) > 1:
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
    changed = [cell for cell in cells if _same(cell.source) not in texts]
    theirs = [c for c in changed if not any(_is_check(c, e) for e in lesson.exercises)]
    own = {plain(cell.source) for cell in theirs}
    for exercise in lesson.exercises:
        _find_answer(restored, exercise, cells, theirs)
        answer = plain(restored.answers.get(exercise.name, ""))
        parts = _before(lesson, exercise, cells, theirs)
        restored.before[exercise.name] = needed(parts, answer, own)
        if any(_is_check(cell, exercise) for cell in changed):
            what = f"The check of exercise '{exercise.name}' was changed"
            restored.notes.append(f"{what}: the original one was used.")
    if not any(cell.grade_id for cell in cells):
        ways = " and ".join(restored.found)
        found = f"; its exercises were found by {ways}, and graded" if ways else ""
        restored.notes.append(f"The notebook had lost its cell metadata (Colab does that){found}.")
    _flag(restored, cells, lesson)
    return restored


class _AsGenerators(ast.NodeTransformer):
    """Comprehensions as generators: from Python 3.12 on only these keep their names apart."""

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp) -> ast.GeneratorExp:
        self.generic_visit(node)
        return ast.GeneratorExp(node.elt, node.generators)

    visit_SetComp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> ast.GeneratorExp:
        self.generic_visit(node)
        return ast.GeneratorExp(ast.Tuple([node.key, node.value]), node.generators)


@functools.lru_cache(4096)  # a cell is looked at once for every exercise
def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a source defines, and those it uses; none if it is no valid Python."""
    try:
        alike = ast.unparse(_AsGenerators().visit(ast.parse(source)))
        tables = [top := symtable.symtable(alike, "cell", "exec")]
    except INVALID:
        return set(), set()
    defined, used = set(), set()
    for table in tables:  # which grows
        tables += table.get_children()
        symbols = [s for s in table.get_symbols() if table is top or s.is_global()]
        defined |= {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
        used |= {s.get_name() for s in symbols if s.is_referenced()}
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
    commented = re.sub(r"^(?=[ \t]*[%!])", "# ", source, flags=re.M)
    return source if syntax(source) else commented


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
