"""nbgrader's part: release versions, scores and feedback, each made with nbgrader's own converters.

nbgrader is needed only here, and only when one of these functions is called.
"""

import contextlib
import logging
import os
import re
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from tools.classroom.exercises import ClassroomError

STUB = "# Your code here.\nraise NotImplementedError()"
STUDENT = "student"  # nbgrader's name of whoever is graded: every submission has its own course
SECONDS = 900  # for one cell, should a teacher grade with plain nbgrader: lessons run a model
MISSING = (
    "Assignments are made and graded with nbgrader, which is not installed "
    '(it needs Python 3.11 or newer): run `pip install -e ".[classroom]"` in the repository.'
)
# Where there is no network, a page that waits for a script stays empty for a while.
REMOTE = re.compile(r'<script src="[^"]*">\s*</script>')
# The line above the notebook is no heading of the fourth level: the title follows it.
TOP_LINE = re.compile(r"<h4>(.*?)</h4>", flags=re.DOTALL)
CONFIG = f'''\
"""nbgrader's settings of this course: run nbgrader in this folder.

The checks come from `helpers`, so grade with the Python that this repository is installed in.
"""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "subspace_illusion"
c.ClearSolutions.code_stub = {{"python": {STUB!r}}}
c.Execute.timeout = {SECONDS}
'''

Preprocessor = Callable[[NotebookNode, Any], tuple[NotebookNode, Any]]


def require_nbgrader() -> None:
    """Raise a `ClassroomError` that says what to install if nbgrader is missing."""
    try:
        import nbgrader  # noqa: F401
    except ImportError as error:
        raise ClassroomError(MISSING) from error


def quieten(verbose: bool = False) -> None:
    """Show nbgrader's own messages only if asked: it reports every cell it looks at."""
    from traitlets.log import get_logger

    log = get_logger()
    log.propagate = verbose
    if verbose:
        logging.basicConfig(format="%(message)s")
        log.setLevel(logging.INFO)
    elif not log.handlers:
        log.addHandler(logging.NullHandler())  # else Python prints warnings itself


@contextlib.contextmanager
def _own_programs() -> Iterator[None]:
    """Put this Python's programs first on the search path: nbgrader starts alembic by its name."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


class _Errors(logging.Handler):
    """Keeps the last error that nbgrader reported: its exceptions only point to its log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.traceback = ""

    def emit(self, record: logging.LogRecord) -> None:
        if "Traceback" in record.getMessage():
            self.traceback = record.getMessage()


def _run(converter: Any) -> None:
    """Run one of nbgrader's converters; raises a `RuntimeError` with the reason if it fails."""
    from nbgrader.converters.base import NbGraderException

    errors = _Errors()
    converter.log.addHandler(errors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what nbgrader's database layer warns of is its own
            converter.start()
    except NbGraderException as error:
        reason = errors.traceback.strip().splitlines() or [str(error)]
        raise RuntimeError(f"nbgrader failed: {reason[-1]}") from error
    finally:
        converter.log.removeHandler(errors)


def _course(folder: Path, assignment: str, student: str = "*") -> Any:
    """nbgrader's view of a folder."""
    from nbgrader.coursedir import CourseDirectory

    return CourseDirectory(
        root=str(folder.resolve()),
        course_id="subspace_illusion",
        assignment_id=assignment,
        student_id=student,
    )


def _gradebook(folder: Path) -> Any:
    from nbgrader.api import Gradebook

    return Gradebook(f"sqlite:///{folder.resolve() / 'gradebook.db'}")


def make_course(folder: Path, assignment: str, name: str, source: NotebookNode) -> NotebookNode:
    """Make an nbgrader course with one assignment of one notebook, and return its release version.

    Args:
        folder: A new folder; gets `source/`, `release/`, `gradebook.db` and the settings.
        assignment: The assignment's name.
        name: The notebook's file name.
        source: The notebook with nbgrader's metadata, solutions and hidden tests.

    Raises:
        ClassroomError: nbgrader is missing, or it fails.
    """
    require_nbgrader()
    from nbgrader.converters import GenerateAssignment
    from traitlets.config import Config

    config = Config({"ClearSolutions": {"code_stub": {"python": STUB}}})
    (folder / "source" / assignment).mkdir(parents=True)
    (folder / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    nbformat.write(source, folder / "source" / assignment / name)
    converter = GenerateAssignment(coursedir=_course(folder, assignment), config=config)
    with _own_programs():
        try:
            _run(converter)
        except RuntimeError as error:
            raise ClassroomError(f"{assignment} cannot be made: {error}") from error
    return nbformat.read(folder / "release" / assignment / name, as_version=4)


def copy_course(master: Path, folder: Path) -> None:
    """A course of its own for one submission, so that no other result is within its reach."""
    shutil.copytree(master / "source", folder / "source")
    shutil.copy(master / "gradebook.db", folder / "gradebook.db")


def score(
    folder: Path, assignment: str, name: str, submission: NotebookNode, judge: Preprocessor
) -> dict[str, float]:
    """Let nbgrader keep the books on one submission: its points for every graded cell.

    Args:
        folder: The submission's own course.
        assignment: The assignment's name.
        name: The notebook's file name.
        submission: The notebook handed in, with nbgrader's metadata.
        judge: Takes the place of running the notebook: puts outputs into its graded cells.
    """
    from nbgrader.converters import Autograde
    from nbgrader.preprocessors import CheckCellMetadata, LimitOutput, SaveAutoGrades

    submitted = folder / "submitted" / STUDENT / assignment
    submitted.mkdir(parents=True)
    nbformat.write(submission, submitted / name)
    converter = Autograde(coursedir=_course(folder, assignment, STUDENT))
    converter.autograde_preprocessors = [judge, LimitOutput, SaveAutoGrades, CheckCellMetadata]
    _run(converter)
    with _gradebook(folder) as gradebook:
        notebook = gradebook.find_submission_notebook(Path(name).stem, assignment, STUDENT)
        return {grade.name: grade.score for grade in notebook.grades}


def feedback(folder: Path, assignment: str, name: str) -> str:
    """nbgrader's feedback on a scored submission, as one HTML page."""
    from nbgrader.converters import GenerateFeedback

    _run(GenerateFeedback(coursedir=_course(folder, assignment, STUDENT)))
    page = folder / "feedback" / STUDENT / assignment / f"{Path(name).stem}.html"
    text = REMOTE.sub("", page.read_text(encoding="utf-8"))
    text = TOP_LINE.sub(r'<p class="h4">\1</p>', text, count=1)
    return text.replace("<html>", '<html lang="en">', 1)
