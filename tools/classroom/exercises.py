"""The exercises of a lesson: what each is worth, where its cells are, and what its check calls."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"


class ClassroomError(Exception):
    """Something that a teacher can mend; the message says how."""


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Attributes:
        lesson: The lesson's number, such as "03".
        name: What the cell ids call it: "split" for `exercise-split`.
        title: Its heading, without the number.
        points: Its difficulty, 1 to 5.
        call: How its check is called: "checks.check_row_null(split)".
        answer: The name that the check judges: "split".
    """

    lesson: str
    name: str
    title: str
    points: int
    call: str
    answer: str

    @property
    def hidden_call(self) -> str:
        """Its check on other data, chosen by a variable `seed`."""
        return f"{self.call[:-1]}, seed=seed)"

    @property
    def solution_cell(self) -> str:
        """The id of the cell with the answer."""
        return f"exercise-{self.name}-solution"

    @property
    def check_cell(self) -> str:
        """The id of the cell with the check."""
        return f"exercise-{self.name}-check"

    @property
    def grade_id(self) -> str:
        """nbgrader's name of the cell with the answer."""
        return f"lesson-{self.lesson}-{self.name}"

    @property
    def test_id(self) -> str:
        """nbgrader's name of the cell with the check."""
        return f"{self.grade_id}-test"

    @property
    def comment(self) -> str:
        """First line of the cell with the answer: it survives when ids and metadata are lost."""
        return f"# exercise: lesson {self.lesson}, {self.name}"

    @property
    def check_comment(self) -> str:
        """First line of the cell with the check."""
        return f"# check: lesson {self.lesson}, {self.name}"


@dataclass(frozen=True)
class Lesson:
    """A lesson with its exercises, in order."""

    number: str
    path: Path
    notebook: NotebookNode = field(repr=False)
    exercises: tuple[Exercise, ...]

    @property
    def assignment(self) -> str:
        """nbgrader's name of the assignment."""
        return f"lesson_{self.number}"

    @property
    def points(self) -> int:
        """What all exercises are worth together."""
        return sum(exercise.points for exercise in self.exercises)


def find_lessons() -> dict[str, Path]:
    """The lessons by their number, in order."""
    return {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}


def _check_call(source: str) -> tuple[str, str]:
    """How a cell calls its check, and the name that the check judges."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("checks.check_"):
            if node.args and isinstance(node.args[0], ast.Name):
                return ast.unparse(node), node.args[0].id
    raise ClassroomError(f"This check cell calls no check with the name of an answer:\n{source}")


def _exercises(number: str, notebook: NotebookNode) -> Iterator[Exercise]:
    cells = {cell.id: cell for cell in notebook.cells}
    for name, cell in cells.items():
        heading = re.match(r"### Exercise \d+ · (.+)", cell.source)
        if not heading:
            continue
        difficulty = re.search(r"^\*Difficulty (\d)/5", cell.source, flags=re.M)
        if f"{name}-check" not in cells or not difficulty:
            raise ClassroomError(f"{name} of lesson {number} has no check or no difficulty.")
        call, answer = _check_call(cells[f"{name}-check"].source)
        points = int(difficulty[1])
        short = name.removeprefix("exercise-")
        yield Exercise(number, short, heading[1].strip(), points, call, answer)


def _read(number: str, path: Path) -> Lesson:
    notebook = nbformat.read(path, as_version=4)
    return Lesson(number, path, notebook, tuple(_exercises(number, notebook)))


def read_lesson(number: str) -> Lesson:
    """A lesson by its number, with or without the zero in front.

    Raises:
        ClassroomError: There is no such lesson, or it has no exercises.
    """
    lessons, number = find_lessons(), number and number.zfill(2)
    if number not in lessons:
        raise ClassroomError(
            f"There is no lesson {number or repr(number)}; there are: {', '.join(lessons)}."
        )
    lesson = _read(number, lessons[number])
    if not lesson.exercises:
        raise ClassroomError(f"Lesson {number} has no exercises: choose one of the others.")
    return lesson


def lessons_with_exercises() -> list[Lesson]:
    """Every lesson that can be an assignment, in order; the first only opens the series."""
    lessons = [_read(number, path) for number, path in find_lessons().items()]
    return [lesson for lesson in lessons if lesson.exercises]
