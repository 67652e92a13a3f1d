"""This project's engine: prompts run once, then only what a patch can change."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
from peers.bridge import load_bridge
from peers.steps import DAS_STEPS, interchange, step
from torch import Tensor

from benchmarks.floor import alone
from helpers.directions.closed_form import best_directions, best_directions_at
from helpers.directions.geometry import patch_each
from helpers.directions.search import answer_logit_difference, cross_entropy, find_direction
from helpers.patching import CachedPairs, cache_pairs, cache_sites
from helpers.patching.cached import logit_differences
from helpers.patching.sites import Site
from helpers.tasks.pairs import Pairs

KINDS = {"mlp": "mlp_hidden", "resid": "resid_post"}
CLOSED_FORM_PAIRS = 100
FEW_STEPS, STEPS_RATE = 10, 0.003  # after the closed form


class Peer:
    """The cached pairs are kept between calls where `works` says `evaluate` or `step`."""

    def __init__(self, folder: str, problem: dict[str, Tensor]) -> None:
        self.model = load_bridge(folder)
        self.problem, self.layer = problem, int(problem["layer"])

    def works(self) -> dict[str, Callable[[], Tensor]]:
        works = {
            "evaluate 1000": self.evaluate_many,
            "sweep": self.sweep,
            "positions": self.positions,
            "facts": self.facts(),
            "closed form": self.closed_form(self.prepared("mlp")),
            "closed form, DAS": self.search(self.prepared("mlp")),
            "closed form, steps": self.closed_form_and_steps(self.prepared("mlp")),
            "closed forms": self.closed_forms,
        }
        for site in KINDS:
            for work in (f"evaluate {site}", f"step {site}"):
                works[f"{work}, products"] = self.products(work)
            cached = self.prepared(site)
            works[f"evaluate {site}"] = self.evaluation(site, cached)
            works[f"step {site}"] = self.training(site, cached, cross_entropy)
            works[f"step {site}, answers"] = self.training(site, cached, answer_logit_difference)
        return works

    def pairs(self, prefix: str = "", n: int | None = None) -> Pairs:
        """The first pairs of the problem that have this prefix."""
        p = {name: self.problem[prefix + name][:n] for name in ("base", "source")}
        labels = {name: self.problem[prefix + name][:n] for name in ("answer", "counterfactual")}
        lengths = {
            name: self.problem.get(f"{prefix}{name} length", torch.full((len(x),), x.shape[1]))
            for name, x in p.items()
        }
        prompts = {
            f"{name}_tokens": tuple(row[:k] for row, k in zip(x, lengths[name], strict=True))
            for name, x in p.items()
        }
        return Pairs(
            **prompts,
            **labels,
            position=self.problem.get(f"{prefix}position", lengths["base"] - 1),
            source_position=self.problem.get(f"{prefix}source position", lengths["source"] - 1),
            table=pd.DataFrame(index=range(len(labels["answer"]))),
        )

    def products(self, work: str) -> Callable[[], Tensor]:
        """The floor of that work, as `floor` computes it; prepared at the first call."""
        made: list[Callable[[], Tensor]] = []

        def run() -> Tensor:
            if not made:
                made.append(alone(work, len(self.problem["base"]), self.layer))
            return made[0]()

        return run

    def prepared(self, site: str) -> Callable[[], CachedPairs]:
        """The cached pairs; the prompts are run at the first call."""
        found: list[CachedPairs] = []

        def cached() -> CachedPairs:
            if not found:
                found.append(cache_pairs(self.model, self.pairs(), Site(self.layer, KINDS[site])))
            return found[0]

        return cached

    def evaluation(self, site: str, cached: Callable[[], CachedPairs]) -> Callable[[], Tensor]:
        direction = self.problem[f"direction {site}"]

        @torch.no_grad()
        def run() -> Tensor:
            at = cached()
            return at.patched_logits(interchange(at.source, direction)(at.base))

        return run

    def training(
        self, site: str, cached: Callable[[], CachedPairs], loss: Callable
    ) -> Callable[[], Tensor]:
        def value(vector: Tensor) -> Tensor:
            at = cached()
            return loss(at, interchange(at.source, vector)(at.base), torch.arange(len(at)))

        return step(value, self.problem[f"direction {site}"])

    def closed_form(self, cached: Callable[[], CachedPairs]) -> Callable[[], Tensor]:
        """The ends of the MLP's spectrum, three eigenvalues each; its best is `direction`."""

        def run() -> Tensor:
            best = best_directions(replace(cached()))  # no gradient is known before
            run.direction = best.top
            return torch.cat([best.spectrum[:3], best.spectrum[-3:]])

        return run

    def closed_form_and_steps(self, cached: Callable[[], CachedPairs]) -> Callable[[], Tensor]:
        """The closed form, then a few small steps (larger ones first lose what it has found)."""

        def run() -> Tensor:
            start = best_directions(replace(cached())).top
            fit = find_direction(
                cached(), loss=answer_logit_difference, init=start, lr=STEPS_RATE,
                epochs=FEW_STEPS, patience=None, batch_size=len(cached()), progress=False,
            )  # fmt: skip
            run.direction = fit.direction
            return torch.tensor(fit.losses)

        return run

    def closed_forms(self) -> Tensor:
        """The ends of the spectrum of 100 pairs at every MLP and residual stream, from tokens."""
        pairs = self.pairs("many ", n=CLOSED_FORM_PAIRS)
        sites = [Site(at, kind) for kind in KINDS.values() for at in range(self.model.cfg.n_layers)]
        found = best_directions_at(cache_sites(self.model, pairs, sites))
        return torch.stack([best.spectrum[[0, -1]] for best in found])

    def search(self, cached: Callable[[], CachedPairs]) -> Callable[[], Tensor]:
        """What the closed form spares: a training; returns its losses."""

        def run() -> Tensor:
            fit = find_direction(
                cached(), loss=answer_logit_difference, epochs=DAS_STEPS, patience=None,
                batch_size=len(cached()), progress=False,
            )  # fmt: skip
            return torch.tensor(fit.losses)

        return run

    @torch.no_grad()
    def evaluate_many(self) -> Tensor:
        at = cache_pairs(self.model, self.pairs("many "), Site(self.layer, "mlp_hidden"))
        direction = self.problem["direction mlp"]
        return at.logit_difference(interchange(at.source, direction)(at.base))

    @torch.no_grad()
    def sweep(self) -> Tensor:
        pairs = self.pairs(n=int(self.problem["sweep pairs"]))
        kinds = ("resid_post", "attn_out", "mlp_out")
        sites = [Site(at, kind) for at in range(self.model.cfg.n_layers) for kind in kinds]
        table = logit_differences(cache_sites(self.model, pairs, sites)).mean(-1)
        return table.view(-1, len(kinds))

    @torch.no_grad()
    def positions(self) -> Tensor:
        pairs = self.pairs(n=int(self.problem["position pairs"]))
        table = []
        for position in range(len(pairs.base_tokens[0])):
            sites = [
                Site(at, "resid_post", position=position) for at in range(self.model.cfg.n_layers)
            ]
            table.append(logit_differences(cache_sites(self.model, pairs, sites)).mean(-1))
        return torch.stack(table).T

    def facts(self) -> Callable[[], Tensor]:
        site, found = Site(int(self.problem["facts layer"]), "mlp_hidden"), []

        def run() -> Tensor:
            if not found:
                found.append(cache_pairs(self.model, self.pairs("facts "), site))
            at = found[0]
            directions = self.problem["facts directions"].clone().requires_grad_()
            at.logit_difference(patch_each(at.base, at.source, directions)).sum().backward()
            return directions.grad

        return run
