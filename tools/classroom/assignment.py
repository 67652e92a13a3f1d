"""Make an assignment from a lesson: the student's notebook, the teacher's, and nbgrader's.

    python -m tools.classroom.assignment --lesson 03 [--out FOLDER] [--seed N]

Writes `student/`, `instructor/` and, if nbgrader is installed, `autograder/` (a course for it) to
`classroom/lesson_03/` or to the folder given. Everything comes from the lesson itself.

Hidden tests are the visible checks on other data, with the seeds `1000 * N + 1`, `+ 2` and `+ 3`.
The lessons and their solutions are public: hidden tests only stop answers that fit the visible
data and nothing else.
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

from tools.classroom.exercises import NOTEBOOKS, ClassroomError, Exercise, Lesson, read_lesson

HIDDEN_TESTS = 3  # per exercise
SKIPPED = "raises-exception"  # the tag that lets "run all" go on after an error
IMPORT = "from helpers.lessons import checks"
STUB = "# Your code here.\nraise NotImplementedError()"
BADGE = re.compile(r"\s*\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)")  # opens the lesson, solutions and all
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
HIDDEN = re.compile(r"\n### BEGIN HIDDEN TESTS\n.*?^### END HIDDEN TESTS$", re.M | re.S)
CONFIG = f'''\
"""nbgrader's settings of this course: run nbgrader in this folder.

The checks come from `helpers`, so grade with the Python that this repository is installed in.
"""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "subspace_illusion"
c.ClearSolutions.code_stub = {{"python": {STUB!r}}}
c.Execute.timeout = 900  # seconds for one cell: lessons run a model
'''
NO_NBGRADER = (
    "autograder/ was left out, since nbgrader is not installed (it needs Python 3.11 or newer): "
    'run `pip install -e ".[classroom]"` in the repository if you want it.'
)


def hidden_seeds(seed: int) -> tuple[int, ...]:
    """The seeds of the hidden tests; 0 would be the visible check."""
    return tuple(1000 * seed + number for number in range(1, HIDDEN_TESTS + 1))


def _nbgrader(grade_id: str, points: int = 0) -> dict:
    """nbgrader's metadata of a cell: with points it is a test, else an answer."""
    test = points > 0
    metadata = {"schema_version": 3, "grade_id": grade_id, "task": False}
    metadata |= {"grade": test, "solution": not test, "locked": test}
    return metadata | ({"points": points} if test else {})


def _mark_solution(cell: NotebookNode, exercise: Exercise) -> None:
    """Turn the folded solution of a lesson into a cell that can be emptied."""
    at_top_level = "\n### BEGIN SOLUTION" in f"\n{cell.source}"  # its stub raises when it is run
    cell.source = f"{exercise.comment}\n{cell.source}"
    cell.metadata = nbformat.from_dict({"nbgrader": _nbgrader(exercise.grade_id)})
    if at_top_level:
        cell.metadata["tags"] = [SKIPPED]


def _mark_test(cell: NotebookNode, exercise: Exercise, seeds: Sequence[int]) -> None:
    """Turn the check of a lesson into a test that stands alone, with hidden parts."""
    visible = cell.source.replace(IMPORT, "").strip()
    hidden = [f"for seed in {tuple(seeds)}:", f"    {exercise.hidden_call}"]
    lines = ["### BEGIN HIDDEN TESTS", *hidden, "### END HIDDEN TESTS"]
    cell.source = "\n".join([exercise.check_comment, IMPORT, "", visible, *lines])
    metadata = {"nbgrader": _nbgrader(exercise.test_id, exercise.points)}
    cell.metadata = nbformat.from_dict(metadata | {"tags": [*cell.metadata.tags, SKIPPED]})


def source_notebook(lesson: Lesson, seed: int = 0) -> NotebookNode:
    """The lesson with nbgrader's metadata, its solutions shown and hidden tests added."""
    notebook = copy.deepcopy(lesson.notebook)
    cells = {cell.id: cell for cell in notebook.cells}
    for exercise in lesson.exercises:
        _mark_solution(cells[exercise.solution_cell], exercise)
        _mark_test(cells[exercise.check_cell], exercise, hidden_seeds(seed))
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
            cell.metadata["deletable"] = False
            if cell.metadata.nbgrader.locked:
                cell.metadata["editable"] = False
            cell.source = HIDDEN.sub("", SOLUTION.sub(_stub, cell.source))
    return notebook


def _stub(match: re.Match) -> str:
    return "\n".join(match[1] + line for line in STUB.split("\n"))


def instructor_notebook(lesson: Lesson, seed: int = 0) -> NotebookNode:
    """The source with a first cell that lists the points."""
    rows = [
        f"| {number} · {exercise.title} | `{exercise.test_id}` | {exercise.points} |"
        for number, exercise in enumerate(lesson.exercises, start=1)
    ]
    lines = [
        f"**Teacher's version** of lesson {lesson.number}: solutions and hidden tests are shown.",
        f"The hidden tests use the seeds {', '.join(map(str, hidden_seeds(seed)))}.\n",
        "| exercise | graded cell | points |\n|---|---|---|",
        *rows,
        f"| | all | {lesson.points} |",
    ]
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


def build(lesson: Lesson, folder: Path, seed: int = 0) -> None:
    """Write all versions of an assignment into a new folder."""
    files = {
        f"student/{lesson.path.name}": student_notebook(lesson),
        f"instructor/{lesson.path.name}": instructor_notebook(lesson, seed),
    }
    if find_spec("nbgrader"):
        name = f"autograder/source/{lesson.assignment}/{lesson.path.name}"
        files[name] = source_notebook(lesson, seed)
    for name, notebook in files.items():
        (folder / name).parent.mkdir(parents=True)
        nbformat.write(notebook, folder / name)
    if find_spec("nbgrader"):
        (folder / "autograder" / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
        run_nbgrader(folder / "autograder", "generate_assignment", lesson.assignment)


def make_assignment(lesson: Lesson, folder: Path, seed: int = 0) -> None:
    """Make an assignment in a new folder, in a single step.

    Raises:
        ClassroomError: The folder is there already, or nbgrader fails.
    """
    if folder.exists() or folder.is_symlink():
        raise ClassroomError(f"{folder} is there already: move it away, or choose another --out.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")  # of a killed run, too
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        build(lesson, unfinished, seed)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.classroom.assignment", description="Make an assignment from a lesson."
    )
    parser.add_argument("--lesson", required=True, metavar="NN", help="the lesson's number")
    parser.add_argument("--out", type=Path, help="folder (default: classroom/lesson_NN)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden tests (default: 0)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must be 0 or more.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.assignment`; returns its exit status."""
    options = parse(arguments)
    try:
        lesson = read_lesson(options.lesson)
        folder = options.out or NOTEBOOKS.parent / "classroom" / lesson.assignment
        make_assignment(lesson, folder, options.seed)
    except ClassroomError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"It cannot be written: {error}. Choose another with --out.", file=sys.stderr)
        return 2
    print(f"Lesson {lesson.number}: {len(lesson.exercises)} exercises, {lesson.points} points.")
    print(f"The versions for students, instructors and nbgrader are in {folder}")
    if not find_spec("nbgrader"):
        print(NO_NBGRADER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
