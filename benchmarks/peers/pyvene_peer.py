"""pyvene's IntervenableModel in its usual way: source and patched prompts are run at every call.

A direction is a LowRankRotatedSpaceIntervention of rank 1, which its training parametrises as an
orthogonal matrix; a full component is a VanillaIntervention. The MLP's hidden activation has to be
named by its module: pyvene's `mlp_activation` is what comes before the product with `up_proj`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers.steps import BATCH, KINDS, LEARNING_RATE, difference
from pyvene import IntervenableModel, LowRankRotatedSpaceIntervention, VanillaIntervention
from torch import Tensor
from transformers import AutoModelForCausalLM

COMPONENTS = {
    "resid": "block_output",
    "attn_out": "attention_output",
    "mlp_out": "mlp_output",
    "mlp": "model.layers[{layer}].mlp.down_proj.input",
}


def along(direction: Tensor) -> LowRankRotatedSpaceIntervention:
    """Interchange along a direction."""
    intervention = LowRankRotatedSpaceIntervention(embed_dim=len(direction), low_rank_dimension=1)
    intervention.rotate_layer.weight = (direction / direction.norm())[:, None]
    return intervention


class Training:
    """One step of Adam on pyvene's parameters at each call; returns the loss before it."""

    def __init__(
        self, loss: Callable[[], Tensor], intervention: LowRankRotatedSpaceIntervention
    ) -> None:
        self.loss, self.intervention = loss, intervention
        self.optimizer = torch.optim.Adam(intervention.parameters(), lr=LEARNING_RATE)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad()
        value = self.loss()
        value.backward()
        self.optimizer.step()
        return value.detach()

    @property
    def direction(self) -> Tensor:
        return self.intervention.rotate_layer.weight[:, 0]


class Peer:
    def __init__(self, folder: str, problem: dict[str, Tensor]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.layers = range(self.model.config.num_hidden_layers)
        self.problem, self.layer = problem, int(problem["layer"])

    def works(self) -> dict[str, Callable[[], Tensor]]:
        works = {"evaluate 1000": self.evaluate_many, "sweep": self.sweep}
        for site in ("mlp", "resid"):
            works[f"evaluate {site}"] = self.evaluation(site)
            works[f"step {site}"] = self.training(site)
        return works

    def patching(
        self, kind: str, layer: int, intervention: torch.nn.Module
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of base and source prompts: logits at the last token, where it patches."""
        component = COMPONENTS[kind].format(layer=layer)
        site = {"layer": layer, "component": component, "intervention": intervention}
        model = IntervenableModel(site, self.model)

        def logits(base: Tensor, source: Tensor) -> Tensor:
            last = {"sources->base": base.shape[1] - 1}
            _, patched = model({"input_ids": base}, [{"input_ids": source}], last)
            return patched.logits[:, -1]

        return logits

    def evaluation(self, site: str) -> Callable[[], Tensor]:
        p = self.problem
        logits = self.patching(site, self.layer, along(p[f"direction {site}"]))
        return torch.no_grad()(lambda: logits(p["base"], p["source"]))

    def training(self, site: str) -> Training:
        p, intervention = self.problem, along(self.problem[f"direction {site}"])
        logits = self.patching(site, self.layer, intervention)
        return Training(
            lambda: F.cross_entropy(logits(p["base"], p["source"]), p["counterfactual"]),
            intervention,
        )

    @torch.no_grad()
    def evaluate_many(self) -> Tensor:
        """Logit differences of many pairs under a direction's interchange."""
        p = self.problem
        logits = self.patching("mlp", self.layer, along(p["direction mlp"]))
        prompts = zip(p["many base"].split(BATCH), p["many source"].split(BATCH), strict=True)
        found = torch.cat([logits(base, source) for base, source in prompts])
        return difference(found, p["many answer"], p["many counterfactual"])

    @torch.no_grad()
    def sweep(self) -> Tensor:
        """Mean logit differences at the last token, `[layer kind]`."""
        p, n = self.problem, int(self.problem["sweep pairs"])
        base, source, *labels = (
            p[name][:n] for name in ("base", "source", "answer", "counterfactual")
        )
        table = []
        for layer in self.layers:
            for kind in KINDS:
                logits = self.patching(kind, layer, VanillaIntervention())(base, source)
                table.append(difference(logits, *labels).mean())
        return torch.stack(table).view(-1, len(KINDS))
