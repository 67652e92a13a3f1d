"""The results of a batch: the tables and the feedback pages, written at the end in one go."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.output import files
from tools.classroom.submission import Submission

GRADES = "student id lesson points max_points same_as_published notes isolation file page".split()
BY_EXERCISE = "student id lesson exercise points max_points message file".split()
CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MESSAGE = 500  # characters of a message in the table; the page has all of it


@dataclass(frozen=True)
class Row:
    """One exercise of one submission; its title and the answer are for the page."""

    exercise: str
    points: float
    max_points: int
    message: str
    title: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Result:
    """What came of one submission.

    Attributes:
        whose: The submission.
        lesson: The lesson's number, or "" if it could not be told.
        file: Where it lay, from the folder of submissions on.
        rows: Its exercises.
        notes: What was mended, or why there are no points.
        flags: What is the same as in the published lesson.
        isolation: The box that its answers ran in.
        page: The feedback as HTML, if there is any.
        graded: Whether it could be read and graded at all.
    """

    whose: Submission
    lesson: str
    file: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    isolation: str = ""
    page: str | None = None
    graded: bool = True

    @property
    def student(self) -> str:
        """Whose it is."""
        return self.whose.student

    @property
    def points(self) -> float:
        """The sum over its exercises."""
        return sum(row.points for row in self.rows)

    @property
    def max_points(self) -> int:
        """What it could have got."""
        return sum(row.max_points for row in self.rows)


def _safe(value: object) -> str:
    """A value for a table cell that no spreadsheet takes for a formula."""
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_safe(value) for value in row] for row in rows)
    return text.getvalue()


def grades_table(results: Sequence[Result]) -> str:
    """One line per submission, as CSV, with the name of its page."""
    rows = []
    for result, page in zip(results, _page_names(results), strict=True):
        scored = (result.student, result.whose.id, result.lesson, result.points, result.max_points)
        said = (" ".join(result.flags), " ".join(result.notes), result.isolation)
        rows.append((*scored, *said, result.file, page))
    return _table(GRADES, rows)


def exercises_table(results: Iterable[Result]) -> str:
    """One line per exercise of every submission, as CSV."""
    rows = []
    for result in results:
        for row in result.rows:
            whose = (result.student, result.whose.id, result.lesson, row.exercise)
            message = " ".join(row.message.split())[:MESSAGE]
            rows.append((*whose, row.points, row.max_points, message, result.file))
    return _table(BY_EXERCISE, rows)


def canvas_table(results: Iterable[Result]) -> str:
    """The points as Canvas imports them: a line for each student, a column for each lesson.

    Canvas knows students by their ID, and asks which of its assignments a new column is.
    """
    points, most = {}, {}
    for result in results:
        if result.whose.canvas and result.lesson:
            whose = (result.student, result.whose.id)
            points.setdefault(whose, {})[result.lesson] = result.points
            most[result.lesson] = result.max_points
    lessons = sorted(most)
    rows = [("Points Possible", "", "", "", "", *(most[lesson] for lesson in lessons))]
    for whose, got in sorted(points.items()):
        rows.append((*whose, "", "", "", *(got.get(lesson, "") for lesson in lessons)))
    return _table([*CANVAS, *(f"Lesson {lesson}" for lesson in lessons)], rows)


def _page_names(results: Iterable[Result]) -> Iterator[str]:
    """A file name for every page, "" without one; names that look alike become different ones."""
    taken = set()
    for result in results:
        plain = re.sub(r"[^\w.-]+", "_", result.student).encode()[:80].decode("utf-8", "ignore")
        stem = name = f"{plain}_lesson_{result.lesson}"
        number = 1
        while name.lower() in taken:  # some file systems do not tell cases apart
            number += 1
            name = f"{stem}_{number}"
        if result.page is not None:
            taken.add(name.lower())
        yield f"{name}.html" if result.page is not None else ""


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Write the tables and `feedback/<student>_lesson_NN.html`, for their owner only.

    `grades.csv` comes last: what it names is there. `canvas.csv` is for what came from Canvas.

    Raises:
        OSError: They cannot be written.
    """
    pages = zip(results, _page_names(results), strict=True)
    contents = {f"feedback/{name}": result.page for result, name in pages if name}
    if any(result.whose.canvas for result in results):
        contents["canvas.csv"] = canvas_table(results)
    contents["grades_by_exercise.csv"] = exercises_table(results)
    contents["grades.csv"] = grades_table(results)
    for name, text in contents.items():
        files.write(folder / name, text.encode("utf-8", "replace"), mode=0o600)
