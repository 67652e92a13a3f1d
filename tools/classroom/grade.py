"""Grade a folder of submitted notebooks.

    python -m tools.classroom.grade --submissions FOLDER [--lesson 03] [--out FOLDER] [--trust]

Answers run in a box (see `box`), what they gave back is judged here (see `replay`). The tables and
one page of feedback per notebook are written at the end, also if it comes early. Exit status: 0 if
every notebook was graded, 1 if some could not be, 2 for wrong use.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tools.classroom import gradebook, replay, submission
from tools.classroom.assignment import ClassroomError, Lesson, lessons_with_exercises, read_lesson
from tools.classroom.box import Limits, Record, find_box, run_answers
from tools.classroom.gradebook import Result, Row
from tools.classroom.submission import Submission, Unreadable
from tools.places import check_writable, without_places

AT_ONCE = 2
NO_LESSON = Lesson("", Path(), None, ())
UNANSWERED = Record(problem="This exercise has not been answered.")
UNWRITTEN = """\
Nothing could be written: {}. Choose a folder for the results with --out, and one for temporary
files with the environment variable TMPDIR, where there is room and you can write."""


def read(whose: Submission, lessons: Sequence[Lesson]) -> Result:
    """What a submission holds; the whole result, with no points, if it cannot be graded."""
    result = Result(whose, lessons[0] if len(lessons) == 1 else NO_LESSON)
    try:
        cells = submission.read_cells(whose.path)
        result.lesson = submission.which_lesson(cells, lessons)
        result.restored = submission.restore(cells, result.lesson)
    except Exception as error:  # one submission must never stop the others
        reason = f"It could not be graded: {type(error).__name__}: {error}"
        reason = without_places(str(error) if isinstance(error, Unreadable) else reason)
        result.graded, result.restored.notes = False, [reason]
        result.rows = [Row(exercise, 0, reason) for exercise in result.lesson.exercises]
    return result


def jobs(result: Result, seed: int) -> list[dict]:
    """What `run_answers` shall run: every exercise that was answered."""
    given = result.restored
    answered = [e for e in result.lesson.exercises if e.name in given.answers]
    return [
        {"exercise": e.name, "name": e.answer, "answer": submission.plain(given.answers[e.name])}
        | {"before": given.before[e.name], "checks": e.checks(seed)}
        for e in answered
    ]


def complete(result: Result, records: Mapping[str, Record], box: str, seed: int) -> None:
    """Complete the result of a submission, from what its answers gave back."""
    for exercise in result.lesson.exercises:
        blob, problem = records.get(exercise.name, UNANSWERED)
        passed, message = False, replay.readable(problem)
        if not problem:
            passed, message = replay.judge(blob, exercise.answer, exercise.checks(seed))
        answer = result.restored.answers.get(exercise.name, "")
        result.rows.append(Row(exercise, exercise.points * passed, message, answer))
    result.isolation, result.page = box, gradebook.feedback(result)


def only_latest(found: Iterable[Result]) -> list[Result]:
    """Without those of which the same student has handed in a later one for the same lesson."""
    latest = {}
    for result in sorted(found, key=lambda result: result.whose.age):
        whose = result.whose
        key = (whose.student, whose.id, result.lesson.number) if result.graded else whose.path
        if key in latest:
            print(f"{latest[key].whose.file}: a later one of this student was graded instead.")
        latest[key] = result
    return list(latest.values())


def grade_all(found: Sequence[Result], box: str, seed: int, limits: Limits) -> Iterator[Result]:
    """Grade what was read in a box, two submissions at a time, saying how it goes."""
    start, stop = time.monotonic(), threading.Event()
    yield from (result for result in found if not result.graded)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        graded = [result for result in found if result.graded]
        running = {pool.submit(run_answers, box, jobs(r, seed), limits, stop): r for r in graded}
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
    """Grade as the command line says; returns the exit status."""
    number = options.lesson
    lessons = [read_lesson(number)] if number else lessons_with_exercises()
    if not (submissions := submission.find_submissions(options.submissions)):
        raise ClassroomError(f"There are no notebooks (*.ipynb) in {options.submissions}.")
    options.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of grading
    check_writable(options.out)
    box, limits = find_box(options.trust), Limits(seconds=options.seconds)
    print(f"Answers run in a box: {box}." if box != "none" else "Answers run without any box.")
    found = only_latest(read(whose, lessons) for whose in submissions)
    results = []
    try:
        for result in grade_all(found, box, options.seed, limits):
            results.append(result)
    finally:  # whatever happens to one, the others keep what they have got
        results.sort(key=lambda result: (result.whose.student, result.whose.file))
        gradebook.write_results(results, options.out)
    print(f"{len(results)} notebooks: see {options.out / 'grades.csv'}")
    return 0 if all(result.graded for result in results) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.grade`; returns its exit status."""
    sys.stdout.reconfigure(errors="replace")  # names of students may not fit the terminal
    name, about = "python -m tools.classroom.grade", "Grade a folder of submitted notebooks."
    parser = argparse.ArgumentParser(name, description=about)
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
