"""Grade a folder of submitted notebooks.

    python -m tools.classroom.grade --submissions FOLDER [--lesson 03] [--out FOLDER] [--trust]

Takes every notebook below the folder: `anna.ipynb` and `anna/anything.ipynb` are Anna's, and names
that Canvas and Moodle give are understood. Of two of one student for one lesson the later counts.
Writes tables and one page of feedback per notebook, at the end, also if it comes early.

Answers run in a box (see `box`), what they gave back is judged here.

Exit status: 0 if every notebook was graded, 1 if some could not be, 2 for wrong use.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from helpers.output.files import check_writable, without_places
from tools.classroom import exercises, gradebook, replay
from tools.classroom.assignment import hidden_seeds
from tools.classroom.box import Limits, Record, find_box, run_answers
from tools.classroom.exercises import ClassroomError, Exercise, Lesson
from tools.classroom.gradebook import Result, Row
from tools.classroom.restore import plain, restore, which_lesson
from tools.classroom.submission import Submission, Unreadable, find_submissions, read_cells

AT_ONCE = 2
NO_LESSON = Lesson("", Path(), None, ())
UNANSWERED = "This exercise has not been answered."
UNWRITTEN = """\
Nothing could be written: {}. Choose a folder for the results with --out, and one for temporary
files with the environment variable TMPDIR, where there is room and you can write."""


def read(submission: Submission, lessons: Sequence[Lesson]) -> Result:
    """What a submission holds; the whole result, with no points, if it cannot be graded."""
    result = Result(submission, lessons[0] if len(lessons) == 1 else NO_LESSON)
    try:
        cells = read_cells(submission.path)
        result.lesson = which_lesson(cells, lessons) if len(lessons) > 1 else lessons[0]
        result.restored = restore(cells, result.lesson)
    except Exception as error:  # one submission must never stop the others
        reason = f"It could not be graded: {type(error).__name__}: {error}"
        reason = without_places(str(error) if isinstance(error, Unreadable) else reason)
        result.graded, result.restored.notes = False, [reason]
        result.rows = [Row(exercise, 0, reason) for exercise in result.lesson.exercises]
    return result


def checks(exercise: Exercise, seed: int) -> list[str]:
    """The calls of an exercise's check: the visible one, then those on other data."""
    call = exercise.hidden_call
    return [call.replace("seed=seed", f"seed={number}") for number in (0, *hidden_seeds(seed))]


def jobs(result: Result, seed: int) -> list[dict]:
    """What `run_answers` shall run: every exercise that was answered."""
    answers, before = result.restored.answers, result.restored.before
    return [
        {"exercise": e.name, "name": e.answer, "answer": plain(answers[e.name])}
        | {"before": before[e.name], "checks": checks(e, seed)}
        for e in result.lesson.exercises
        if e.name in answers
    ]


def complete(result: Result, records: Mapping[str, Record], box: str, seed: int) -> None:
    """Complete the result of a submission, from what its answers gave back."""
    for exercise in result.lesson.exercises:
        record = records.get(exercise.name, Record(problem=UNANSWERED))
        passed, message = False, replay.readable(record.problem)
        if not message:
            passed, message = replay.judge(record.blob, exercise.answer, checks(exercise, seed))
        answer = result.restored.answers.get(exercise.name, "")
        result.rows.append(Row(exercise, exercise.points * passed, message, answer))
    result.isolation, result.page = box, gradebook.feedback(result)


def only_latest(found: Sequence[Result]) -> Iterator[Result]:
    """Without those of which the same student has handed in a later one for the same lesson."""
    graded = sorted((r for r in found if r.graded), key=lambda r: r.whose.age)
    latest = {(r.whose.student, r.whose.id, r.lesson.number): r for r in graded}.values()
    for result in found:
        if result.graded and result not in latest:
            print(f"{result.whose.file}: a later one of this student was graded instead.")
        else:
            yield result


def grade_all(
    found: Sequence[Submission], lessons: Sequence[Lesson], box: str, seed: int, limits: Limits
) -> Iterator[Result]:
    """Grade every submission, two at a time, saying how it goes.

    With one lesson, every submission is taken for it. The `box` is one that `find_box` found, the
    `seed` that of the assignment; `limits` are what each answer may take.
    """
    start, stop = time.monotonic(), threading.Event()
    results = list(only_latest([read(submission, lessons) for submission in found]))
    yield from (result for result in results if not result.graded)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {
            pool.submit(run_answers, box, jobs(result, seed), limits, stop): result
            for result in results
            if result.graded
        }
        try:
            for done in as_completed(running):
                complete(result := running[done], done.result(), box, seed)
                said = f"{result.whose.student:24} lesson {result.lesson.number}  "
                said += f"{result.points:g} of {result.lesson.points} points"
                print(f"{time.monotonic() - start:6.0f} s  {said}", flush=True)
                yield result
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def run(options: argparse.Namespace) -> int:
    """Grade as the command line says; returns the exit status.

    Raises:
        ClassroomError: There is nothing to grade, or nothing to grade in.
        OSError: The results cannot be written, or there is no room for temporary files.
    """
    if options.lesson:
        lessons = [exercises.read_lesson(options.lesson)]
    else:
        lessons = exercises.lessons_with_exercises()
    submissions = find_submissions(options.submissions)
    if not submissions:
        raise ClassroomError(f"There are no notebooks (*.ipynb) in {options.submissions}.")
    options.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of grading
    check_writable(options.out)
    box = find_box(options.trust)
    print(f"Answers run in a box: {box}." if box != "none" else "Answers run without any box.")
    limits, results = Limits(seconds=options.seconds), []
    try:
        for result in grade_all(submissions, lessons, box, options.seed, limits):
            results.append(result)
    finally:  # whatever happens to one, the others keep what they have got
        results.sort(key=lambda result: (result.whose.student, result.whose.file))
        gradebook.write_results(results, options.out)
    print(f"{len(results)} notebooks: see {options.out / 'grades.csv'}")
    return 0 if all(result.graded for result in results) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.grade`; returns its exit status."""
    sys.stdout.reconfigure(errors="replace")  # names of students may not fit the terminal
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
    try:
        return run(options)
    except (ClassroomError, OSError) as error:
        said = UNWRITTEN.format(error) if isinstance(error, OSError) else error
        print(said, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted: the results hold those graded so far.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
