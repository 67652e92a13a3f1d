"""TransformerLens 4: its interchange tools for directions, its hooks for whole components."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peers.bridge import load_bridge
from peers.steps import BATCH, DAS_STEPS, KINDS, LEARNING_RATE, difference, interchange_each, step
from torch import Tensor
from transformer_lens.tools.analysis import SubspaceInterchange, fit_das
from transformer_lens.tools.analysis.interchange import (
    collect_activations,
    intervened_logits,
    run_with_intervention,
)

Logits = Callable[[Tensor], Tensor]  # of prompts, at their last token
HOOKS = {
    "mlp": "blocks.{}.mlp.hook_post",
    "resid": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
}


class Peer:
    """Sources are run once; every patch is a forward pass over whole prompts."""

    def __init__(self, folder: str, problem: dict[str, Tensor]) -> None:
        self.model = load_bridge(folder)
        self.problem, self.layer = problem, int(problem["layer"])

    def works(self) -> dict[str, Callable[[], Tensor]]:
        works = {
            "evaluate 1000": self.evaluate_many,
            "sweep": lambda: self.sweep(self.logits),
            "sweep, all logits": lambda: self.sweep(self.last_of_all_logits),
            "positions": self.positions,
            "facts": self.facts(),
        }
        for site in ("mlp", "resid"):
            sources = self.sources(site)
            for kind, logits in (("", self.logits), (", all logits", self.last_of_all_logits)):
                works[f"evaluate {site}{kind}"] = self.evaluation(site, sources, logits)
                works[f"step {site}{kind}"] = self.training(site, sources, logits)
            works[f"fit_das {site}"] = self.fit_das(site, 1)
        works["fit_das mlp, trained"] = self.fit_das("mlp", DAS_STEPS)
        return works

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits at the last token, which alone is unembedded."""
        return self.model(tokens, logits_to_keep=1)[:, -1]

    def last_of_all_logits(self, tokens: Tensor) -> Tensor:
        """The same from the model's usual call, which unembeds every token."""
        return self.model(tokens)[:, -1]

    def sources(self, site: str) -> Callable[[], Tensor]:
        """The sources' activations; run at the first call."""
        found: list[Tensor] = []

        def activations() -> Tensor:
            if not found:
                found.append(self.activations(site, self.layer, self.problem["source"]))
            return found[0]

        return activations

    def activations(self, site: str, layer: int, tokens: Tensor, position: int = -1) -> Tensor:
        hook = HOOKS[site].format(layer)
        at = torch.full((len(tokens),), position % tokens.shape[1])
        return collect_activations(
            self.model, hook, tokens, self.logits, positions=at, batch_size=BATCH
        )

    def evaluation(
        self, site: str, sources: Callable[[], Tensor], logits: Logits
    ) -> Callable[[], Tensor]:
        p, hook = self.problem, HOOKS[site].format(self.layer)
        patch = SubspaceInterchange(_basis(p[f"direction {site}"]))
        at = _last(p["base"])
        return lambda: intervened_logits(
            self.model, hook, patch, p["base"], sources(), logits, positions=at
        )

    def training(
        self, site: str, sources: Callable[[], Tensor], logits: Logits
    ) -> Callable[[], Tensor]:
        p, hook, at = self.problem, HOOKS[site].format(self.layer), _last(self.problem["base"])

        def loss(vector: Tensor) -> Tensor:
            patch = SubspaceInterchange(_basis(vector))
            patched = run_with_intervention(
                self.model, hook, patch, p["base"], sources(), logits, positions=at
            )
            return F.cross_entropy(patched, p["counterfactual"])

        return step(loss, p[f"direction {site}"])

    def fit_das(self, site: str, steps: int) -> Callable[[], Tensor]:
        """The library's own training, which starts anew and runs the sources at every call."""
        p, hook, at = self.problem, HOOKS[site].format(self.layer), _last(self.problem["base"])

        def run() -> Tensor:
            fit = fit_das(
                self.model, hook, p["base"], p["source"], p["counterfactual"], self.logits,
                rank=1, epochs=steps, base_positions=at, source_positions=at, lr=LEARNING_RATE,
            )  # fmt: skip
            run.direction = fit.basis[:, 0]
            return torch.tensor(fit.losses)

        return run

    @torch.no_grad()
    def evaluate_many(self) -> Tensor:
        p, hook = self.problem, HOOKS["mlp"].format(self.layer)
        acts = self.activations("mlp", self.layer, p["many source"])
        patch, at = SubspaceInterchange(_basis(p["direction mlp"])), _last(p["many base"])
        logits = intervened_logits(
            self.model, hook, patch, p["many base"], acts, self.logits, positions=at,
            batch_size=BATCH,
        )  # fmt: skip
        return difference(logits, p["many answer"], p["many counterfactual"])

    @torch.no_grad()
    def sweep(self, logits: Logits) -> Tensor:
        """Mean logit differences at the last token, `[layer kind]`."""
        n = int(self.problem["sweep pairs"])
        hooks = [HOOKS[kind].format(at) for at in range(self.model.cfg.n_layers) for kind in KINDS]
        return self.patched_each(n, hooks, [-1], logits).view(-1, len(KINDS))

    @torch.no_grad()
    def positions(self) -> Tensor:
        """Mean logit differences, residual stream, `[layer position]`."""
        n, length = int(self.problem["position pairs"]), self.problem["base"].shape[1]
        hooks = [HOOKS["resid"].format(at) for at in range(self.model.cfg.n_layers)]
        return self.patched_each(n, hooks, range(length), self.logits).view(-1, length)

    def patched_each(
        self, n: int, hooks: Sequence[str], positions: Sequence[int], logits: Logits
    ) -> Tensor:
        """Mean logit difference of the first pairs for every hook and position patched."""
        p = self.problem
        labels = p["answer"][:n], p["counterfactual"][:n]
        _, cache = self.model.run_with_cache(p["source"][:n], names_filter=lambda x: x in hooks)
        table = []
        for hook in hooks:
            for at in positions:

                def write(x: Tensor, hook: object, new=cache[hook][:, at], at=at) -> Tensor:  # noqa: B008
                    x[:, at] = new
                    return x

                with self.model.hooks(fwd_hooks=[(hook, write)]):
                    table.append(difference(logits(p["base"][:n]), *labels).mean())
        return torch.stack(table)

    def facts(self) -> Callable[[], Tensor]:
        """The gradient for one direction per pair, all pairs in one batch, padded at the end."""
        p, hook = self.problem, HOOKS["mlp"].format(int(self.problem["facts layer"]))
        rows, at = torch.arange(len(p["facts base"])), p["facts position"]
        last, cached = p["facts base length"] - 1, []

        def run() -> Tensor:
            if not cached:
                cached.append(
                    collect_activations(
                        self.model, hook, p["facts source"], self.logits,
                        positions=p["facts source position"],
                    )
                )  # fmt: skip
            vectors = p["facts directions"].clone().requires_grad_()

            def write(x: Tensor, hook: object) -> Tensor:
                changed = x.clone()
                changed[rows, at] = interchange_each(x[rows, at], cached[0], vectors)
                return changed

            logits = self.model.run_with_hooks(p["facts base"], fwd_hooks=[(hook, write)])
            logits = logits[rows, last]
            difference(logits, p["facts answer"], p["facts counterfactual"]).sum().backward()
            return vectors.grad

        return run


def _basis(direction: Tensor) -> Tensor:
    return (direction / direction.norm())[:, None]


def _last(tokens: Tensor) -> Tensor:
    return torch.full((len(tokens),), tokens.shape[1] - 1)
