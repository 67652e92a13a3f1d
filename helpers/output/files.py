"""Files written in one step, `files.write(path, content)`, and those that come with the project."""

import contextlib
import functools
import glob
import json
import os
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ABANDONED = 600  # seconds: nobody takes so long to write one of these files


@functools.cache
def shipped(path: Path) -> Any:
    """What a JSON file that comes with the project holds: read once, so it must not be changed."""
    return json.loads(path.read_text(encoding="utf-8"))


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
