"""A folder for all that grading needs for a while, removed in the end even if grading is killed.

It holds what students handed in, so it must not stay. Whoever works in one holds a lock, which the
system takes back whatever ends the process: a workshop that nobody has locked was abandoned.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = "grading-", ".lock"


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A new folder, for every temporary file made in the block; abandoned ones are removed.

    Raises:
        OSError: There is no folder for temporary files, or no room in it.
    """
    before = tempfile.tempdir
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, FileLock(Path(folder) / LOCK):
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def _remove_abandoned(place: Path) -> None:
    """Remove the workshops that nobody works in any more."""
    for lock in place.glob(f"{PREFIX}*/{LOCK}"):
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
