"""Tests of a direction from the literature, as `tools.audit.benchmark.score` takes them."""

from collections.abc import Callable, Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from helpers.audit.diagnostics import mean_change, natural_changes
from helpers.audit.planted import PlantedPairs
from helpers.directions import patch_subspace
from helpers.patching import Site


def earth_movers_distance(cached: PlantedPairs, direction: Tensor) -> float:
    """Mean distance of patched states to sources, best matched, over that of bases to sources."""
    patched = patch_subspace(cached.base, cached.source, direction)
    half = torch.arange(len(cached)) % 2 == 0
    return _matched(patched[half], cached.source) / _matched(cached.base[half], cached.source)


def off_manifold(cached: PlantedPairs, direction: Tensor) -> float:
    """Algorithm 1 of Grant et al.: what the part of the patch off natural changes does to source
    states, as a share of the effect.
    """
    moved = patch_subspace(cached.base, cached.source, direction) - cached.base
    axes = natural_changes(cached)
    residual = moved - moved @ axes @ axes.T
    with torch.no_grad():
        change = cached.logit_difference(cached.source + residual)
        change = change - cached.logit_difference(cached.source)
        effect = cached.clean_logit_difference - cached.logit_difference(cached.base + moved)
    return (change.abs().mean() / effect.mean().abs()).item()


def hpc_l(cached: PlantedPairs, direction: Tensor) -> float:
    """HPC-L of Liu and Chen: the margin lost if later units stay within their class's range."""
    moved = patch_subspace(cached.base, cached.source, direction)
    first = (cached.source - cached.base) @ mean_change(cached)[0] > 0
    held = torch.empty(len(cached))
    for side in (first, ~first):
        rows = side.nonzero()[:, 0]
        clamp = _class_range(cached, moved, side)
        if len(rows):
            with torch.no_grad():
                held[rows] = cached.logit_difference(moved[rows], rows, clamp=clamp)
    with torch.no_grad():
        lost = held - cached.logit_difference(moved)
    return (lost.mean() / cached.clean_logit_difference.median()).item()


LITERATURE: Mapping[str, Callable[[PlantedPairs, Tensor], float]] = {
    "earth mover's distance": earth_movers_distance,
    "off-manifold algorithm": off_manifold,
    "HPC-L": hpc_l,
}


def _matched(some: Tensor, others: Tensor) -> float:
    table = torch.cdist(some, others)
    rows, columns = linear_sum_assignment(table.numpy())
    return table[rows, columns].mean().item()


def _class_range(cached: PlantedPairs, moved: Tensor, side: Tensor) -> dict[Site, Tensor]:
    """Later units of some patched pairs, clipped to what their sources' class does."""
    natural = [cached.later_units(state) for state in (cached.base, cached.source)]
    clamp = {}
    for site, values in cached.later_units(moved).items():
        seen = torch.cat([natural[1][site][side], natural[0][site][~side]])
        ends = torch.quantile(seen, torch.tensor([0.001, 0.999]), dim=0)
        clamp[site] = values[side].clamp(*ends)
    return clamp
