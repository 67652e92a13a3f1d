"""Execute one lesson in a kernel of its own and save what it showed."""

import contextlib
import logging
import os
import re
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from helpers.claims.report import saving
from helpers.output import files
from tools.progress import Board, Progress
from tools.stored import clean, findings, save_figures

ERROR_LINES = 8  # of a traceback: enough for the failing line and the message
INDENT = "    "
ANSI = re.compile(r"\x1b\[[0-9;]*m")
KERNEL_VARIABLES = {
    "TQDM_DISABLE": "1",  # no progress bars in the saved output
    "SUBSPACE_ILLUSION_STATIC": "1",  # nor sliders that nobody can drag
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures go into the notebook
}


class Interrupted(Exception):
    """The lesson was stopped with all others."""


class ThisPython(AsyncKernelManager):
    """Starts kernels with the interpreter that runs us, whatever kernels the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The command that starts a kernel."""
        command = make_ipkernel_cmd(extra_arguments=["--log-level=ERROR"])  # no start-up notice
        return KernelSpec(argv=command, display_name="Python 3", language="python")


class Kernels:
    """The kernels of the lessons that run, so that one call can stop them all.

    Args:
        threads: How many threads each may compute with, unless OMP_NUM_THREADS says otherwise.
    """

    def __init__(self, threads: int = 1) -> None:
        chosen = {"OMP_NUM_THREADS": str(threads)} | os.environ
        self.environment = {**chosen, **KERNEL_VARIABLES}
        self._running: set[int] = set()
        self._lock, self._stopped = threading.Lock(), False

    @contextlib.contextmanager
    def start(self, client: NotebookClient) -> Iterator[int]:
        """A kernel for the block, as its process id.

        Raises:
            Interrupted: `stop` was called before the block had ended.
        """
        with client.setup_kernel(env=self.environment):
            kernel = client.km.provisioner.pid
            try:
                with self._lock:
                    self._running.add(kernel)
                    self._check()
                yield kernel
            except RuntimeError:  # what a client raises when its kernel has died
                self._check()
                raise
            finally:
                with self._lock:
                    self._running.discard(kernel)

    def _check(self) -> None:
        if self._stopped:
            raise Interrupted

    def stop(self) -> None:
        """Kill every kernel, and each that is still to come as soon as it is there."""
        for name in ("traitlets", "asyncio"):  # they would report the abandoned cells
            logging.getLogger(name).disabled = True
        with self._lock:
            self._stopped = True
            for kernel in self._running:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(kernel).kill()


class Lessons:
    """Runs lessons, several at a time if need be, and shows and saves what they come to.

    Args:
        results: Folder that gets `notebooks/` and `figures/`.
        kernels: Where their kernels are kept.
        inplace: Whether to overwrite the notebooks themselves too, of those that run to their end.
    """

    def __init__(self, results: Path, kernels: Kernels, *, inplace: bool = False) -> None:
        self.results, self.kernels, self.inplace = results, kernels, inplace
        self.board = Board()

    def run(self, path: Path) -> bool:
        """Execute one lesson and save what it showed, also if it fails or is interrupted.

        Returns:
            Whether it ran to its end.

        Raises:
            Interrupted: The kernels were stopped.
            ResultsError: What it showed cannot be saved.
        """
        notebook = nbformat.read(path, as_version=4)
        try:
            problem = execute(notebook, path, self.kernels, self.board)
        finally:
            clean(notebook)
            text = nbformat.writes(notebook) + "\n"
            with saving(self.results):
                files.write(self.results / "notebooks" / path.name, text)
                save_figures(notebook, path.name[:2], self.results / "figures")
        if self.inplace and not problem:
            files.write(path, text)
        return not problem


def execute(
    notebook: NotebookNode, path: Path, kernels: Kernels | None = None, board: Board | None = None
) -> str | None:
    """Run a notebook's cells, showing progress, and return what went wrong, if anything did.

    A lesson that finds nothing to study in this model ends early, and well.
    """
    kernels, board = kernels or Kernels(), board or Board()
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
    progress, source, problem = Progress(path.stem, len(code)), "", None
    try:
        with kernels.start(client) as kernel, board.watch(progress, kernel):
            for index, cell in code.items():
                source = cell.source
                client.execute_cell(cell, index)
                progress.done += 1
    except (CellExecutionError, RuntimeError) as error:  # RuntimeError: the kernel died
        if getattr(error, "ename", "") == "NotTestable":
            progress.note = f"\n{INDENT}{error.evalue}"
        else:
            problem = explain(error, source)
    finally:
        found = textwrap.indent(findings(notebook), INDENT)
        board.say("\n".join(str(part) for part in (progress, found, problem) if part))
    return problem


def explain(error: Exception, source: str) -> str:
    """Where a lesson stopped and the last lines of its error, without colours."""
    traceback = ANSI.sub("", getattr(error, "traceback", "") or str(error)).strip()
    last = "\n".join(traceback.splitlines()[-ERROR_LINES:])
    first = next(iter(source.strip().splitlines()), "")
    return textwrap.indent(f"stopped in the cell that starts with\n    {first}\n{last}", INDENT)
