"""nnsight's TransformersModel: one trace saves the sources' activations, further ones patch.

The works are those of plain hooks, with traces for the hooked forward passes; so the sources'
activations are kept across calls where plain hooks keep them.
"""

from collections.abc import Callable, Sequence

import torch
from nnsight import TransformersModel
from peers import plain_hooks
from torch import Tensor

WORKS = ("evaluate mlp", "evaluate resid", "step mlp", "step resid", "evaluate 1000", "sweep")
ORDER = ("attn_out", "mlp", "mlp_out", "resid")


class Peer(plain_hooks.Peer):
    def __init__(self, folder: str, problem: dict[str, Tensor]) -> None:
        self.model = TransformersModel(folder, task="text-generation", dispatch=True)
        self.model.requires_grad_(False)
        self.layers = range(self.model.config.num_hidden_layers)
        self.problem, self.layer = problem, int(problem["layer"])

    def works(self) -> dict[str, Callable[[], Tensor]]:
        works = super().works()
        return {name: works[name] for name in WORKS}

    def activation(self, kind: str, layer: int) -> Tensor:
        """What the running trace has at a site."""
        block = self.model.model.layers[layer]
        if kind == "mlp":
            return block.mlp.down_proj.input
        if kind == "attn_out":
            return block.self_attn.output[0]
        return {"resid": block, "mlp_out": block.mlp}[kind].output

    @torch.no_grad()
    def activations(
        self, tokens: Tensor, sites: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], Tensor]:
        """The sites' activations at all positions of these prompts, from one run."""
        found = {}
        with self.model.trace(tokens, logits_to_keep=1):
            # A trace reads sites in the order in which the model comes to them.
            for kind, layer in sorted(sites, key=lambda site: (site[1], ORDER.index(site[0]))):
                found[kind, layer] = self.activation(kind, layer).save()
        return found

    def patched(
        self,
        site: tuple[str, int],
        tokens: Tensor,
        new: Callable[[Tensor], Tensor],
        position: int = -1,
    ) -> Tensor:
        """Logits at the last token with the site's activation replaced at one position."""
        with self.model.trace(tokens, logits_to_keep=1):
            act = self.activation(*site)
            act[:, position] = new(act[:, position])
            logits = self.model.output.logits[:, -1].save()
        return logits
