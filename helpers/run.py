"""Run the lessons on one model and collect what they find.

    python -m helpers.run [--model NAME] [--lesson 03 04] [--device cuda] [--inplace]

Executed notebooks, their figures, the claims and a report go to `results/<model>/`.
"""

import argparse
import base64
import contextlib
import functools
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pandas as pd
import psutil
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from helpers import output
from helpers.replication import write_report
from helpers.report import (
    ROOT,
    UNMEASURED,
    ResultsError,
    results_folder,
    saving,
    summary_table,
)  # fmt: skip

NOTEBOOKS = ROOT / "notebooks"
ERROR_LINES = 8  # of a traceback: enough for the failing line and the message
COLUMN_WIDTH = 48  # characters of a table cell on the terminal
ANSI = re.compile(r"\x1b\[[0-9;]*m")
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KERNEL_VARIABLES = {
    "TQDM_DISABLE": "1",  # no progress bars in the saved output
    "SUBSPACE_ILLUSION_STATIC": "1",  # nor sliders that nobody can drag
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures go into the notebook
}
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


class ThisPython(AsyncKernelManager):
    """Starts kernels with the interpreter that runs us, whatever kernels the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The command that starts a kernel."""
        command = make_ipkernel_cmd(extra_arguments=["--log-level=ERROR"])  # no start-up notice
        return KernelSpec(argv=command, display_name="Python 3", language="python")


@dataclass
class Progress:
    """The progress line of one lesson: cells done, time, peak memory of its kernel."""

    lesson: str
    total: int
    done: int = 0
    peak: int = 0  # bytes
    start: float = field(default_factory=time.monotonic)
    note: str = ""  # why the lesson ended early, if it did

    def __str__(self) -> str:
        seconds = time.monotonic() - self.start
        cells = f"{self.done:3d}/{self.total} cells"
        return (
            f"{self.lesson:34} {cells} {seconds:6.0f} s   peak {self.peak / 1e9:.1f} GB{self.note}"
        )

    @contextlib.contextmanager
    def watch(self, kernel: int) -> Iterator[None]:
        """Measure a kernel's memory and, on a terminal, redraw the line while the block runs."""
        finished = threading.Event()

        def look() -> None:
            while True:
                with contextlib.suppress(psutil.Error):
                    self.peak = max(self.peak, psutil.Process(kernel).memory_info().rss)
                if sys.stdout.isatty():
                    print(f"\r{self}", end="", flush=True)
                if finished.wait(timeout=0.5):
                    return

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()


def find_lessons(folder: Path) -> dict[str, Path]:
    """The notebooks `NN_*.ipynb` of a folder by their number, in order."""
    return {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}


def clean(notebook: NotebookNode) -> None:
    """Remove from a notebook what changes from run to run or from machine to machine."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    executed = [cell for cell in notebook.cells if cell.get("execution_count")]
    for count, cell in enumerate(executed, start=1):
        cell.execution_count = count
        for part in cell.outputs:
            part.get("data", {}).pop(WIDGET, None)
            _remove_places(part)
            if part.output_type == "execute_result":
                part.execution_count = count


def _remove_places(part: NotebookNode) -> None:
    """Take the names of this machine's folders out of what a cell printed, warned of or raised."""
    texts = {"stream": ("text",), "error": ("evalue", "traceback")}
    for key in texts.get(part.output_type, ()):
        value = part[key]
        whole = isinstance(value, str)
        part[key] = (
            output.without_places(value)
            if whole
            else [output.without_places(line) for line in value]
        )


def save_figures(notebook: NotebookNode, lesson: str, folder: Path) -> None:
    """Write every PNG of a notebook as `<lesson>_<cell id>.png`, replacing an earlier run's."""
    for old in folder.glob(f"{lesson}_*.png"):
        old.unlink(missing_ok=True)  # another run at the same time may have been faster
    for cell in notebook.cells:
        data = [part.get("data", {}) for part in cell.get("outputs", ())]
        images = [datum["image/png"] for datum in data if "image/png" in datum]
        for number, image in enumerate(images, start=1):
            suffix = f"_{number}" if len(images) > 1 else ""
            output.write(folder / f"{lesson}_{cell.id}{suffix}.png", base64.b64decode(image))


@contextlib.contextmanager
def running_kernel(client: NotebookClient) -> Iterator[int]:
    """A kernel for the block, as its process id; an interrupt does not wait for the cell's end."""
    with client.setup_kernel(env={**os.environ, **KERNEL_VARIABLES}):
        try:
            yield client.km.provisioner.pid
        except KeyboardInterrupt:
            client.shutdown_kernel = "immediate"
            logging.getLogger("asyncio").disabled = True  # it would report the abandoned cell
            raise


def execute(notebook: NotebookNode, path: Path) -> str | None:
    """Run a notebook's cells, showing progress, and return what went wrong, if anything did.

    A lesson that finds nothing to study in this model ends early, and well.
    """
    code = {i: cell for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    for cell in code.values():  # so that no output of an earlier run can pass for one of this run
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,
    )
    progress, source = Progress(path.stem, len(code)), ""
    try:
        with running_kernel(client) as kernel, progress.watch(kernel):
            for index, cell in code.items():
                source = cell.source
                client.execute_cell(cell, index)
                progress.done += 1
    except (CellExecutionError, RuntimeError) as error:  # RuntimeError: the kernel died
        if getattr(error, "ename", "") != "NotTestable":
            return explain(error, source)
        progress.note = f"\n    {error.evalue}"
    finally:
        print(f"\r{progress}" if sys.stdout.isatty() else progress, flush=True)


def explain(error: Exception, source: str) -> str:
    """Where a lesson stopped and the last lines of its error, without colours."""
    traceback = ANSI.sub("", getattr(error, "traceback", "") or str(error)).strip()
    last = "\n".join(traceback.splitlines()[-ERROR_LINES:])
    first = next(iter(source.strip().splitlines()), "")
    return textwrap.indent(f"stopped in the cell that starts with\n    {first}\n{last}", "    ")


def run_lesson(path: Path, results: Path, *, inplace: bool = False) -> bool:
    """Execute one lesson and save what it showed, also if it fails or is interrupted.

    Args:
        path: The notebook.
        results: Folder that gets `notebooks/` and `figures/`.
        inplace: Whether to overwrite the notebook itself too, if it ran to its end.

    Returns:
        Whether it ran to its end.

    Raises:
        ResultsError: What it showed cannot be saved.
    """
    notebook = nbformat.read(path, as_version=4)
    try:
        problem = execute(notebook, path)
    finally:
        clean(notebook)
        text = nbformat.writes(notebook) + "\n"
        with saving(results):
            output.write(results / "notebooks" / path.name, text)
            save_figures(notebook, path.name[:2], results / "figures")
    if problem:
        print(problem, flush=True)
    elif inplace:
        output.write(path, text)
    return not problem


def format_table(table: pd.DataFrame) -> str:
    """A table of text in aligned columns, its long cells shortened."""
    short = functools.partial(textwrap.shorten, width=COLUMN_WIDTH, placeholder=" ...")
    rows = [[*map(short, row)] for row in (table.columns, *table.itertuples(index=False))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def print_findings() -> None:
    """Write the report, then print where everything is and what the claims came to."""
    folder = write_report()[0].parent
    figures = len(list(folder.glob("figures/*.png")))
    print(f"\nResults are in {folder}")
    print(f"  report.md, .html and .json, claims.json, notebooks/, figures/ ({figures} files)\n")
    table = summary_table()
    print(format_table(table[table["verdict"] != UNMEASURED].drop(columns="lesson")))


def run(lessons: Iterable[Path], *, inplace: bool = False) -> int:
    """Load the model, run the lessons in order and print the findings; the exit status.

    Raises:
        ResultsError: The results cannot be saved.
        OSError: The lessons cannot be saved in place, or there is no room for temporary files.
    """
    results, failed = results_folder(), []
    with saving(results):
        output.check_writable(results)
    if inplace:
        output.check_writable(NOTEBOOKS)
    if subprocess.run([sys.executable, "-c", PREPARE]).returncode:
        return 1
    try:
        failed = [path.stem for path in lessons if not run_lesson(path, results, inplace=inplace)]
    finally:
        print_findings()
    if failed:
        print(f"\nFailed: {', '.join(failed)}")
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None, lessons: Mapping[str, Path]) -> argparse.Namespace:
    """The command line; an unknown lesson ends the program with the list of those there are.

    So does a folder of results that cannot be made: it would be found out after the first lesson.
    """
    parser = argparse.ArgumentParser("python -m helpers.run", description="Run the lessons.")
    parser.add_argument("--model", help="name, hub id or folder (default: the packaged model)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: CUDA if there is one)")
    parser.add_argument("--lesson", nargs="+", metavar="NN", help="numbers (default: all lessons)")
    parser.add_argument("--inplace", action="store_true", help="also save into notebooks/")
    options = parser.parse_args(arguments)
    options.lesson = [number and number.zfill(2) for number in options.lesson or lessons]
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
    """The command `python -m helpers.run`; returns its exit status."""
    lessons = find_lessons(NOTEBOOKS)
    options = parse(arguments, lessons)
    if os.path.expanduser("~") == "~":
        print(NO_HOME, file=sys.stderr)
        return 1
    choose("SUBSPACE_ILLUSION_MODEL", options.model or os.environ.get("SUBSPACE_ILLUSION_MODEL"))
    choose("SUBSPACE_ILLUSION_DEVICE", options.device)
    try:
        return run([lessons[number] for number in options.lesson], inplace=options.inplace)
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
