"""The method of the paper's published code, written again: three full runs at every step.

Base and source prompts are run to cache the site, then the base is run once more with the patch.
Base and source are rotated by an orthogonal n x n matrix, the first coordinate is exchanged, and
the result is rotated back: the matrix is used three times, and PyTorch computes it from its
parameters each time. `step ..., vector` trains a vector in its place.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers.bridge import load_bridge
from peers.steps import LEARNING_RATE, interchange, step
from peers.transformer_lens_hooks import HOOKS
from torch import Tensor
from torch.nn.utils.parametrizations import orthogonal

Patch = Callable[[Tensor], Tensor]


class Peer:
    """Nothing is kept between calls."""

    def __init__(self, folder: str, problem: dict[str, Tensor]) -> None:
        self.model, self.problem = load_bridge(folder), problem
        self.layer = int(problem["layer"])

    def works(self) -> dict[str, Callable[[], Tensor]]:
        works = {}
        for site in ("mlp", "resid"):
            works[f"evaluate {site}"] = self.evaluation(site)
            works[f"step {site}, vector"] = self.training_a_vector(site)
            works[f"step {site}"] = self.training(site)
        return works

    def patched(self, site: str, patch_to: Callable[[Tensor], Patch]) -> Tensor:
        """Logits at the last token; base and source are run with their caches first.

        `patch_to` gives the patch of a base activation to these source activations.
        """
        p, hook = self.problem, HOOKS[site].format(self.layer)
        with torch.no_grad():
            self.model.run_with_cache(p["base"], names_filter=hook)
            _, cache = self.model.run_with_cache(p["source"], names_filter=hook)
        patch = patch_to(cache[hook][:, -1])

        def write(x: Tensor, hook: object) -> Tensor:
            return torch.cat([x[:, :-1], patch(x[:, -1])[:, None]], dim=1)

        return self.model.run_with_hooks(p["base"], fwd_hooks=[(hook, write)])[:, -1]

    def evaluation(self, site: str) -> Callable[[], Tensor]:
        direction = self.problem[f"direction {site}"]
        return torch.no_grad()(lambda: self.patched(site, lambda x: interchange(x, direction)))

    def training_a_vector(self, site: str) -> Callable[[], Tensor]:
        labels = self.problem["counterfactual"]
        start = self.problem[f"direction {site}"]

        def loss(vector: Tensor) -> Tensor:
            return F.cross_entropy(self.patched(site, lambda x: interchange(x, vector)), labels)

        return step(loss, start)

    def training(self, site: str) -> Callable[[], Tensor]:
        """Adam on the whole rotation; its first column is the direction."""
        direction = self.problem[f"direction {site}"]
        made: list[tuple] = []

        def make() -> tuple:
            rotation = orthogonal(torch.nn.Linear(len(direction), len(direction), bias=False))
            rotation.weight = _rotation_to(direction)
            return rotation, torch.optim.Adam(rotation.parameters(), lr=LEARNING_RATE)

        def run() -> Tensor:
            if not made:
                made.append(make())
            rotation, optimizer = made[0]
            optimizer.zero_grad()
            logits = self.patched(site, lambda source: _exchange_first(source, rotation))
            value = F.cross_entropy(logits, self.problem["counterfactual"])
            value.backward()
            optimizer.step()
            return value.detach()

        return run


def _exchange_first(source: Tensor, rotation: torch.nn.Linear) -> Patch:
    """Replaces the base's first rotated coordinate by the source's."""

    def patch(base: Tensor) -> Tensor:
        rotated, other = base @ rotation.weight, source @ rotation.weight
        return torch.cat([other[:, :1], rotated[:, 1:]], dim=1) @ rotation.weight.T

    return patch


def _rotation_to(direction: Tensor) -> Tensor:
    """An orthogonal matrix whose first column is the direction."""
    square = torch.randn(len(direction), len(direction), generator=torch.Generator().manual_seed(0))
    square[:, 0] = direction
    q, _ = torch.linalg.qr(square)
    return q * torch.sign(q[:, 0] @ direction)
