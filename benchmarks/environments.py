"""The environments of the peers: ours for what needs our packages, else one made here."""

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
OWN = {"pyvene_peer": "pyvene", "nnsight_peer": "nnsight"}


def python(peer: str) -> str:
    """The interpreter that a peer runs in."""
    return str(_folder(OWN[peer]) / "bin" / "python") if peer in OWN else sys.executable


def variables(peer: str) -> dict[str, str]:
    """Its environment variables: it finds the peers, and our helpers only if it runs with ours."""
    paths = [HERE] if peer in OWN else [HERE, HERE.parent]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def make_all() -> None:
    """Make the environments that are not there yet; a few minutes each."""
    for name in OWN.values():
        ready = _folder(name) / ".ready"
        if ready.exists():
            continue
        print(f"Setting up {name} in an environment of its own (once) ...", flush=True)
        venv.create(_folder(name), with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
        requirements = HERE / "requirements" / f"{name}.txt"
        subprocess.run([_folder(name) / "bin" / "python", *install, requirements], check=True)
        ready.touch()  # last, so that an interrupted set-up is done again


def _folder(name: str) -> Path:
    return HERE / ".venvs" / name
