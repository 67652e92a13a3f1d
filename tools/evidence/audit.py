"""Calibrate the audit on planted models, and look where nothing was fitted.

    python -m tools.evidence.audit          measure what is missing, then print the tables
    python -m tools.evidence.audit --print  only print them

With SUBSPACE_ILLUSION_MODEL=gemma-3-270m, or a folder of that name, what is measured on that model.

A row of `data/evidence/audit.json` is written as soon as it is measured, so an interrupted run goes
on where it was. `RULES` were written before the run.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.audit.criteria import TESTS, Criterion, measured
from helpers.audit.diagnostics import natural_changes, scores
from helpers.audit.measure import audit
from helpers.audit.planted import FAMILIES, NATURAL, PlantedPairs, plant
from helpers.audit.verdicts import CONSISTENT, ILLUSION, NO_EFFECT, conclude
from helpers.directions import (
    answer_logit_difference,
    find_direction,
    mean_difference,
    mean_gradient,
    patch_subspace,
    unit,
)  # fmt: skip
from helpers.directions.layers import halves
from helpers.models import PACKAGED, Model, load_model, model_slug
from helpers.patching import CachedPairs, Estimate, Site, cache_pairs, cache_sites
from helpers.patching.metrics import fractional_logit_difference_decrease, share
from helpers.tasks import agreement, ioi
from helpers.tasks.pairs import Pairs
from tools.audit.benchmark import auroc, share_opened
from tools.evidence.literature import LITERATURE
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

SIZES, DRAWS = (16, 32, 64, 128), 3  # pairs to judge a real direction on, and how often
PENALTY = 5  # an innocent accused counts as much as so many guilty missed
RULES = (
    "A planted model counts as opened if more than half of the effect is gone with the planted "
    "units held that do not carry the feature, as natural if less than a tenth is; others are left "
    "out, and so are those whose direction has no effect, or that have no margin left.",
    "Layers are such that a planted mediator removes at least 0.3 of the margin there, by two "
    "other seeds (in Gemma no layer was: number at layer 9, with 0.29 and 0.60, came nearest). The "
    "settings marked fit had been looked at before the rest was measured: tests, "
    "the rule of the verdict and how far a unit may go were made on them, too.",
    "Thresholds are fitted test by test on the settings marked fit: from where a test speaks "
    f"against, the number that finds most opened models less {PENALTY} times the natural ones it "
    "accuses, in steps of 0.05, the middle of the best ones.",
    "Rates are those of the audit's verdict: false accusation, a natural model called an illusion; "
    "miss, an opened one called consistent. Intervals are exact (Clopper-Pearson). Models of one "
    "setting share their pairs, so the intervals are somewhat too narrow.",
)


class Setting(NamedTuple):
    """Planted models of all families, at one layer and on pairs of one feature."""

    feature: str
    layer: int
    n: int
    seeds: tuple[int, ...]
    fit: bool = False
    model: str = PACKAGED

    def __str__(self) -> str:
        where = "" if self.model == PACKAGED else f", {self.model}"
        return f"{self.feature}, layer {self.layer}, {self.n} pairs{where}"


SETTINGS = (
    Setting("order", 21, 24, (0, 1, 2), fit=True),
    Setting("gender", 20, 24, (3, 4, 5), fit=True),
    Setting("order", 21, 16, (10, 11, 12), fit=True),
    Setting("number", 18, 32, (18, 19)),
    Setting("order", 22, 48, (13,)),
    Setting("gender", 24, 48, (15,)),
    Setting("number", 9, 48, (24,), model="gemma-3-270m"),
    Setting("number", 12, 64, (23,)),
    Setting("order", 20, 200, (21,)),
    Setting("order", 21, 400, (22,)),
)

# ------------------------------------------------------------------------------ the run


def pairs_of(model: Model, feature: str, n: int, seed: int) -> Pairs:
    if feature == "order":
        return ioi.make_pairs(model, n, split="test", seed=seed)
    return agreement.make_pairs(model, feature, n, split="test", seed=seed)


def measure(planted: PlantedPairs, direction: Tensor) -> dict:
    """The truth of a planted model, and what every test says with its interval."""
    patched = patch_subspace(planted.base, planted.source, direction)
    with torch.no_grad():
        after = planted.logit_difference(patched)
        found = scores(planted, direction, planted.W)
    clean, fldd = planted.clean_logit_difference, [0.0, 0.0, 0.0]  # what was planted may take all
    if clean.mean() > 0:
        fldd = list(fractional_logit_difference_decrease(clean, after))
    row = {"opened": share_opened(planted, patched), "fldd": fldd}
    row |= {name: list(found[name].estimate()) for name in found}
    return row | {name: [test(planted, direction)] * 3 for name, test in LITERATURE.items()}


def run(evidence: Evidence) -> None:
    """All settings in turn, then the real cases."""
    model = load_model(device="cpu")
    evidence.put(list(RULES), "rules")
    which = {str(setting): "fit" if setting.fit else "held out" for setting in SETTINGS}
    evidence.put(which, "settings")
    if model_slug() == PACKAGED and evidence.missing("cases"):
        evidence.put(cases(model), "cases")
    for setting in SETTINGS:
        wanted = [f"{family} {n}" for family, n in itertools.product(FAMILIES, setting.seeds)]
        done = not any(evidence.missing("rows", str(setting), name) for name in wanted)
        if done or setting.model != model_slug():
            continue
        kinds = ("mlp_hidden", "resid_mid", "resid_post")
        pairs = pairs_of(model, setting.feature, setting.n, setting.seeds[0])
        at = cache_sites(model, pairs, [Site(setting.layer, kind) for kind in kinds])
        for family, seed in itertools.product(FAMILIES, setting.seeds):
            if evidence.missing("rows", str(setting), f"{family} {seed}"):
                made = plant(family, *at, seed=seed)
                evidence.put(measure(*made), "rows", str(setting), f"{family} {seed}")
    if model_slug() == PACKAGED:
        flips(model, evidence)


def flips(model: Model, evidence: Evidence) -> None:
    """Verdicts on real directions, each on so many fresh pairs, drawn several times."""
    kinds = ("mlp_hidden", "resid_post")
    train = ioi.make_pairs(model, 80, split="train", seed=0)
    mlp, stream = cache_sites(model, train, [Site(21, kind) for kind in kinds])
    names = agreement.make_pairs(model, "gender", 60, split="train", seed=0)
    gender = cache_pairs(model, names, Site(24, "mlp_hidden"))
    found = {
        "trained, MLP 21": (mlp, "order", trained(mlp)),
        "mean difference, stream 21": (stream, "order", mean_difference(stream)),
        "mean gradient, stream 21": (stream, "order", mean_gradient(stream)),
        "gender, mean difference, MLP 24": (gender, "gender", mean_difference(gender)),
    }
    for (name, (at, feature, v)), n in itertools.product(found.items(), SIZES):
        enough = feature == "order" or n <= 84  # so many pairs of names there are
        if enough and evidence.missing("by n", name, str(n)):
            said = []
            for seed in range(DRAWS):
                pairs = pairs_of(model, feature, n, seed=100 + seed)
                said.append(audit(model, at.site, v, pairs, progress=False).verdict)
            evidence.put(said, "by n", name, str(n))


def trained(cached: CachedPairs) -> Tensor:
    """The direction of lesson 09's defendant."""
    usual = dict(loss=answer_logit_difference, epochs=10, batch_size=40, seed=0, progress=False)
    return find_direction(cached, **usual).direction


def cases(model: Model) -> dict:
    """Two real directions that were said to fool the audit, their parts, and one turned round."""
    names = agreement.make_pairs(model, "gender", 60, split="test", seed=1)
    gender = cache_pairs(model, names, Site(24, "mlp_hidden"))
    axes = natural_changes(gender)
    mean, acts = (unit(f(gender) @ axes @ axes.T) for f in (mean_difference, mean_gradient))
    sensor, actuator = unit(mean - (mean @ acts) * acts), unit(acts - (acts @ mean) * mean)
    found = {
        "sensor alone": (gender, sensor), "actuator alone": (gender, actuator),
        "sensor and actuator": (gender, sensor + actuator), "mean difference": (gender, mean),
    }  # fmt: skip
    order = ioi.make_pairs(model, 60, split="test", seed=1)
    mlp = cache_pairs(model, order, Site(21, "mlp_hidden"))
    moves, acts = mean_difference(mlp), mean_gradient(mlp)
    found["units that favour the feature"] = (mlp, moves * (moves * acts > 0))
    found["units against it"] = (mlp, moves * (moves * acts <= 0))
    train = ioi.make_pairs(model, 80, split="train", seed=0)
    at, stream = cache_sites(model, train, [Site(21, "mlp_hidden"), Site(21, "resid_post")])
    W, reads = model.blocks[21].mlp.W_out.detach(), mean_gradient(stream)
    sense, act, by_hand = halves(mean_difference(at), reads, W, exact=False)
    found |= {
        "trained": (mlp, trained(at)), "built by hand": (mlp, by_hand),
        "built by hand, turned round": (mlp, sense - act),
    }  # fmt: skip
    rows = {}
    for name, (cached, v) in found.items():
        a = audit(model, cached.site, v, cached.pairs, progress=False)
        tests = {f.test: list(f.value) for f in a.findings if f.value is not None}
        effects = {"verdict": a.verdict, "fldd": list(a.effect.fldd), "whole": a.whole.fldd.value}
        rows[name] = effects | tests
    rows["sensor and actuator"]["cosine with the mean"] = float(unit(sensor + actuator) @ mean)
    return rows


# ------------------------------------------------------------------------------ the tables

Rows = list[tuple[str, bool, dict]]  # family, whether opened, and what was measured


def rows_of(evidence: Mapping, settings: Iterable[Setting]) -> Rows:
    """The models whose truth is clear and whose direction has an effect."""
    found = []
    for setting in settings:
        for name, row in evidence["rows"].get(str(setting), {}).items():
            clear = row["opened"] > 0.5 or row["opened"] < 0.1
            if clear and verdict(row, TESTS) != NO_EFFECT:
                found.append((name.rsplit(" ", 1)[0], row["opened"] > 0.5, row))
    return found


def verdict(row: dict, tests: Iterable[Criterion]) -> str:
    """The audit's verdict on a planted model by these thresholds."""
    findings = [measured(test, Estimate(*row[test.name])) for test in tests if test.name in row]
    return conclude(Estimate(*row["fldd"]), [Estimate(0, 0, 0)], findings)


def fitted(rows: Rows) -> list[Criterion]:
    """The tests with the thresholds that `RULES` choose, those for acquittal half-way to zero."""
    made = []
    for test in TESTS:
        if test.against is None:
            made.append(test)
            continue
        values = [(row[test.name][0], opened) for _, opened, row in rows]
        gain = {
            at: sum((value >= at) * (1 if opened else -PENALTY) for value, opened in values)
            for at in (step / 20 for step in range(1, 61))
        }
        best = [at for at, worth in gain.items() if worth == max(gain.values())]
        against = best[len(best) // 2]
        acquits = None if test.acquits is None else round(test.acquits / test.against * against, 3)
        made.append(replace(test, against=against, acquits=acquits))
    return made


def rates(rows: Rows, tests: Iterable[Criterion]) -> dict[str, tuple[int, int, Estimate]]:
    """Errors of the verdict: how many, of how many, and the share with its exact interval."""
    said = [(opened, verdict(row, tests)) for _, opened, row in rows]
    natural = [what == ILLUSION for opened, what in said if not opened]
    missed = [what == CONSISTENT for opened, what in said if opened]
    undecided = [what not in (ILLUSION, CONSISTENT) for _, what in said]
    groups = {"accused, natural": natural, "missed, opened": missed, "undecided": undecided}
    return {
        name: (sum(hits), len(hits), share(torch.tensor(hits)))
        for name, hits in groups.items() if hits
    }  # fmt: skip


def show(evidence: dict) -> None:
    """Everything, as Markdown."""
    fit = rows_of(evidence, [s for s in SETTINGS if s.fit])
    tests = fitted(fit)
    lines = [[t.name, f"{t.against}", f"{new.against}", f"{t.acquits}", f"{new.acquits}"]
             for t, new in zip(TESTS, tests, strict=True) if t.against is not None]  # fmt: skip
    print(markdown_table(["test", "against", "fitted", "acquits", "fitted"], lines))
    held = [s for s in SETTINGS if not s.fit]
    groups = {"fit": [s for s in SETTINGS if s.fit], "held out": held} | {str(s): [s] for s in held}
    for which, criteria in (("in use", TESTS), ("fitted", tests)):
        print(f"\nThresholds {which}\n")
        lines = []
        for name, settings in groups.items():
            found = rates(rows_of(evidence, settings), criteria)
            lines.append([name, *(f"{k} of {n}: {of:.1%}" for k, n, of in found.values())])
        columns = ["models", "natural accused", "opened called consistent", "undecided"]
        print(markdown_table(columns, [line for line in lines if len(line) == len(columns)]))
    print("\nVerdicts by family, held out\n")
    families(rows_of(evidence, held))
    print("\nAUROC, held out\n")
    benchmark(rows_of(evidence, held))
    print("\nVerdicts on real directions, by the number of pairs\n")
    for name, of in evidence.get("by n", {}).items():
        print(f"{name}: {of}")
    for name, case in evidence.get("cases", {}).items():
        print(f"\n{name}: {case}")


def families(rows: Rows) -> None:
    kinds = (ILLUSION, CONSISTENT, "undecided", "works the other way")
    lines = []
    for family in FAMILIES:
        said = [verdict(row, TESTS) for name, _, row in rows if name == family]
        lines.append([family, *(str(said.count(kind)) for kind in kinds)])
    print(markdown_table(["family", *kinds], lines))


def benchmark(rows: Rows) -> None:
    """Every test, with its AUROC over all and against each family of opened pathways."""
    opened = [family for family in FAMILIES if family not in (*NATURAL, "mixture")]
    lines = []
    for test in [*(test.name for test in TESTS), *LITERATURE]:
        natural = [row[test][0] for _, is_open, row in rows if not is_open]
        of = {"all": [row[test][0] for _, is_open, row in rows if is_open]}
        of |= {f: [row[test][0] for name, _, row in rows if name == f] for f in opened}
        cells = (f"{auroc(torch.tensor(x), torch.tensor(natural)):.2f}" for x in of.values() if x)
        lines.append([test, *cells])
    print(markdown_table(["test", "all", *opened], lines))


if __name__ == "__main__":
    command("audit", __doc__, run, show)
