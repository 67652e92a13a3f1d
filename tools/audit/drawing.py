"""An audit as a figure: the effects, and beside them the tests with their thresholds."""

from collections import Counter
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helpers.audit import criteria, verdicts
from helpers.audit.criteria import AGAINST, FOR, OPEN, Criterion, Finding
from helpers.audit.measure import Audit
from helpers.output import plots
from helpers.patching import Estimate
from tools.audit import changes

LOOK = {AGAINST: (plots.ILLUSORY, "X"), FOR: (plots.NATURAL, "o"), OPEN: (plots.BASE, "s")}
COLORS = {
    verdicts.ILLUSION: plots.ILLUSORY,
    verdicts.CONSISTENT: plots.NATURAL,
    changes.BEYOND: plots.ILLUSORY,
    changes.DISRUPTS: plots.ILLUSORY,
    changes.WITHIN: plots.NATURAL,
    "resid": plots.RESIDUAL,  # sites by the first word of their kind
    "mlp": plots.MLP,
    "attn": plots.ATTENTION,
    "head": plots.ATTENTION,
}
# Values of tests beyond these are drawn there, with the number beside them; and the axis' scale.
DRAWN = {
    criteria.SHARE: (-1.0, 2.0, 100, "share of the effect (%)"),
    criteria.WIDTHS: (0.0, 2.0, 1, "widths of the natural range"),
    criteria.DISTANCES: (0.0, 3.0, 1, "usual distances between real states"),
}
CRITERIA = {test.name: test for test in changes.CHANGE.tests}
THRESHOLDS = {
    "speaks against from here": (plots.ILLUSORY, "-"),
    "for, up to here": (plots.NATURAL, ":"),
}


def figure(audit: Audit) -> Figure:
    """The effects beside the tests that were judged, a panel for each unit, with their thresholds;
    the title states the verdict.
    """
    judged = [finding for finding in audit.findings if finding.verdict in LOOK]
    by_unit = {unit: [f for f in judged if CRITERIA[f.test].unit == unit] for unit in DRAWN}
    by_unit = {unit: found for unit, found in by_unit.items() if found}
    with plt.rc_context():  # the style of the caller's other figures stays
        plots.use_style()
        figure = plt.figure(figsize=(11, 5.4), layout="constrained")
        heights = [len(found) + 1 for found in by_unit.values()] or [1]
        grid = figure.add_gridspec(len(heights), 2, width_ratios=[2, 3], height_ratios=heights)
        _draw_effects(figure.add_subplot(grid[:, 0]), audit)
        for row, (unit, found) in enumerate(by_unit.items()):
            _draw_tests(figure.add_subplot(grid[row, 1]), unit, found)
        for ax in figure.axes:
            ax.axvline(0, color=plots.REFERENCE, zorder=0)
            ax.invert_yaxis()
        if by_unit:
            natural = "a natural pathway" if audit.exchanges else "natural states"
            figure.axes[1].set(title=f"What the tests say of {natural}")
            figure.legend(*_thresholds(), loc="outside lower right", ncols=2)
        figure.suptitle(f"{the(audit, 'The')} at {audit.site}: {audit.verdict}", weight="bold")
    return figure


def figure_in_words(audit: Audit) -> str:
    """What `figure` shows, for readers who cannot see it."""
    count = Counter(finding.verdict for finding in audit.findings)
    return (
        f"Left: FLDD of {the(audit)} ({audit.effect.fldd.value:.0%}), of the whole component "
        f"({audit.whole.fldd.value:.0%}) and of random ones in its place. Right: the tests that "
        f"were judged, with intervals and thresholds: {count[AGAINST]} against a natural pathway, "
        f"{count[FOR]} for it, {count[OPEN]} that say nothing. Verdict: {audit.verdict}."
    )


def the(audit: Audit, word: str = "the") -> str:
    """What was audited, with another article: `the direction`, `this direction`."""
    return f"{word} {audit.what.split(' ', 1)[1]}"


def _draw_effects(ax: Axes, audit: Audit) -> None:
    color, whole = COLORS.get(audit.verdict, plots.BASE), COLORS[audit.site.kind.split("_")[0]]
    plots.estimate(ax, the(audit, "this"), audit.effect.fldd, color=color, marker="D")
    plots.estimate(ax, "whole component", audit.whole.fldd, color=whole, marker="P")
    for number, other in enumerate(audit.random, start=1):
        plots.estimate(ax, f"random {number}", other, color=plots.BASE, marker="v")
    ax.set(title="What the patch does", xlabel="share of the margin removed, FLDD (%)")


def _draw_tests(ax: Axes, unit: str, findings: Sequence[Finding]) -> None:
    """The tests of one unit, with the verdict as colour, marker and text, and their thresholds."""
    low, high, scale, xlabel = DRAWN[unit]
    for row, finding in enumerate(findings):
        (color, marker), test = LOOK[finding.verdict], CRITERIA[finding.test]
        number = (
            f"{finding.value.value + 0.0:.0%}".replace("-0%", "0%")
            if scale == 100
            else f"{finding.value.value:.2f}"
        )
        name = f"{finding.test}\n{finding.verdict}: {number}"
        shown = Estimate(*(min(max(x, low), high) for x in finding.value))
        plots.estimate(ax, name, shown, color=color, marker=marker, scale=scale)
        for limits, (look, style) in zip(_limits(test), THRESHOLDS.values(), strict=True):
            for limit in limits:
                ends = [row - 0.4, row + 0.4]
                ax.plot([scale * limit] * 2, ends, color=look, ls=style, lw=1.5, zorder=0)
    if any(not low <= x <= high for finding in findings for x in finding.value):
        xlabel += f", cut at {scale * low:g} and {scale * high:g}"
    ax.set(xlabel=xlabel)


def _limits(test: Criterion) -> tuple[list[float], list[float]]:
    """From where on values speak against, and up to where they speak for."""
    against = [test.against, -test.against] if test.two_sided else [test.against]
    return against, [] if test.acquits is None else [test.acquits]


def _thresholds() -> tuple[list[Line2D], list[str]]:
    """The legend of the thresholds."""
    lines = [Line2D([], [], color=color, ls=style, lw=1.5) for color, style in THRESHOLDS.values()]
    return lines, list(THRESHOLDS)
