"""Put models side by side.

    python -m tools.compare MODEL [MODEL ...]

Writes `comparison.md` and `comparison.html` to the results folder and prints the table.

Exit status: 0, 1 if nothing is known of a model, 2 for wrong use or files that cannot be used.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers.claims.page import measurements
from helpers.claims.report import VERDICTS, ResultsError, claims_table, results_folder, saving
from helpers.output import files
from tools import pages
from tools.terminal import text_table


def compare(models: Sequence[str]) -> pd.DataFrame:
    """One row per claim: what it says, the published number, then each model's and its verdict.

    As recorded or by our reference values. Raises FileNotFoundError: nothing is known of a model.
    """
    table = claims_table({})[["claim", "what", "paper"]]
    for model in models:
        name, entries = results_folder(model).name, measurements(model)
        if not entries:
            raise FileNotFoundError(f"No results for {name}: run it first: make run MODEL={model}")
        table[[name, f"{name}: verdict"]] = claims_table(entries)[["ours", "verdict"]]
    return table


def counts(table: pd.DataFrame) -> list[str]:
    """One line per model of a comparison: how many claims have which verdict."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.compare`; returns its exit status."""
    parser = argparse.ArgumentParser("python -m tools.compare", description="Models compared.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name, hub id or folder")
    options = parser.parse_args(arguments)
    try:
        table = compare(options.models)
        folder = write(table)
    except (FileNotFoundError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 1
    lines = counts(table)
    print(text_table(list(table), table.values.tolist()), *lines, sep="\n")
    print(f"Also in {folder}: comparison.md, comparison.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
