"""How few directions of queries, keys and values do what all do, and which heads write.

A rank keeps that many directions of what comes by, and the mean in all others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.attribution import coefficients
from helpers.models import Model
from helpers.patching import CachedPairs, Site, cache_sites, metrics
from helpers.patching.sites import key_value_heads
from helpers.patching.writes import Along
from helpers.tasks import Pairs, lists

BASES = 5  # random bases beside each rank


def directions(x: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """A complete orthonormal basis, by falling variance around the mean."""
    return torch.linalg.svd(x - x.mean(0), full_matrices=True)[2].T


def random_basis(d: int, seed: int) -> Float[Tensor, "d d"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator)).Q


def margin(pairs: Pairs, logits: Tensor) -> list[float]:
    return list(metrics.mean(lists.margin(pairs, logits)))


def picked(pairs: Pairs, logits: Tensor) -> Tensor:
    """Whether the right choice is above the others, for each pair."""
    ids = torch.stack(list(pairs.choices.values()), 1)
    best = logits.gather(1, ids).argmax(1, keepdim=True)
    return ids.gather(1, best)[:, 0] == pairs.answer


def accuracy(pairs: Pairs, logits: Tensor) -> float:
    """How often the right choice is above the others."""
    return picked(pairs, logits).float().mean().item()


def by_rank(
    cached: Sequence[CachedPairs], means: Sequence[Tensor], bases: Sequence[Tensor], rank: int
) -> Tensor:
    """Logits when every query keeps `rank` directions, and has its mean in all others."""
    entry, *queries = cached
    clamp = {
        at.site: Along(mean.expand_as(at.base), basis[:, rank:])
        for at, mean, basis in zip(queries, means, bases, strict=True)
    }
    return entry.patched_logits(entry.base, clamp=clamp)


def sweep(
    cached: Sequence[CachedPairs], means: Sequence[Tensor], bases: Sequence[Tensor],
    ranks: Sequence[int],
) -> dict[str, dict]:  # fmt: skip
    """Margin and accuracy by rank, for the learnt directions and for random ones."""
    entry, found = cached[0], {}
    clean = entry.patched_logits(entry.base)
    found["clean"] = {"margin": margin(entry.pairs, clean), "right": accuracy(entry.pairs, clean)}
    d = means[0].shape[-1]
    for rank in ranks:
        logits = by_rank(cached, means, bases, rank)
        row = {"margin": margin(entry.pairs, logits), "right": accuracy(entry.pairs, logits)}
        if 0 < rank < d:
            row["random"] = []
            for seed in range(BASES):
                others = [random_basis(d, 1000 * seed + n) for n in range(len(bases))]
                row["random"].append(margin(entry.pairs, by_rank(cached, means, others, rank))[0])
        found[str(rank)] = row
    return found


@torch.no_grad()
def whole_passes(model: Model, pairs: Pairs, hooks: Sequence[tuple[str, Callable]]) -> Tensor:
    """The last token's logits of whole passes with these hooks."""
    tokens = torch.stack(pairs.base_tokens)
    with model.hooks(fwd_hooks=list(hooks)):
        parts = [model(part, logits_to_keep=1)[:, -1] for part in tokens.split(32)]
    return torch.cat(parts)


@torch.no_grad()
def at_tokens(
    model: Model, pairs: Pairs, hook: str, layers: Sequence[int], columns: Sequence[str]
) -> dict[int, Float[Tensor, "seen heads d"]]:
    """What a hook sees at the tokens that these columns of the table name, by layer."""
    names = {layer: f"blocks.{layer}.attn.{hook}" for layer in layers}
    tokens = torch.stack(pairs.base_tokens)
    seen = model.run_with_cache(tokens, names_filter=list(names.values()))[1]
    places = places_of(pairs, columns)
    return {layer: seen[name][:, places].flatten(0, 1) for layer, name in names.items()}


def places_of(pairs: Pairs, columns: Sequence[str]) -> list[int]:
    """The positions in these columns, the same in all prompts, or a ValueError."""
    if (pairs.table[list(columns)].nunique() > 1).any():
        raise ValueError("the prompts differ in where these tokens are: take one wording")
    return [int(pairs.table[column].iloc[0]) for column in columns]


def sweep_at_tokens(
    model: Model, learn: Pairs, judge: Pairs, hook: str, layers: Sequence[int],
    columns: Sequence[str], ranks: Sequence[int],
) -> dict[str, dict]:  # fmt: skip
    """As `sweep`, for keys or values of all heads of some layers at some tokens."""
    name, seen = hook, at_tokens(model, learn, hook, layers, columns)
    heads = range(key_value_heads(model))
    bases = {at: torch.stack([directions(x[:, h]) for h in heads]) for at, x in seen.items()}
    means, places = {at: x.mean(0) for at, x in seen.items()}, places_of(judge, columns)

    def logits(basis: Mapping[int, Tensor], rank: int) -> Tensor:
        def compress(value: Tensor, hook: object, at: int) -> Tensor:
            new, own = value.clone(), value[:, places] - means[at]
            part = torch.einsum("bphd,hdk->bphk", own, basis[at][..., :rank])
            new[:, places] = means[at] + torch.einsum("bphk,hdk->bphd", part, basis[at][..., :rank])
            return new

        return whole_passes(
            model, judge, [(f"blocks.{at}.attn.{name}", partial(compress, at=at)) for at in seen]
        )

    d, found = next(iter(means.values())).shape[-1], {}
    for rank in ranks:
        kept_at = logits(bases, rank)
        found[str(rank)] = {"margin": margin(judge, kept_at), "right": accuracy(judge, kept_at)}
        if 0 < rank < d:
            found[str(rank)]["random"] = []
            for seed in range(BASES):
                mixed = {
                    at: torch.stack([random_basis(d, 9000 * seed + 10 * at + h) for h in heads])
                    for at in seen
                }
                found[str(rank)]["random"].append(margin(judge, logits(mixed, rank))[0])
    return found


def shares_of_heads(model: Model, pairs: Pairs) -> dict[tuple[int, int], float]:
    """Direct attribution of every head at the last token to the margin, in nats."""
    at_end = [
        coefficients(
            model,
            replace(pairs, counterfactual=other),
            [Site(model.cfg.n_layers - 1, "resid_post")],
            method="norm",
        )[0]
        for other in others(pairs)
    ]
    reads = sum(at_end) / len(at_end)  # with the last norm's scale as it is the margin is linear
    sites = [
        Site(layer, "head_output", head=head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    return {
        (at.site.layer, at.site.head): written(model, at).mul(reads).sum(1).mean().item()
        for at in cache_sites(model, pairs, sites)
    }


def written(model: Model, at: CachedPairs) -> Tensor:
    return at.base @ model.blocks[at.site.layer].attn.W_O[at.site.head]


def others(pairs: Pairs) -> list[Tensor]:
    """The choices that are wrong, one tensor `[pairs]` for each."""
    ids = torch.stack(list(pairs.choices.values()), 1)
    return list(ids[ids != pairs.answer[:, None]].view(len(pairs), -1).T)


@torch.no_grad()
def attention(model: Model, pairs: Pairs, layer: int, head: int) -> dict[str, float]:
    """How much of its attention goes to the missing name, and to the two that come again."""
    name = f"blocks.{layer}.attn.hook_pattern"
    tokens = torch.stack(pairs.base_tokens)
    pattern = model.run_with_cache(tokens, names_filter=[name])[1][name][:, head, -1]
    right = (pattern * (tokens == pairs.answer[:, None])).sum(1).mean().item()
    again = sum(
        (pattern * (tokens == other[:, None])).sum(1).mean().item() for other in others(pairs)
    )
    return {"missing": right, "repeated": again}
