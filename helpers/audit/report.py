"""An audit as Markdown, as one HTML page, as a figure, and as files."""

import json
from collections import Counter
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.audit import criteria
from helpers.audit.criteria import AGAINST, FOR, OPEN
from helpers.audit.measure import Audit, Effects
from helpers.output import files, pages, plots
from helpers.patching import Estimate

COLUMNS = ("test", "verdict", "question", "why", "what fools it")
SIGN = {AGAINST: "✗", FOR: "✓", OPEN: "?", criteria.REPORTED: "·", criteria.DOES_NOT_APPLY: "–"}
LOOK = {AGAINST: (plots.ILLUSORY, "X"), FOR: (plots.NATURAL, "o"), OPEN: (plots.BASE, "s")}
COLORS = {
    criteria.ILLUSION: plots.ILLUSORY,
    criteria.CONSISTENT: plots.NATURAL,
    "resid": plots.RESIDUAL,  # sites by the first word of their kind
    "mlp": plots.MLP,
    "attn": plots.ATTENTION,
    "head": plots.ATTENTION,
}
DRAWN = (-1.0, 2.0)  # values of tests beyond these are drawn there, with the number beside them


def to_json(audit: Audit) -> str:
    """Everything that was measured, as JSON."""
    return json.dumps(audit.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def to_markdown(audit: Audit) -> str:
    """The summary, the effects and a table of the findings."""
    name = audit.model.replace("`", "'")
    lines = [f"# Audit of a direction at {audit.site} of `{name}`\n", f"{audit.summary}\n"]
    lines += [f"- {line}" for line in _effect_lines(audit)]
    lines += ["", pages.markdown_table(list(COLUMNS), _rows(audit)), f"\n{_footer(audit)}\n"]
    return "\n".join(lines)


def to_html(audit: Audit) -> str:
    """One page with the figure in it, which needs no other file."""
    lines = "\n".join(f"<li>{escape(line)}</li>" for line in _effect_lines(audit))
    caption = "What each test says of a natural pathway"
    table = pages.html_table(caption, list(COLUMNS), _rows(audit))
    body = f"""<p class="verdict">{escape(audit.summary)}</p>
<ul>
{lines}
</ul>
{pages.image(_png(audit), figure_in_words(audit))}
{table}
<p>{escape(_footer(audit))}</p>"""
    return pages.html_page(f"Audit of a direction at {audit.site} of {audit.model}", body)


def figure(audit: Audit) -> Figure:
    """The effects beside the tests that were judged; the title states the verdict."""
    with plt.rc_context():  # the style of the caller's other figures stays
        plots.use_style()
        figure, (left, right) = plots.new(10.5, 4.6, columns=2, width_ratios=[2, 3])
        _draw_effects(left, audit)
        _draw_tests(right, audit)
        for ax in (left, right):
            ax.axvline(0, color=plots.REFERENCE, zorder=0)
            ax.invert_yaxis()
        figure.suptitle(f"The direction at {audit.site}: {audit.verdict}", weight="bold")
    return figure


def figure_in_words(audit: Audit) -> str:
    """What `figure` shows, for readers who cannot see it."""
    count = Counter(finding.verdict for finding in audit.findings)
    return (
        f"Left: FLDD of the direction ({audit.effect.fldd.value:.0%}), of the whole component "
        f"({audit.whole.fldd.value:.0%}) and of random directions. Right: the tests that were "
        f"judged, with their intervals: {count[AGAINST]} against a natural pathway, {count[FOR]} "
        f"for it, {count[OPEN]} that say nothing. Verdict: {audit.verdict}."
    )


def save(audit: Audit, folder: str | Path) -> list[Path]:
    """Write audit.json, audit.md, audit.html and audit.png, or an OSError; the paths come back."""
    kinds = {"json": to_json, "md": to_markdown, "html": to_html, "png": _png}
    contents = {Path(folder) / f"audit.{kind}": make(audit) for kind, make in kinds.items()}
    for path, content in contents.items():
        files.write(path, content)
    return list(contents)


def _png(audit: Audit) -> bytes:
    return plots.png(figure(audit), dpi=150)


def _rows(audit: Audit) -> list[list[str]]:
    """The cells of the table of findings, below `COLUMNS`."""
    found = [(f, f"{SIGN[f.verdict]} {f.verdict}") for f in audit.findings]
    return [[f.test, verdict, f.question, f.reason, f.limits] for f, verdict in found]


def _effect_lines(audit: Audit) -> list[str]:
    def both(effect: Effects) -> str:
        return f"FLDD {effect.fldd:.1%}, interchange accuracy {effect.interchange_accuracy:.1%}"

    return [
        f"this direction: {both(audit.effect)}",
        f"the whole component: {both(audit.whole)}",
        f"random directions: FLDD {', '.join(f'{other:.1%}' for other in audit.random)}",
        *([f"{audit.spectrum}"] if audit.spectrum else []),
        *audit.notes,
    ]


def _footer(audit: Audit) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in audit.versions.items())
    sizes = f"{audit.n_pairs} pairs, seed {audit.seed}; 95 % intervals over pairs"
    about = f"{sizes}. FLDD: the share of the model's margin that a patch removes"
    return f"{criteria.CALIBRATION} {about}. {versions}."


def _draw_effects(ax: Axes, audit: Audit) -> None:
    color, whole = COLORS.get(audit.verdict, plots.BASE), COLORS[audit.site.kind.split("_")[0]]
    plots.estimate(ax, "this direction", audit.effect.fldd, color=color, marker="D")
    plots.estimate(ax, "whole component", audit.whole.fldd, color=whole, marker="P")
    for number, other in enumerate(audit.random, start=1):
        plots.estimate(ax, f"random direction {number}", other, color=plots.BASE, marker="v")
    ax.set(title="What the patch does", xlabel="share of the margin removed, FLDD (%)")


def _draw_tests(ax: Axes, audit: Audit) -> None:
    """The tests that were judged, with the verdict as colour, marker and text."""
    for finding in audit.findings:
        if finding.verdict in LOOK:
            color, marker = LOOK[finding.verdict]
            name = f"{finding.test}\n{finding.verdict}: {finding.value.value:.2f}"
            shown = Estimate(*(min(max(x, DRAWN[0]), DRAWN[1]) for x in finding.value))
            plots.estimate(ax, name, shown, color=color, marker=marker, scale=1)
    xlabel = "share of the effect, or widths of the range\n(cut at {:g} and {:g})".format(*DRAWN)
    ax.set(title="What the tests say of a natural pathway", xlabel=xlabel)
