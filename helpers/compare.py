"""Models side by side.

    python -m helpers.compare MODEL [MODEL ...]

Reads what `make run MODEL=...` recorded, or the reference values that come with the project;
writes `comparison.md` and `comparison.html` to the results folder and prints the table.

Exit status: 0, 1 if nothing is known of a model, 2 for wrong use or files that cannot be used.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers import output
from helpers.replication import measurements
from helpers.report import (
    UNMEASURED,
    VERDICTS,
    ResultsError,
    claims,
    results_folder,
    saving,
    show_ours,
    show_paper,
)  # fmt: skip


def compare(models: Sequence[str]) -> pd.DataFrame:
    """One row per claim: what it says, the published number, then each model's and its verdict.

    Raises:
        FileNotFoundError: Nothing is known of one of the models.
        ResultsError: What was recorded cannot be read.
    """
    found = {}
    for model in models:
        name = results_folder(model).name
        found[name] = measurements(model)
        if not found[name]:
            raise FileNotFoundError(f"No results for {name}: run it first: make run MODEL={model}")
    rows = []
    for claim, spec in claims().items():
        row = {"claim": claim, "what": spec["title"], "paper": show_paper(spec)}
        row["paper"] = row["paper"].removeprefix("paper ")
        for name, entries in found.items():
            entry = entries.get(claim, {"verdict": UNMEASURED})
            row |= {name: show_ours(spec, entry), f"{name}: verdict": entry["verdict"]}
        rows.append(row)
    return pd.DataFrame(rows)


def counts(table: pd.DataFrame) -> list[str]:
    """One line per model: how many claims have which verdict."""
    lines = []
    for column in table.columns[4::2]:
        counted = Counter(table[column])
        name = column.removesuffix(": verdict")
        lines.append(f"{name}: " + " · ".join(f"{v} {counted[v]}" for v in VERDICTS))
    return lines


def write(table: pd.DataFrame) -> Path:
    """Write a comparison as `comparison.md` and `comparison.html` into the folder that comes back.

    Raises:
        ResultsError: It cannot be written.
    """
    columns, rows, lines = list(table), table.values.tolist(), counts(table)
    text = "\n\n".join(["# Models side by side", *lines, output.markdown_table(columns, rows)])
    body = "\n".join(
        [*(f"<p>{line}</p>" for line in lines), output.html_table("Claims", columns, rows)]
    )
    folder = results_folder().parent
    with saving(folder):
        output.write(folder / "comparison.md", text + "\n")
        output.write(folder / "comparison.html", output.html_page("Models side by side", body))
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m helpers.compare`; returns its exit status."""
    parser = argparse.ArgumentParser("python -m helpers.compare", description="Models compared.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name, hub id or folder")
    options = parser.parse_args(arguments)
    try:
        table = compare(options.models)
        folder = write(table)
    except (FileNotFoundError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 1
    lines = counts(table)
    print(output.text_table(list(table), table.values.tolist()), *lines, sep="\n")
    print(f"Also in {folder}: comparison.md, comparison.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
