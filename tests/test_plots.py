"""Figures that colour-blind and blind readers can use: colours apart, contrast, words."""

import base64
import itertools
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from helpers.output import plots

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "helpers").glob("*.py")]
SERIES = ("BASE", "NATURAL", "ILLUSORY", "RESIDUAL", "MLP", "ATTENTION")

# What is left of linear RGB without one kind of cone: Machado, Oliveira and Fernandes (2009), table
# of severity 1.0. Each row sums to 1, so greys stay as they are.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
TO_XYZ = np.array(  # of linear sRGB, D65
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
APART = 20  # in CIELAB, where 2.3 can just be seen
GRAPHICS, TEXT = 3.0, 4.5  # contrast that WCAG 2.1 asks of lines and markers, and of text


def linear(color):
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB, by the definition."""
    t = TO_XYZ @ rgb.clip(0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(color, other="white"):
    low, high = sorted(0.05 + linear(c) @ TO_XYZ[1] for c in (color, other))
    return high / low


def test_the_formulas_have_their_known_values():
    assert contrast("black") == pytest.approx(21)
    assert contrast("#767676") == pytest.approx(4.54, abs=0.01)
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    for matrix in BLINDNESS.values():
        assert matrix.sum(1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_any_two_colours_are_apart(blindness):
    matrix = BLINDNESS[blindness]
    seen = {name: lab(matrix @ linear(getattr(plots, name))) for name in SERIES}
    distances = {
        (one, other): np.linalg.norm(seen[one] - seen[other])
        for one, other in itertools.combinations(SERIES, 2)
    }
    assert min(distances.values()) >= APART, distances


@pytest.mark.parametrize("name", [*SERIES, "REFERENCE"])
def test_lines_stand_out_from_the_page(name):
    assert contrast(getattr(plots, name)) >= GRAPHICS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_grey_is_too_pale_and_no_text_is_coloured(path):
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        source = "\n".join(cell.source for cell in nbformat.reads(source, as_version=4).cells)
    for grey in re.findall(r'"(0?\.\d+)"', source):
        assert contrast(grey) >= GRAPHICS, grey
    for name in re.findall(r"\.(?:text|annotate)\([^)]*color=plots\.(\w+)", source):
        assert contrast(getattr(plots, name)) >= TEXT, name


def test_numbers_in_a_heat_map_can_be_read():
    values = np.linspace(-1, 1, 24).reshape(4, 6)
    values[1, 2] = np.nan  # an empty cell has no number
    _, ax = plots.new()
    plots.heat_map(ax, values, annot=True, fmt=".9f", cmap="PuOr", vmin=-1, vmax=1)
    assert len(ax.texts) == 23
    for text in ax.texts:
        cell = plt.get_cmap("PuOr")(0.5 + float(text.get_text()) / 2)
        assert contrast(text.get_color(), cell) >= TEXT, text.get_text()
    assert {text.get_color() for text in ax.texts} == {"black", "white"}
    plt.close()


def test_show_gives_the_figure_its_words_and_closes_it(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((*a, k)))
    figure, ax = plots.new()
    ax.plot([1, 2])
    plots.show(figure, alt="A line that rises.")
    ((bundle, options),) = shown
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == "A line that rises."
    assert options == {"metadata": {"image/png": {"alt": "A line that rises."}}, "raw": True}
    assert not plt.fignum_exists(figure.number)
