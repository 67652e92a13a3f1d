"""The book's front page: five doors and six results, whose numbers are read from `data/`."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parent.parent.parent
JUDGED = ("person_country", "company_country", "food_country", "country_language")  # by lesson 14
COLAB = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)")
Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the picture


def stored(name: str) -> dict:
    """A JSON file of `data/`."""
    return json.loads((ROOT / "data" / name).read_text(encoding="utf-8"))


@cache
def lesson(number: str) -> tuple[str, dict[str, dict]]:
    """The file name of a lesson, and its cells by id."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return path.name, {cell["id"]: cell for cell in cells}


def title_and_question(number: str) -> tuple[str, str]:
    title, question = "".join(lesson(number)[1]["title"]["source"]).split("\n\n")[:2]
    return title.removeprefix("# "), question.strip("*")


def claim(name: str) -> dict:
    return stored("expected/smollm2-135m.json")[name]


def percent(share: float) -> str:
    return f"{share:.0f}\N{NO-BREAK SPACE}%".replace("-", "−")


def whole_and_direction() -> str:
    whole, one = (percent(claim(name)["value"]) for name in ("C3", "C4"))
    return f"Patched, the whole MLP removes **{whole}** of the margin, one direction **{one}**."


def same_writers() -> str:
    share = percent(claim("E3")["value"])
    return (
        "The two heads that write the honest direction carry "
        f"**{share}** of the illusory one's effect, too."
    )


def facts_by_layer() -> str:
    """What is said of the deeper layer stands in the notes of the claims."""
    notes = (claim(name)["note"] for name in ("C21", "C22"))
    found = [re.search(r"at layer (\d+): ([\d.]+)", note).groups() for note in notes]
    (layer, one), (_, whole) = found
    one, whole = (f"**{float(share):g}\N{NO-BREAK SPACE}%**" for share in (one, whole))
    return f"In layer {layer} one direction of the MLP flips {one} of the facts, the whole {whole}."


def kernel_length() -> str:
    """How well the length in the kernel tells opened pathways from natural ones, held out."""
    evidence = stored("evidence/audit.json")
    held_out = [name for name, which in evidence["settings"].items() if which != "fit"]
    rows = [row for name in held_out for row in evidence["rows"][name].values()]
    clear = [r for r in rows if not 0.1 <= r["opened"] <= 0.5 and "null norm" in r]
    auroc = roc_auc_score([r["opened"] > 0.5 for r in clear], [r["null norm"][0] for r in clear])
    return (
        "The length in the kernel tells opened pathways from natural ones with an AUROC of "
        f"**{auroc:.2f}**; a coin has 0.50."
    )


def readings() -> str:
    """Read right of the test subjects, at the layer that the others choose; and a mean state."""
    relations = [stored("evidence/reading.json")[name] for name in JUDGED]

    def right(key, layer, test):
        halves = [(r[key][layer], r["n"]["train"]) for r in relations]
        digits = "".join(row[start:] if test else row[:start] for row, start in halves)
        return 100 * sum(map(int, digits)) / (3 * len(digits))  # three readers

    layers = [layer for layer in relations[0]["read"] if layer in relations[0]["mean"]]
    best = max(layers, key=lambda layer: right("read", layer, test=False))
    found, control = (percent(right(key, best, test=True)) for key in ("read", "mean"))
    return f"The state of layer {best} is read right in **{found}**, a mean state in **{control}**."


def letters_of_a_layer() -> str:
    run = stored("evidence/pictures.json")["seed0"]
    share = percent(100 * run["sweep"][f"only {run['best']}"]["letters of source"][0])
    return f"Layer {run['best']} alone decides **{share}** of the letters."


@dataclass(frozen=True)
class Card:
    """A result: the part of a stored figure to show, and its answer."""

    lesson: str
    cell: str
    part: Box
    answer: Callable[[], str]

    def picture(self) -> bytes:
        """That part of the figure, as PNG."""
        outputs = lesson(self.lesson)[1][self.cell]["outputs"]
        (png,) = (o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {}))
        image = Image.open(io.BytesIO(base64.b64decode(png)))
        size = (*image.size, *image.size)
        part = image.crop(
            [round(share * length) for share, length in zip(self.part, size, strict=True)]
        )
        buffer = io.BytesIO()
        part.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def markdown(self) -> str:
        name, _ = lesson(self.lesson)
        title, question = title_and_question(self.lesson)
        alt = f"Part of a figure of lesson {self.lesson}, {title}."
        link = f"/notebooks/{name}"
        lines = [f"![{alt}](card-{self.lesson}.png)", f"[{self.lesson} {title}]({link})"]
        return "\n\n".join([*lines, question, self.answer()])


CARDS = (  # the parts are about 9 wide and 5 high, as the boxes are
    Card("03", "range-figure", (0.0, 0.07, 1.0, 0.935), whole_and_direction),
    Card("05", "trial-figure", (0.355, 0.045, 0.8, 0.465), same_writers),
    Card("06", "sweep-figure", (0.0, 0.1, 0.52, 0.82), facts_by_layer),
    Card("09", "families", (0.24, 0.075, 0.855, 0.7), kernel_length),
    Card("14", "into-figure", (0.0, 0.06, 1.0, 1.0), readings),
    Card("15", "decisive-figure", (0.085, 0.075, 0.62, 0.735), letters_of_a_layer),
)


def colab() -> str:
    """The door to Colab: open if this copy has been published, else how to do that."""
    badge = COLAB.search("".join(lesson("00")[1]["nav"]["source"]))
    if badge:
        return f"[Open in Colab]({badge[1]})\n\nLesson 00 in your browser; nothing to install."
    hosting = "/docs/running.md#colab-kaggle-binder"
    return f"[On Colab or Kaggle]({hosting})\n\nOnce a copy is hosted: how to, and a badge for all."


def doors() -> Iterator[str]:
    first, _ = lesson("00")
    yield f"[Read](/notebooks/{first})\n\nLesson 00: one patch on a real model, in five minutes."
    yield colab()
    yield "[Run](/README.md)\n\n`make run` for all lessons, `make test` for all tests."
    yield "[Teach](/docs/teaching.md)\n\nGoals, times, plans, assignments that grade themselves."
    yield "[Judge your direction](/docs/audit.md)\n\nYour direction, on your model, on trial."


def container(name: str, parts: list[str]) -> str:
    """Boxes side by side, in a box of that name."""
    boxes = "\n".join(f"```{{container}} box\n{part}\n```" for part in parts)
    return f"````{{container}} {name}\n{boxes}\n````"


def page() -> str:
    """The front page as Markdown; its pictures stand beside it."""
    number = len(list((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")))
    about = (
        "You change one direction inside a language model and its answer flips: "
        f"{number} lessons on what that shows, and what it does not."
    )
    alone = "---\nhtml_theme.sidebar_secondary.remove: true\n---"  # room for three cards in a row
    parts = [alone, "# Is this the subspace you are looking for?", about]
    parts += [container("doors", list(doors())), "## Six results"]
    parts += [container("cards", [card.markdown() for card in CARDS])]
    return "\n\n".join(parts) + "\n"


def pictures() -> dict[str, bytes]:
    """The pictures of the front page by their file names."""
    return {f"card-{card.lesson}.png": card.picture() for card in CARDS}
