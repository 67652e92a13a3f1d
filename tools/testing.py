"""Test the code and the lessons, in as many processes as cores and memory allow.

    python -m tools.testing [PATH ...] [--jobs N] [--long]

Without a path: all tests, and every lesson on the packaged model. `--long` runs what takes minutes
and `make test` leaves out. A file stays in one process, from top to bottom, and those that take
longest start first (see `tests/conftest.py`).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from helpers.claims.reference import expected_path
from helpers.claims.sizes import SIZES_VARIABLE
from helpers.models.load import PACKAGED
from helpers.output.files import ROOT
from tools import machine
from tools.run import PREPARE

LESSONS = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=900"]
# A headline number has another value with small sizes; `expect` has compared it by then.
LESSONS += [f"--nbval-sanitize-with={ROOT / 'tests' / 'headlines.cfg'}"]
# The last lesson compares what the others recorded with the reference, so it waits for them.
REPORT = "notebooks/*_replication_report.ipynb"
NO_TESTS = 5  # pytest's exit status if it has found none


def environment(jobs: int, results: str) -> dict[str, str]:
    """The variables that tests and lessons run with.

    Args:
        jobs: How many processes run at the same time; the cores are shared out among them.
        results: The folder for what lessons record.
    """
    threads = str(max(1, machine.cores() // jobs))
    chosen = {"OMP_NUM_THREADS": threads} | os.environ
    chosen.pop("SUBSPACE_ILLUSION_MODEL", None)
    if expected_path(PACKAGED, "small").exists():  # else there is nothing to compare with
        chosen.setdefault(SIZES_VARIABLE, "small")
    fixed = {"SUBSPACE_ILLUSION_RESULTS": results, "SUBSPACE_ILLUSION_STATIC": "1"}
    return {**chosen, **fixed, "TQDM_DISABLE": "1"}


def stages(paths: Sequence[str], jobs: int, *, long: bool = False) -> list[list[str]]:
    """The arguments of pytest, for one call after the other.

    Args:
        paths: What to test; if nothing, everything.
        jobs: How many processes run at the same time; one means pytest's own.
        long: Whether to run the long tests, and those only.
    """
    side_by_side = ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"]
    shared = side_by_side if jobs > 1 else []
    if long:
        more = ["-m", "long or fuzz", "--hypothesis-profile", "long"]
        return [[*shared, *more, *(paths or ["tests"])]]
    shared = [*shared, "-m", "not long"]
    if paths:
        return [[*shared, *paths, *LESSONS]]
    last = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(REPORT))]
    first = [*shared, "tests", "notebooks", *LESSONS, *(f"--ignore={path}" for path in last)]
    return [first, [*last, *LESSONS]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.testing`; returns its exit status."""
    parser = argparse.ArgumentParser("python -m tools.testing", description="Run the tests.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="tests or lessons (default: all)")
    parser.add_argument("--jobs", type=int, metavar="N", help="at a time (default: what fits)")
    parser.add_argument("--long", action="store_true", help="those that take minutes, only")
    options = parser.parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}: pass how many processes, 1 or more")
    jobs = options.jobs or machine.jobs()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as results:
        variables = environment(jobs, results)
        # Once, before several processes ask for the model.
        if subprocess.run([sys.executable, "-c", PREPARE], env=variables, cwd=ROOT).returncode:
            return 1
        status = 0
        for stage in stages(options.paths, jobs, long=options.long):
            command = [sys.executable, "-m", "pytest", *stage]
            ended = _run(command, variables)
            status = status or ended
    return status


def _run(command: Sequence[str], variables: dict[str, str]) -> int:
    """The exit status of one call of pytest, after an interrupt, too; none found is no failure."""
    with subprocess.Popen(command, env=variables, cwd=ROOT) as process:
        try:
            process.wait()
        except KeyboardInterrupt:  # it gets the signal as well, and still has to tidy up
            process.wait()
            return 130
    return 0 if process.returncode == NO_TESTS else process.returncode


if __name__ == "__main__":
    sys.exit(main())
