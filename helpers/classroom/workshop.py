"""A folder for all that a program needs for a while, removed in the end even if it is killed.

It may hold solutions and what students handed in, so it must not stay. Whoever works in one holds a
lock, which the system takes back whatever ends the process: a workshop that nobody has locked was
abandoned, and the next program removes it.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextlib.contextmanager
def workshop(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """A new folder, for every temporary file made in the block; abandoned ones are removed.

    Args:
        prefix: Start of its name, and of those that may be removed.
        place: Where to make it, if not among the system's temporary files.

    Raises:
        OSError: It cannot be made.
    """
    before, place = tempfile.tempdir, place or Path(tempfile.gettempdir())
    _remove_abandoned(prefix, place)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as folder:
        with FileLock(Path(folder) / LOCK):
            tempfile.tempdir = folder
            try:
                yield Path(folder)
            finally:
                tempfile.tempdir = before


def _remove_abandoned(prefix: str, place: Path) -> None:
    """Remove the workshops that nobody works in any more."""
    for lock in place.glob(f"{prefix}*/{LOCK}"):
        with contextlib.suppress(OSError, Timeout):  # another user's, or somebody is at work
            with FileLock(lock, timeout=0):
                remove(lock.parent)


def remove(folder: str | Path) -> None:
    """Remove a folder, however deep a student has nested it, and whatever its modes."""
    if os.name == "posix":
        subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, check=False)
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder) and os.name == "posix":
        subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL, check=False)
