"""Texts that others may read: without the names of this machine's folders."""

import os
import re
import sys
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
