"""Files written in one step, and the look of HTML pages that need no other file."""

import functools
import os
import re
import sys
import tempfile
import textwrap
import time
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELL_FILE = re.compile(r"\S*ipykernel_\d+[/\\]\d+\.py")  # where a kernel says that a cell is
COLUMN_WIDTH = 48  # characters of a table cell on the terminal
ABANDONED = 600  # seconds: nobody takes so long to write one of these files
ESCAPED = str.maketrans({"|": r"\|", "\\": r"\\"})  # a bar would end a cell of Markdown
STYLE = """
body { color: #111; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
caption { font-weight: bold; padding: 0.5rem 0; text-align: left; }
th, td { border: 1px solid #767676; padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; }
thead th { background: #eee; }
.verdict { border-left: 0.4rem solid #111; padding-left: 1rem; }
"""


def write(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file in one step, so that nobody ever reads half of it; its folder is made.

    Args:
        path: The file.
        content: What it shall hold.
        mode: Who may read and write it, less what the user's mask takes away.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed have left of this file."""
    for name in os.listdir(path.parent):
        stem, _, process = name.rpartition(".")
        if stem == f".{path.name}" and process.isdecimal():
            left = path.with_name(name)
            try:  # it may be another process's, which is about to rename it
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
            except FileNotFoundError:
                continue


def check_writable(folder: Path) -> None:
    """Try a file in a folder, or where it would be made: better before the work than after it.

    Raises:
        OSError: No file can be written there.
    """
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")


def without_places(text: str) -> str:
    """A text that others may read: without the names of this machine's folders."""
    home = os.path.expanduser("~")  # still "~" where there is none
    for place in map(Path, (ROOT, sys.prefix, sys.base_prefix, home)):
        if place.is_absolute() and place != Path(place.anchor):  # or every slash would go
            text = text.replace(str(place), "...")
    return CELL_FILE.sub("cell", text)


def html_page(title: str, body: str) -> str:
    """A page with this title (plain text) and body (HTML)."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def html_table(caption: str, columns: list[str], rows: list[list[str]]) -> str:
    """A table of plain text whose first column names the rows.

    Where it is too wide it scrolls, also by the arrow keys: so it can have the keyboard's focus.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>
<caption>{escape(caption)}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table of plain text; each row is one line, whatever its cells hold."""

    def line(row: list[str]) -> str:
        cells = [" ".join(cell.split()).translate(ESCAPED) for cell in row]
        return f"| {' | '.join(cells)} |"

    return "\n".join(map(line, [columns, ["---"] * len(columns), *rows]))


def text_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table of plain text in aligned columns, its long cells shortened."""
    short = functools.partial(textwrap.shorten, width=COLUMN_WIDTH, placeholder=" ...")
    cells = [[*map(short, row)] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join(lines)
