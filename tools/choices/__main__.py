"""What a model does with multiple choice, from its answers to single heads.

    python -m tools.choices --model NAME [--shots 4] [--labels ABCD] [--n 48] [--out FILE]

First whether it picks the right label at all, for several numbers of examples and labels. If it
does: which heads write the answer, and what happens when each says what it says in a prompt with
another right label; where these look; how few directions of their queries, and of keys and values
at the labels, are enough; and whether the same directions serve when the labels are others.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.models import load_model
from helpers.models.smollm import ModelError
from helpers.output.files import write
from tools.choices.measure import measure
from tools.pages import markdown_table

HEADS = ["head", "patched alone, %", "writes, nats", "looks at right", "at wrong labels"]
RANKS = ["directions", "margin", "right", "margin, random"]


def page(found: dict, name: str) -> str:
    """What was measured, as Markdown; short where the model does not pick labels."""
    rows = [
        [row["labels"], str(row["examples"]), in_words(row), f"{row['chance']:.2f}"]
        for row in found["accuracy"]
    ]
    text = f"# Multiple choice: {name}\n\n"
    text += markdown_table(["labels", "examples", "right", "chance"], rows)
    if "heads" not in found:
        return text + "\nIt does not pick these labels: there are no heads to find.\n"
    rows = [
        [f"{of['layer']}.{of['head']}", f"{of['effect']:.0f}",
         *(f"{of[key]:.2f}" for key in ("attribution", "right", "wrong"))]
        for of in found["heads"]
    ]  # fmt: skip
    text += "\n## Heads\n\n" + markdown_table(HEADS, rows)
    for title, of in found["ranks"].items():
        rows = [
            [rank, f"{row['margin'][0]:.2f}", f"{row['right']:.2f}",
             " ".join(f"{x:.2f}" for x in row.get("random", ()))]
            for rank, row in of.items()
        ]  # fmt: skip
        text += f"\n## {title.capitalize()}\n\n" + markdown_table(RANKS, rows)
    return text


def in_words(row: dict) -> str:
    """How often it is right, with the interval, or why that is not known."""
    if "error" in row:
        return row["error"]
    value, low, high = row["right"][:3]
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for what a user can mend."""
    parser = argparse.ArgumentParser("python -m tools.choices", description=__doc__)
    parser.add_argument("--model", help="as for the lessons; default: the packaged one")
    parser.add_argument("--labels", default="ABCD", help="single characters, as they are shown")
    parser.add_argument("--shots", type=int, default=4, help="answered examples before a question")
    parser.add_argument("--n", type=int, default=48, help="prompts for each number")
    parser.add_argument("--out", type=Path, help="write the report to this file, too")
    options = parser.parse_args(arguments)
    try:
        found = measure(load_model(options.model), options.n, options.labels, options.shots)
    except (ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = page(found, options.model or "the packaged model")
    print(text)
    if options.out:
        write(options.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
