"""Sweeps and large runs as files: those a lesson saves, and those that come with the project.

`data/README.md` has the commands that made the latter.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.claims.report import results_folder, saving
from helpers.output import files
from helpers.output.files import ROOT


def save_sweep(name: str, table: pd.DataFrame) -> Path:
    """Write a table by layer and patch, such as that of `over_pairs`, to the results; the path."""
    path = results_folder() / f"{name}-sweep.csv"
    with saving(path.parent):
        files.write(path, table.to_csv())
    return path


def shipped_sweep(name: str) -> pd.DataFrame | None:
    """The full-size sweep that comes with the project for this model, by layer and patch."""
    path = ROOT / "data" / "sweeps" / results_folder().name / f"{name}.csv"
    return pd.read_csv(path, index_col=["layer", "patch"]) if path.exists() else None


def shipped_evidence(name: str) -> dict[str, Any]:
    """A large run that comes with the project, with the rules that stood before it."""
    return json.loads((ROOT / "data" / "evidence" / f"{name}.json").read_text(encoding="utf-8"))
