"""The first cell of a lesson, wherever it is opened, and the packages it installs."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from helpers.lessons import install
from tools import publish

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "notebooks" / "00_start_here.ipynb"
# Saves 8 s of imports.
NEVER_STARTED = (
    "import os\ndef start(seed):\n    print('started', seed, os.path.realpath(__file__))\n"
)


# ---- the packages


@pytest.fixture
def versions(monkeypatch):
    """The packages that seem to be installed: everything, until a test takes something away."""
    names = [*install.requirements(), *install.KEPT_AS_WELL]
    found = {name: importlib.metadata.version(name) for name in names}

    def version(name):
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return found


@pytest.fixture
def pip(monkeypatch):
    """The commands and constraints that pip was called with; it seems to succeed."""
    calls = []

    def run(command, **_):
        constraints = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8")
        calls.append((command, constraints.splitlines()))
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_requirements_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(install.requirements().values()) == project["dependencies"]
    assert install.requirements()["transformer_lens"].startswith("transformer_lens>=")


def test_nothing_missing_runs_nothing(versions, pip, capsys):
    install.install_missing()
    assert pip == [] and capsys.readouterr().out == ""


def test_only_what_is_missing_is_installed_and_the_rest_is_kept(versions, pip, capsys):
    del versions["gguf"], versions["jaxtyping"]
    versions["torch"] = "2.11.0+cu128"
    install.install_missing()
    ((command, constraints),) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    wanted = [part for part in command if part.startswith(("gguf", "jaxtyping"))]
    assert wanted == ["gguf>=0.17", "jaxtyping>=0.3"]
    assert not any("torch" in part for part in command)
    assert sorted(constraints) == sorted(f"{name}=={found}" for name, found in versions.items())
    for name in ("torch", "numpy", "pandas", "matplotlib", "transformers"):
        assert f"{name}=={versions[name]}" in constraints
    shown = capsys.readouterr().out
    assert shown.startswith("Installing gguf, jaxtyping ") and shown.count("\n") == 1


@pytest.mark.parametrize("version, calls", [("3.0.1", 1), ("5.0.0", 1), ("4.9", 0), ("4.4.0b1", 0)])
def test_another_transformer_lens_is_replaced(versions, pip, version, calls):
    versions["transformer_lens"] = version
    install.install_missing()
    assert len(pip) == calls
    for command, constraints in pip:
        assert "transformer_lens>=4.3,<5" in command
        assert not any(line.startswith("transformer_lens") for line in constraints)


def test_an_old_package_is_left_to_the_check_that_follows(versions, pip):
    versions["torch"] = "2.0"
    install.install_missing()
    assert pip == []


@pytest.mark.parametrize("name, found", [("torch", "2.5.1+cu124"), ("transformer_lens", "2.18.0")])
def test_a_package_that_is_too_old_is_refused(versions, name, found):
    install.check_versions()
    versions[name] = found
    with pytest.raises(RuntimeError, match=f"^{name} {re.escape(found)} is too old .*pip install"):
        install.check_versions()


@pytest.mark.parametrize(
    "found, newer", [("5.15.0", 0), ("5.23.1", 0), ("5.24.0", 1), ("6.0.0rc1", 1)]
)
def test_a_package_that_is_newer_than_known_is_named(versions, capsys, found, newer):
    versions["transformers"], versions["torch"] = found, "10.0.0+cpu"
    install.check_versions()
    said = capsys.readouterr().out
    assert said.count("newer") == said.count(f"transformers {found} is") == newer
    assert said.count('pip install "transformers>=5.15,<5.24"') == newer


def test_a_failing_pip_says_why_and_what_to_do(monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the real pip, without a network
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    name = "no-such-package-of-this-name"
    monkeypatch.setattr(install, "requirements", lambda: {name: f"{name}>=3"})
    with pytest.raises(RuntimeError) as error:
        install.install_missing()
    message = str(error.value)
    assert f"could not install {name}>=3" in message and "No matching distribution" in message
    assert "On Kaggle, switch on the internet" in message
    assert len(message.splitlines()) <= install.LOG_LINES + 2


def test_a_conflict_names_the_package_to_update(versions, monkeypatch):
    log = (
        "WARNING: something else\n"
        "ERROR: Cannot install transformer_lens because these package versions have conflicting "
        "dependencies.\n\nThe conflict is caused by:\n"
        "    transformer-lens 4.3.0 depends on transformers>=5.9.0\n"
        "    The user requested (constraint) transformers==4.50.0\n\n"
        "To fix this you could try to:\n1. loosen the range\n2. remove package versions\n\n"
        "ERROR: ResolutionImpossible: for help visit a page\n"
    )
    failed = subprocess.CompletedProcess([], 1, stdout=log)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    del versions["transformer_lens"]
    with pytest.raises(RuntimeError, match="transformers==4.50.0") as error:
        install.install_missing()
    assert "restart the kernel" in str(error.value) and "Kaggle" not in str(error.value)
    assert "ResolutionImpossible" in str(error.value) and "something" not in str(error.value)


def test_looking_imports_nothing_large():
    code = (
        "import sys; from helpers.lessons import install; install.install_missing()\n"
        "print({'torch', 'numpy', 'transformers', 'transformer_lens'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout == "set()\n", shown.stderr


# ---- the cell


def first_code(address=""):
    """What a lesson runs before anything else, published at this address or not at all."""
    repository = publish.Repository(address)
    text = publish.stamp_lesson(LESSON.read_text(encoding="utf-8"), LESSON.name, repository)
    cells = nbformat.reads(text, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.id in ("fetch", "setup"))


def copy_project(folder, *, notebook=None):
    """The working tree's files that a lesson needs, with this text as the module `notebook`."""
    for name in ("helpers", "data", "notebooks", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_build")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    if notebook:
        (folder / "helpers" / "lessons" / "notebook.py").write_text(notebook, encoding="utf-8")
    return folder


def make_origin(folder, **options):
    """A bare git repository made of the working tree's files, as a file:// address."""
    tree, bare = folder / "tree", folder / "origin.git"
    tree.mkdir(parents=True)
    copy_project(tree, **options)
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "All"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(tree), str(bare)], check=True)
    return bare.as_uri()


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return make_origin(tmp_path_factory.mktemp("published"), notebook=NEVER_STARTED)


def run_cell(folder, address="", *options):
    """Run the first code in a folder, in a new process."""
    command = [sys.executable, *options, "-c", first_code(address)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def assert_started(done, root):
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"started 0 {root / 'helpers' / 'lessons' / 'notebook.py'}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/mine", "notes of mine/here"])
def test_inside_the_project_nothing_is_fetched(tmp_path, place):
    copy_project(tmp_path, notebook=NEVER_STARTED)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    done = run_cell(tmp_path / place, "file:///nowhere")
    assert_started(done, tmp_path)
    assert not list(tmp_path.rglob("subspace-illusion"))


def test_alone_and_not_published(tmp_path):
    done = run_cell(tmp_path, "", "-S")  # without the project that is installed here
    assert done.returncode != 0
    assert "the folder that holds helpers/" in first_code()  # what to look for
    assert "No module named 'helpers'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_alone_in_an_empty_folder_and_again(tmp_path, origin):
    folder = tmp_path / "my notes"
    folder.mkdir()
    assert_started(run_cell(folder, origin), folder / "subspace-illusion")
    assert [path.name for path in folder.iterdir()] == ["subspace-illusion"]
    mine = folder / "subspace-illusion" / "mine.txt"
    mine.touch()
    assert_started(run_cell(folder, "file:///nowhere"), folder / "subspace-illusion")
    assert mine.exists(), "the second run must use what is there"


def test_half_a_clone_is_replaced(tmp_path, origin):
    half = tmp_path / "subspace-illusion"
    (half / ".git").mkdir(parents=True)
    (half / "helpers").mkdir()
    (half / "helpers" / "__init__.py").touch()
    assert_started(run_cell(tmp_path, origin), half)


def test_a_clone_that_fails(tmp_path):
    done = run_cell(tmp_path, "file:///nowhere/at/all")
    assert done.returncode != 0
    assert "file:///nowhere/at/all" in done.stderr
    assert "does not appear to be a git repository" in done.stderr  # git's own words
    assert not list(tmp_path.iterdir())


def test_another_helpers_in_the_folder_is_not_taken(tmp_path, origin):
    other = tmp_path / "helpers"
    other.mkdir()
    (other / "__init__.py").write_text("raise RuntimeError('these are not ours')\n")
    assert_started(run_cell(tmp_path, origin), tmp_path / "subspace-illusion")
