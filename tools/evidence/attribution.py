"""Compare what shortcuts estimate with the patches themselves, on templates no choice has seen.

    python -m tools.evidence.attribution          measure what is missing, then print the tables
    python -m tools.evidence.attribution --print  only print them

The rules of claims R1 to R6 stood in `data/claims.json` before the first run. The scores of every
pair are kept in the results folder, so an interrupted run goes on where it was;
`data/evidence/attribution.json` has the mean maps and what follows from them.
"""

import time

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.attribution import METHODS, agreement, attribution, coefficients
from helpers.claims import report, shipped_evidence
from helpers.directions import best_directions, patch_subspace, unit
from helpers.models import Model, load_model
from helpers.patching import Site, cache_pairs, cache_sites, metrics
from helpers.patching.cached import logit_differences
from helpers.tasks import ioi
from helpers.tasks.pairs import Pairs
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

PAIRS = {"train": 8, "test": 8, "fresh": 12}  # of each template
SEED = 1  # of the pairs; a trial of the code had looked at one fresh template with seed 0
KINDS = ("resid_pre", "attn_out", "mlp_out")
LAST = ("resid_post", *KINDS[1:], "mlp_hidden")  # at the last token of the order pairs
SHORTCUTS = ("atp", "relp", "relp+pattern", "ig")
MAPS = ("exact", *SHORTCUTS)  # whose mean maps are kept
ORDER, FOUND_ON = 48, 100  # order pairs: fresh ones to judge, train ones for directions
DRAWS = 500
RULES = (
    f"Pairs (seed {SEED}): {PAIRS} of each template, by split; the source repeats the other name, "
    "and that one token differs. Verdicts are about the split fresh alone.",
    "Exact: the patch of one vector, for every layer and every token from the repeated name on "
    "(no patch before it can change anything); the change of the logit difference in nats.",
    "Estimates: the same cells by each method; ig takes 5 gradients.",
    "Correlation: Pearson's, between the two maps averaged over the pairs of a template; then the "
    f"mean over templates. Interval: {DRAWS} bootstrap draws of pairs within each template.",
    "Top cell: the one with the largest exact effect in the mean map; slope: the estimate's, on "
    "the exact effect, through the origin.",
    f"Order pairs: {ORDER} of the split fresh (seed {SEED}), last token, all layers; directions "
    f"from {FOUND_ON} train pairs (seed 0), and the trained ones of the evidence of lesson 05.",
)
Maps = dict[str, Float[Tensor, "pairs kinds layers pos"]]  # by method, and "exact"


# ------------------------------------------------------------------------------ one template


def exact(model: Model, pairs: Pairs, kinds: tuple = KINDS, first: int = 0) -> Tensor:
    """Effects of patching every layer and token from `first` on: `[pairs kinds layers pos]`."""
    shape, columns = (len(kinds), model.cfg.n_layers, len(pairs)), []
    for place in range(first, len(pairs.base_tokens[0])):
        sites = [Site(at, kind, position=place) for kind in kinds for at in range(shape[1])]
        cached = cache_sites(model, pairs, sites)
        # The margin of the topmost site: fewest layers are rerun for it.
        clean = max(cached, key=lambda at: at.site.layer).clean_logit_difference
        columns.append((logit_differences(cached) - clean).reshape(shape))
    return torch.stack(columns, -1).permute(2, 0, 1, 3)


def measure(model: Model, pairs: Pairs) -> Maps:
    """The exact map of every pair, and each method's."""
    (first,) = {*pairs.position.tolist()}
    found, seconds = {}, {}
    for method in ("exact", *METHODS):
        start = time.process_time()
        if method == "exact":
            found[method] = exact(model, pairs, first=first)
        else:
            scores = attribution(model, pairs, KINDS, method=method)
            found[method] = torch.stack([scores[kind] for kind in KINDS], 1)[..., first:]
        seconds[method] = torch.tensor((time.process_time() - start) / len(pairs))
    return found | {"seconds": torch.stack(list(seconds.values()))}


def three(maps: Maps, method: str, kind: int, rows: Tensor | slice = slice(None)) -> Tensor:
    """The numbers of `agreement`, between mean maps over the pairs `rows`."""
    return torch.tensor(agreement(*(maps[of][rows, kind].mean(0) for of in (method, "exact"))))


def interval(templates: list[Maps], methods: tuple[str, ...], kind: int) -> list[list[float]]:
    """The three numbers of `agreement`, means over templates, with intervals; of two methods the
    difference, the first less the second.
    """
    generator = torch.Generator().manual_seed(0)

    def of(rows: list) -> Tensor:
        each = [
            [three(maps, method, kind, row) for maps, row in zip(templates, rows, strict=True)]
            for method in methods
        ]
        means = [torch.stack(values).mean(0) for values in each]
        return means[0] if len(means) == 1 else means[0] - means[1]

    sizes = [len(maps["exact"]) for maps in templates]
    draws = [of([torch.randint(n, (n,), generator=generator) for n in sizes]) for _ in range(DRAWS)]
    low, high = torch.stack(draws).quantile(torch.tensor([0.025, 0.975]), 0)
    return torch.stack([of([slice(None)] * len(sizes)), low, high], 1).tolist()


# ------------------------------------------------------------------------------ order pairs


def order(model: Model) -> dict:
    """At the last token: exact effect and estimates of whole components, in nats, by kind."""
    pairs = ioi.make_pairs(model, ORDER, split="fresh", seed=SEED)
    sites = [Site(at, kind) for kind in LAST for at in range(model.cfg.n_layers)]
    cached = cache_sites(model, pairs, sites)
    clean = max(cached, key=lambda at: at.site.layer).clean_logit_difference
    effects = {"exact": logit_differences(cached) - clean}
    for method in METHODS:
        slopes = coefficients(model, pairs, sites, method=method)
        changes = [
            (c * (at.source - at.base)).sum(-1) for c, at in zip(slopes, cached, strict=True)
        ]
        effects[method] = torch.stack(changes)
    means = {
        name: [metrics.mean(row) for row in x]  # every layer of every kind, with its interval
        for name, x in effects.items()
    }
    n = model.cfg.n_layers
    by_kind = {
        kind: {name: rows[place * n : place * n + n] for name, rows in means.items()}
        for place, kind in enumerate(LAST)
    }
    return {"clean": metrics.mean(clean), "pairs": len(pairs), "effects": by_kind}


def directions(model: Model) -> dict:
    """Directions of MLP and stream: exact effect and estimates, as shares of the margin."""
    fresh = ioi.make_pairs(model, ORDER, split="fresh", seed=SEED)
    train = ioi.make_pairs(model, FOUND_ON, split="train", seed=0)
    shipped = shipped_evidence("trial")["effects"]
    sites, found = {"MLP 21": Site(21, "mlp_hidden"), "stream 21": Site(21, "resid_post")}, {}
    slopes = {m: coefficients(model, fresh, list(sites.values()), method=m) for m in SHORTCUTS}
    for place, (name, site) in enumerate(sites.items()):
        ends, cached = (
            best_directions(cache_pairs(model, train, site)),
            cache_pairs(model, fresh, site),
        )
        trained = unit(torch.tensor(shipped[name]["directions"]["trained"]))
        each = {"trained": trained, "closed form": ends.top, "opposite": ends.bottom}
        change = {key: patch_subspace(cached.base, cached.source, u) for key, u in each.items()}
        change["whole"] = cached.source
        found[name] = {
            key: {"exact": cached.measure(patched).fldd}
            | {
                m: share(cached, (c[place] * (patched - cached.base)).sum(-1))
                for m, c in slopes.items()
            }
            for key, patched in change.items()
        }
    return found


def share(cached: object, nats: Tensor) -> metrics.Estimate:
    """A fall of the logit difference as a share of the margin."""
    clean = cached.clean_logit_difference
    return metrics.fractional_logit_difference_decrease(clean, clean + nats)


# ------------------------------------------------------------------------------ the run


def maps_of(model: Model, split: str, template: str) -> Maps:
    """Every pair's maps of a template, measured now or read from the results folder."""
    path = report.results_folder() / "attribution" / f"{template}.pt"
    if not path.exists():
        drawn = ioi.make_pairs(model, PAIRS[split], split=split, seed=SEED, templates=template)
        maps = measure(model, ioi.with_other_repeated(drawn))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(maps, path)
    return torch.load(path, weights_only=True)


def row(maps: Maps) -> dict:
    """What the file keeps of a template: mean maps, and each method's agreement."""
    kept = {kind: {m: maps[m][:, k].mean(0).tolist() for m in MAPS} for k, kind in enumerate(KINDS)}
    return {"pairs": len(maps["exact"]), "maps": kept, "agreement": {
        kind: {m: interval([maps], (m,), k) for m in METHODS} for k, kind in enumerate(KINDS)
    }}  # fmt: skip


def summary(templates: list[Maps]) -> dict:
    """Means over the templates of a split, and the differences that the claims are about."""
    found = {
        kind: {m: interval(templates, (m,), k) for m in METHODS}
        | {"relp - atp": interval(templates, ("relp", "atp"), k)}
        for k, kind in enumerate(KINDS)
    }
    seconds = torch.stack([maps["seconds"] for maps in templates]).mean(0).tolist()
    return found | {"seconds per pair": dict(zip(("exact", *METHODS), seconds, strict=True))}


def run(evidence: Evidence) -> None:
    """Everything that is missing, the templates of the verdicts first."""
    evidence.put(list(RULES), "rules")
    model = load_model(device="cpu")
    for name, make in (("order", order), ("directions", directions)):
        if evidence.missing(name):
            evidence.put(make(model), name)
    for split in ("fresh", "train", "test"):
        names = list(ioi.templates(split))
        for name in names:
            if evidence.missing("templates", name):
                evidence.put(row(maps_of(model, split, name)), "templates", name)
        if evidence.missing("splits", split):
            every = [maps_of(model, split, name) for name in names]
            evidence.put(summary(every), "splits", split)


def show(evidence: Evidence) -> None:
    """The tables, as Markdown: correlation, without the top cell, slope, each with its interval."""
    for split, found in evidence["splits"].items():
        print(f"\n## {split}; seconds per pair: {found['seconds per pair']}\n")
        rows = [
            [kind, method, *(str(metrics.Estimate(*x)) for x in numbers)]
            for kind in KINDS for method, numbers in found[kind].items()
        ]  # fmt: skip
        print(markdown_table(["kind", "method", "correlation", "without top", "slope"], rows))
    for name, each in evidence["directions"].items():
        rows = [[k, *(f"{100 * of[m][0]:.1f}" for m in of)] for k, of in each.items()]
        print(f"\n## {name}\n\n" + markdown_table(["direction", *each["whole"]], rows))
    for kind, each in evidence["order"]["effects"].items():
        top = max(range(len(each["exact"])), key=lambda at: abs(each["exact"][at][0]))
        print(f"{kind} {top}: " + ", ".join(f"{m} {v[top][0]:.2f}" for m, v in each.items()))


if __name__ == "__main__":
    command("attribution", __doc__, run, show)
