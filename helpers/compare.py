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

import pandas as pd

from helpers import output
from helpers.replication import measurements
from helpers.report import UNMEASURED, VERDICTS, claims, results_folder, show_ours, show_paper
from helpers.run import format_table


def compare(models: Sequence[str]) -> pd.DataFrame:
    """One row per claim: what it says, the published number, then each model's and its verdict.

    Raises:
        FileNotFoundError: Nothing is known of one of the models.
        ValueError: What was recorded is damaged.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m helpers.compare`; returns its exit status."""
    parser = argparse.ArgumentParser("python -m helpers.compare", description="Models compared.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name, hub id or folder")
    options = parser.parse_args(arguments)
    try:
        _run(options.models)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(models: Sequence[str]) -> None:
    """Compare, write both files and print the table."""
    table = compare(models)
    columns, rows, lines = list(table), table.values.tolist(), counts(table)
    folder = results_folder().parent
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(["# Models side by side", *lines, output.markdown_table(columns, rows)])
    output.write(folder / "comparison.md", text + "\n")
    body = "\n".join(
        [*(f"<p>{line}</p>" for line in lines), output.html_table("Claims", columns, rows)]
    )
    output.write(folder / "comparison.html", output.html_page("Models side by side", body))
    print(
        format_table(table), *lines, f"Also in {folder}: comparison.md, comparison.html", sep="\n"
    )


if __name__ == "__main__":
    sys.exit(main())
