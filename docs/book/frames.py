"""Sliders for a book without a kernel: every position's picture is drawn while the book is built.

A lesson's own slider is drawn by the lesson's own cells; the painter's by the painter.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from unittest import mock

import legible
from matplotlib.figure import Figure

from helpers.claims import shipped_evidence
from helpers.output import plots

PAINTER, PAIRS, SHOWN, SEED = "seed0", 24, 6, 3  # those of lesson 15's figure


@dataclass(frozen=True)
class Frame:
    """One position of a slider: its name, the picture as PNG, its words."""

    label: str
    png: bytes
    alt: str


def as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plots.plt.close(figure)
    return buffer.getvalue()


@contextlib.contextmanager
def collected() -> Iterator[tuple[list, list]]:
    """Figures that cells show and sliders that they make are kept, and nothing is printed."""
    shown, sliders = [], []
    keep_figure = mock.patch.object(plots, "show", lambda fig, alt: shown.append((fig, alt)))
    keep_slider = mock.patch.object(plots, "explore", lambda draw, **at: sliders.append((draw, at)))
    with keep_figure, keep_slider, contextlib.redirect_stdout(io.StringIO()):
        yield shown, sliders


def of_lesson(cells: list[dict], last: str) -> list[Frame]:
    """The frames of the slider that the cell `last` makes, after all the code before it."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    names = [cell["id"] for cell in code]
    with collected() as (shown, sliders):
        scope = {}
        for cell in code[: names.index(last) + 1]:
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
        ((draw, controls),) = sliders
        ((name, (low, high, step)),) = controls.items()
        plots.plt.close("all")
        shown.clear()
        values = range(low, high + 1, step)
        for value in values:
            draw(value)
        return [
            Frame(f"{name} {v}", as_png(fig), alt)
            for v, (fig, alt) in zip(values, shown, strict=True)
        ]


def angle(cells: list[dict]) -> list[Frame]:
    return of_lesson(cells, "angle-explore")


def painted(layers: list[int]):
    """What the painter paints of six pairs with the source in these layers, and the pairs."""
    from helpers.pictures import Injection, load_painter, noise, pairs, sample

    painter = load_painter(PAINTER)
    base, source = (of[:SHOWN] for of in pairs(PAIRS, "test", seed=SEED))
    ours, theirs = (painter.encode([sign.prompt for sign in of]) for of in (base, source))
    injection = Injection(theirs, painter.where(layers))
    start = noise(PAIRS, seed=SEED)[:SHOWN]
    return sample(painter, ours, start, injection=injection), base, source


def painter_frame(name: str, layers: list[int], shares: dict) -> Frame:
    """Six painted words above the shares of the large run that follow the source."""
    from helpers.pictures import strip

    pictures, base, source = painted(layers)
    figure, (top, bars) = plots.new(4.6, 3.4, rows=2, height_ratios=[1, 1.6])
    top.imshow(strip(pictures), aspect="auto")
    width = strip(pictures).shape[1] / SHOWN
    words = [f"{b.word}\n← {s.word}" for b, s in zip(base, source, strict=True)]
    top.set_xticks([width * (n + 0.5) for n in range(SHOWN)], words)
    top.set(yticks=[], title=f"source in {name}")
    kinds = {"letters": plots.ILLUSORY, "color": plots.RESIDUAL, "thing": plots.ATTENTION}
    values = {kind: 100 * shares[f"{kind} of source"][0] for kind in kinds}
    bars.barh(list(kinds), list(values.values()), color=list(kinds.values()))
    for row, value in enumerate(values.values()):
        bars.text(value + 1, row, f"{value:.0f}", va="center")
    bars.set(xlim=(0, 109), xlabel="as the source asks, % of 60 pairs")
    bars.invert_yaxis()
    told = ", ".join(f"{kind} {value:.0f} %" for kind, value in values.items())
    alt = f"Six painted words with the source in {name}. What follows the source: {told}."
    return Frame(f"source in {name}", as_png(figure), alt)


def layers(cells: list[dict]) -> list[Frame]:
    """The painter of lesson 15 with the source's keys and values in one layer after the other."""
    sweep = shipped_evidence("pictures")[PAINTER]["sweep"]
    single = [key for key in sweep if key.startswith("only ")]
    every = list(range(len(single)))
    rows = {"none": ("no layer", [])}
    rows |= {key: (f"layer {n}", [n]) for n, key in enumerate(single)}
    rows |= {"all": ("all layers", every)}
    plots.use_style()
    return [painter_frame(name, at, sweep[key]) for key, (name, at) in rows.items()]


# the slider of a page, by the page and the cell that it follows
SLIDERS: dict[tuple[str, str], tuple[Callable, str]] = {
    ("01", "angle-explore"): (angle, "The lesson's slider, in pictures drawn with the book."),
    ("15", "decisive-figure"): (
        layers,
        "The same six pairs, one setting at a time; the bars are those of the large run.",
    ),
}


def file_name(cell: str, number: int) -> str:
    return f"{cell}-{number:02d}.png"


def as_html(cell: str, frames: list[Frame], points: int, caption: str) -> str:
    """The slider, at its middle; what it shows elsewhere stands in a list that the script reads.

    The smallest text of the pictures has `points`.
    """
    middle, last = len(frames) // 2, len(frames) - 1
    images = [f"../_static/frames/{file_name(cell, n)}" for n in range(len(frames))]
    options = "".join(
        f'<li data-src="{src}" data-label="{escape(frame.label)}">{escape(frame.alt)}</li>'
        for src, frame in zip(images, frames, strict=True)
    )
    now = frames[middle]
    words = f'alt="{escape(now.alt)}"'
    picture = legible.box(images[middle], legible.natural_size(now.png), points, words)
    return (
        f'<figure class="frames">{picture}<p><output>{escape(now.label)}</output>'
        f'<input type="range" min="0" max="{last}" value="{middle}" '
        f'aria-label="{escape(caption)}" aria-valuetext="{escape(now.label)}"></p>'
        f"<ol hidden>{options}</ol><figcaption>{escape(caption)}</figcaption></figure>"
    )
