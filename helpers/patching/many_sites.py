"""Patch one site after another, such as every layer, without a forward pass for each.

Sites of the same pairs share forward passes: each has some of the rows to itself. Few pairs at many
layers gain most, since a processor multiplies large matrices faster than small ones.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.patching.cached import CachedPairs
from helpers.patching.metrics import Effect, logit_difference
from helpers.patching.suffix import ALL

TOKENS_PER_FORWARD = 192  # more are no faster, and need more memory

Pass = tuple[list[int], Int[Tensor, "rows"], Float[Tensor, "sites rows d_vocab"]]


@torch.no_grad()
def logit_differences(
    cached: Sequence[CachedPairs], activations: Sequence[Float[Tensor, "pairs d"]] | None = None
) -> Float[Tensor, "sites pairs"]:
    """`logit_difference` of each site of a `cache_sites` call, in nats; not differentiable.

    Args:
        cached: The same pairs at several sites.
        activations: What to write at each; by default the source's, the whole component.

    Raises:
        ValueError: no sites, other pairs at some or cached by other calls, not one activation for
            every site, or one of the wrong shape or with NaN.
    """
    pairs = _check(cached, activations).pairs
    answers = torch.stack([pairs.answer, pairs.counterfactual]).to(cached[0].base.device)
    columns, places = answers.unique(return_inverse=True)
    found = cached[0].base.new_empty(len(cached), len(pairs))
    for sites, rows, logits in _forward_passes(cached, activations, columns):
        for site, of_site in zip(sites, logits, strict=True):
            found[site, rows] = logit_difference(of_site, *places[:, rows])
    return found


@torch.no_grad()
def effects(
    cached: Sequence[CachedPairs], activations: Sequence[Float[Tensor, "pairs d"]] | None = None
) -> list[Effect]:
    """`measure` at each site of a `cache_sites` call; arguments and errors as above."""
    at = _check(cached, activations)
    answers = torch.stack([at.pairs.answer, at.pairs.counterfactual]).to(at.base.device)
    patched = at.base.new_empty(len(cached), len(at))
    flipped = torch.empty(len(cached), len(at), dtype=torch.bool, device=at.base.device)
    for sites, rows, logits in _forward_passes(cached, activations, None):
        for site, of_site in zip(sites, logits, strict=True):
            patched[site, rows] = logit_difference(of_site, *answers[:, rows])
            flipped[site, rows] = of_site.argmax(-1) == answers[1, rows]
    clean = at.clean_logit_difference
    return [Effect.of(clean, *both) for both in zip(patched, flipped, strict=True)]


def base_gradients(cached: Sequence[CachedPairs]) -> list[Float[Tensor, "pairs d"]]:
    """`base_gradient` at each site of a `cache_sites` call, all from one backward pass.

    Nothing is added to each site, and the gradient with respect to that nothing is taken: the base
    run is the same for all sites. Errors as above.
    """
    first = _check(cached, None)
    answers = torch.stack([first.pairs.answer, first.pairs.counterfactual]).to(first.base.device)
    found = [torch.empty_like(at.base) for at in cached]
    for group, part in first.parts(torch.arange(len(first), device=first.base.device)):
        for rows in part.split(max(1, TOKENS_PER_FORWARD // group.tokens_rerun)):
            zeros = [at.base.new_zeros(len(rows), at.base.shape[1]) for at in cached]
            writes = [
                (at.site, zero.requires_grad_(), ALL)
                for at, zero in zip(cached, zeros, strict=True)
            ]
            columns, places = answers[:, rows].unique(return_inverse=True)
            with torch.enable_grad():
                logits = group.rerun(first.row_of[rows], writes, columns=columns, add=True)
                total = logit_difference(logits, *places).sum()
            for at, gradient in zip(found, torch.autograd.grad(total, zeros), strict=True):
                at[rows] = gradient
    return found


def _check(cached: Sequence[CachedPairs], activations: Sequence[Tensor] | None) -> CachedPairs:
    """One of the sites, all of which can share forward passes."""
    if isinstance(cached, CachedPairs):
        raise ValueError("give a list of cached sites, not one alone")
    if not cached:
        raise ValueError("no sites given")
    first = cached[0]
    if any(at.groups is not first.groups or at.pairs is not first.pairs for at in cached):
        raise ValueError("cache the same pairs at all sites, by one call of cache_sites")
    if activations is not None and len(activations) != len(cached):
        raise ValueError(f"{len(activations)} activations for {len(cached)} sites")
    return first


def _forward_passes(
    cached: Sequence[CachedPairs],
    activations: Sequence[Tensor] | None,
    columns: Int[Tensor, "columns"] | None,
) -> Iterator[Pass]:
    """The sites and pairs of each forward pass, and its logits."""
    new = [at.source for at in cached] if activations is None else activations
    every_pair = torch.arange(len(cached[0]), device=cached[0].base.device)
    for at, activation in zip(cached, new, strict=True):
        at.check(activation, every_pair)
    # Neighbours in depth together: a pass starts at the lowest of its sites.
    order = sorted(range(len(cached)), key=lambda index: cached[index].site.layer)
    for group, rows in cached[0].parts(every_pair):
        together = max(1, TOKENS_PER_FORWARD // (len(rows) * group.tokens_rerun))
        for first in range(0, len(order), together):
            sites, n = order[first : first + together], len(rows)
            writes = [
                (cached[site].site, new[site][rows], slice(place * n, place * n + n))
                for place, site in enumerate(sites)
            ]
            prompts = cached[0].row_of[rows].repeat(len(sites))
            logits = group.rerun(prompts, writes, columns=columns)
            yield sites, rows, logits.view(len(sites), n, -1)
