"""A table on the terminal: `print(text_table(columns, rows))`."""

import functools
import textwrap

COLUMN_WIDTH = 48  # characters of a cell


def text_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table of plain text in aligned columns, its long cells shortened."""
    short = functools.partial(textwrap.shorten, width=COLUMN_WIDTH, placeholder=" ...")
    cells = [[*map(short, row)] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join(lines)
