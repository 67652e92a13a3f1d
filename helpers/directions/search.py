"""Distributed alignment search: find the direction whose patch gives the counterfactual answer."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import trange

from helpers.directions.closed_form import best_pair_directions
from helpers.directions.geometry import moves, orthonormal, patch_each, patch_subspace, unit
from helpers.models import require
from helpers.patching import Acts, CachedPairs

Rows: TypeAlias = Int[Tensor, "rows"]
Loss: TypeAlias = Callable[[CachedPairs, Acts, Rows], Float[Tensor, ""]]


def cross_entropy(cached: CachedPairs, activation: Acts, rows: Rows) -> Float[Tensor, ""]:
    """Cross-entropy of the counterfactual answer over the whole vocabulary: the paper's loss."""
    logits = cached.patched_logits(activation, rows)
    return F.cross_entropy(logits, cached.pairs.counterfactual.to(logits.device)[rows])


def answer_logit_difference(cached: CachedPairs, activation: Acts, rows: Rows) -> Float[Tensor, ""]:
    """Mean logit difference in nats: cheaper, for only two columns of the unembedding are used."""
    return cached.logit_difference(activation, rows).mean()


@dataclass(frozen=True)
class Fit:
    """A subspace found by training: an orthonormal basis, and the mean loss of each epoch."""

    basis: Float[Tensor, "d rank"]
    losses: Sequence[float]

    @property
    def direction(self) -> Float[Tensor, "d"]:
        """The unit vector of a fit of rank 1; a ValueError if the rank is higher."""
        if self.basis.shape[1] != 1:
            raise ValueError(f"a fit of rank {self.basis.shape[1]} has no single direction")
        return self.basis[:, 0]


@torch.enable_grad()
def find_direction(
    cached: CachedPairs,
    rank: int = 1,
    *,
    loss: Loss = cross_entropy,
    epochs: int = 30,
    batch_size: int = 50,
    lr: float = 0.03,
    patience: int | None = 5,
    seed: int = 0,
    init: Float[Tensor, "d rank"] | None = None,
    progress: bool = True,
) -> Fit:
    """The rank-`rank` subspace whose interchange minimises `loss` (section 2; Geiger et al. 2024).

    One direction is a free vector normalised at every step, a larger subspace the QR factor of a
    free matrix: the same hypothesis class as the published `n x n` rotation, of which only the
    first `rank` columns matter, at a thousandth of its cost. Adam, learning rate falling linearly
    to a tenth. Pairs whose base and source activations are identical are left out.

    Args:
        cached: Pairs at the site; any object with `base` and `source` will do if `loss` knows it.
        loss: Called with `(cached, activation, rows)`, returns the number to minimise.
        patience: Stop after this many epochs without an improvement of 0.1 %; None: never.
        init: Start from this basis instead of a random one. That of `best_directions` needs only a
            few steps, and small ones (`lr=0.003`): a large first step leaves it.

    Raises ValueError: an argument that does not fit, no pair with a difference, activations with
    NaN, or a loss that is no single number or became NaN.
    """
    base, source = cached.base, cached.source
    _check_arguments(base, rank, init, epochs=epochs, batch_size=batch_size, patience=patience)
    require.positive("lr", lr)
    usable = moves(base, source).nonzero()[:, 0]
    if len(usable) == 0:
        raise ValueError("base and source are identical in every pair: there is nothing to learn")
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(base.shape[1], rank, generator=generator) if init is None else init
    weight = orthonormal(start.reshape(-1, rank).to(base)).detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=lr)
    steps = epochs * -(-len(usable) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    losses: list[float] = []
    for _ in progress_bar(epochs, "find_direction", progress):
        total = 0.0
        for rows in usable[torch.randperm(len(usable), generator=generator)].split(batch_size):
            activation = patch_subspace(base[rows], source[rows], weight.squeeze(1))
            value = _one_finite(loss(cached, activation, rows))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item() * len(rows)
        losses.append(total / len(usable))
        if _stalled(losses, patience):
            break
    return Fit(orthonormal(weight.detach()), losses)


@torch.enable_grad()
def find_pair_directions(
    cached: CachedPairs, *, steps: int = 20, lr: float = 0.02, progress: bool = True
) -> Acts:
    """One unit direction for every pair, fitted to that pair alone (section 6.1), all in one batch.

    Each minimises the logit difference of its own pair: the loss is their sum, and Adam (with step
    size `lr`) works on every number by itself, so no pair feels another. The start is
    `best_pair_directions`. The best direction of all steps is kept for each pair.

    A direction that is fitted and judged on one pair says what a patch *can* do, not what the model
    does: fit on many pairs (`find_direction`) and test on others to generalise. Errors are those of
    `best_pair_directions`.
    """
    require.whole("steps", steps, least=0)
    require.positive("lr", lr)
    base, source = cached.base, cached.source
    directions = best_pair_directions(cached).requires_grad_()
    optimizer = torch.optim.Adam([directions], lr=lr)
    best = directions.detach().clone()
    lowest = torch.full_like(base[:, 0], torch.inf)
    for step in progress_bar(steps + 1, "find_pair_directions", progress):
        differences = cached.logit_difference(patch_each(base, source, directions))
        better = differences.detach() < lowest
        lowest = torch.where(better, differences.detach(), lowest)
        best[better] = directions.detach()[better]
        if step < steps:
            optimizer.zero_grad()
            differences.sum().backward()
            optimizer.step()
    return unit(best)


def progress_bar(n: int, name: str, progress: bool) -> Iterable[int]:
    """The numbers below `n`, with a progress bar unless TQDM_DISABLE or `progress` say no."""
    # In notebooks tqdm does not look at the variable; elsewhere only once, when it is imported.
    shown = progress and not os.environ.get("TQDM_DISABLE")
    return trange(n, desc=name, leave=False, disable=False) if shown else range(n)


def _check_arguments(base: Acts, rank: int, init: Tensor | None, **least_one: int | None) -> None:
    d = base.shape[1]
    if not 1 <= require.whole("rank", rank) <= d:
        raise ValueError(f"rank must lie between 1 and {d}, got {rank}")
    for name, number in least_one.items():
        if number is not None:
            require.whole(name, number, least=1)
    if init is not None:
        require.floats("init", init)
        if tuple(init.shape) not in {(d, rank), (d,) if rank == 1 else ()}:
            raise ValueError(f"init must have shape ({d}, {rank}), got {tuple(init.shape)}")


def _one_finite(value: Any) -> Float[Tensor, ""]:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError("the loss must be one number: take the mean over the rows")
    if not torch.isfinite(value):
        raise ValueError(f"the loss became {value.item()}: lower the learning rate")
    return value


def _stalled(losses: Sequence[float], patience: int | None) -> bool:
    if patience is None or len(losses) <= patience:
        return False
    best_before, best_since = min(losses[:-patience]), min(losses[-patience:])
    return best_since > best_before - 1e-3 * abs(best_before)
