"""Figures whose text stays legible: on a narrow screen they scroll in a box and link to full size.

A figure of `w` pixels whose smallest text has `t` points is never shown narrower than

    least = w * LEGIBLE / (t * DPI / 72),        LEGIBLE = 9 pixels
"""

import inspect
import math
import re
import struct
from pathlib import Path

from helpers.claims import page
from helpers.output import plots

LEGIBLE = 9  # CSS pixels of the smallest text
DPI = 110  # of plots.use_style
USUAL = 10  # points of ticks and legends, a little less than in plots.use_style
SIZE = re.compile(r"""(?:fontsize|labelsize|size)["']?\s*[=:]\s*(\d+(?:\.\d+)?)""")
HELPER = re.compile(r"\b(plots|page)\.(\w+)\(")
IMAGE = re.compile(r'<img ([^>]*?)class="text-(\d+)"([^>]*?)src="([^"]+)"([^>]*?)/?>')
MODULES = {"plots": plots, "page": page}


def _with_functions(source: str, cells: list[dict]) -> str:
    """A cell's code, with that of the functions of other cells and of helpers that it calls."""
    parts = [source]
    for cell in cells:
        code = "".join(cell["source"])
        names = re.findall(r"^def (\w+)\(", code, flags=re.M)
        if code != source and any(re.search(rf"\b{name}\(", source) for name in names):
            parts.append(code)
    for module, name in HELPER.findall("\n".join(parts)):
        parts.append(inspect.getsource(getattr(MODULES[module], name)))
    return "\n".join(parts)


def smallest(cell: dict, cells: list[dict]) -> int:
    """The smallest size of text that the code of a figure names, in points."""
    code = _with_functions("".join(cell["source"]), cells)
    return math.floor(min([USUAL, *map(float, SIZE.findall(code))]))


def as_class(points: int) -> str:
    """The class that takes this number through Sphinx."""
    return f"text-{points}"


def least_width(width: int, points: float) -> int:
    """The width below which the text of a figure would be too small, in CSS pixels."""
    return min(width, math.ceil(width * LEGIBLE * 72 / (points * DPI)))


def natural_size(png: bytes) -> tuple[int, int]:
    """Width and height, from the header."""
    return struct.unpack(">II", png[16:24])


def box(source: str, size: tuple[int, int], points: int, attributes: str) -> str:
    """The HTML of a figure: a link to its full size, and a box to scroll in where there is none."""
    (width, height), least = size, least_width(size[0], points)
    return (
        f'<a class="figure" href="{source}" title="full size"><img class="figure" src="{source}" '
        f'{attributes} width="{width}" height="{height}" data-text="{points}" '
        f'style="min-width: {least}px"></a>'
    )


def in_boxes(html: str, folder: Path) -> str:
    """A page whose figures stand in links to their full size; the pictures lie in `folder`."""

    def in_box(match: re.Match) -> str:
        before, points, between, source, after = match.groups()
        size = natural_size((folder / Path(source).name).read_bytes())
        return box(source, size, int(points), f"{before}{between}{after}".strip())

    return IMAGE.sub(in_box, html)
