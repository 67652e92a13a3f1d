"""Folders: whether one can be written, and texts without the names of this machine's."""

import os
import re
import sys
import tempfile
from pathlib import Path

from helpers.output.files import ROOT

CELL_FILE = re.compile(r"\S*ipykernel_\d+[/\\]\d+\.py")  # where a kernel says that a cell is


def without_places(text: str) -> str:
    """A text that others may read: without the names of this machine's folders."""
    home = os.path.expanduser("~")  # still "~" where there is none
    for place in map(Path, (ROOT, sys.prefix, sys.base_prefix, home)):
        if place.is_absolute() and place != Path(place.anchor):  # or every slash would go
            text = text.replace(str(place), "...")
    return CELL_FILE.sub("cell", text)


def check_writable(folder: Path) -> None:
    """Try a file in a folder, or where it would be made; an OSError is better before the work."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")
