"""Make an assignment from a lesson: the student's notebook, the teacher's, and nbgrader's.

    python -m tools.classroom.assignment --lesson 03 [--out FOLDER] [--seed N]

Writes `student/`, `instructor/` and `autograder/`, a course for nbgrader, to
`classroom/lesson_03/` or to the folder given. Everything comes from the lesson itself.

Hidden tests are the visible checks on other data, with the seeds `1000 * N + 1`, `+ 2` and `+ 3`.
The lessons and their solutions are public: hidden tests only stop answers that fit the visible
data and nothing else.
"""

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.classroom.course import make_course, quieten
from tools.classroom.exercises import NOTEBOOKS, ClassroomError, Exercise, Lesson, read_lesson
from tools.classroom.workshop import workshop

MANIFEST = "manifest.json"
HIDDEN_TESTS = 3  # per exercise
SKIPPED = "raises-exception"  # the tag that lets "run all" go on after an error
IMPORT = "from helpers import checks"


def hidden_seeds(seed: int) -> tuple[int, ...]:
    """The seeds of the hidden tests; 0 would be the visible check."""
    return tuple(1000 * seed + number for number in range(1, HIDDEN_TESTS + 1))


def _nbgrader(grade_id: str, points: int = 0) -> dict:
    """nbgrader's metadata of a cell: with points it is a test, else an answer."""
    metadata = {
        "schema_version": 3,
        "grade_id": grade_id,
        "grade": points > 0,
        "solution": points == 0,
        "locked": points > 0,
        "task": False,
    }
    return metadata | ({"points": points} if points else {})


def _mark_solution(cell: NotebookNode, exercise: Exercise) -> None:
    """Turn the folded solution of a lesson into a cell that nbgrader can empty."""
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


def source_notebook(lesson: Lesson, seed: int) -> NotebookNode:
    """The lesson with nbgrader's metadata, its solutions shown and hidden tests added."""
    notebook = copy.deepcopy(lesson.notebook)
    cells = {cell.id: cell for cell in notebook.cells}
    for exercise in lesson.exercises:
        _mark_solution(cells[exercise.solution_cell], exercise)
        _mark_test(cells[exercise.check_cell], exercise, hidden_seeds(seed))
    return notebook


def instructor_notebook(lesson: Lesson, source: NotebookNode, seed: int) -> NotebookNode:
    """The source with a first cell that lists the points."""
    rows = [
        f"| {number} · {exercise.title} | `{exercise.test_id}` | {exercise.points} |"
        for number, exercise in enumerate(lesson.exercises, start=1)
    ]
    seeds = ", ".join(map(str, hidden_seeds(seed)))
    lines = [
        f"**Teacher's version** of lesson {lesson.number}: solutions and hidden tests are shown.",
        f"The hidden tests use the seeds {seeds}.\n",
        "| exercise | graded cell | points |\n|---|---|---|",
        *rows,
        f"| | all | {lesson.points} |",
    ]
    head = nbformat.v4.new_markdown_cell("\n".join(lines), id="points")
    notebook = copy.deepcopy(source)
    notebook.cells.insert(0, head)
    return notebook


def build(lesson: Lesson, folder: Path, seed: int = 0) -> NotebookNode:
    """Write all versions of an assignment into an empty folder; returns the student's notebook."""
    name = lesson.path.name
    source = source_notebook(lesson, seed)
    release = make_course(folder / "autograder", lesson.assignment, name, source)
    for version in ("student", "instructor"):
        (folder / version).mkdir()
    released = folder / "autograder" / "release" / lesson.assignment / name
    shutil.copy(released, folder / "student" / name)
    nbformat.write(instructor_notebook(lesson, source, seed), folder / "instructor" / name)
    return release


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() and path != folder / MANIFEST:
            yield path.relative_to(folder).as_posix()


def write_manifest(lesson: Lesson, folder: Path, seed: int) -> None:
    """Note what was made and from which seed, so that only that is ever replaced."""
    points = {exercise.name: exercise.points for exercise in lesson.exercises}
    content = {"lesson": lesson.number, "seed": seed, "points": points, "files": [*_files(folder)]}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _made(manifest: Path) -> list[str]:
    """The files that a manifest lists; none if there is no manifest."""
    if not manifest.is_file():
        return []
    try:
        return [str(name) for name in json.loads(manifest.read_text(encoding="utf-8"))["files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ClassroomError(
            f"{manifest} is damaged, or not from here: choose another folder with --out."
        ) from error


def check_replaceable(folder: Path) -> None:
    """Raise a `ClassroomError` if a folder holds anything that this program did not make."""
    if not folder.exists():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ClassroomError(f"{folder} is no folder of its own: choose another with --out.")
    others = sorted(set(_files(folder)) - set(_made(folder / MANIFEST)))
    if others:
        raise ClassroomError(
            f"{folder} holds files that were not made here, such as {others[0]}: "
            "move them away or choose another folder with --out."
        )


def make_assignment(lesson: Lesson, folder: Path, seed: int = 0) -> None:
    """Make an assignment in a folder, replacing an earlier one in a single step.

    Raises:
        ClassroomError: The folder holds other files, or nbgrader is missing.
    """
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with workshop(".assignment-", folder.parent) as temporary:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        build(lesson, new, seed)
        write_manifest(lesson, new, seed)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.classroom.assignment", description="Make an assignment from a lesson."
    )
    parser.add_argument("--lesson", required=True, metavar="NN", help="the lesson's number")
    parser.add_argument("--out", type=Path, help="folder (default: classroom/lesson_NN)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden tests (default: 0)")
    parser.add_argument("--verbose", action="store_true", help="show nbgrader's messages")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must be 0 or more.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.assignment`; returns its exit status."""
    options = parse(arguments)
    quieten(options.verbose)
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
    print(f"The student's, the instructor's and nbgrader's version are in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
