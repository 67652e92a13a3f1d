"""Write the replication report of a model again, from what was recorded.

python -m tools.report [--model NAME]
"""

import argparse
import importlib.metadata
import json
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from helpers.claims.page import figure, figure_in_words, measurements, record_cells, report_table
from helpers.claims.report import (
    UNMEASURED,
    UNTESTABLE,
    VERDICTS,
    Claim,
    ResultsError,
    claims,
    every_claim,
    recorded,
    results_folder,
    saving,
    show_ours,
    show_paper,
)
from helpers.output import files
from tools import pages
from tools.terminal import text_table

RULES = ["claim", "says", "rule", "could it have failed here?"]
MOST_ROWS = 12  # of claims that did not hold, on one screen


def write_report(model: str | None = None) -> list[Path]:
    """Write the report to `results/<model>/` in its three forms; the paths come back."""
    folder, kinds = results_folder(model), {"md": to_markdown, "html": to_html, "json": to_json}
    contents = {folder / f"report.{kind}": make(model) for kind, make in kinds.items()}
    with saving(folder):
        for path, content in contents.items():
            files.write(path, content)
    return list(contents)


def one_screen(model: str | None = None) -> str:
    """What a run found, for a terminal: verdicts by part, and the claims that did not hold."""
    found, lines, rows = recorded(model), [], []
    for part, name in ((1, "Part I"), (2, "Part II")):
        specs = [x for x in every_claim().values() if x.get("part", 1) == part and x["id"] in found]
        strict = [spec for spec in specs if spec["informative"]["could_fail"]]
        for what, some in (("claims", specs), ("could have failed", strict)):
            counts = Counter(found[spec["id"]]["verdict"] for spec in some)
            each = " · ".join(
                f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict]
            )
            lines += [f"{name:8}{len(some):3} {what:18} {each}"] if some else []
        for spec in specs:
            verdict = (entry := found[spec["id"]])["verdict"]
            row = [spec["id"], spec["title"], show_paper(spec).removeprefix("paper ")]
            if verdict not in ("replicated", UNTESTABLE):
                rows.append([*row, show_ours(spec, entry), verdict])
    if rows:
        columns = ["", "did not hold, or in part", "paper", "ours", "verdict"]
        lines += ["", text_table(columns, rows[:MOST_ROWS])]
    if len(rows) > MOST_ROWS:
        lines.append(f"... and {len(rows) - MOST_ROWS} more, in their lessons")
    return "\n".join(lines)


def versions() -> str:
    """Python and the packages that decide the numbers."""
    packages = ("torch", "transformer_lens", "transformers", "numpy")
    named = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *named])


def to_markdown(model: str | None = None) -> str:
    """The report as Markdown: the count of each verdict, the table, the rules, the versions."""
    table = report_table(model)
    rules = [
        f"- **{claim}** {spec['rule']['text']} *{_could_fail(spec)}*"
        for claim, spec in claims().items()
    ]
    parts = [
        f"# Replication on {results_folder(model).name}",
        f"**{_headline(table)}**",
        f"All claims: {_counts(table)}",
        pages.markdown_table(list(table), table.values.tolist()),
        "## The rules, fixed before we measured",
        "\n".join(rules),
        f"{versions()}.\n",
    ]
    return "\n\n".join(parts)


def to_html(model: str | None = None) -> str:
    """The report as one page, with the figure in it."""
    table, image = report_table(model), pages.png(figure(model), dpi=110)
    caption = "Every claim: the published number, ours with its 95 % interval, the verdict"
    rules = [
        [claim, spec["statement"], spec["rule"]["text"], _could_fail(spec)]
        for claim, spec in claims().items()
    ]
    body = f"""<p class="verdict">{escape(_headline(table))}</p>
<p>All claims: {escape(_counts(table))}</p>
{pages.image(image, figure_in_words(model))}
{pages.html_table(caption, list(table), table.values.tolist())}
{pages.html_table("The rules, fixed before we measured", RULES, rules)}
<p>{escape(versions())}.</p>"""
    return pages.html_page(f"Replication on {results_folder(model).name}", body)


def to_json(model: str | None = None) -> str:
    """The report for programs: all that is known of each claim."""
    found, cells = measurements(model), record_cells()
    entries = {
        claim: {**spec, "ours": found.get(claim, {"verdict": UNMEASURED}), "cell": cells.get(claim)}
        for claim, spec in claims().items()
    }
    content = {"model": results_folder(model).name, "versions": versions(), "claims": entries}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _headline(table: pd.DataFrame) -> str:
    """The count among the claims whose rule could have failed, the only ones that say much."""
    informative = table["claim"].map(lambda claim: claims()[claim]["informative"]["could_fail"])
    return f"{informative.sum()} claims that could have failed: {_counts(table[informative])}"


def _could_fail(spec: Claim) -> str:
    informative = spec["informative"]
    return f"{'Could fail' if informative['could_fail'] else 'Hardly'}: {informative['why']}"


def _counts(table: pd.DataFrame) -> str:
    """How many claims have which verdict, in words."""
    counts = Counter(table["verdict"])
    return " · ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS)


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
