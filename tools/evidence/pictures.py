"""Which layer of a painter reads the letters, and does finding it tell where to edit?

    python -m tools.evidence.pictures            measure what is missing, then print the tables
    python -m tools.evidence.pictures --print    only print them

The rules of claims D1 to D8 stood in `data/claims.json` before the first run.
"""

from collections.abc import Callable

from helpers.output import files
from helpers.pictures import Painter, load_painter, pairs
from helpers.pictures.painter import PAINTERS
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table
from tools.pictures.edits import LONG, REPAIR, SHORT, drawn_as, edited, one_direction, repaired
from tools.pictures.measure import Task, best_layer, carrying, controls, sweep, windows
from tools.pictures.train import RECIPES, legible, train, untrained

SEEDS, LATE = ("seed0", "seed1", "seed2"), "late"
CHOOSE, JUDGE = 40, 60  # pairs that choose the layer, pairs that judge it
UNDERTRAINED = 0.5  # of the letters: a painter that is to be repaired stops before
RULES = (
    f"The layer is chosen on {CHOOSE} test pairs (seed 1), all is judged on {JUDGE} pairs of fresh "
    "words (seed 10): other letters in all three places, another colour, another thing.",
    "Base: the run that is changed. Source: the prompt whose keys and values are put in, in all "
    "heads and steps. Both start from the same noise. Letters: share of the three places.",
    "Distance: mean squared difference from the plain base run, of pixels from -1 to 1.",
    "Edit: keys and values of one layer trained to draw C as X, 48 pictures a step; short: "
    f"{SHORT.steps} steps at rate {SHORT.rate}, long: {LONG.steps} at {LONG.rate}.",
    f"Repair: a painter stopped when {UNDERTRAINED:.0%} of the letters are legible, keys and "
    f"values trained on for {REPAIR.steps} steps.",
    "One direction: over tokens and units of a layer's values, trained on the change of one call "
    "at t = .999 where C becomes X; judged on fresh words; [share of the change, C drawn as X].",
)


def look(painter: Painter, name: str, evidence: Evidence) -> None:
    """All that needs no training, of one painter, as far as it is missing."""
    judged = Task.of(painter, pairs(JUDGE, "fresh", seed=10), seed=10)

    def once(key: str, measure: Callable[[], object]) -> None:
        if evidence.missing(name, key):
            evidence.put(measure(), name, key)

    once("sweep", lambda: sweep(judged))
    chosen = Task.of(painter, pairs(CHOOSE, "test", seed=1), seed=1)
    once("best", lambda: best_layer(chosen))
    best = evidence[name]["best"]
    once("controls", lambda: controls(judged, best))
    once("windows", lambda: windows(judged, best))
    style = [b._replace(word=s.word) for b, s in zip(judged.base, judged.source, strict=True)]
    once("carrying", lambda: carrying(judged._replace(source=style)))


def edit(painter: Painter, name: str, evidence: Evidence) -> None:
    """The edit layer by layer, short and long, and together in all but the best."""
    best, every = evidence[name]["best"], range(len(painter.blocks))
    readers = [n for n in every if not painter.blocks[n].cross.blind]
    rest = [n for n in readers if n != best]
    jobs = {f"short {n}": ([n], SHORT) for n in readers}
    jobs |= {f"long {n}": ([n], LONG) for n in rest} | {"long, all others": (rest, LONG)}
    if evidence.missing(name, "edit", "before"):
        evidence.put(drawn_as(painter), name, "edit", "before")
    for key, (layers, way) in jobs.items():
        if evidence.missing(name, "edit", key):
            evidence.put(drawn_as(edited(painter, layers, way)), name, "edit", key)


def directions(painter: Painter, name: str, evidence: Evidence) -> None:
    """One direction in the values of every layer that reads."""
    for n, block in enumerate(painter.blocks):
        if not block.cross.blind and evidence.missing(name, "direction", str(n)):
            evidence.put(one_direction(painter, n), name, "direction", str(n))


def repair(name: str, evidence: Evidence) -> None:
    """Stop early, train on keys and values of one layer or all."""
    if not evidence.missing(name, "repair", "before"):
        return
    recipe, best = RECIPES[name], evidence[name]["best"]
    curve = files.shipped(PAINTERS / "training.json")[name]["curve"]
    stop = max(row["step"] for row in curve if row["letters"] < UNDERTRAINED)
    painter, _ = train(recipe, stop, tell=lambda row: None)
    every = range(len(painter.blocks))
    found = {"step": stop, "before": legible(painter, 200)}
    for n in every:
        found[f"layer {n}"] = legible(repaired(painter, [n]), 200)
    found["all"] = legible(repaired(painter, list(every)), 200)
    evidence.put(found | {"best": best}, name, "repair")


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    evidence.put(list(RULES), "rules")
    for name in (*SEEDS, LATE):
        look(load_painter(name), name, evidence)
    if evidence.missing("untrained", "sweep"):
        task = Task.of(untrained(RECIPES["seed0"]), pairs(JUDGE, "fresh", seed=10), seed=10)
        evidence.put(sweep(task), "untrained", "sweep")
    for name in SEEDS:
        directions(load_painter(name), name, evidence)
        edit(load_painter(name), name, evidence)
        repair(name, evidence)


def show(evidence: Evidence) -> None:
    """The tables, as Markdown."""
    for name, found in evidence.items():
        if name == "rules":
            continue
        for part in ("sweep", "controls", "windows"):
            rows = [
                [key, *(f"{of[0]:.3f} [{of[1]:.2f}, {of[2]:.2f}]" for of in row.values())]
                for key, row in found.get(part, {}).items()
            ]
            if rows:
                header = ["", *next(iter(found[part].values()))]
                print(f"\n## {name}, {part}\n\n" + markdown_table(header, rows))
        for part in ("best", "carrying", "direction", "edit", "repair"):
            print(name, part, found.get(part))


if __name__ == "__main__":
    command("pictures", __doc__, run, show)
