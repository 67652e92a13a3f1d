"""The positions of a slider as pictures, for a book without a kernel: drawn while it is built."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from unittest import mock

import legible
from matplotlib.figure import Figure

from helpers.output import plots


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
    """Pictures that cells show and sliders that they make are kept, and nothing is printed."""
    shown, sliders = [], []
    keep_figure = mock.patch.object(
        plots, "show", lambda fig, alt: shown.append((as_png(fig), alt))
    )
    keep_slider = mock.patch.object(plots, "explore", lambda draw, **at: sliders.append((draw, at)))
    with keep_figure, keep_slider, contextlib.redirect_stdout(io.StringIO()):
        yield shown, sliders


def of_lesson(cells: list[dict], last: str, needs: Sequence[str] | None = None) -> list[Frame]:
    """The frames of the slider that the cell `last` makes, after the cells that it needs.

    All code above it by default. Text boxes beside the slider keep their first text.
    """
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    names = [cell["id"] for cell in code]
    above = names[: names.index(last)]
    with collected() as (shown, sliders):
        scope = {}
        for cell in code:
            if cell["id"] == last or cell["id"] in (above if needs is None else needs):
                exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
        ((draw, controls),) = sliders
        (name,) = (name for name, control in controls.items() if isinstance(control, tuple))
        low, high, step = controls[name]
        shown.clear()
        values = range(low, high + 1, step)
        for value in values:
            draw(**controls | {name: value})
        return [Frame(f"{name} {v}", *of) for v, of in zip(values, shown, strict=True)]


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
