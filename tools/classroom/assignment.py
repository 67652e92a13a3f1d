"""Make an assignment from a lesson: the student's notebook, the teacher's, and nbgrader's.

    python -m tools.classroom.assignment --lesson 03 [--out FOLDER] [--seed N]

Writes `student/`, `instructor/` and, if nbgrader is installed, `autograder/`, a course for it.

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
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.output.files import ROOT
from tools.classroom.exercises import ClassroomError, Lesson, read_lesson

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
autograder/ was left out, since nbgrader is not installed (it needs Python 3.11 or newer): run
`pip install -e ".[classroom]"` in the repository if you want it."""


def hidden_seeds(seed: int) -> tuple[int, ...]:
    """The seeds of the hidden tests; 0 would be the visible check."""
    return tuple(1000 * seed + number for number in (1, 2, 3))


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
        hidden = f"for seed in {hidden_seeds(seed)}:\n    {exercise.hidden_call}"
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


def run_nbgrader(course: Path, *arguments: str) -> None:
    """Run nbgrader in a course; raises a ClassroomError with its last words if it fails."""
    # nbgrader starts alembic by its name, so this Python's programs come first.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    settings = {"cwd": course, "env": os.environ | {"PATH": path}}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    if done.returncode:
        raise ClassroomError(f"nbgrader {arguments[0]} failed: {done.stderr.strip()[-500:]}")


def make_assignment(lesson: Lesson, folder: Path, seed: int = 0) -> None:
    """Make all versions of an assignment in a new folder, in a single step.

    Raises:
        ClassroomError: The folder is there already, or nbgrader fails.
    """
    if folder.exists() or folder.is_symlink():
        raise ClassroomError(f"{folder} is there already: move it away, or choose another --out.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run
    try:
        versions = {"student": student_notebook(lesson)}
        versions["instructor"] = instructor_notebook(lesson, seed)
        if find_spec("nbgrader"):
            versions[f"autograder/source/{lesson.assignment}"] = source_notebook(lesson, seed)
        for name, notebook in versions.items():
            (unfinished / name).mkdir(parents=True)
            nbformat.write(notebook, unfinished / name / lesson.path.name)
        if find_spec("nbgrader"):
            course = unfinished / "autograder"
            (course / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
            run_nbgrader(course, "generate_assignment", lesson.assignment)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.assignment`; returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m tools.classroom.assignment", description="Make an assignment from a lesson."
    )
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
