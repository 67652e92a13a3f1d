"""Grade a folder of submitted notebooks.

    python -m tools.classroom.grade --submissions FOLDER [--lesson 03] [--out FOLDER]

Takes every notebook below the folder: `anna.ipynb` and `anna/anything.ipynb` are Anna's. Writes
`grades.csv`, `grades_by_exercise.csv` and one page of feedback per notebook. Answers run apart from
the tests, without network and one by one (see `sandbox`); nothing of a submission runs here.
Results are written at the end, also if it comes early. Give the `--seed` of the assignment.

Exit status: 0 if every notebook was graded, 1 if some could not be, 2 for wrong use.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.classroom.course import quieten, require_nbgrader
from tools.classroom.exercises import ClassroomError, Lesson, lessons_with_exercises, read_lesson
from tools.classroom.gradebook import Result, Row, write_results
from tools.classroom.guard import Limits, NoWorker, strength
from tools.classroom.identify import which_lesson
from tools.classroom.marking import Marked, Master, grade, make_master
from tools.classroom.restore import restore
from tools.classroom.submission import (
    Submission,
    Unreadable,
    find_submissions,
    read_cells,
    shown,
)
from tools.classroom.workshop import workshop
from helpers.output import check_writable

PROTECTION = {
    "kernel": "Answers run under the kernel's protection (Landlock).",
    "python": "This system has no Landlock, or an old one: rely on Python's guard only. "
    "Grade only notebooks of people you trust not to attack you.",
}
WHERE_TO_WRITE = (
    "Choose a folder for the results with --out, and one for temporary files with the environment "
    "variable TMPDIR, where there is room and you can write."
)


class Grader:
    """Grades submissions one by one.

    Args:
        lessons: The lessons to choose from; with one, every submission is taken for it.
        workshop: A folder for temporary courses.
        seed: Chooses the hidden tests, as for the assignment.
        limits: What each answer may take.
    """

    def __init__(
        self, lessons: Sequence[Lesson], workshop: Path, seed: int = 0, limits: Limits | None = None
    ) -> None:
        self.lessons, self.workshop = lessons, workshop
        self.limits = limits or Limits()
        self.seed = seed
        self.master = functools.cache(self._make_master)

    def _make_master(self, number: str) -> Master:
        lesson = next(lesson for lesson in self.lessons if lesson.number == number)
        return make_master(lesson, self.workshop / f"master_{number}", self.seed)

    def grade(self, submission: Submission, folder: Path) -> Result:
        """Grade one submission of a folder; whatever is wrong with it becomes its result.

        Raises:
            ClassroomError: The lesson's own assignment cannot be made, or no answer can be run.
        """
        file = shown(submission.path, folder)
        lesson = self.lessons[0] if len(self.lessons) == 1 else None
        try:
            cells = read_cells(submission.path)
            lesson = lesson or which_lesson(cells, self.lessons)
            restored = restore(cells, self.master(lesson.number).release, lesson.exercises)
            heading = f"`{submission.student.replace('`', '')}`, lesson {lesson.number}"
            with tempfile.TemporaryDirectory(dir=self.workshop) as course:
                master = self.master(lesson.number)
                marked = grade(restored, master, heading, Path(course), self.limits)
        except Unreadable as problem:
            return _nothing(submission.student, lesson, file, str(problem))
        except ClassroomError:  # no fault of this submission: the lesson itself cannot be graded
            raise
        except NoWorker as error:  # nor this
            raise ClassroomError(str(error)) from error
        except Exception as error:  # one submission must never stop the others
            reason = f"It could not be graded: {type(error).__name__}: {error}"
            return _nothing(submission.student, lesson, file, reason)
        rows, notes = _rows(lesson, marked), tuple(restored.notes)
        return Result(submission.student, lesson.number, file, rows, notes, marked.page)


def _rows(lesson: Lesson, marked: Marked) -> tuple[Row, ...]:
    return tuple(
        Row(e.name, marked.points[e.name], e.points, marked.marks[e.name].message)
        for e in lesson.exercises
    )


def _nothing(student: str, lesson: Lesson | None, file: str, reason: str) -> Result:
    """Zero points in every exercise, and why."""
    exercises = lesson.exercises if lesson else ()
    rows = tuple(Row(e.name, 0, e.points, reason) for e in exercises)
    number = lesson.number if lesson else ""
    return Result(student, number, file, rows, (reason,), graded=False)


def grade_all(
    submissions: Sequence[Submission], folder: Path, lessons: Sequence[Lesson], **settings: Any
) -> Iterator[Result]:
    """Grade every submission of a folder, one after the other, saying how it goes.

    Args:
        submissions: What was found in the folder.
        folder: The folder.
        lessons: The lessons to choose from.
        settings: `seed` and `limits`, as for `Grader`.
    """
    with workshop("grading-") as place:
        grader = Grader(lessons, place, **settings)
        for submission in submissions:
            start = time.monotonic()
            result = grader.grade(submission, folder)
            print(f"{_line(result)}  {time.monotonic() - start:5.1f} s", flush=True)
            yield result


def _line(result: Result) -> str:
    """One submission on the terminal."""
    if not result.rows:
        return f"{result.student:24} {result.notes[0]}"
    counted = f"{result.points:g} of {result.max_points} points"
    problem = f"  {result.notes[-1]}" if result.page is None else ""
    return f"{result.student:24} lesson {result.lesson}  {counted:16}{problem}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.classroom.grade", description="Grade a folder of submitted notebooks."
    )
    add = parser.add_argument
    add("--submissions", required=True, type=Path, metavar="FOLDER", help="the notebooks")
    add("--lesson", metavar="NN", help="take every notebook for this lesson (default: look)")
    add("--out", type=Path, default=Path("grades"), help="folder for the results (default: grades)")
    add("--seed", type=int, default=0, help="the seed of the assignment (default: 0)")
    add("--seconds", type=float, default=20, help="for each answer (default: 20)")
    add("--verbose", action="store_true", help="show nbgrader's messages")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds < float("inf"):
        parser.error("--seconds must be more than 0, and finite.")
    if options.seed < 0:
        parser.error("--seed must be 0 or more.")
    if not options.submissions.is_dir():
        parser.error(f"there is no folder {options.submissions}.")
    return options


def run(options: argparse.Namespace) -> int:
    """Grade as the command line says; returns the exit status.

    Raises:
        ClassroomError: There is nothing to grade, or nothing to grade with.
        OSError: The results cannot be written, or there is no room for temporary files.
    """
    require_nbgrader()
    quieten(options.verbose)
    lessons = [read_lesson(options.lesson)] if options.lesson else lessons_with_exercises()
    submissions = find_submissions(options.submissions)
    if not submissions:
        raise ClassroomError(f"There are no notebooks (*.ipynb) in {options.submissions}.")
    options.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of grading
    print(PROTECTION[strength()])
    check_writable(options.out)
    limits = Limits(seconds=options.seconds)
    settings = {"seed": options.seed, "limits": limits}
    results = []
    try:
        for result in grade_all(submissions, options.submissions, lessons, **settings):
            results.append(result)
    finally:  # whatever happens to one, the others keep what they have got
        write_results(results, options.out)
    print(f"{len(results)} notebooks: see {options.out / 'grades.csv'}")
    return 0 if all(result.graded for result in results) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.grade`; returns its exit status."""
    sys.stdout.reconfigure(errors="replace")  # names of students may not fit the terminal
    try:
        return run(parse(arguments))
    except ClassroomError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Nothing could be written: {error}. {WHERE_TO_WRITE}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted: the results hold those graded so far.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
