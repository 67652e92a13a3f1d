"""Muon in float32: steps whose singular values are all alike.

`torch.optim.Muon` orthogonalises in bfloat16, which a CPU without such instructions does at a fifth
of the speed; the rest is the same (Jordan et al. 2024).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic iteration
ITERATIONS = 4


class Muon(torch.optim.Optimizer):
    """Gradient descent with momentum on matrices, each step orthogonalised."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:  # of a layer that is blind
                    continue
                mean = self.state[param].setdefault("mean", torch.zeros_like(param))
                mean.lerp_(param.grad, 1 - group["momentum"])
                ahead = param.grad.lerp(mean, group["momentum"])
                param.mul_(1 - group["lr"] * group["weight_decay"])
                longest = max(1, param.shape[0] / param.shape[1]) ** 0.5
                param.add_(orthogonal(ahead), alpha=-group["lr"] * longest)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are 1, by Newton-Schulz iterations."""
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(ITERATIONS):
        square = wide @ wide.T
        wide = A * wide + (B * square + C * square @ square) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T
