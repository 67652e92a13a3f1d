"""The results of a batch: two tables and the feedback pages, written at the end in one go."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import output

GRADES = ("student", "lesson", "points", "max_points", "notes", "file", "page")
BY_EXERCISE = ("student", "lesson", "exercise", "points", "max_points", "message", "file")
MESSAGE = 500  # characters of a message in the table; the page has all of it


@dataclass(frozen=True)
class Row:
    """One exercise of one submission."""

    exercise: str
    points: float
    max_points: int
    message: str


@dataclass(frozen=True)
class Result:
    """What came of one submission.

    Attributes:
        student: Whose it is.
        lesson: The lesson's number, or "" if it could not be told.
        file: Where it lay, from the folder of submissions on.
        rows: Its exercises.
        notes: What was mended, or why there are no points.
        page: The feedback as HTML, if there is any.
        graded: Whether it could be read and graded at all.
    """

    student: str
    lesson: str
    file: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    page: str | None = None
    graded: bool = True

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
        scored = (result.student, result.lesson, result.points, result.max_points)
        rows.append((*scored, " ".join(result.notes), result.file, page))
    return _table(GRADES, rows)


def exercises_table(results: Iterable[Result]) -> str:
    """One line per exercise of every submission, as CSV."""
    return _table(
        BY_EXERCISE,
        (
            (
                result.student,
                result.lesson,
                row.exercise,
                row.points,
                row.max_points,
                " ".join(row.message.split())[:MESSAGE],
                result.file,
            )
            for result in results
            for row in result.rows
        ),
    )


def _page_names(results: Iterable[Result]) -> Iterator[str]:
    """A file name for every page, "" without one; names that look alike become different ones."""
    taken = set()
    for result in results:
        if result.page is None:
            yield ""
            continue
        plain = re.sub(r"[^\w.-]+", "_", result.student).encode()[:80].decode("utf-8", "ignore")
        stem = name = f"{plain}_lesson_{result.lesson}"
        number = 1
        while name.lower() in taken:  # some file systems do not tell cases apart
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        yield f"{name}.html"


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Write `grades.csv`, `grades_by_exercise.csv` and `feedback/<student>_lesson_NN.html`.

    Only their owner may read them. `grades.csv` comes last: what it names is there.

    Raises:
        OSError: They cannot be written.
    """
    pages = zip(results, _page_names(results), strict=True)
    files = {f"feedback/{name}": result.page for result, name in pages if name}
    files["grades_by_exercise.csv"] = exercises_table(results)
    files["grades.csv"] = grades_table(results)
    for name, text in files.items():
        output.write(folder / name, text.encode("utf-8", "replace"), mode=0o600)
