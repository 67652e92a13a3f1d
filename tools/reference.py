"""Take what a run recorded as the new reference values.

    python -m tools.reference [--model NAME]

Exit status: 0, or 2 if nothing was recorded or a file cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence

from helpers.claims.reference import update
from helpers.claims.report import ResultsError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.reference`; returns its exit status, 2 if it cannot be done."""
    parser = argparse.ArgumentParser("python -m tools.reference", description="New reference.")
    parser.add_argument("--model", help="name, hub id or folder (default: the packaged model)")
    try:
        print(update(parser.parse_args(arguments).model))
    except (OSError, ResultsError) as error:
        print(f"There are no new reference values: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
