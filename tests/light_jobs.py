"""Jobs without a model, for workers that start at once; `python tests/light_jobs.py FOLDER`."""

import os
import signal
import sys
import time
from pathlib import Path

from tools.jobs.running import Job, run

NUMBERS = range(8)


def square(about: dict, folder: str) -> int:
    """The square of a number, slowly; leaves a file for each time that it was begun."""
    Path(folder, f"{about['number']} by {os.getpid()}").touch()
    time.sleep(0.2)
    return about["number"] ** 2


def square_unless_killed(about: dict, folder: str) -> int:
    """The same, but the worker that first comes to 3 is killed while it is at it."""
    killed = Path(folder, "killed")
    if about["number"] == 3 and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(about, folder)


def deadly(about: dict, folder: str) -> int:
    """Ends every worker that comes to 3."""
    if about["number"] == 3:
        os._exit(9)
    return square(about, folder)


def broken(about: dict, folder: str) -> int:
    """Fails at 3, in two lines."""
    if about["number"] == 3:
        raise ValueError("3 is odd,\nand a prime")
    return square(about, folder)


def jobs(work, begun: Path, **about) -> list[Job]:
    begun.mkdir(exist_ok=True)
    return [Job(f"number-{n}", {"number": n, **about}, work, (str(begun),)) for n in NUMBERS]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    run(jobs(square, out / "begun"), out)
