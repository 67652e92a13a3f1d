"""One look for all figures, `figure, ax = new()`: a colour always means the same thing."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

Estimate: TypeAlias = tuple[float, float, float]  # a value and the ends of its 95 % interval
Range: TypeAlias = tuple[float, float]
Names: TypeAlias = Sequence[str]

# Dark enough for lines on white, and apart for colour-blind readers too (tests/test_plots.py);
# every series also has its own marker, line style or row.
BASE = "0.35"  # the base run, and neutral things
NATURAL = "#029e73"  # green: what ordinary inputs produce; directions known to be faithful
ILLUSORY = "#d55e00"  # orange: illusory directions
RESIDUAL = "#005a9c"  # blue: the residual stream
MLP = "#cc78bc"  # pink: MLP outputs and hidden activations
ATTENTION = "#6b3a10"  # brown: attention outputs and heads
REFERENCE = "0.55"  # lines to compare with: zero, chance, equal output


def use_style() -> None:
    """Set fonts, grid and size for notebook width."""
    sns.set_theme(style="ticks", palette="colorblind", font_scale=0.95)
    plt.rc("figure", dpi=110)
    plt.rc("axes", titleweight="bold", titlesize="medium")
    plt.rc("axes.spines", right=False, top=False)
    plt.rc("legend", frameon=False)


def new(
    width: float = 6.4, height: float = 3.8, *, rows: int = 1, columns: int = 1, **kwargs
) -> tuple[Figure, Axes]:
    """A figure of `width` by `height` inches, laid out so that nothing is cut off."""
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **kwargs)


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook, with its words for readers who cannot see it, and close it.

    They are stored as the image's `alt` (our book, nbconvert's classic template) and as the
    output's plain text (VS Code, terminals). JupyterLab shows none.
    """
    from IPython.core.pylabtools import print_figure
    from IPython.display import display

    bundle = {"image/png": print_figure(figure, base64=True), "text/plain": alt}
    display(bundle, metadata={"image/png": {"alt": alt}}, raw=True)
    plt.close(figure)


def arrow(ax: Axes, start: Sequence[float], end: Sequence[float], color: str) -> None:
    """An arrow from one point to another, in data coordinates."""
    look = dict(arrowstyle="-|>", lw=2.5, color=color, shrinkB=4)
    ax.annotate("", xy=end, xytext=start, arrowprops=look)


def output_levels(
    ax: Axes, output: Callable, x_range: Range, y_range: Range, levels: Sequence[float]
) -> None:
    """Lines of equal output over a plane of activations, labelled at the right; sets the limits."""
    x, y = np.meshgrid(np.linspace(*x_range, 60), np.linspace(*y_range, 60))
    values = output(x, y)
    ax.contour(x, y, values, levels=levels, colors=REFERENCE, linewidths=1, zorder=0)
    for level in levels:
        height = np.interp(level, values[:, -1], y[:, -1])  # where the line meets the right edge
        ax.text(x_range[1], height, f" output {level:g}", va="center", fontsize=9, color=BASE)
    ax.set(xlim=x_range, ylim=y_range)


def heat_map(ax: Axes, values, **kwargs) -> None:
    """seaborn's heat map, its numbers black or white: whichever stands out more from the cell."""
    sns.heatmap(values, ax=ax, **kwargs)
    colors = ax.collections[0].get_facecolors().reshape(*np.shape(values), 4)
    for text in ax.texts:
        column, row = map(int, text.get_position())  # it stands in the middle of its cell
        light = sns.utils.relative_luminance(colors[row, column])
        text.set_color("black" if light > 0.18 else "white")


def matrix(
    ax: Axes, values: ArrayLike, row_names: Names, column_names: Names, *, limit: float
) -> None:
    """A small matrix `[rows columns]` with its numbers written in, coloured around zero."""
    heat_map(
        ax, values, annot=True, fmt=".1f", cmap="PuOr", norm=CenteredNorm(halfrange=limit),
        xticklabels=column_names, yticklabels=row_names, cbar=False, square=True,
        linewidths=1, linecolor="white",
    )  # fmt: skip
    ax.tick_params(left=False, bottom=False)


def heads(ax: Axes, values: ArrayLike, *, first_layer: int) -> None:
    """One cell per head, `[layers heads]`, coloured around zero; numbers in the strongest cells."""
    values = np.asarray(values)
    limit = np.abs(values).max()
    short = np.vectorize(lambda value: re.sub(r"^(-?)0\.", r"\1.", f"{value:.2f}"))
    text = np.where(np.abs(values) > 0.25 * limit, short(values), "")
    heat_map(
        ax, values, annot=text, fmt="", annot_kws={"size": 7}, cmap="PuOr_r",
        norm=CenteredNorm(halfrange=limit), yticklabels=first_layer + np.arange(len(values)),
        cbar_kws={"shrink": 0.8}, linewidths=0.5, linecolor="white",
    )  # fmt: skip
    ax.set_xlabel("head")
    ax.tick_params(left=False, bottom=False, labelrotation=0)


def over_layers(
    ax: Axes,
    estimates: Sequence[Estimate],
    *,
    label: str,
    color: str,
    marker: str,
    scale: float = 100,
    layers: Sequence[int] | None = None,
) -> None:
    """One estimate per layer with its interval, in percent unless `scale` says otherwise."""
    value, low, high = scale * np.array(estimates).T
    layers = np.arange(len(value)) if layers is None else layers
    ax.plot(layers, value, marker=marker, ms=4, color=color, label=label)
    ax.fill_between(layers, low, high, color=color, alpha=0.2, lw=0)


def estimate(
    ax: Axes, name: str, value: Estimate, *, color: str, marker: str, scale: float = 100
) -> None:
    """One estimate with its interval in the row `name`, in percent unless `scale` differs."""
    x, *ends = (scale * number for number in value)
    ax.plot(ends, [name, name], color=color, marker="|", ms=6)
    ax.plot([x], [name], color=color, marker=marker, ms=7)


def effects(
    estimates: Mapping[str, Estimate], *, colors: Mapping[str, str], title: str, alt: str,
    xlabel: str = "FLDD on test pairs, %",
) -> None:  # fmt: skip
    """Show estimates of a share as percentages, a row for each, from top to bottom.

    Rows that are not neutral have `colors`, by name, and get a diamond, the others a circle.
    """
    figure, ax = new(width=6.8, height=0.9 + 0.36 * len(estimates))
    for name, value in estimates.items():
        marker = "D" if name in colors else "o"
        estimate(ax, name, value, color=colors.get(name, BASE), marker=marker)
    ax.axvline(0, color=REFERENCE, lw=1)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, title=title)
    show(figure, alt)


def explore(draw: Callable, **controls: tuple[float, float, float] | str) -> None:
    """Sliders and text boxes for `draw` in a live notebook, nothing when a program runs lessons.

    A slider is `(low, high, step)`, a text box its first text. Static figures beside it must show
    the same: it is never the only view.
    """
    if os.environ.get("SUBSPACE_ILLUSION_STATIC"):
        return
    from ipywidgets import interact

    interact(draw, **controls)
