"""Models side by side, `python -m tools.compare MODEL ...`, as recorded or by reference values."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers.claims.page import measurements
from helpers.claims.report import VERDICTS, claims_table, results_folder, saving
from helpers.output import files, pages


def compare(models: Sequence[str]) -> pd.DataFrame:
    """One row per claim: what it says, the published number, then each model's and its verdict.

    Raises FileNotFoundError: nothing is known of one of the models.
    """
    found = {}
    for model in models:
        name = results_folder(model).name
        found[name] = measurements(model)
        if not found[name]:
            raise FileNotFoundError(f"No results for {name}: run it first: make run MODEL={model}")
    table = claims_table({})[["claim", "what", "paper"]]
    for name, entries in found.items():
        table[[name, f"{name}: verdict"]] = claims_table(entries)[["ours", "verdict"]]
    return table


def counts(table: pd.DataFrame) -> list[str]:
    """One line per model: how many claims have which verdict."""
    lines = []
    for name, column in zip(table.columns[3::2], table.columns[4::2], strict=True):
        counted = Counter(table[column])
        lines.append(f"{name}: " + " · ".join(f"{v} {counted[v]}" for v in VERDICTS))
    return lines


def write(table: pd.DataFrame) -> Path:
    """Write a comparison as `comparison.md` and `comparison.html`; the folder comes back."""
    columns, rows, lines = list(table), table.values.tolist(), counts(table)
    text = "\n\n".join(["# Models side by side", *lines, pages.markdown_table(columns, rows)])
    paragraphs = "\n".join(f"<p>{line}</p>" for line in lines)
    body = f"{paragraphs}\n{pages.html_table('Claims', columns, rows)}"
    folder = results_folder().parent
    with saving(folder):
        files.write(folder / "comparison.md", text + "\n")
        files.write(folder / "comparison.html", pages.html_page("Models side by side", body))
    return folder
