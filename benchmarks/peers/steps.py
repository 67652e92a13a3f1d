"""What every way of patching shares: the interchange, one optimiser step, the losses."""

from collections.abc import Callable

import torch
from torch import Tensor

LEARNING_RATE = 0.03
DAS_STEPS = 30  # of a training that is timed as a whole, all pairs in each
BATCH = 64  # pairs per forward pass when there are many
KINDS = ("resid", "attn_out", "mlp_out")  # the columns of a sweep over whole components


def interchange(source: Tensor, direction: Tensor) -> Callable[[Tensor], Tensor]:
    """Replaces the base's component along a direction by the source's."""
    unit = direction / direction.norm()
    return lambda base: base + ((source - base) @ unit)[:, None] * unit


def interchange_each(base: Tensor, source: Tensor, directions: Tensor) -> Tensor:
    """The interchange of each row along a direction of its own."""
    units = directions / directions.norm(dim=-1, keepdim=True)
    return base + ((source - base) * units).sum(-1, keepdim=True) * units


def step(loss: Callable[[Tensor], Tensor], start: Tensor) -> Callable[[], Tensor]:
    """One step of Adam on a free vector at each call; returns the loss before it.

    The vector is the function's attribute `direction`.
    """
    vector = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=LEARNING_RATE)

    def run() -> Tensor:
        optimizer.zero_grad()
        value = loss(vector)
        value.backward()
        optimizer.step()
        return value.detach()

    run.direction = vector
    return run


def difference(logits: Tensor, answer: Tensor, counterfactual: Tensor) -> Tensor:
    """Logit of the answer minus that of the counterfactual answer."""
    rows = torch.arange(len(logits))
    return logits[rows, answer] - logits[rows, counterfactual]
