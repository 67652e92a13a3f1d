"""The index of figures: what every figure of the lessons shows, in words.

python -m tools.figures    writes docs/figures.md from the stored outputs
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.output import files
from helpers.output.files import ROOT

INDEX = ROOT / "docs" / "figures.md"
# title="...", set_title("..."), title = "...": words that do not depend on the run
TITLE = re.compile(r'title\w*[ =(]+"([^"]*[^" ][^"]*)"')
INTRODUCTION = """\
# Figures in words

What every figure of the lessons shows, for readers who cannot see it and for those who look for
one. In bold its title, in brackets the cell that draws it. Numbers are those of the stored run.
Made by `python -m tools.figures`."""


def alternative_texts(cell: Mapping) -> list[str]:
    """What the cell's stored figures show in words."""
    shown = [part.get("metadata", {}).get("image/png", {}) for part in cell.get("outputs", ())]
    return [image["alt"] for image in shown if "alt" in image]


def entries(lesson: NotebookNode) -> Iterator[str]:
    """One line per figure: the titles in its code, or the section it stands in; its words."""
    section = ""
    for cell in lesson.cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ (?:\d+\. )?(.+)", cell.source, flags=re.M) or [section])[-1]
        for alt in alternative_texts(cell):
            title = "; ".join(TITLE.findall(cell.source)) or section
            yield f"- **{title}** (`{cell.id}`). {alt}"


def to_markdown(folder: Path = ROOT / "notebooks") -> str:
    """The index as a page: one part per lesson."""
    parts = [INTRODUCTION]
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        lesson = nbformat.read(path, as_version=4)
        title = next(cell.source for cell in lesson.cells if cell.id == "title")
        name = title.splitlines()[0].removeprefix("# ")
        parts.append(f"## [{path.name[:2]} {name}](../notebooks/{path.name})")
        parts.append("\n".join(entries(lesson)))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    files.write(INDEX, to_markdown())
