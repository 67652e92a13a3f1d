"""The best direction in closed form: an eigenvector; the whole component: a trace.

To first order, the patch along a unit vector u changes the logit difference of a pair by (g.u)(u.D)
with g its gradient at the base and D = source - base. As a share of the mean clean logit difference
LD, and with the sign of the FLDD, the pairs together lose

    s(u) = u' M u,        M = -(mean g D' + mean D g') / (2 LD)

so what one direction can do at most is the largest eigenvalue of M, its eigenvector is that
direction, and the whole component does the *sum* of all eigenvalues, -(mean g.D) / LD. A whole that
does nothing is a spectrum whose ends cancel. All this from one backward pass, without training.

This is the strongest direction, faithful or not. For a single pair it is unit(D) - unit(g), half
sensor and half actuator: the mix of section 3 of the paper (arXiv 2311.17030).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.directions.geometry import moves, patch_subspace, unit
from helpers.models import require
from helpers.patching import Acts, CachedPairs
from helpers.patching.cached import base_gradients
from helpers.patching.metrics import margin


@dataclass(frozen=True, eq=False)
class BestDirections:
    """The two ends of what the directions of a site can do to the answer.

    `spectrum` holds eigenvalues of M in falling order, shares of the mean clean logit difference
    (of `spectrum_ends` in nats): one for each dimension that the gradients and differences span,
    the others are zero.
    """

    top: Float[Tensor, "d *rank"]  # orthonormal, strongest first; its patch removes most
    bottom: Float[Tensor, "d *rank"]  # the patch that adds most to the logit difference
    spectrum: Float[Tensor, "values"]
    whole: float  # their sum: the linear effect of the whole component


def best_directions(cached: CachedPairs, rank: int = 1) -> BestDirections:
    """The directions whose patches do most, for and against the source's answer.

    With a higher rank the columns are the eigenvectors of the `rank` largest (smallest)
    eigenvalues: no other subspace of that dimension has a larger linear effect, which is their sum.
    Raises ValueError: a rank that the pairs do not span, pairs without a difference, an answer that
    does not depend on the site, or a model that does not do the task.
    """
    _check_rank(cached, rank)
    if not moves(cached.base, cached.source).any():
        raise ValueError("base and source are identical in every pair: there is nothing to patch")
    share = margin(cached.clean_logit_difference)
    return _best(cached, cached.base_gradient, share, rank)


def best_directions_at(cached: Sequence[CachedPairs], rank: int = 1) -> list[BestDirections | None]:
    """`best_directions` at each site of a `cache_sites` call, from one backward pass for all.

    None where no direction does anything: base and source are the same there, or nothing reads the
    site later. Other arguments and errors as for `best_directions`.
    """
    found = base_gradients(cached)
    for at in cached:
        _check_rank(at, rank)
    # One margin for all: that of the site from which the fewest layers are rerun.
    share = margin(max(cached, key=lambda at: at.site.layer).clean_logit_difference)
    return [
        _best(at, gradient, share, rank)
        if gradient.any() and moves(at.base, at.source).any()
        else None
        for at, gradient in zip(cached, found, strict=True)
    ]


def best_pair_directions(cached: CachedPairs) -> Acts:
    """For every pair the best unit direction of that pair alone, to first order.

    Half the way from base to source, which the patch senses, and half against the gradient of the
    logit difference, along which it acts: its linear effect in nats is `(|g| |D| - g.D) / 2`. A
    ValueError if one of them is zero in a pair.
    """
    _check_gradient(cached, cached.base_gradient.any(dim=-1).all())
    return unit(unit(cached.source - cached.base) - unit(cached.base_gradient))


def linear_effect(cached: CachedPairs, basis: Float[Tensor, "d *rank"]) -> float:
    """What the patch in a subspace does to first order, as a share of the margin: `s(u)`.

    A ValueError if the basis does not fit, or the model does not do the task.
    """
    change = patch_subspace(cached.base, cached.source, basis) - cached.base
    nats = (cached.base_gradient.cpu().double() * change.cpu().double()).sum(-1).mean().item()
    return -nats / margin(cached.clean_logit_difference)


def spectrum_ends(gradient: Acts, difference: Acts, rank: int = 1) -> BestDirections:
    """Ends of the spectrum of `-(mean g D' + mean D g') / 2`, in nats, with `rank` vectors at each.

    Computed in float64 within the span of the `2 pairs` vectors, outside of which it is zero: no
    `d x d` matrix unless there are more vectors than dimensions. The largest entry of each vector
    is positive. A ValueError unless gradients and differences are alike and span so many.
    """
    require.floats("the gradient", gradient, ndim=2)
    require.floats("the difference", difference, ndim=2)
    if gradient.shape != difference.shape or not len(gradient):
        shapes = f"{tuple(gradient.shape)} and {tuple(difference.shape)}"
        raise ValueError(f"a gradient and a difference for every pair are needed, not {shapes}")
    require.finite("a gradient or a difference", gradient, difference)
    g, D = (x.detach().cpu().double() for x in (gradient, difference))  # not every device has it
    span = torch.linalg.qr(torch.cat([g, D]).T).Q
    half = (g @ span).T @ (D @ span) / (-2 * len(g))
    values, vectors = torch.linalg.eigh(half + half.T)
    if require.whole("rank", rank, least=1) > len(values):
        raise ValueError(f"rank {rank} is more than the {len(values)} dimensions that are spanned")
    vectors = span @ torch.cat([vectors[:, -rank:].flip(1), vectors[:, :rank]], 1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    top, bottom = (vectors * largest.sign()).to(gradient).split(rank, 1)
    spectrum = values.flip(0).to(gradient)
    return BestDirections(top, bottom, spectrum, spectrum.sum().item())


def _best(cached: CachedPairs, g: Tensor, share: float, rank: int) -> BestDirections:
    """Both ends, with the spectrum as shares of the margin, which is `share` nats."""
    _check_gradient(cached, g.any())
    ends = spectrum_ends(g, cached.source - cached.base, rank)
    top, bottom = (x[:, 0] if rank == 1 else x for x in (ends.top, ends.bottom))
    spectrum = ends.spectrum / share
    return BestDirections(top, bottom, spectrum, spectrum.sum().item())


def _check_rank(cached: CachedPairs, rank: int) -> None:
    require.finite("an activation of the pairs", cached.base, cached.source)
    # Beyond that many, directions outside the span do better than those at the end of it.
    n, d = cached.base.shape
    most = d if d <= 2 * n else n
    if not 1 <= require.whole("rank", rank) <= most:
        raise ValueError(f"rank must lie between 1 and {most}, got {rank}: so few are {n} pairs")


def _check_gradient(cached: CachedPairs, depends: Tensor) -> None:
    if not depends:
        raise ValueError(f"the answer of a pair does not depend on {cached.site}: nobody reads it")
