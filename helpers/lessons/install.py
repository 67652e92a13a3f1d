"""What a lesson does before it imports anything large: install the packages that are missing.

Notebook services such as Colab and Kaggle bring torch, numpy, transformers and more, but not all
that the lessons need. What is there stays exactly as it is, so the kernel need not be restarted.
"""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
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
    """Install what is missing, start the lesson and return the module `helpers.lessons.notebook`.

    Raises RuntimeError: a package cannot be installed or is too old.
    """
    install_missing()
    from helpers.lessons import notebook

    notebook.start(seed)
    return notebook


def install_missing() -> None:
    """Install the packages of the project that are missing, without changing any other one.

    Does nothing, at once, when nothing is missing.

    Raises RuntimeError: pip failed; the message has its last lines and what to do.
    """
    wanted = requirements()
    found = installed(wanted)
    missing = {name: text for name, text in wanted.items() if needs_install(text, found.get(name))}
    if not missing:
        return
    print(f"Installing {', '.join(missing)} (once, a minute or two) ...", flush=True)
    kept = installed([*wanted, *KEPT_AS_WELL])
    _pip(missing.values(), {name: kept[name] for name in kept if name not in missing})
    importlib.invalidate_caches()  # so that this process sees the new packages


def requirements() -> dict[str, str]:
    """What `pyproject.toml` says the project needs: package name -> requirement.

    Raises RuntimeError: the list is not where it should be.
    """
    # Not with tomllib, which Python 3.10 lacks.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.M | re.S)
    if not listed:
        raise RuntimeError(f"There is no list of dependencies in {ROOT / 'pyproject.toml'}.")
    lines = re.findall(r'^\s*"(.+)",', listed[1], flags=re.M)
    return {Requirement(line).name: line for line in lines}


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def needs_install(requirement: str, version: str | None) -> bool:
    """Whether a package is missing, or another version of it can be replaced.

    Any other package that is too old is left to `notebook.start`, which says so.
    """
    parsed = Requirement(requirement)
    if version is None:
        return True
    return parsed.name == REPLACEABLE and not parsed.specifier.contains(version, prereleases=True)


def _pip(wanted: Iterable[str], kept: Mapping[str, str]) -> None:
    """Install requirements, keeping these packages at these versions."""
    wanted = list(wanted)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        lines = [f"{name}=={version}\n" for name, version in kept.items()]
        constraints.write_text("".join(lines), encoding="utf-8")
        # Not quietly: pip would leave out what a conflict comes from. Nobody sees the rest.
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        command += [*wanted, "-c", str(constraints)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    if done.returncode:
        raise RuntimeError(_explain(done.stdout, wanted))


def _explain(log: str, wanted: Iterable[str]) -> str:
    """What could not be installed, the end of pip's output, and what to do about it."""
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("WARNING")]
    end = "\n".join(f"    {line}" for line in lines[-LOG_LINES:])
    conflict = "ResolutionImpossible" in log or "conflict" in log
    advice = CONFLICT_ADVICE if conflict else NETWORK_ADVICE
    return f"pip could not install {', '.join(wanted)}:\n{end}\n{advice}"
