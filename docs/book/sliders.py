"""The book's sliders: by the cells of a lesson where these take a moment, else drawn here.

What is drawn here comes from the files of the large runs, with the same model and the same pairs.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from frames import Frame, as_png, of_lesson

from helpers.claims import shipped_evidence
from helpers.output import plots

PAINTER, PAIRS, SHOWN, SEED = "seed0", 24, 6, 3  # those of lesson 15's figure
STRENGTHS, TRIED = np.arange(0, 2.01, 0.25), 60  # of lesson 05's figure
SUSPECTS = {  # of lesson 05: where the large run has them, and how they are drawn
    "accused": ("MLP 21", "mlp_hidden", plots.ILLUSORY, "D"),
    "innocent": ("stream 21", "resid_post", plots.NATURAL, "o"),
}
GRAPH = (  # what the slider of lesson 14 needs: the model, its readers, and what draws a graph
    "setup", "load", "reader", "candidates", "needs-large", "into-figure",
    "graph-tools", "graph", "graph-draw",
)  # fmt: skip


def angle(cells: list[dict]) -> list[Frame]:
    """Lesson 01: the direction in the plane of sensor and actuator."""
    return of_lesson(cells, "angle-explore")


def margins_by_strength() -> dict[str, np.ndarray]:
    """Logit differences of fresh pairs, [strengths pairs], under the patch of each suspect."""
    from helpers.directions import unit
    from helpers.models import load_model
    from helpers.patching import Site, cache_pairs
    from helpers.tasks.ioi import make_pairs

    model, large = load_model(), shipped_evidence("trial")["effects"]
    pairs = make_pairs(model, TRIED, split="fresh", seed=0)
    found = {}
    for name, (of, kind, *_) in SUSPECTS.items():
        at = cache_pairs(model, pairs, Site(int(of.split()[1]), kind))
        v = unit(torch.tensor(large[of]["directions"]["trained"]))
        push = ((at.source - at.base) @ v)[:, None] * v
        with torch.no_grad():
            each = [at.logit_difference(at.base + float(s) * push) for s in STRENGTHS]
        found[name] = torch.stack(each).numpy()
    return found


def strength_frame(at: int, margins: dict[str, np.ndarray]) -> Frame:
    """Both effects over the strength, with this strength marked, above every pair's margin."""
    figure, axes = plots.new(4.6, 5, rows=3, height_ratios=[1.5, 1, 1])
    limits = np.min(list(margins.values())), np.max(list(margins.values()))
    label, told = f"strength {STRENGTHS[at]:g}", []
    for ax, (name, (_, _, color, marker)) in zip(axes[1:], SUSPECTS.items(), strict=True):
        fall = 100 * (1 - margins[name].mean(1) / margins[name][0].mean())
        axes[0].plot(STRENGTHS, fall, color=color, lw=1.3, label=name)
        axes[0].plot(STRENGTHS[at], fall[at], color=color, marker=marker, ms=8)
        flipped = 100 * (margins[name][at] < 0).mean()
        ax.hist(margins[name][at], bins=np.linspace(*limits, 30), color=color)
        ax.axvline(0, color=plots.REFERENCE, lw=1)
        ax.set(yticks=[], ylim=(0, 16), ylabel=name)
        corner = dict(transform=ax.transAxes, ha="right", va="top")
        ax.text(0.98, 0.94, f"{flipped:.0f} % flipped", **corner)
        told.append(f"{name} {fall[at]:.0f} %, {flipped:.0f} % of the pairs flipped")
    axes[0].axhline(0, color=plots.REFERENCE, lw=1)
    axes[0].legend(loc="upper left")
    axes[0].set(xlabel="strength of the patch", ylabel="FLDD, %", title=label)
    axes[1].tick_params(labelbottom=False)
    axes[2].set_xlabel(f"logit difference of {TRIED} pairs, nats (below 0: flipped)")
    return Frame(label, as_png(figure), f"FLDD at {label}: {'; '.join(told)}.")


def strength(cells: list[dict]) -> list[Frame]:
    """Lesson 05: weaker and stronger patches along the accused and along the innocent."""
    plots.use_style()
    margins = margins_by_strength()
    return [strength_frame(at, margins) for at in range(len(STRENGTHS))]


def graph(cells: list[dict]) -> list[Frame]:
    """Lesson 14: what two words of a claim tell, layer by layer."""
    return of_lesson(cells, "graph-explore", needs=GRAPH)


def painted(layers: Sequence[int]):
    """What the painter paints of six pairs with the source in these layers, and the pairs."""
    from helpers.pictures import Injection, load_painter, noise, pairs, sample

    painter = load_painter(PAINTER)
    base, source = (of[:SHOWN] for of in pairs(PAIRS, "test", seed=SEED))
    ours, theirs = (painter.encode([sign.prompt for sign in of]) for of in (base, source))
    injection = Injection(theirs, painter.where(layers))
    start = noise(PAIRS, seed=SEED)[:SHOWN]
    return sample(painter, ours, start, injection=injection), base, source


def painter_frame(name: str, layers: Sequence[int], shares: dict) -> Frame:
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


def painter_layers(cells: list[dict]) -> list[Frame]:
    """Lesson 15: the source's keys and values in one layer after the other."""
    sweep = shipped_evidence("pictures")[PAINTER]["sweep"]
    single = [key for key in sweep if key.startswith("only ")]
    rows = {"none": ("no layer", [])}
    rows |= {key: (f"layer {n}", [n]) for n, key in enumerate(single)}
    rows |= {"all": ("all layers", list(range(len(single))))}
    plots.use_style()
    return [painter_frame(name, at, sweep[key]) for key, (name, at) in rows.items()]


# the slider of a page, by the page and the cell that it follows
SLIDERS: dict[tuple[str, str], tuple[Callable, str]] = {
    ("01", "angle-explore"): (angle, "The lesson's slider, in pictures drawn with the book."),
    ("05", "play-figure"): (
        strength,
        "Weaker or stronger: every pair's margin, with the directions of the large run.",
    ),
    ("14", "graph-explore"): (graph, "The lesson's slider, in pictures drawn with the book."),
    ("15", "decisive-figure"): (
        painter_layers,
        "The same six pairs, one setting at a time; the bars are those of the large run.",
    ),
}
