"""The replication report, `python -m tools.report`: every claim, the published number and ours."""

import functools
import importlib.metadata
import json
import platform
import re
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.claims import report
from helpers.claims.reference import expected
from helpers.claims.report import UNMEASURED, VERDICTS, claims, claims_table, results_folder
from helpers.output import files, pages, plots
from helpers.output.files import ROOT

MEASURED, REFERENCE = "this run", "our reference run"
UNITS = {"%": "percent", "": "number without unit"}  # the two halves of the figure
LOOK = {
    "replicated": (plots.NATURAL, "o"),
    "partly": (plots.MLP, "s"),
    "not": (plots.ILLUSORY, "X"),
}


def write_report(model: str | None = None) -> list[Path]:
    """Write the report to `results/<model>/` in its three forms; the paths come back."""
    folder, kinds = results_folder(model), {"md": to_markdown, "html": to_html, "json": to_json}
    contents = {folder / f"report.{kind}": make(model) for kind, make in kinds.items()}
    with report.saving(folder):
        for path, content in contents.items():
            files.write(path, content)
    return list(contents)


def measurements(model: str | None = None) -> dict[str, dict[str, Any]]:
    """What was recorded on a model, else in our reference run ("from" says which), by claim."""
    known = {REFERENCE: expected(model), MEASURED: report.recorded(model)}
    return {c: {**e, "from": source} for source, of in known.items() for c, e in of.items()}


def report_table(model: str | None = None) -> pd.DataFrame:
    """One row per claim: that of `claims_table`, the cell that records it, this run or ours."""
    found = measurements(model)
    table = claims_table(found)
    table["cell"] = [record_cells().get(claim, ("", ""))[1] for claim in table["claim"]]
    table["from"] = [found.get(claim, {}).get("from", "") for claim in table["claim"]]
    return table


def versions() -> str:
    """Python and the packages that decide the numbers."""
    packages = ("torch", "transformer_lens", "transformers", "numpy")
    named = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *named])


def figure(model: str | None = None) -> Figure:
    """Published value against ours, claim by claim, where both are numbers of the same kind."""
    found = measurements(model)
    comparable = {unit: [] for unit in UNITS}
    for claim, spec in claims().items():
        paper = spec["paper"]
        if paper["value"] is not None and "value" in found.get(claim, {}):
            comparable.get(paper["unit"], []).append(claim)
    with plt.rc_context():  # the style of the caller's other figures stays
        plots.use_style()
        heights = [max(len(names), 1) for names in comparable.values()]
        drawn, axes = plots.new(9, 2 + 0.27 * sum(heights), rows=2, height_ratios=heights)
        for ax, (unit, names) in zip(axes, comparable.items(), strict=True):
            for claim in names:
                _draw_claim(ax, claim, found[claim])
            ax.set(xlabel=UNITS[unit])
            ax.margins(y=0.6 / max(len(names), 1))
            ax.axvline(0, color=plots.REFERENCE, zorder=0)
            ax.invert_yaxis()
            ax.set_visible(bool(names))
        legend = {}
        for ax in axes:
            legend |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        drawn.legend(legend.values(), legend, loc="outside lower center", ncols=4)
        drawn.suptitle(_title(model), weight="bold")
    return drawn


def figure_in_words(model: str | None = None) -> str:
    """What `figure` shows, for readers who cannot see it."""
    return (
        "One row per claim that has a published number and ours: a hollow diamond for the "
        "published one, a filled mark with its interval for ours, a line between them; above "
        f"those in percent, below those without unit. All claims: {_title(model)}."
    )


def to_markdown(model: str | None = None) -> str:
    """The report as Markdown: the count of each verdict, the table, the rules, the versions."""
    table = report_table(model)
    rules = [f"- **{claim}** {spec['rule']['text']}" for claim, spec in claims().items()]
    parts = [
        f"# Replication on {results_folder(model).name}",
        _counts(table),
        pages.markdown_table(list(table), table.values.tolist()),
        "## The rules, fixed before we measured",
        "\n".join(rules),
        f"{versions()}.\n",
    ]
    return "\n\n".join(parts)


def to_html(model: str | None = None) -> str:
    """The report as one page, with the figure in it."""
    table, image = report_table(model), plots.png(figure(model), dpi=110)
    caption = "Every claim: the published number, ours with its 95 % interval, the verdict"
    rules = [[claim, spec["statement"], spec["rule"]["text"]] for claim, spec in claims().items()]
    body = f"""<p class="verdict">{escape(_counts(table))}</p>
{pages.image(image, figure_in_words(model))}
{pages.html_table(caption, list(table), table.values.tolist())}
{pages.html_table("The rules, fixed before we measured", ["claim", "says", "rule"], rules)}
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


@functools.cache
def record_cells() -> dict[str, tuple[str, str]]:
    """For every claim the lesson file and the id of the cell whose stored output records it."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            printed = "".join(part.get("text", "") for part in cell.get("outputs", ()))
            for claim in re.findall(r"^([A-Z]\d+) · .* -> ", printed, flags=re.M):
                found[claim] = (path.name, cell.id)
    return found


def _draw_claim(ax: Axes, claim: str, entry: Mapping[str, Any]) -> None:
    """One row: the published value hollow, ours filled with its interval."""
    spec, (color, marker) = claims()[claim], LOOK.get(entry["verdict"], (plots.BASE, "."))
    row = f"{spec['title']}  {claim}"
    low, high = entry.get("interval") or (entry["value"], entry["value"])
    ax.plot([low, high], [row, row], color=color, lw=2)
    published, ours = spec["paper"]["value"], entry["value"]
    ax.plot([published, ours], [row, row], color=plots.REFERENCE, lw=1, zorder=0)
    ax.plot(published, row, "D", mfc="white", mec=plots.BASE, ms=7, ls="", label="published")
    ax.plot(ours, row, marker, color=color, ms=7, ls="", label=f"ours: {entry['verdict']}")


def _title(model: str | None) -> str:
    """The count of every verdict that occurs."""
    counts = _counts(report_table(model)).split(" · ")
    return " · ".join(part for part in counts if not part.endswith(" 0"))


def _counts(table: pd.DataFrame) -> str:
    """How many claims have which verdict, in words."""
    counts = Counter(table["verdict"])
    return " · ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS)
