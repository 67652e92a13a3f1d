"""What a lesson does before it imports anything large: install the packages that are missing.

Notebook services such as Colab and Kaggle bring most, but not all that the lessons need. What is
there stays exactly as it is, so the kernel need not be restarted.
"""

import contextlib
import importlib
import importlib.metadata
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
# transformer_lens would rather upgrade these, and a kernel that has loaded them would break.
KEPT_AS_WELL = ("transformers", "tokenizers", "huggingface_hub")
# Nothing that notebook services bring depends on it, so another version may be replaced.
REPLACEABLE = "transformer_lens"
LOG_LINES = 6  # of pip's output in an error message: the cause stands at the end

NETWORK_ADVICE = (
    "Check the network and run this cell again. On Kaggle, switch on the internet: right side of "
    "the notebook, Session options."
)
CONFLICT_ADVICE = (
    "A package that is already here is too old or too new for the lessons. Change the one that "
    "pip names above (`pip install -U NAME`), restart the kernel and run this cell again."
)


def start(seed: int = 0) -> ModuleType:
    """Install what is missing, start the lesson and return `helpers.lessons.notebook`."""
    install_missing()
    check_versions()
    from helpers.lessons import notebook

    notebook.start(seed)
    return notebook


def install_missing() -> None:
    """Install the packages of the project that are missing, without changing any other one.

    Raises RuntimeError: pip failed; the message has its last lines and what to do.
    """
    wanted = requirements()
    found = installed(wanted)
    # Any other package that is too old is left to `check_versions`, which says so.
    missing = {
        name: text
        for name, text in wanted.items()
        if name not in found
        or name == REPLACEABLE
        and not Requirement(text).specifier.contains(found[name], prereleases=True)
    }
    if not missing:
        return
    print(f"Installing {', '.join(missing)} (once, a minute or two) ...", flush=True)
    kept = installed([*wanted, *KEPT_AS_WELL])
    _pip(missing.values(), {name: kept[name] for name in kept if name not in missing})
    importlib.invalidate_caches()  # so that this process sees the new packages


def check_versions() -> None:
    """Say which packages are newer than the project knows. Raises RuntimeError: one is too old."""
    for name, found in installed(wanted := requirements()).items():
        limits = Requirement(wanted[name]).specifier
        broken = {x.operator for x in limits if not x.contains(found, prereleases=True)}
        advice = f'`pip install "{wanted[name]}"` and restart the kernel'
        if ">=" in broken:
            raise RuntimeError(f"{name} {found} is too old for the lessons: {advice}")
        if broken:
            print(f"{name} {found} is newer than the lessons know. If they are slow: {advice}")


def requirements() -> dict[str, str]:
    """What `pyproject.toml` says the project needs: package name -> requirement."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {Requirement(line).name: line for line in project["dependencies"]}


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _pip(wanted: Collection[str], kept: Mapping[str, str]) -> None:
    """Install requirements, keeping these packages at these versions."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={found}\n" for name, found in kept.items()))
        # Not quietly: pip would leave out what a conflict comes from. Nobody sees the rest.
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        command += [*wanted, "-c", str(constraints)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, text=True, errors="replace", **pipes)
    if done.returncode:
        log = [x for x in done.stdout.splitlines() if x.strip() and not x.startswith("WARNING")]
        end = "\n".join(f"    {line}" for line in log[-LOG_LINES:])
        conflict = "ResolutionImpossible" in done.stdout or "conflict" in done.stdout
        advice = CONFLICT_ADVICE if conflict else NETWORK_ADVICE
        raise RuntimeError(f"pip could not install {', '.join(wanted)}:\n{end}\n{advice}")
