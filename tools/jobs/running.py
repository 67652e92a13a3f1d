"""Independent jobs, here or on a Dask cluster: `run([Job("one", {"x": 1}, work)], folder)`.

Each result is a file of its own, which this process writes as soon as the result arrives, so that
workers need no disk in common with it. Started again, only what has no such file is run. Nothing
large is imported here: what a job needs, its worker loads with the job.
"""

import hashlib
import importlib.metadata
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import joblib

from helpers import __version__
from helpers.output import files
from tools.progress import Board, Progress

PACKAGES = ("torch", "transformer_lens", "transformers", "numpy", "pandas")
PATIENCE = 15  # seconds for a scheduler to answer
INSTALL = 'Dask is not installed here: pip install -e ".[cluster]"'
# Workers may have several threads, but hooks on a model that they share are no matter for two.
ONE_AT_A_TIME = threading.Lock()


class ClusterError(Exception):
    """The jobs cannot be run, or not all of them; the message says why and what to do."""


@dataclass(frozen=True)
class Job:
    """What is to be done, and all that its result depends on.

    Attributes:
        name: What it is called in its file's name and on the terminal.
        about: All that its result depends on, as plain values that JSON can hold.
        work: A function of a module that workers have: `work(about, *takes)` gives plain values.
        takes: What it takes along; `about` has to say which, by a hash for instance.
    """

    name: str
    about: dict[str, Any]
    work: Callable[..., Any]
    takes: tuple = ()

    def file(self, folder: Path) -> Path:
        """Where its result is kept: a job about anything else has another file."""
        return folder / "jobs" / f"{self.name}-{digest(self.about)}.json"

    def result(self, folder: Path) -> Any:
        """What it came to; None if it has not been done."""
        try:
            kept = json.loads(self.file(folder).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return kept["result"] if kept.get("job") == plain(self.about) else None


class Answer(NamedTuple):
    """What a worker says: the result and the time it took, or what went wrong in one line."""

    result: Any = None
    seconds: float = 0.0
    problem: str = ""


def plain(about: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    return json.loads(json.dumps(about))


def digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of the packages that a result depends on; a job's `about` may have them as `versions`.

    Without what stands behind a plus: a client without a GPU may have a "+cpu" torch.
    """
    found = {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}
    return {"subspace-illusion": __version__} | found


def attempt(job: Job) -> Answer:
    """Do a job, on the worker, which must have the versions that the job names."""
    start = time.monotonic()
    try:
        wanted, found = job.about.get("versions", {}), versions()
        if wrong := [
            f"{n} {found.get(n)}, not {v}" for n, v in wanted.items() if found.get(n) != v
        ]:
            return Answer(problem=f"the worker has {', '.join(wrong)}: install the same everywhere")
        with ONE_AT_A_TIME:
            return Answer(job.work(job.about, *job.takes), time.monotonic() - start)
    except Exception as error:  # of any kind: the other jobs go on
        return Answer(problem=in_one_line(error))


def in_one_line(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def here(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Answer]]:
    """Do the jobs on this machine, in so many processes; each with its answer as it comes.

    Raises ClusterError: a process was killed.
    """
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
    try:
        for number, answer in parallel(joblib.delayed(_numbered)(*x) for x in enumerate(jobs)):
            yield jobs[number], answer
    except joblib.externals.loky.process_executor.BrokenProcessPool as error:
        raise ClusterError(
            "a worker process was killed, perhaps for want of memory: take fewer --workers"
        ) from error


def _numbered(number: int, job: Job) -> tuple[int, Answer]:
    return number, attempt(job)


def there(jobs: Sequence[Job], scheduler: str, board: Board) -> Iterator[tuple[Job, Answer]]:
    """Do the jobs on the workers of a Dask scheduler; each with its answer as it comes.

    Dask gives a job whose worker has died to another one, and up after several. It then also gives
    up what only waited on these workers, so each of those jobs is tried once more, alone. (Not by
    way of joblib, which then waits for ever.) Raises ClusterError: Dask is not installed, nobody
    answers at this address, or no longer.
    """
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(INSTALL) from error
    try:
        client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:
        advice = "is `dask scheduler` running there?"
        raise ClusterError(f"no scheduler answers at {scheduler}: {advice}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            board.say(f"no worker yet: start some by `dask worker {scheduler} --nthreads 1`")
        groups = [list(jobs)]
        for group in groups:  # which grows by the jobs that were given up
            of = {client.submit(attempt, job, pure=False): job for job in group}
            for future in distributed.as_completed(of, loop=client.loop):
                if future.status == "cancelled":
                    raise ClusterError(f"the scheduler at {scheduler} has gone")
                error = future.exception()
                if len(group) > 1 and _given_up(error):
                    groups.append([of[future]])
                    continue
                yield of[future], future.result() if error is None else Answer(problem=_lost(error))


def _given_up(error: BaseException | None) -> bool:
    """Whether Dask gave a job up, since several workers ended that had it."""
    return type(error).__name__ == "KilledWorker"


def _lost(error: BaseException) -> str:
    """What a job ended with that could not even be begun, or that ended its workers."""
    if _given_up(error):
        return "it ended several workers one after the other, perhaps for want of memory"
    return f"{in_one_line(error)} (has the worker the same version of this project?)"


def run(
    jobs: Sequence[Job], folder: Path, *, workers: int = 1, scheduler: str | None = None
) -> list[Job]:
    """Do what has not been done, and write each result into `folder`; returns what failed.

    `workers` are processes of this machine, `scheduler` is the address of a Dask scheduler, whose
    workers do the jobs instead. Raises ClusterError: see `here` and `there`.
    """
    board, failed = Board(), []
    left = [job for job in jobs if job.result(folder) is None]
    if len(left) < len(jobs):
        board.say(f"{len(jobs) - len(left)} of {len(jobs)} jobs were done before")
    progress = Progress("jobs", len(jobs), done=len(jobs) - len(left), unit="jobs")
    answers = there(left, scheduler, board) if scheduler else here(left, workers)
    with board.watch(progress):
        for job, answer in answers if left else ():
            if answer.problem:
                failed.append(job)
                board.say(f"{job.name} failed: {answer.problem}")
                continue
            kept = {"job": job.about, "seconds": round(answer.seconds, 3), "result": answer.result}
            files.write(job.file(folder), json.dumps(kept, allow_nan=False) + "\n")
            progress.done += 1
            board.say(f"{job.name:28} {answer.seconds:6.1f} s")
    return failed
