"""Many audits in one table: `audits.csv`, `audits.json` and the page `audits.html`, which sorts.

The table is made of entries, which are plain values: they may come back from files.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from helpers.audit import Audit
from helpers.output import files
from tools import pages
from tools.audit.changes import CHANGE
from tools.audit.provenance import to_json
from tools.audit.report import COLUMNS, rows_of, to_dict

NAMES = ("audits.csv", "audits.json", "audits.html")
EFFECTS = ("FLDD", "FLDD low", "FLDD high", "accuracy", "whole FLDD", "pairs")
ALIKE = ("site", "what", "whole FLDD", "pairs")  # said once where they are
# A click on a column's name sorts by it, numbers as numbers, and back at the next click.
SORT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.onclick = () => {
      const up = button.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("button").forEach(b => b.removeAttribute("aria-sort"));
      button.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0], value = row => row.cells[column].dataset.value;
      const number = row => value(row) === "" ? -Infinity : Number(value(row));
      const rows = [...body.rows], numeric = rows.every(row => !isNaN(value(row)));
      rows.sort((a, b) => numeric ? number(a) - number(b) : value(a).localeCompare(value(b)));
      body.append(...(up ? rows : rows.reverse()));
    };
  });
}
"""


def entry_of(name: str, audit: Audit) -> dict[str, Any]:
    """One audit as the table needs it, but for where it comes from: the same of all."""
    whole = {"name": name, **to_dict(audit)}
    del whole["provenance"]
    return {"row": row_of(name, audit), "findings": rows_of(audit), "audit": whole}


def save(entries: Sequence[dict], provenance: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the table in its three forms, or an OSError; the paths come back."""
    content = {"provenance": provenance, "audits": [entry["audit"] for entry in entries]}
    texts = to_csv([entry["row"] for entry in entries]), to_json(content), to_html(entries)
    paths = [folder / name for name in NAMES]
    for path, text in zip(paths, texts, strict=True):
        files.write(path, text)
    return paths


def row_of(name: str, audit: Audit) -> dict[str, str | float]:
    """One audit as a row: the verdict, the effects, and of each test the value if it applies."""
    fldd, accuracy = audit.effect
    numbers = (*fldd, accuracy.value, audit.whole.fldd.value, audit.n_pairs)
    values = {f.test: f.value.value for f in audit.findings if f.value is not None}
    row = {"name": name, "site": str(audit.site), "what": audit.what, "verdict": audit.verdict}
    row |= dict(zip(EFFECTS, numbers, strict=True))
    return row | {test.name: values.get(test.name, "") for test in CHANGE.tests}


def to_csv(rows: list[dict]) -> str:
    """The rows with full precision; what does not apply is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_html(entries: Sequence[dict]) -> str:
    """One page: the table, which sorts, and below it each audit, which unfolds."""
    rows = [entry["row"] for entry in entries]
    alike = {c: rows[0][c] for c in ALIKE if all(row[c] == rows[0][c] for row in rows)}
    columns = [c for c in rows[0] if c not in alike and any(row[c] != "" for row in rows)]
    head = "".join(f'<th scope="col"><button>{escape(c)}</button></th>' for c in columns)
    body = "\n".join(_row(row, columns) for row in rows)
    about = (
        "A click on a column's name sorts by it. FLDD: the share of the model's margin that the "
        "patch removes. Of a test, a larger number is more suspicious. Of many, some pass by "
        "chance: try those that you choose on other pairs."
    )
    of_all = ", ".join(f"{c} {_shown(value)}" for c, value in alike.items())
    parts = [f"""<p>{about}{escape(f" The same for all: {of_all}." if of_all else "")}</p>
<div class="scroll" role="region" tabindex="0" aria-label="All audits"><table class="sortable">
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""]  # fmt: skip
    for entry, row in zip(entries, rows, strict=True):
        table = pages.html_table("What each test says", list(COLUMNS), entry["findings"])
        summary = f'<p class="verdict">{escape(entry["audit"]["summary"])}</p>'
        parts.append(pages.folded(f"{row['name']}: {row['verdict']}", f"{summary}\n{table}"))
    parts.append(f"<script>{SORT}</script>")
    sites = ", ".join(dict.fromkeys(row["site"] for row in rows))
    return pages.html_page(f"{len(entries)} audits at {sites}", "\n".join(parts))


def _row(row: dict, columns: list[str]) -> str:
    def cell(column: str) -> str:
        value, shown = row[column], _shown(row[column])
        tag = 'th scope="row"' if column == "name" else "td"
        return f'<{tag} data-value="{escape(f"{value}")}">{escape(shown)}</{tag.split()[0]}>'

    return f"<tr>{''.join(map(cell, columns))}</tr>"


def _shown(value: str | float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value}"
