"""Take what a run recorded as the new reference values.

    python -m tools.reference [--model NAME]

Exit status: 0, or 2 if nothing was recorded or a file cannot be used.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.claims.reference import HEADLINE_FILE, HEADLINES, expected, expected_path
from helpers.claims.report import (
    ResultsError,
    claims,
    read_json,
    recorded,
    results_folder,
    rule_names,
)
from helpers.claims.sizes import sizes_name
from helpers.output import files

KEPT = ("verdict", "value", "interval", "lesson", "note")  # of what a lesson recorded
RELATIVE, FLOOR = 0.05, {"%": 2.0, "": 0.03, "nats": 0.05}  # 5 % of the value, at least these


def update(model: str | None = None) -> Path:
    """Make what was recorded the reference; other claims and tolerances set before stay."""
    if not recorded(model):
        name = results_folder(model).name
        raise FileNotFoundError(f"Nothing was recorded for {name}: run the lessons on it first")
    old = expected(model)
    entries = {claim: old.get(claim) for claim in claims() if claim in old.keys() | recorded(model)}
    for claim, entry in recorded(model).items():
        if claim not in claims():  # those of part II say themselves what they rest on
            continue
        entries[claim] = {key: _short(entry[key]) for key in KEPT if entry.get(key) is not None}
        if entry.get("value") is not None:
            used = rule_names(claims()[claim]["rule"]) | set(claims()[claim].get("choice", ()))
            judged = sorted(used & entry.get("detail", {}).keys())
            entries[claim]["detail"] = {name: _short(entry["detail"][name]) for name in judged}
            default = default_tolerance(entry, claims()[claim]["paper"]["unit"])
            entries[claim]["tolerance"] = old.get(claim, {}).get("tolerance", _short(default, 2))
    path = expected_path(model)
    if sizes_name() == "small":
        measured = read_json(results_folder(model) / HEADLINE_FILE)
        numbers = {name: {"value": _short(entry["value"])} for name, entry in measured.items()}
        entries[HEADLINES] = read_json(path).get(HEADLINES, {}) | numbers
    files.write(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    return path


def default_tolerance(entry: Mapping[str, Any], unit: str) -> float:
    """The largest of 5 % of the value, half its interval's width, and what the unit shows."""
    low, high = entry.get("interval") or (0, 0)
    return max(RELATIVE * abs(entry["value"]), (high - low) / 2, FLOOR.get(unit, 0.1))


def _short(item: Any, digits: int = 6) -> Any:
    """Numbers, also in a list, to so many digits; anything else as it is."""
    if isinstance(item, list):
        return [_short(number, digits) for number in item]
    return float(f"{item:.{digits}g}") if isinstance(item, float) else item


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
