"""Make an assignment from a lesson: the student's notebook, the teacher's, and nbgrader's.

    python -m tools.classroom.assignment --lesson 03 [--out FOLDER] [--seed N]

Hidden tests are the visible checks on other data. The lessons and their solutions are public:
hidden tests only stop answers that fit the visible data and nothing else.
"""

import argparse
import copy
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from helpers.output.files import ROOT, write
from tools.schedule import find_lessons

SKIPPED = "raises-exception"  # the tag that lets "run all" go on after an error
IMPORT = "from helpers.lessons import checks"
STUB = "# Your code here.\nraise NotImplementedError()"
INDENTED_STUB = r"\1" + STUB.replace("\n", "\n\\1")  # as far as the solution is
BADGE = re.compile(r"\s*\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)")  # opens the lesson, solutions and all
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
HIDDEN = re.compile(r"\n### BEGIN HIDDEN TESTS\n.*?^### END HIDDEN TESTS$", re.M | re.S)
CONFIG = f"""\
# nbgrader's settings of this course: run nbgrader in this folder.
# The checks come from `helpers`, so grade with the Python that this repository is installed in.
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "subspace_illusion"
c.ClearSolutions.code_stub = {{"python": {STUB!r}}}
c.Execute.timeout = 900  # seconds for one cell: lessons run a model
"""
NO_NBGRADER = """\
autograder/ was left out, since nbgrader is not installed: run
`pip install -e ".[classroom]"` in the repository if you want it."""


class ClassroomError(Exception):
    """Something that a teacher can mend; the message says how."""


@dataclass
class Exercise:
    """One exercise of a lesson, and what marks its two cells in an assignment."""

    lesson: str  # its number, such as "03"
    name: str  # "split" for the cells `exercise-split-...`
    title: str  # its heading, without the number
    points: int  # its difficulty, 1 to 5
    call: str  # how its check is called: "checks.check_row_null(split)"
    answer: str  # the name that the check judges: "split"

    def __post_init__(self) -> None:
        self.solution_cell = f"exercise-{self.name}-solution"
        self.check_cell = f"exercise-{self.name}-check"
        self.grade_id = f"lesson-{self.lesson}-{self.name}"
        self.test_id = f"{self.grade_id}-test"
        self.comment = f"# exercise: lesson {self.lesson}, {self.name}"
        self.check_comment = f"# check: lesson {self.lesson}, {self.name}"

    def checks(self, seed: int) -> list[str]:
        """The calls of its check: on the data of the lesson, then on those of the hidden tests."""
        return [f"{self.call[:-1]}, seed={number})" for number in (0, *hidden_seeds(seed))]


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


def hidden_seeds(seed: int) -> tuple[int, ...]:
    """The seeds of the hidden tests; 0 would be the visible check."""
    return tuple(1000 * seed + number for number in (1, 2, 3))


def _read(number: str, path: Path) -> Lesson:
    """A lesson with those exercises that its headings begin."""
    notebook, exercises = nbformat.read(path, as_version=4), []
    cells = {cell.id: cell.source for cell in notebook.cells}
    for name, source in cells.items():
        if heading := re.match(r"### Exercise \d+ · (.+)", source):
            points = re.search(r"^\*Difficulty (\d)/5", source, flags=re.M)
            call = r"^checks\.check_\w+\((\w+)[^()\n]*\)"  # of its check, on what it judges
            check = re.search(call, cells.get(f"{name}-check", ""), flags=re.M)
            if not check or not points:
                raise ClassroomError(f"{name} of lesson {number} has no check or no difficulty.")
            own = (number, name.removeprefix("exercise-"), heading[1].strip(), int(points[1]))
            exercises.append(Exercise(*own, call=check[0], answer=check[1]))
    return Lesson(number, path, notebook, tuple(exercises))


def read_lesson(number: str) -> Lesson:
    """A lesson by its number, "03" or "3"; raises a ClassroomError if it has no exercises."""
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


def _marked(grade_id: str, tags: Sequence[str], points: int = 0) -> NotebookNode:
    """A cell's metadata with nbgrader's: with points it is a test, else an answer."""
    test = points > 0
    marks = {"schema_version": 3, "grade_id": grade_id, "task": False, "grade": test}
    marks |= {"solution": not test, "locked": test} | ({"points": points} if test else {})
    return nbformat.from_dict({"nbgrader": marks} | ({"tags": tags} if tags else {}))


def source_notebook(lesson: Lesson, seed: int = 0) -> NotebookNode:
    """The lesson with nbgrader's metadata, its solutions shown and hidden tests added."""
    notebook = copy.deepcopy(lesson.notebook)
    cells = {cell.id: cell for cell in notebook.cells}
    for exercise in lesson.exercises:
        answer, test = cells[exercise.solution_cell], cells[exercise.check_cell]
        raises = "\n### BEGIN SOLUTION" in f"\n{answer.source}"  # its stub does when it is run
        answer.metadata = _marked(exercise.grade_id, [SKIPPED] if raises else [])
        answer.source = f"{exercise.comment}\n{answer.source}"
        visible = test.source.replace(IMPORT, "").strip()
        hidden = f"for seed in {hidden_seeds(seed)}:\n    {exercise.call[:-1]}, seed=seed)"
        hidden = f"### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
        test.source = f"{exercise.check_comment}\n{IMPORT}\n\n{visible}\n{hidden}"
        test.metadata = _marked(exercise.test_id, [*test.metadata.tags, SKIPPED], exercise.points)
    return notebook


def student_notebook(lesson: Lesson) -> NotebookNode:
    """What students get: no solutions, hidden tests or outputs, nor badges that lead to them."""
    notebook = source_notebook(lesson)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = BADGE.sub("", cell.source)
            continue
        cell.outputs, cell.execution_count = [], None
        if "nbgrader" in cell.metadata:
            cell.metadata |= {"deletable": False}
            cell.metadata |= {"editable": False} if cell.metadata.nbgrader.locked else {}
            cell.source = HIDDEN.sub("", SOLUTION.sub(INDENTED_STUB, cell.source))
    return notebook


def instructor_notebook(lesson: Lesson, seed: int = 0) -> NotebookNode:
    """The source with a first cell that lists the points."""
    lines = [
        f"**Teacher's version** of lesson {lesson.number}: solutions and hidden tests are shown.",
        f"The hidden tests use the seeds {', '.join(map(str, hidden_seeds(seed)))}.\n",
        "| exercise | graded cell | points |\n|---|---|---|",
    ]
    for number, exercise in enumerate(lesson.exercises, start=1):
        lines += [f"| {number} · {exercise.title} | `{exercise.test_id}` | {exercise.points} |"]
    lines += [f"| | all | {lesson.points} |"]
    notebook = source_notebook(lesson, seed)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("\n".join(lines), id="points"))
    return notebook


def fails(command: Sequence[str], **settings: Any) -> str:
    """The last words of a program that fails, or nothing if it does not."""
    try:
        done = subprocess.run(command, input="", capture_output=True, text=True, **settings)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return "" if done.returncode == 0 else done.stderr.strip()[-500:] or f"{command[0]} failed"


def run_nbgrader(course: Path, *arguments: str) -> None:
    """Run nbgrader in a course; raises a ClassroomError with its last words if it fails."""
    # nbgrader starts alembic by its name, so this Python's programs come first.
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "nbgrader", *arguments]
    if reason := fails(command, cwd=course, env=os.environ | {"PATH": path}):
        raise ClassroomError(f"nbgrader {arguments[0]} failed: {reason}")


def make_assignment(lesson: Lesson, folder: Path, seed: int = 0) -> None:
    """Make an assignment in a new folder, in one step; a ClassroomError if it is there already.

    It holds `student/`, `instructor/` and, if nbgrader is installed, `autograder/`, its course.
    """
    if folder.exists() or folder.is_symlink():
        raise ClassroomError(f"{folder} is there already: move it away, or choose another --out.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run

    def save(name: str, notebook: NotebookNode) -> None:
        write(unfinished / name / lesson.path.name, f"{nbformat.writes(notebook)}\n")

    try:
        save("student", student_notebook(lesson))
        save("instructor", instructor_notebook(lesson, seed))
        if find_spec("nbgrader"):
            save(f"autograder/source/{lesson.assignment}", source_notebook(lesson, seed))
            write(unfinished / "autograder" / "nbgrader_config.py", CONFIG)
            run_nbgrader(unfinished / "autograder", "generate_assignment", lesson.assignment)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.assignment`; returns its exit status."""
    name, about = "python -m tools.classroom.assignment", "Make an assignment from a lesson."
    parser = argparse.ArgumentParser(name, description=about)
    parser.add_argument("--lesson", required=True, metavar="NN", help="the lesson's number")
    parser.add_argument("--out", type=Path, help="folder (default: classroom/lesson_NN)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden tests (default: 0)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must be 0 or more.")
    try:
        lesson = read_lesson(options.lesson)
        folder = options.out or ROOT / "classroom" / lesson.assignment
        make_assignment(lesson, folder, options.seed)
    except (ClassroomError, OSError) as error:
        unwritten = f"It cannot be written: {error}. Choose another with --out."
        print(unwritten if isinstance(error, OSError) else error, file=sys.stderr)
        return 2
    print(f"Lesson {lesson.number}: {len(lesson.exercises)} exercises, {lesson.points} points.")
    print(f"The versions for students, instructors and nbgrader are in {folder}")
    if not find_spec("nbgrader"):
        print(NO_NBGRADER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
