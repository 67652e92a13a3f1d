"""Grade a folder of submitted notebooks.

    python -m tools.classroom.grade --submissions FOLDER [--lesson 03] [--out FOLDER] [--trust]

Takes every notebook below the folder: `anna.ipynb` and `anna/anything.ipynb` are Anna's, and names
that Canvas and Moodle give are understood. Of two of one student for one lesson the later counts.
Writes `grades.csv`, `grades_by_exercise.csv`, for Canvas `canvas.csv`, and one page of feedback per
notebook, at the end, also if it comes early. Give the `--seed` of the assignment.

Answers run in a box (see `box`); what they gave back is judged here. Without a box nothing runs,
unless you trust everybody who handed in.

Exit status: 0 if every notebook was graded, 1 if some could not be, 2 for wrong use.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from helpers.output.files import check_writable, without_places
from tools.classroom import feedback, replay
from tools.classroom.assignment import hidden_seeds
from tools.classroom.box import Limits, Record, find_box, run_answers
from tools.classroom.exercises import (
    ClassroomError,
    Exercise,
    Lesson,
    lessons_with_exercises,
    read_lesson,
)
from tools.classroom.gradebook import Result, Row, write_results
from tools.classroom.prelude import plain
from tools.classroom.restore import Restored, restore, which_lesson
from tools.classroom.submission import Submission, Unreadable, find_submissions, read_cells, shown

AT_ONCE = 2
UNANSWERED = "This exercise has not been answered."
WHERE_TO_WRITE = (
    "Choose a folder for the results with --out, and one for temporary files with the environment "
    "variable TMPDIR, where there is room and you can write."
)


@dataclass(frozen=True)
class Given:
    """A submission that could be read: its file, its lesson, and its answers in order."""

    submission: Submission
    file: str
    lesson: Lesson
    restored: Restored


def read(submission: Submission, folder: Path, lessons: Sequence[Lesson]) -> Given | Result:
    """A submission below a folder, or its result if nothing in it can be graded."""
    file = shown(submission.path, folder)
    lesson = lessons[0] if len(lessons) == 1 else None
    try:
        cells = read_cells(submission.path)
        lesson = lesson or which_lesson(cells, lessons)
        return Given(submission, file, lesson, restore(cells, lesson))
    except Unreadable as problem:
        return _nothing(submission, file, lesson, str(problem))
    except Exception as error:  # one submission must never stop the others
        reason = f"It could not be graded: {type(error).__name__}: {error}"
        return _nothing(submission, file, lesson, reason)


def checks(exercise: Exercise, seed: int) -> list[str]:
    """The calls of an exercise's check: the visible one, then those on other data."""
    call = exercise.hidden_call
    return [call.replace("seed=seed", f"seed={number}") for number in (0, *hidden_seeds(seed))]


def jobs(given: Given, seed: int) -> list[dict]:
    """What `run_answers` shall run: every exercise that was answered."""
    return [
        {
            "exercise": exercise.name,
            "name": exercise.answer,
            "answer": plain(given.restored.answers[exercise.name]),
            "before": given.restored.before[exercise.name],
            "checks": checks(exercise, seed),
        }
        for exercise in given.lesson.exercises
        if exercise.name in given.restored.answers
    ]


def judged(given: Given, records: Mapping[str, Record], box: str, seed: int) -> Result:
    """The result of a submission, from what its answers gave back."""
    rows, restored, whose = [], given.restored, given.submission
    for exercise in given.lesson.exercises:
        record = records.get(exercise.name, Record(problem=UNANSWERED))
        passed, message = False, replay.readable(record.problem)
        if not message:
            passed, message = replay.judge(record.blob, exercise.answer, checks(exercise, seed))
        points, answer = exercise.points * passed, restored.answers.get(exercise.name, "")
        row = (exercise.name, points, exercise.points, message, exercise.title, answer)
        rows.append(Row(*row))
    page = feedback.page(whose.student, given.lesson.number, rows, restored.notes)
    more = {"flags": tuple(restored.flags), "isolation": box, "page": page}
    notes, number = tuple(restored.notes), given.lesson.number
    return Result(whose, number, given.file, tuple(rows), notes, **more)


def _nothing(whose: Submission, file: str, lesson: Lesson | None, reason: str) -> Result:
    """Zero points in every exercise, and why."""
    exercises, reason = lesson.exercises if lesson else (), without_places(reason)
    rows = tuple(Row(e.name, 0, e.points, reason) for e in exercises)
    number = lesson.number if lesson else ""
    return Result(whose, number, file, rows, (reason,), graded=False)


def only_latest(found: Sequence[Given | Result]) -> Iterator[Given | Result]:
    """Without those of which the same student has handed in a later one for the same lesson."""
    latest = {}
    for given in sorted((g for g in found if isinstance(g, Given)), key=lambda g: g.submission.age):
        latest[given.submission.student, given.submission.id, given.lesson.number] = given
    for given in found:
        if isinstance(given, Result) or any(given is last for last in latest.values()):
            yield given
        else:
            print(f"{given.file}: a later one of this student was graded instead.")


def grade_all(
    submissions: Sequence[Submission],
    folder: Path,
    lessons: Sequence[Lesson],
    box: str,
    seed: int = 0,
    limits: Limits = Limits(),  # noqa: B008  it cannot be changed
) -> Iterator[Result]:
    """Grade every submission below a folder, two at a time, saying how it goes.

    Args:
        submissions: What was found in the folder.
        folder: The folder.
        lessons: The lessons to choose from; with one, every submission is taken for it.
        box: What answers run in (see `box.find_box`).
        seed: Chooses the hidden tests, as for the assignment.
        limits: What each answer may take.
    """
    start, stop = time.monotonic(), threading.Event()
    found = list(only_latest([read(submission, folder, lessons) for submission in submissions]))
    yield from (result for result in found if isinstance(result, Result))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {
            pool.submit(run_answers, box, jobs(given, seed), limits, stop): given
            for given in found
            if isinstance(given, Given)
        }
        try:
            for done in as_completed(running):
                result = judged(running[done], done.result(), box, seed)
                print(f"{time.monotonic() - start:6.0f} s  {_line(result)}", flush=True)
                yield result
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _line(result: Result) -> str:
    """One submission on the terminal."""
    counted = f"{result.points:g} of {result.max_points} points"
    return f"{result.student:24} lesson {result.lesson}  {counted}"


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
    add("--trust", action="store_true", help="run answers without a box where there is none")
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
        ClassroomError: There is nothing to grade, or nothing to grade in.
        OSError: The results cannot be written, or there is no room for temporary files.
    """
    lessons = [read_lesson(options.lesson)] if options.lesson else lessons_with_exercises()
    submissions = find_submissions(options.submissions)
    if not submissions:
        raise ClassroomError(f"There are no notebooks (*.ipynb) in {options.submissions}.")
    options.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of grading
    check_writable(options.out)
    box = find_box(options.trust)
    print(f"Answers run in a box: {box}." if box != "none" else "Answers run without any box.")
    settings, results = (lessons, box, options.seed, Limits(seconds=options.seconds)), []
    try:
        for result in grade_all(submissions, options.submissions, *settings):
            results.append(result)
    finally:  # whatever happens to one, the others keep what they have got
        results.sort(key=lambda result: (result.student, result.file))
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
