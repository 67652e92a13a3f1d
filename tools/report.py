"""Write the replication report of a model again, from what was recorded.

python -m tools.report [--model NAME]
"""

import argparse
import sys
from collections.abc import Sequence

from helpers.claims.page import write_report
from helpers.claims.report import ResultsError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.report`; returns its exit status."""
    parser = argparse.ArgumentParser("python -m tools.report", description="The report again.")
    parser.add_argument("--model", help="name, hub id or folder (default: the packaged model)")
    try:
        print(*write_report(parser.parse_args(arguments).model), sep="\n")
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
