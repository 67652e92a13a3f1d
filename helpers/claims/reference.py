"""What comes with the project: our own reference values, compared by `check()`; sweeps, large runs.

`data/expected/<model>.json` holds each claim's value in our run with a tolerance that a run on
another CPU should stay within. A run that leaves it has drifted: a package, the data or the code
has changed what we measure. `data/expected/small/` holds the same for the sizes that tests use, and
with them the headline numbers of the lessons, which the lessons themselves name for the usual
sizes. `data/README.md` has the commands that made these files.
"""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.claims import report
from helpers.claims.report import claims, read_json, read_measured, recorded, results_folder
from helpers.claims.sizes import sizes_name
from helpers.models import PACKAGED, model_name
from helpers.models.load import model_slug
from helpers.output import files
from helpers.output.files import ROOT

HEADLINE_FILE, HEADLINES = "headlines.json", "headlines"  # in the results, and in the reference


def expected_path(model: str | None = None, sizes: str | None = None) -> Path:
    """Where the reference values of a model are, or would be, for these or the chosen sizes.

    The sizes of the paper have none, and are compared with the usual ones; other models than the
    packaged one have only these.
    """
    folder, name = ROOT / "data" / "expected", results_folder(model).name
    small = sizes_name(sizes) == "small" and name == model_slug(PACKAGED)
    return (folder / "small" if small else folder) / f"{name}.json"


def expected(model: str | None = None, sizes: str | None = None) -> dict[str, dict[str, Any]]:
    """The reference values of a model by claim, for these or the chosen sizes, if we have any."""
    return read_measured(expected_path(model, sizes))


def record_headline(name: str, value: float, model: str | None = None) -> None:
    """Keep a headline number, if it is finite, with the results: it can become a reference."""
    if math.isfinite(value):
        report.update_json(results_folder(model) / HEADLINE_FILE, name, {"value": value})


def headlines(model: str | None = None) -> dict[str, float]:
    """The reference values of the headline numbers by name, for small sizes; else none."""
    found = read_json(expected_path(model)).get(HEADLINES, {})
    return {name: entry["value"] for name, entry in found.items()}


def drifts(model: str | None = None) -> list[str]:
    """One sentence for every recorded claim that is off its reference value."""
    found, sentences = recorded(model), []
    for claim, reference in expected(model).items():
        value, wanted = found.get(claim, reference).get("value"), reference.get("value")
        tolerance = reference.get("tolerance") or 0
        if (value is None) != (wanted is None):
            sentences.append(f"{claim}: {value} instead of {wanted}")
        elif value is not None and not abs(value - wanted) <= tolerance:
            limits = f"{wanted:.4g} ± {tolerance:.2g}"
            sentences.append(f"{claim} ({claims()[claim]['title']}): {value:.4g}, not {limits}")
    return sentences


def check(model: str | None = None) -> None:
    """Compare what was recorded with the reference values, and say so.

    Raises AssertionError: on the packaged model, but for the sizes of the paper, a claim moved.
    """
    same = model_name(model) == PACKAGED and sizes_name() != "paper"
    moved = drifts(model)
    if same and moved:
        raise AssertionError("These claims have moved:\n" + "\n".join(moved))
    both = expected(model).keys() & recorded(model).keys()
    print(f"{len(both) - len(moved)} of {len(both)} recorded claims are as in our reference run")
    print(*moved, sep="\n", end="\n" if moved else "")


def save_sweep(name: str, table: pd.DataFrame) -> Path:
    """Write a table by layer and patch, such as that of `over_pairs`, to the results; the path."""
    path = results_folder() / f"{name}-sweep.csv"
    with report.saving(path.parent):
        files.write(path, table.to_csv())
    return path


def shipped_sweep(name: str) -> pd.DataFrame | None:
    """The full-size sweep that comes with the project for this model, by layer and patch."""
    path = ROOT / "data" / "sweeps" / results_folder().name / f"{name}.csv"
    return pd.read_csv(path, index_col=["layer", "patch"]) if path.exists() else None


def shipped_evidence(name: str) -> dict[str, Any]:
    """A large run that comes with the project, with the rules that stood before it."""
    return json.loads((ROOT / "data" / "evidence" / f"{name}.json").read_text(encoding="utf-8"))
