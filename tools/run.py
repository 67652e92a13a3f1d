"""Run the lessons on one model and collect what they find.

    python -m tools.run [--model NAME] [--lesson 03 04] [--device cuda] [--jobs 1] [--inplace]

Lessons run side by side where cores and memory allow; `--jobs 1` runs them one after the other.
Executed notebooks, their figures, the claims and a report go to `results/<model>/`.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.claims.report import ResultsError, results_folder, saving
from helpers.models.load import PACKAGED, model_name
from helpers.output.files import ROOT
from tools import machine
from tools.execution import Kernels, Lessons
from tools.places import check_writable
from tools.report import one_screen, write_report
from tools.schedule import find_lessons, find_needs, run_all

NOTEBOOKS = ROOT / "notebooks"
NO_HOME = (
    "Your user has no home folder, and Jupyter needs one: set the environment variable HOME to a "
    "folder where you can write."
)
# In a process of its own, so that the model's memory is free again when the lessons start.
PREPARE = """
from helpers.models import ModelError, load_model
try:
    load_model()
except KeyboardInterrupt:
    raise SystemExit(130)
except ModelError as error:
    raise SystemExit(str(error))
"""


def print_findings() -> None:
    """Write the report, then print one screen: what the claims came to, and where everything is."""
    folder = write_report()[0].parent
    figures = len(list(folder.glob("figures/*.png")))
    print(f"\n{one_screen()}")
    print(f"\nResults are in {folder}")
    print(f"  report.html, .md and .json, claims.json, notebooks/, figures/ ({figures} files)")


def run(lessons: Mapping[str, Path], *, jobs: int | None = None, inplace: bool = False) -> int:
    """Load the model, run the lessons and print the findings; the exit status.

    Args:
        lessons: The notebooks by number.
        jobs: How many to run at the same time (default: what cores and memory allow; a model other
            than the packaged one may need far more memory, so one).
        inplace: Whether to save into the notebooks themselves, too.

    Raises:
        ResultsError: The results cannot be saved.
        OSError: The lessons cannot be saved in place, or there is no room for temporary files.
    """
    results, ended = results_folder(), {}
    with saving(results):
        check_writable(results)
    if inplace:
        check_writable(NOTEBOOKS)
    if subprocess.run([sys.executable, "-c", PREPARE]).returncode:
        return 1
    jobs = min(jobs or (machine.jobs() if model_name() == PACKAGED else 1), len(lessons))
    kernels = Kernels(threads=max(1, machine.cores() // jobs))
    work = Lessons(results, kernels, inplace=inplace)
    try:
        ended = run_all(lessons, find_needs(lessons), jobs, work.run, kernels.stop)
    finally:
        print_findings()
    failed = sorted(lessons[number].stem for number in ended if not ended[number])
    if failed:
        print(f"\nFailed: {', '.join(failed)}")
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None, lessons: Mapping[str, Path]) -> argparse.Namespace:
    """The command line; an unknown lesson ends the program with the list of those there are.

    So does a folder of results that cannot be made: it would be found out after the first lesson.
    """
    parser = argparse.ArgumentParser("python -m tools.run", description="Run the lessons.")
    parser.add_argument("--model", help="name, hub id or folder (default: the packaged model)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: CUDA if there is one)")
    parser.add_argument("--lesson", nargs="+", metavar="NN", help="numbers (default: all lessons)")
    parser.add_argument("--jobs", type=int, metavar="N", help="at a time (default: what fits)")
    parser.add_argument("--inplace", action="store_true", help="also save into notebooks/")
    options = parser.parse_args(arguments)
    options.lesson = [number and number.zfill(2) for number in options.lesson or lessons]
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}: pass how many lessons run at a time, 1 or more")
    for number in options.lesson:
        if number not in lessons:
            known = ", ".join(path.stem for path in lessons.values())
            parser.error(f"there is no lesson {number or repr(number)}; there are: {known}")
    return options


def choose(variable: str, value: str | None) -> None:
    """Set an environment variable that the lessons read; without a value, leave it as it is."""
    if value and Path(value).is_dir():  # the lessons run in another folder than this program
        value = str(Path(value).resolve())
    if value:
        os.environ[variable] = value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.run`; returns its exit status."""
    lessons = find_lessons(NOTEBOOKS)
    options = parse(arguments, lessons)
    if os.path.expanduser("~") == "~":
        print(NO_HOME, file=sys.stderr)
        return 1
    choose("SUBSPACE_ILLUSION_MODEL", options.model or os.environ.get("SUBSPACE_ILLUSION_MODEL"))
    choose("SUBSPACE_ILLUSION_DEVICE", options.device)
    try:
        chosen = {number: lessons[number] for number in options.lesson}
        return run(chosen, jobs=options.jobs, inplace=options.inplace)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The lessons cannot be run here, or not be saved: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; what was finished is kept.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
