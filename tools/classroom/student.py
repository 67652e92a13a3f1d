"""The lessons for somebody who learns alone: exercises empty, solutions behind a link.

    python -m tools.classroom.student [--out FOLDER]

A lesson that is in the folder already is left as it is: it holds answers.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.output.files import ROOT, write
from tools.classroom.assignment import lessons_with_exercises, student_notebook
from tools.schedule import find_lessons

LINK = "*After both hints: the solution stands, folded, in [the published lesson]({path}).*"


def own_notebooks(folder: Path) -> dict[str, NotebookNode]:
    """Every lesson as it goes into this folder, by file name."""
    found = {
        path.name: nbformat.read(path, as_version=4)
        for path in find_lessons(ROOT / "notebooks").values()
    }
    for lesson in lessons_with_exercises():
        notebook = found[lesson.path.name] = student_notebook(lesson)
        link = LINK.format(path=Path(os.path.relpath(lesson.path, folder.resolve())).as_posix())
        cells = {cell.id: cell for cell in notebook.cells}
        for exercise in lesson.exercises:
            cells[f"exercise-{exercise.name}"].source += f"\n\n{link}"
    return found


def make_copy(folder: Path) -> list[Path]:
    """Write those lessons that are not in the folder yet; returns them. May raise OSError."""
    new = {}
    for name, notebook in own_notebooks(folder).items():
        if not (folder / name).exists():
            new[folder / name] = f"{nbformat.writes(notebook)}\n"
    for path, text in new.items():
        write(path, text)
    return list(new)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.classroom.student`; returns its exit status."""
    name, about = "python -m tools.classroom.student", "Make your own copy of all lessons."
    parser = argparse.ArgumentParser(name, description=about)
    parser.add_argument("--out", type=Path, default=ROOT / "student", help="default: student/")
    folder = parser.parse_args(arguments).out
    try:
        new = make_copy(folder)
    except OSError as error:
        print(f"It cannot be written: {error}. Choose another with --out.", file=sys.stderr)
        return 2
    kept = len(find_lessons(ROOT / "notebooks")) - len(new)
    print(f"{len(new)} lessons with empty exercises are in {folder}")
    if kept:
        print(f"{kept} were there already, and are as you left them.")
    print("Open them with: make lab FOLDER=.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
