"""Threads wait as the helpers say, or as the user does, in everything that uses the helpers."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import WAITING

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOW = "import os; print(*map(os.environ.get, helpers.WAITING), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "PASSIVE 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
    ],
)
def test_the_helpers_say_so_before_torch_is_there(before, after):
    variables = {name: text for name, text in os.environ.items() if name not in WAITING}
    variables |= before
    command = [sys.executable, "-c", f"import sys; import helpers; {SHOW}"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout == f"{after} False\n", done.stderr


def test_the_tests_run_so():
    assert WAITING.keys() & os.environ.keys()
    lines = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports[0].startswith("import helpers")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_imports_the_helpers_before_anything_large(path):
    cells = nbformat.read(path, as_version=4).cells
    setup = next(cell for cell in cells if cell.id == "setup")
    nodes = [node for node in ast.walk(ast.parse(setup.source)) if "Import" in type(node).__name__]
    names = [getattr(node, "module", None) or node.names[0].name for node in nodes]
    assert names == ["sys", "helpers.lessons"]  # the latter runs `helpers/__init__.py` first
    before = cells[: cells.index(setup)]
    assert not any(cell.cell_type == "code" for cell in before)
