"""What the replication report shows: `report_table()`, `figure()`.

`python -m tools.report` writes it to files.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.claims import report
from helpers.claims.reference import expected
from helpers.claims.report import VERDICTS, claims, claims_table
from helpers.output import plots
from helpers.output.files import ROOT

MEASURED, REFERENCE = "this run", "our reference run"
UNITS = {"%": "percent", "": "number without unit"}  # the two halves of the figure
DOT = {"replicated": (plots.NATURAL, "o"), "partly": (plots.MLP, "s"), "not": (plots.ILLUSORY, "X")}
DOT |= {report.DEPENDS: (plots.BASE, "^")}


def measurements(model: str | None = None) -> dict[str, dict[str, Any]]:
    """What was recorded on a model, else in our reference run ("from" says which), by claim."""
    known = {REFERENCE: expected(model), MEASURED: report.recorded(model)}
    found = {c: {**e, "from": source} for source, of in known.items() for c, e in of.items()}
    return {claim: entry for claim, entry in found.items() if claim in claims()}


def report_table(model: str | None = None) -> pd.DataFrame:
    """One row per claim: that of `claims_table`, the cell that records it, this run or ours."""
    found = measurements(model)
    table = claims_table(found)
    table["cell"] = [record_cells().get(claim, ("", ""))[1] for claim in table["claim"]]
    table["from"] = [found.get(claim, {}).get("from", "") for claim in table["claim"]]
    return table


def figure(model: str | None = None) -> Figure:
    """Published value against ours, claim by claim, where both are numbers of the same kind."""
    found = measurements(model)
    papers = {c: spec["paper"] for c, spec in claims().items() if "value" in found.get(c, {})}
    both = [c for c, paper in papers.items() if paper["value"] is not None]
    comparable = {unit: [c for c in both if papers[c]["unit"] == unit] for unit in UNITS}
    with plt.rc_context():  # the style of the caller's other figures stays
        plots.use_style()
        heights = [max(len(names), 1) for names in comparable.values()]
        drawn, axes = plots.new(9, 2 + 0.27 * sum(heights), rows=2, height_ratios=heights)
        legend = {}
        for ax, (unit, names) in zip(axes, comparable.items(), strict=True):
            for claim in names:
                _draw_claim(ax, claim, found[claim])
            ax.set(xlabel=UNITS[unit])
            ax.margins(y=0.6 / max(len(names), 1))
            ax.axvline(0, color=plots.REFERENCE, zorder=0)
            ax.invert_yaxis()
            ax.set_visible(bool(names))
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


@functools.cache
def record_cells() -> dict[str, tuple[str, str]]:
    """For every claim the lesson file and the id of the cell whose stored output records it."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            printed = "".join(part.get("text", "") for part in cell.get("outputs", ()))
            for claim in re.findall(r"^([A-Z]\d+) · .* -> ", printed, flags=re.M):
                found[claim] = (path.name, cell.id)
    return {claim: where for claim, where in found.items() if claim in claims()}


def _draw_claim(ax: Axes, claim: str, entry: Mapping[str, Any]) -> None:
    """One row: the published value hollow, ours filled with its interval."""
    spec, (color, marker) = claims()[claim], DOT.get(entry["verdict"], (plots.BASE, "."))
    row = f"{spec['title']}  {claim}"
    low, high = entry.get("interval") or (entry["value"], entry["value"])
    ax.plot([low, high], [row, row], color=color, lw=2)
    published, ours = spec["paper"]["value"], entry["value"]
    ax.plot([published, ours], [row, row], color=plots.REFERENCE, lw=1, zorder=0)
    ax.plot(published, row, "D", mfc="white", mec=plots.BASE, ms=7, ls="", label="published")
    ax.plot(ours, row, marker, color=color, ms=7, ls="", label=f"ours: {entry['verdict']}")


def _title(model: str | None) -> str:
    """The count of every verdict that occurs."""
    counted = Counter(report_table(model)["verdict"])
    return " · ".join(f"{verdict}: {counted[verdict]}" for verdict in VERDICTS if counted[verdict])
