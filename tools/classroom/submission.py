"""Read what students handed in, trusting nothing about it.

A notebook file is untrusted: only the text of its cells, their ids and nbgrader's names are taken
from it, with limits. Outputs are never looked at.
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

MAX_FILE = 20 * 2**20  # bytes
MAX_TEXT = 2**20  # characters of all cells together, without outputs: lessons have a tenth of it
MAX_CELLS = 1000


class Unreadable(Exception):
    """A submission that cannot be graded; the message says why."""


# smithanna_12345_67890_03_catch_the_illusion-1.ipynb; the third part grows with time
CANVAS = re.compile(r"([^_]+)(?:_LATE)?_(\d+)_(\d+)_.*?(?:-(\d+))?\.ipynb")
MOODLE = re.compile(r"(.+)_(\d+)_assignsubmission_file_?")  # a folder for every student


class Submission(NamedTuple):
    """A notebook that was handed in."""

    student: str
    path: Path
    file: str = ""  # its path from the folder of submissions on, as text that can be written
    id: str = ""  # the student's number in Canvas or Moodle, if the name tells
    age: tuple[int, ...] = ()  # grows with the time when it was handed in, for one student
    canvas: bool = False  # whether its name is one that Canvas gives


class Cell(NamedTuple):
    """What is taken from a cell: all of it text, and none of it trusted."""

    kind: str  # "code" or "markdown"
    source: str
    id: str = ""
    grade_id: str = ""


def find_submissions(folder: Path) -> list[Submission]:
    """Every notebook below a folder: of the student its subfolder names, or else its own name.

    Links are listed, not followed; hidden files and folders are left out.
    """
    found = []
    for place, folders, files in os.walk(folder):
        notebooks = [name for name in (*files, *folders) if name.endswith(".ipynb")]
        folders[:] = [n for n in folders if not n.startswith(".") and n not in notebooks]
        shown = [name for name in notebooks if not name.startswith(".")]
        found += [_submission(Path(place) / name, folder) for name in shown]
    return sorted(found, key=lambda found: (found.student, found.path))


def _submission(path: Path, folder: Path) -> Submission:
    """A notebook below a folder; Canvas and Moodle put more into the first part of its path."""
    file = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")
    first, age = file.split("/")[0], (path.lstat().st_mtime_ns,)
    if named := CANVAS.fullmatch(first):
        student, number, sent, again = named.groups()
        return Submission(student, path, file, number, (int(sent), int(again or 0)), canvas=True)
    if named := MOODLE.fullmatch(first):
        return Submission(named[1], path, file, named[2], age)
    return Submission(first.removesuffix(".ipynb"), path, file, age=age)


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


def _text(value: Any) -> str:
    """A text as notebooks store it: a string, or the list of its lines."""
    if isinstance(value, list):
        value = "".join(line for line in value if isinstance(line, str))
    # Halves of characters, which JSON may hold, cannot be written anywhere.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _cell(raw: Any) -> Cell:
    if not isinstance(raw, dict):
        raise Unreadable("It is not a notebook: one of its cells is damaged.")
    grade_id = None
    with contextlib.suppress(KeyError, TypeError):
        grade_id = raw["metadata"]["nbgrader"]["grade_id"]
    kind = "code" if raw.get("cell_type") == "code" else "markdown"
    source = _text(raw.get("source")).replace("\r\n", "\n").replace("\0", "")
    return Cell(kind, source, _text(raw.get("id")), _text(grade_id))


def read_cells(path: Path) -> list[Cell]:
    """The cells of a submitted notebook that are not empty.

    Raises:
        Unreadable: It is no notebook, too large, or a link.
    """
    try:
        notebook = json.loads(_read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Unreadable("It is not a notebook: its content is not JSON.") from error
    if not isinstance(notebook, dict) or "nbformat" not in notebook:
        raise Unreadable("It is not a notebook: it has no nbformat.")
    try:
        if (version := notebook["nbformat"]) != 4:
            notebook = nbformat.convert(nbformat.from_dict(notebook), 4)
    except Exception as error:  # whatever an old or broken format makes nbformat stumble over
        raise Unreadable(f"Notebook format {version!r:.20} cannot be read.") from error
    if not isinstance(raw := notebook.get("cells"), list):
        raise Unreadable("It is not a notebook: it has no cells.")
    if len(raw) > MAX_CELLS:
        raise Unreadable(f"It has more than {MAX_CELLS} cells.")
    cells = [cell for cell in map(_cell, raw) if cell.source.strip()]
    if sum(len(cell.source) for cell in cells) > MAX_TEXT:
        raise Unreadable(f"Its cells hold more than {MAX_TEXT:,} characters.")
    return cells
