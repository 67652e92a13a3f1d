"""Run the prompts of pairs once: `cached = cache_pairs(model, pairs, Site(21, "mlp_hidden"))`."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.models import Model, require
from helpers.patching.cached import CachedPairs
from helpers.patching.sites import Site, check_sites, check_vocabulary
from helpers.patching.suffix import Suffix, at_site, only_columns, recording
from helpers.tasks.pairs import Pairs, Tokens

# A prompt is known by its tokens and the position of interest: pairs that share one, run it once.
Prompt: TypeAlias = tuple[tuple[int, ...], int]


def cache_pairs(model: Model, pairs: Pairs, site: Site, *, batch_size: int = 64) -> CachedPairs:
    """Run the prompts of `pairs` once, `batch_size` at a time, and get ready to patch one site.

    Raises ValueError: no such layer, head, activation or position in the model or in a prompt,
    tokens that the model does not have, or a prompt that is too long for it.
    """
    return cache_sites(model, pairs, [site], batch_size=batch_size)[0]


def cache_sites(
    model: Model, pairs: Pairs, sites: Sequence[Site], *, batch_size: int = 64
) -> list[CachedPairs]:
    """As `cache_pairs` for several sites at one position, or a ValueError: still one run."""
    require.whole("batch_size", batch_size, least=1)
    if not sites:
        raise ValueError("no sites given")
    check_sites(model, sites)
    if len({site.position for site in sites}) > 1:
        raise ValueError("sites at different positions: cache one position at a time")
    prompts = (*pairs.base_tokens, *pairs.source_tokens)
    tokens = (*prompts, pairs.answer, pairs.counterfactual)
    check_vocabulary(model, torch.cat([part.cpu() for part in tokens]))
    if (longest := max(map(len, prompts))) > (most := model.cfg.n_ctx):
        raise ValueError(f"a prompt has {longest} tokens, but this model reads {most} at most")
    bases = _at_position(pairs.base_tokens, pairs.position, sites[0])
    sources = _at_position(pairs.source_tokens, pairs.source_position, sites[0])
    shapes = _by_shape(bases)
    groups = _groups(model, shapes, sites, batch_size)
    places = {p: (n, row) for n, shape in enumerate(shapes) for row, p in enumerate(shape)}
    known = {p: {s: groups[n].activations[s][row] for s in sites} for p, (n, row) in places.items()}
    new = [prompt for prompt in sources if prompt not in known]
    known |= activations(model, new, sites, batch_size)
    of = [{s: torch.stack([known[p][s] for p in side]) for s in sites} for side in (bases, sources)]
    numbers = torch.tensor([places[prompt] for prompt in bases], device=groups[0].tokens.device)
    shared = (tuple(groups), *numbers.T)
    return [CachedPairs(model, pairs, s, of[0][s], of[1][s], *shared) for s in sites]


def _at_position(tokens: Tokens, positions: Int[Tensor, "pairs"], site: Site) -> list[Prompt]:
    prompts = []
    for row, position in zip(tokens, positions.tolist(), strict=True):
        position = position if site.position is None else site.position
        n = len(row)
        if not -n <= position < n:
            raise ValueError(f"position {position} is out of range in a prompt of {n} tokens")
        prompts.append((tuple(row.tolist()), position % n))
    return prompts


def _by_shape(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """The different prompts, in groups of one length and position."""
    groups: dict[tuple[int, int], dict[Prompt, None]] = {}
    for tokens, position in prompts:
        groups.setdefault((len(tokens), position), {})[tokens, position] = None
    return [list(group) for group in groups.values()]


def _tokens(model: Model, prompts: Sequence[Prompt]) -> Int[Tensor, "prompts pos"]:
    return torch.tensor([tokens for tokens, _ in prompts], device=model.cfg.device)


def _groups(
    model: Model, shapes: list[list[Prompt]], sites: Sequence[Site], batch_size: int
) -> list[Suffix]:
    """The prompts of each shape, run and ready to be rerun."""

    def run(from_start: bool) -> list[Suffix]:
        options = {"batch_size": batch_size, "from_start": from_start}
        return [Suffix(model, _tokens(model, s), s[0][1], sites, **options) for s in shapes]

    with suppress(Exception):  # whatever it stumbles over; if whole prompts do, too, that is said
        groups = run(from_start=False)
        if all(group.is_exact() for group in groups):
            return groups
    instead = "whole prompts are recomputed, which is exact but slower"
    warnings.warn(f"this architecture cannot be resumed in mid-prompt: {instead}", stacklevel=4)
    groups = run(from_start=True)
    if not all(group.is_exact() for group in groups):
        reason = "this architecture computes them in a way the engine does not know"
        written = "writing the activations of these sites back does not reproduce the model"
        raise ValueError(f"{written}: {reason}")
    return groups


def activations(
    model: Model, prompts: Sequence[Prompt], sites: Sequence[Site], batch_size: int
) -> dict[Prompt, dict[Site, Float[Tensor, "d"]]]:
    """At the sites, of prompts that are read but not patched: no later token is run."""
    found = {}
    for shape in _by_shape(prompts):
        position = shape[0][1]
        tokens = _tokens(model, shape)[:, : position + 1]
        runs = [run_to(model, chunk, sites) for chunk in tokens.split(batch_size)]
        acts = {s: torch.cat([at_site(r[s.hook_name], s, position) for r in runs]) for s in sites}
        found |= {p: {s: acts[s][row] for s in sites} for row, p in enumerate(shape)}
    return found


@torch.no_grad()
def run_to(
    model: Model, tokens: Int[Tensor, "prompts pos"], sites: Sequence[Site]
) -> dict[str, Float[Tensor, "prompts pos ..."]]:
    """What the hooks of the sites see, by their names; layers above all of them are not run."""
    top = max(site.layer for site in sites) + 1
    with recording(model, {site.hook_name for site in sites}) as record, only_columns(model, [0]):
        model(tokens, stop_at_layer=top if top < model.cfg.n_layers else None)
    return record
