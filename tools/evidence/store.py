"""A file of evidence: a large run that is written row by row, and goes on where it was."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from helpers.output.files import write


def evidence_file(name: str) -> Path:
    """Where the run of this name is kept."""
    return Path(__file__).resolve().parents[2] / "data" / "evidence" / f"{name}.json"


class Evidence(dict):
    """The table so far, written at every change."""

    def __init__(self, file: Path) -> None:
        super().__init__(json.loads(file.read_text("utf-8")) if file.exists() else {})
        self.file = file

    def missing(self, *keys: str) -> bool:
        """Whether there is nothing below these keys yet."""
        at = self
        for key in keys:
            at = at.get(key, {})
        return at == {}

    def put(self, value: object, *keys: str) -> None:
        """Store a value below the keys, and all on disk."""
        at = self
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = rounded(value)
        write(self.file, as_text(self) + "\n")
        print(*keys, flush=True)


def command(
    name: str, about: str | None, run: Callable[[Evidence], None], show: Callable[[Evidence], None]
) -> None:
    """The command `python -m tools.evidence.NAME [--print]`: measure what is missing, print all."""
    parser = argparse.ArgumentParser(f"python -m tools.evidence.{name}", description=about)
    parser.add_argument("--print", action="store_true", help="only print what was measured")
    options, evidence = parser.parse_args(), Evidence(evidence_file(name))
    if not options.print:
        run(evidence)
    show(evidence)


def rounded(value: object) -> object:
    """Numbers to four places, small ones to four digits, so that the file is small."""
    if isinstance(value, float):
        return round(value, 4) if abs(value) >= 0.1 else float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def as_text(value: object, depth: int = 0) -> str:
    """JSON with a line for every row of a table."""
    if depth == 3 or not isinstance(value, dict):
        return json.dumps(value)
    lines = [f"{json.dumps(key)}: {as_text(each, depth + 1)}" for key, each in value.items()]
    indent = "\n" + " " * (depth + 1)
    return "{" + indent + f",{indent}".join(lines) + "\n" + " " * depth + "}"
