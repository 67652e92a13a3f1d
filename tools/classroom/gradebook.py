"""The results of a batch: the tables and the feedback pages, written at the end in one go."""

import csv
import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

from helpers.output import files
from tools.classroom.assignment import Exercise, Lesson
from tools.classroom.submission import Restored, Submission
from tools.pages import html_page, html_table

GRADES = "student id lesson points max_points same_as_published notes isolation file page"
BY_EXERCISE = "student id lesson exercise points max_points message file"
CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MESSAGE = 500  # characters of a message in the table; the page has all of it
ROOM = 45_000  # bytes of a page for answers and messages: with all else it has at most 60 KB
ON_TOP = 120  # characters of a message in the table of a page
COMPLETION = """\
Checks show completion: they compare what your code gives back, for the data of the lesson and for
other data. They do not show that you can explain it."""


class Row(NamedTuple):
    """What came of one exercise of a submission."""

    exercise: Exercise
    points: float
    message: str
    answer: str = ""


@dataclass(eq=False)
class Result:
    """What came of one submission, or is to come of it."""

    whose: Submission
    lesson: Lesson  # one without number and exercises if it could not be told
    restored: Restored = field(default_factory=Restored)  # with its answers
    rows: list[Row] = field(default_factory=list)
    isolation: str = ""  # the box that its answers ran in
    page: str | None = None  # the feedback as HTML
    graded: bool = True  # whether it could be read and graded at all

    @property
    def points(self) -> float:
        """The sum over its exercises."""
        return sum(row.points for row in self.rows)


def _safe(value: object) -> str:
    """A value for a table cell, on one line, that no spreadsheet takes for a formula."""
    text = " ".join(value) if isinstance(value, list) else value
    text = f"{text:g}" if isinstance(text, float) else " ".join(str(text).split())
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _table(*rows: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*map(_safe, row)] for row in rows)
    return text.getvalue()


def grades_table(results: Sequence[Result]) -> str:
    """One line per submission, as CSV, with the name of its page."""
    rows = [GRADES.split()]
    for found, page in zip(results, page_names(results), strict=True):
        whose, lesson, said = found.whose, found.lesson, found.restored
        row = [whose.student, whose.id, lesson.number, found.points, lesson.points]
        rows.append([*row, said.flags, said.notes, found.isolation, whose.file, page])
    return _table(*rows)


def exercises_table(results: Iterable[Result]) -> str:
    """One line per exercise of every submission, as CSV."""
    rows = [BY_EXERCISE.split()]
    for found in results:
        for exercise, points, message, _ in found.rows:
            whose, message = found.whose, " ".join(message.split())[:MESSAGE]
            row = [whose.student, whose.id, found.lesson.number, exercise.name, points]
            rows.append([*row, exercise.points, message, whose.file])
    return _table(*rows)


def canvas_table(results: Iterable[Result]) -> str:
    """The points as Canvas imports them: a line for each student ID, a column for each lesson."""
    told = [result for result in results if result.whose.canvas and result.lesson.number]
    most = dict(sorted((result.lesson.number, result.lesson.points) for result in told))
    points = {(r.whose.student, r.whose.id, r.lesson.number): r.points for r in told}
    rows = [[*CANVAS, *(f"Lesson {lesson}" for lesson in most)]]
    rows += [["Points Possible", "", "", "", "", *most.values()]]
    for student, number in sorted({(student, number) for student, number, _ in points}):
        got = [points.get((student, number, lesson), "") for lesson in most]
        rows += [[student, number, "", "", "", *got]]
    return _table(*rows)


def page_names(results: Iterable[Result]) -> Iterator[str]:
    """A file name for every page, "" without one; names that look alike become different ones."""
    taken = Counter()
    for result in results:
        student = re.sub(r"[^\w.-]+", "_", result.whose.student).encode()[:80]
        name = f"{student.decode('utf-8', 'ignore')}_lesson_{result.lesson.number}"
        taken[name.lower()] += result.page is not None  # some file systems do not tell cases apart
        number = taken[name.lower()]
        name += f"_{number}.html" if number > 1 else ".html"
        yield "" if result.page is None else name


def _html(text: str, room: int) -> str:
    """A text as HTML of at most so many bytes."""
    html = escape(text).encode("utf-8", "replace")
    whole = re.sub(rb"&[^;]*$", b"", html[:room]).decode("utf-8", "ignore")  # characters
    return f"{whole} ..." if len(html) > room else whole


def feedback(result: Result) -> str:
    """What a student gets back: one HTML page of at most 60 KB that needs no other file."""
    table, answers = [], []
    room = ROOM // (2 * len(result.rows))  # of one answer, and of its message
    for exercise, points, message, answer in result.rows:
        short = textwrap.shorten(message, ON_TOP, placeholder=" ...")
        table.append([exercise.title, f"{points:g} of {exercise.points}", short])
        lines = enumerate(answer.rstrip().split("\n"), start=1)
        source = "\n".join(f"{number:3}  {line}" for number, line in lines)
        answers += [f"<h2>{escape(exercise.title)}</h2>", f"<p>{_html(message, room)}</p>"]
        answers += [f'<pre class="scroll" tabindex="0">{_html(source, room)}</pre>']
    got = f"<strong>{result.points:g} of {result.lesson.points} points</strong>"
    body = [f"<p>{_html(result.whose.student, 500)}: {got}</p>"]
    body += [f"<p>{_html(note, 500)}</p>" for note in result.restored.notes]
    body += [html_table("Exercises", ["exercise", "points", "message"], table)]
    body += [f"<p>{COMPLETION}</p>", *answers]
    return html_page(f"Lesson {result.lesson.number}", "\n".join(body))


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Write the tables and `feedback/<student>_lesson_NN.html`, for their owner only.

    `grades.csv` comes last: what it names is there. `canvas.csv` is for what came from Canvas.
    """
    pages = zip(results, page_names(results), strict=True)
    contents = {f"feedback/{name}": result.page for result, name in pages if name}
    if any(result.whose.canvas for result in results):
        contents["canvas.csv"] = canvas_table(results)
    contents["grades_by_exercise.csv"] = exercises_table(results)
    contents["grades.csv"] = grades_table(results)
    for name, text in contents.items():
        files.write(folder / name, text.encode("utf-8", "replace"), mode=0o600)
