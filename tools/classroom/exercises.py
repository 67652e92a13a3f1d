"""The exercises of a lesson: what each is worth, where its cells are, and what its check calls."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.output.files import ROOT
from tools.schedule import find_lessons

# How a cell calls its check, and the name that the check judges.
CHECK = re.compile(r"^checks\.check_\w+\((\w+)[^()\n]*\)", re.M)


class ClassroomError(Exception):
    """Something that a teacher can mend; the message says how."""


@dataclass
class Exercise:
    """One exercise of a lesson, and the marks of the two cells that it has in an assignment.

    A mark is a cell's id, nbgrader's name of it, or its first line, a comment: this survives when
    ids and metadata are lost.
    """

    lesson: str  # its number, such as "03"
    name: str  # "split" for the cells `exercise-split-...`
    title: str  # its heading, without the number
    points: int  # its difficulty, 1 to 5
    call: str  # how its check is called: "checks.check_row_null(split)"
    answer: str  # the name that the check judges: "split"

    def __post_init__(self) -> None:
        self.hidden_call = f"{self.call[:-1]}, seed=seed)"  # on other data
        self.solution_cell = f"exercise-{self.name}-solution"
        self.check_cell = f"exercise-{self.name}-check"
        self.grade_id = f"lesson-{self.lesson}-{self.name}"
        self.test_id = f"{self.grade_id}-test"
        self.comment = f"# exercise: lesson {self.lesson}, {self.name}"
        self.check_comment = f"# check: lesson {self.lesson}, {self.name}"


@dataclass
class Lesson:
    """A lesson with its exercises, in order."""

    number: str
    path: Path
    notebook: NotebookNode = field(repr=False)
    exercises: tuple[Exercise, ...]

    def __post_init__(self) -> None:
        self.assignment = f"lesson_{self.number}"  # nbgrader's name for it
        self.points = sum(exercise.points for exercise in self.exercises)


def _read(number: str, path: Path) -> Lesson:
    """A lesson with those exercises that its headings begin."""
    notebook, exercises = nbformat.read(path, as_version=4), []
    cells = {cell.id: cell.source for cell in notebook.cells}
    for name, source in cells.items():
        if heading := re.match(r"### Exercise \d+ · (.+)", source):
            difficulty = re.search(r"^\*Difficulty (\d)/5", source, flags=re.M)
            check = CHECK.search(cells.get(f"{name}-check", ""))
            if not check or not difficulty:
                raise ClassroomError(f"{name} of lesson {number} has no check or no difficulty.")
            title, points = heading[1].strip(), int(difficulty[1])
            own = (number, name.removeprefix("exercise-"), title, points)
            exercises.append(Exercise(*own, call=check[0], answer=check[1]))
    return Lesson(number, path, notebook, tuple(exercises))


def read_lesson(number: str) -> Lesson:
    """A lesson by its number, with or without the zero in front.

    Raises:
        ClassroomError: There is no such lesson, or it has no exercises.
    """
    lessons, number = find_lessons(ROOT / "notebooks"), number and number.zfill(2)
    if number not in lessons:
        among = ", ".join(lessons)
        raise ClassroomError(f"There is no lesson {number or repr(number)}; there are: {among}.")
    lesson = _read(number, lessons[number])
    if not lesson.exercises:
        raise ClassroomError(f"Lesson {number} has no exercises: choose one of the others.")
    return lesson


def lessons_with_exercises() -> list[Lesson]:
    """Every lesson that can be an assignment, in order; the first only opens the series."""
    lessons = [_read(number, path) for number, path in find_lessons(ROOT / "notebooks").items()]
    return [lesson for lesson in lessons if lesson.exercises]
