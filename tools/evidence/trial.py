"""Put accused and innocent directions on trial on names and templates that no search has seen.

    python -m tools.evidence.trial          measure what is missing, then print the tables
    python -m tools.evidence.trial --print  only print them

Directions come from the train split, every number from the split `fresh`. The rules of claims E1
to E6 stood in `data/claims.json` before the first run. A row of `data/evidence/trial.json` is
written as soon as it is measured, so an interrupted run goes on where it was.
"""

import torch
from torch import Tensor

from helpers.claims import report
from helpers.directions import (
    answer_logit_difference,
    best_directions,
    clean_queries,
    difference_of_means,
    find_direction,
    input_space,
    patch_subspace,
    project,
    read_write_patch,
    row_space,
    score_gradients,
    unit,
)
from helpers.models import load_model
from helpers.patching import CachedPairs, Site, cache_sites, metrics
from helpers.tasks.ioi import make_pairs
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

TRAIN, FRESH, SEEDS = 200, 300, 3
WRITERS = Site(19, "head_output", head=2), Site(20, "head_output", head=0)  # of lesson 04
SEARCHED = {
    "MLP 20": Site(20, "mlp_hidden"),
    "MLP 21": Site(21, "mlp_hidden"),
    "MLP 22": Site(22, "mlp_hidden"),
    "stream 21": Site(21, "resid_post"),
}
RULES = (
    f"Directions from {TRAIN} pairs of the train split (seed 0), all numbers from {FRESH} pairs of "
    "the split fresh (seed 0): no name, object, place or template in both. The templates of fresh "
    "were chosen by the accuracy of unpatched prompts alone.",
    f"Trained: {SEEDS} seeds of 15 epochs, loss the logit difference; the seed with the lowest "
    "training loss stands for the site. Closed form: one pass over the same pairs.",
    "Writers: the base run with heads 19.2 and 20.0 at their source outputs (last token).",
    "Unseen part: by W_out in an MLP, by the readers' queries in the stream; its share of the "
    "effect is that of reading it and writing the whole direction, and stands beside the share of "
    "the squared length of the mean difference that is unseen, too.",
    "Alone: the part of the direction along the mean difference, and the rest, each read and "
    "written alone; the rest of the effect is the cross term.",
    "Natural range: 0.1 to 99.9 % of the unpatched projections on the readers' direction.",
)


def is_abb(cached: CachedPairs) -> Tensor:
    return torch.tensor((cached.pairs.table["pattern"] == "ABB").to_numpy())


def mean_direction(train: CachedPairs) -> Tensor:
    return unit(difference_of_means(train.base, is_abb(train)))


def accuracy(cached: CachedPairs, basis: Tensor) -> dict:
    """What a patch along a direction does: the three measures, and the values behind them."""
    effect = cached.measure(patch_subspace(cached.base, cached.source, basis))
    return {
        "fldd": effect.fldd, "prefers": metrics.share(effect.logit_difference < 0),
        "accuracy": effect.interchange_accuracy, "patched": effect.logit_difference.tolist(),
    }  # fmt: skip


class Court:
    """The model, the readers, and pairs of both splits at every site the tests look at."""

    def __init__(self) -> None:
        self.model = load_model(device="cpu")
        self.readers = [tuple(head) for head in report.load_site("ioi")["readers"]]
        kinds = ("mlp_hidden", "mlp_out", "resid_post")
        sites = [Site(at, kind) for at in (20, 21, 22) for kind in kinds] + list(WRITERS)
        splits = (("train", TRAIN), ("fresh", FRESH))
        pairs = [make_pairs(self.model, n, split=split, seed=0) for split, n in splits]
        self.train, self.fresh = (
            dict(zip(sites, cache_sites(self.model, p, sites), strict=True)) for p in pairs
        )

    def effects(self, site: Site) -> dict:
        """Every direction of a site, and the whole component."""
        train, fresh = self.train[site], self.fresh[site]
        settings = dict(loss=answer_logit_difference, epochs=15, batch_size=50, progress=False)
        fits = [find_direction(train, seed=seed, **settings) for seed in range(SEEDS)]
        best = min(fits, key=lambda fit: fit.losses[-1]).direction
        found = {f"trained, seed {n}": fit.direction for n, fit in enumerate(fits)}
        found |= {"trained": best, "closed form": best_directions(train).top}
        found |= {"mean difference": mean_direction(train)}
        rows = {name: accuracy(fresh, basis) for name, basis in found.items()}
        whole = fresh.measure(fresh.source)
        ends = best_directions(fresh)
        kept = {name: basis.tolist() for name, basis in found.items() if "," not in name}
        return {
            "directions": kept,
            "rows": rows, "whole": whole.fldd, "clean": fresh.clean_logit_difference.tolist(),
            "spectrum": [ends.spectrum[0].item(), ends.spectrum[-1].item(), ends.whole],
        }  # fmt: skip

    def trial(self, site: Site, u: Tensor) -> dict:
        """All tests of one direction, by the same definitions for every suspect."""
        train, fresh = self.train[site], self.fresh[site]
        base, source = fresh.base, fresh.source
        patched = patch_subspace(base, source, u)
        whole = fresh.measure(patched).logit_difference

        def of_effect(activation: Tensor, **held: dict) -> metrics.Estimate:
            part = fresh.measure(activation, **held).logit_difference
            return metrics.percent_kept(fresh.clean_logit_difference, whole, part)

        above = [head for head in self.readers if head[0] > site.layer]
        mean = mean_direction(train)
        part = (u @ mean) * mean
        unseen = u - project(u, self.seen(site))
        moved = self.by_writers(site)
        return {
            "moved by the writers": self.moved(fresh, moved, u),
            "kept from the writers": of_effect(patch_subspace(base, moved, u)),
            "kept with readers held": of_effect(patched, clamp=clean_queries(fresh, above)),
            "the whole without it": fresh.measure(source - patched + base).fldd,
            "read by the unseen part": of_effect(read_write_patch(base, source, unseen, u)),
            "unseen of the mean difference": 100 * self.unseen_share(site, mean),
            "unseen of its own length": 100 * self.unseen_share(site, u),
            "mean part alone": of_effect(read_write_patch(base, source, part, part)),
            "rest alone": of_effect(read_write_patch(base, source, u - part, u - part)),
            "inside, by the stream": self.inside(site, "resid_post", patched),
            "inside, by the MLP": self.inside(site, "mlp_out", patched),
        }

    def seen(self, site: Site) -> Tensor:
        """A basis of what the next reader sees: W_out's, or the queries'."""
        if site.kind == "mlp_hidden":
            return row_space(self.model.blocks[site.layer].mlp.W_out.detach())
        return input_space(self.model, [h for h in self.readers if h[0] > site.layer])

    def unseen_share(self, site: Site, u: Tensor) -> float:
        return 1 - project(unit(u), self.seen(site)).square().sum().item()

    @torch.no_grad()
    def by_writers(self, site: Site) -> Tensor:
        """The site's activations in base runs whose two writers have their source outputs."""
        first, second = (self.fresh[writer] for writer in WRITERS)
        held = {WRITERS[1]: second.source}
        return first.record(first.source, [site.hook_name], clamp=held)[site.hook_name]

    def moved(self, fresh: CachedPairs, moved: Tensor, u: Tensor) -> metrics.Estimate:
        """How much of the change from base to source along `u` they make, in percent."""
        toward = torch.where(is_abb(fresh), -1.0, 1.0)
        changes = [((x - fresh.base) @ u) * toward for x in (moved, fresh.source)]
        return metrics.bootstrap(torch.stack(changes, -1), lambda m: 100 * m[..., 0] / m[..., 1])

    def inside(self, site: Site, kind: str, patched: Tensor) -> metrics.Estimate:
        """Patched prompts within the natural range of what the MLP adds, or of the stream."""
        stream = Site(site.layer, "resid_post")
        reader = unit(score_gradients(self.train[stream], self.readers_above(site)).mean(0))
        change = patched - self.fresh[site].base
        if site.kind == "mlp_hidden":
            change = change @ self.model.blocks[site.layer].mlp.W_out.detach()
        natural = self.fresh[Site(site.layer, kind)].base @ reader
        low, high = natural.quantile(torch.tensor([0.001, 0.999]))
        now = natural + change @ reader
        return metrics.share((now >= low) & (now <= high))

    def readers_above(self, site: Site) -> list[tuple]:
        return [head for head in self.readers if head[0] > site.layer]


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    evidence.put(list(RULES), "rules")
    if not any(evidence.missing(kind, name) for kind in ("effects", "trial") for name in SEARCHED):
        return
    court = Court()
    for name, site in SEARCHED.items():
        if evidence.missing("effects", name):
            evidence.put(court.effects(site), "effects", name)
    for name, site in SEARCHED.items():
        found = evidence["effects"][name]["directions"]
        for suspect in ("trained", "mean difference"):
            if evidence.missing("trial", name, suspect):
                u = unit(torch.tensor(found[suspect]))
                evidence.put(court.trial(site, u), "trial", name, suspect)


def show(evidence: Evidence) -> None:
    """Both tables, as Markdown."""
    for name, at in evidence["effects"].items():
        print(f"\n## {name}: whole {at['whole']}, spectrum {at['spectrum']}\n")
        rows = [[key, *(str(row[k]) for k in ("fldd", "prefers", "accuracy"))]
                for key, row in at["rows"].items()]  # fmt: skip
        print(markdown_table(["direction", "FLDD", "preferred name", "accuracy"], rows))
    suspects = {
        f"{site}, {which}": tests for site, of in evidence["trial"].items()
        for which, tests in of.items()
    }  # fmt: skip
    names = list(next(iter(suspects.values())))
    rows = [[test, *(str(of[test]) for of in suspects.values())] for test in names]
    print("\n" + markdown_table(["test", *suspects], rows))


if __name__ == "__main__":
    command("trial", __doc__, run, show)
