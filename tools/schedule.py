"""Which lesson runs when: side by side, each as soon as what it reads has been written."""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import nbformat
import psutil

from tools import machine

Needs = Mapping[str, Collection[str]]  # a lesson's number -> those whose results it reads

FIRST = ("00", "01", "02")  # what a reader begins with, and what others wait for
# On two cores, in seconds. They only decide what starts first: the longest, so that no core has to
# wait for it in the end. A lesson without a number counts as long.
SECONDS = {"03": 250, "04": 200, "05": 200, "06": 250, "07": 250, "08": 450, "09": 350}
SECONDS |= {"10": 5, "11": 150, "12": 150, "13": 120, "14": 110, "15": 70, "16": 40}
UNKNOWN = 200
# What a lesson calls to read another's results, and what that other one calls to write them.
WRITTEN_BY = {
    r"\bload_site\(": r"\bsave_site\(",
    r"\breport\.recorded\(": r"\breport\.record\(",
}
# What only a lesson calls that reads all earlier results (`summary_table` serves each for its own
# claims).
READS_ALL = re.compile(r"\breference\.check\(|\bpage\.\w+\(")


def find_lessons(folder: Path) -> dict[str, Path]:
    """The notebooks `NN_*.ipynb` of a folder by their number, in order."""
    return {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}


def find_needs(lessons: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of these lessons each of them has to wait for, going by the functions it calls.

    Args:
        lessons: The notebooks by number.
    """
    code = {number: _code(path) for number, path in lessons.items()}
    readers_of_all = {number for number in code if READS_ALL.search(code[number])}
    needs = {n: {m for m in code.keys() - readers_of_all if m < n} for n in readers_of_all}
    for number in code.keys() - readers_of_all:
        wanted = [writes for reads, writes in WRITTEN_BY.items() if re.search(reads, code[number])]
        earlier = [other for other in code if other < number]
        needs[number] = {n for n in earlier for call in wanted if re.search(call, code[n])}
    return needs


def _code(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def in_order(numbers: Collection[str]) -> list[str]:
    """Lessons in the order in which they are to start: the first ones, then the longest."""
    rank = {number: place for place, number in enumerate(FIRST)}

    def key(number: str) -> tuple[int, int, str]:
        return rank.get(number, len(FIRST)), -SECONDS.get(number, UNKNOWN), number

    return sorted(numbers, key=key)


def next_lesson(waiting: Collection[str], unfinished: Collection[str], needs: Needs) -> str | None:
    """The first lesson in order that reads nothing of an unfinished one, if there is any."""
    ready = (n for n in in_order(waiting) if not set(needs.get(n, ())) & set(unfinished))
    return next(ready, None)


def is_room(running: int) -> bool:
    """Whether memory is left for one lesson beside those that run, when all are at their peak.

    Args:
        running: How many run; their kernels descend from this process.
    """
    taken = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may have ended
            taken += process.memory_info().rss
    return not running or machine.available_memory() + taken >= (running + 1) * machine.PEAK


def run_all(
    lessons: Mapping[str, Path],
    needs: Needs,
    jobs: int,
    work: Callable[[Path], bool],
    stop: Callable[[], None],
) -> dict[str, bool]:
    """Run lessons, up to `jobs` at the same time; which of them ran to their end, by number.

    Args:
        lessons: The notebooks by number.
        needs: The lessons that each has to wait for; those that are not run do not count.
        jobs: The most lessons at a time.
        work: Runs one lesson, in a thread, and says whether it ran to its end.
        stop: Ends all that runs, at once; called if `work` raises an error or we are interrupted.
    """
    waiting, ended = set(lessons), {}
    running: dict[Future[bool], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                while len(running) < jobs and is_room(len(running)):
                    number = next_lesson(waiting, lessons.keys() - ended.keys(), needs)
                    if number is None:
                        break
                    waiting.remove(number)
                    running[pool.submit(work, lessons[number])] = number
                # With a limit, since Windows tells us of an interrupt only between two waits.
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    ended[running.pop(future)] = future.result()
        except BaseException:
            stop()
            raise
    return ended
