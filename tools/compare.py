"""Put models side by side.

    python -m tools.compare MODEL [MODEL ...]

Writes `comparison.md` and `comparison.html` to the results folder and prints the table.

Exit status: 0, 1 if nothing is known of a model, 2 for wrong use or files that cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence

from helpers.claims.models import compare, counts, write
from helpers.claims.report import ResultsError
from helpers.output.pages import text_table


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
