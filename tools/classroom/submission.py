"""Read what students handed in, trusting nothing about it.

A notebook file is untrusted: only the text of its cells, their ids and nbgrader's names are taken
from it, with limits. Outputs are never looked at.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

MAX_FILE = 20 * 2**20  # bytes
MAX_TEXT = 2**20  # characters of all cells together, without outputs: lessons have a tenth of it
MAX_CELLS = 1000


class Unreadable(Exception):
    """A submission that cannot be graded; the message says why."""


# smithanna_12345_67890_03_catch_the_illusion-1.ipynb; the third part grows with time
CANVAS = re.compile(r"([^_]+)(?:_LATE)?_(\d+)_(\d+)_.*?(?:-(\d+))?\.ipynb")
MOODLE = re.compile(r"(.+)_(\d+)_assignsubmission_file_?")  # a folder for every student


@dataclass(frozen=True)
class Submission:
    """A notebook that was handed in.

    Attributes:
        student: Whose it is.
        path: Where it lies.
        id: The student's number in Canvas or Moodle, if the name tells.
        age: Grows with the time when it was handed in; for notebooks of one student.
        canvas: Whether its name is one that Canvas gives.
    """

    student: str
    path: Path
    id: str = ""
    age: tuple[int, ...] = ()
    canvas: bool = False


@dataclass(frozen=True)
class Cell:
    """What is taken from a cell: all of it text, and none of it trusted."""

    kind: str  # "code" or "markdown"
    source: str
    id: str = ""
    grade_id: str = ""


def find_submissions(folder: Path) -> list[Submission]:
    """Every notebook below a folder: of the student its subfolder names, or else its own name.

    Links are listed, not followed; hidden files and folders are left out.
    """
    return sorted(_submissions(folder), key=lambda found: (found.student, found.path))


def _submissions(folder: Path) -> Iterator[Submission]:
    for place, folders, files in os.walk(folder):
        notebooks = [name for name in (*files, *folders) if name.endswith(".ipynb")]
        folders[:] = [n for n in folders if not n.startswith(".") and n not in notebooks]
        for name in notebooks:
            if not name.startswith("."):
                path = Path(place) / name
                yield _submission(path, shown(path, folder).split("/")[0])


def _submission(path: Path, first: str) -> Submission:
    """A notebook below the folder or file of this name; Canvas and Moodle put more into it."""
    if named := CANVAS.fullmatch(first):
        student, number, sent, again = named.groups()
        return Submission(student, path, number, (int(sent), int(again or 0)), canvas=True)
    age = (path.lstat().st_mtime_ns,)
    if named := MOODLE.fullmatch(first):
        return Submission(named[1], path, named[2], age)
    return Submission(first.removesuffix(".ipynb"), path, age=age)


def shown(path: Path, folder: Path) -> str:
    """A path below a folder as text that can be written, whatever its bytes are."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")


def _read_bytes(path: Path) -> bytes:
    """A plain file's content, if it is one and not too large."""
    if path.is_symlink():
        raise Unreadable("It is a link to another file, not a notebook.")
    if not path.is_file():
        raise Unreadable("It is no file.")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unreadable(f"It cannot be read: {error.strerror}.") from error
    if len(content) > MAX_FILE:
        raise Unreadable(f"It is larger than {MAX_FILE // 2**20} MB: clear its outputs.")
    return content


def _parse(content: bytes) -> dict[str, Any]:
    """The notebook as nbformat 4."""
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Unreadable("It is not a notebook: its content is not JSON.") from error
    if not isinstance(notebook, dict) or "nbformat" not in notebook:
        raise Unreadable("It is not a notebook: it has no nbformat.")
    if notebook["nbformat"] == 4:
        return notebook
    try:
        return nbformat.convert(nbformat.from_dict(notebook), 4)
    except Exception as error:  # whatever an old or broken format makes nbformat stumble over
        raise Unreadable(f"Notebook format {notebook['nbformat']!r:.20} cannot be read.") from error


def _text(value: Any) -> str:
    """A text as notebooks store it: a string, or the list of its lines."""
    if isinstance(value, list):
        value = "".join(line for line in value if isinstance(line, str))
    # Halves of characters, which JSON may hold, cannot be written anywhere.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _cell(raw: Any) -> Cell:
    if not isinstance(raw, dict):
        raise Unreadable("It is not a notebook: one of its cells is damaged.")
    metadata = raw.get("metadata")
    graded = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grade_id = graded.get("grade_id") if isinstance(graded, dict) else None
    kind = "code" if raw.get("cell_type") == "code" else "markdown"
    source = _text(raw.get("source")).replace("\r\n", "\n").replace("\0", "")
    return Cell(kind, source, _text(raw.get("id")), _text(grade_id))


def read_cells(path: Path) -> list[Cell]:
    """The cells of a submitted notebook that are not empty.

    Raises:
        Unreadable: It is no notebook, too large, or a link.
    """
    raw = _parse(_read_bytes(path)).get("cells")
    if not isinstance(raw, list):
        raise Unreadable("It is not a notebook: it has no cells.")
    if len(raw) > MAX_CELLS:
        raise Unreadable(f"It has more than {MAX_CELLS} cells.")
    cells = [cell for cell in map(_cell, raw) if cell.source.strip()]
    if sum(len(cell.source) for cell in cells) > MAX_TEXT:
        raise Unreadable(f"Its cells hold more than {MAX_TEXT:,} characters.")
    return cells
