"""Files written in one step, by which nobody learns the names of this machine's folders."""

import contextlib
import glob
import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CELL_FILE = re.compile(r"\S*ipykernel_\d+[/\\]\d+\.py")  # where a kernel says that a cell is
ABANDONED = 600  # seconds: nobody takes so long to write one of these files


def write(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file in one step, so that nobody ever reads half of it; its folder is made."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):  # by processes that were killed
        with contextlib.suppress(FileNotFoundError):  # or by one that is about to rename it
            ours = left.suffix[1:].isdecimal()  # a process id, and not somebody's .backup
            if ours and time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Try a file in a folder, or where it would be made; an OSError is better before the work."""
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
