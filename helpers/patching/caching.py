"""Run the prompts of pairs once, and get ready to patch them: the entrance to the engine.

cached = cache_pairs(model, pairs, Site(21, "mlp_hidden"))
cached.measure(cached.source)  # the whole component patched
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import TransformerBridge

from helpers.models import require
from helpers.patching.cached import CachedPairs, check_vocabulary
from helpers.patching.sites import Site, check_sites
from helpers.patching.suffix import Suffix, at_site, only_columns, recording
from helpers.tasks.pairs import Pairs

# A prompt is known by its tokens and the position of interest: pairs that share one, run it once.
Prompt = tuple[tuple[int, ...], int]
Index = dict[Prompt, tuple[int, int]]


def cache_pairs(
    model: TransformerBridge, pairs: Pairs, site: Site, *, batch_size: int = 64
) -> CachedPairs:
    """Run the prompts of `pairs` once and get ready to patch them at one site.

    Args:
        batch_size: Prompts per forward pass while caching; less needs less memory.

    Raises:
        ValueError: no such layer, head, activation or position in the model or in a prompt, tokens
            that the model does not have, or a prompt that is too long for it.
    """
    return cache_sites(model, pairs, [site], batch_size=batch_size)[0]


def cache_sites(
    model: TransformerBridge, pairs: Pairs, sites: Sequence[Site], *, batch_size: int = 64
) -> list[CachedPairs]:
    """As `cache_pairs` for several sites at one position: the prompts are still run once.

    Raises:
        ValueError: no sites, sites at different positions, one that the model or a prompt lacks, or
            pairs that do not fit the model.
    """
    require.whole("batch_size", batch_size, least=1)
    _check_sites(model, sites)
    _check_prompts(model, pairs)
    bases = _at_position(pairs.base_tokens, pairs.position, sites[0])
    sources = _at_position(pairs.source_tokens, pairs.source_position, sites[0])
    groups, index = _group_prompts(model, bases, sites, batch_size)
    device = groups[0].tokens.device
    group_of, row_of = torch.tensor([index[prompt] for prompt in bases], device=device).T
    source_acts = _source_activations(model, sources, sites, groups, index, batch_size)
    base_acts = {s: _gather([g.activations[s] for g in groups], group_of, row_of) for s in sites}
    shared = tuple(groups), group_of, row_of
    return [CachedPairs(model, pairs, s, base_acts[s], source_acts[s], *shared) for s in sites]


def _check_sites(model: TransformerBridge, sites: Sequence[Site]) -> None:
    if not sites:
        raise ValueError("no sites given")
    check_sites(model, sites)
    if len({site.position for site in sites}) > 1:
        raise ValueError("sites at different positions: cache one position at a time")


def _check_prompts(model: TransformerBridge, pairs: Pairs) -> None:
    prompts = (*pairs.base_tokens, *pairs.source_tokens)
    tokens = (*prompts, pairs.answer, pairs.counterfactual)
    check_vocabulary(model, torch.cat([part.cpu() for part in tokens]))
    longest, most = max(map(len, prompts)), model.cfg.n_ctx
    if longest > most:
        raise ValueError(f"a prompt has {longest} tokens, but this model reads {most} at most")


def _at_position(
    tokens: Sequence[Int[Tensor, "pos"]], positions: Int[Tensor, "pairs"], site: Site
) -> list[Prompt]:
    prompts = []
    for row, position in zip(tokens, positions.tolist(), strict=True):
        position = position if site.position is None else site.position
        resolved = position + len(row) if position < 0 else position
        if not 0 <= resolved < len(row):
            raise ValueError(
                f"position {position} is out of range in a prompt of {len(row)} tokens"
            )
        prompts.append((tuple(row.tolist()), resolved))
    return prompts


def _by_shape(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """The different prompts, in groups of one length and position."""
    groups: dict[tuple[int, int], dict[Prompt, None]] = {}
    for tokens, position in prompts:
        groups.setdefault((len(tokens), position), {})[tokens, position] = None
    return [list(group) for group in groups.values()]


def _tokens(model: TransformerBridge, prompts: Sequence[Prompt]) -> Int[Tensor, "prompts pos"]:
    return torch.tensor([tokens for tokens, _ in prompts], device=model.cfg.device)


def _group_prompts(
    model: TransformerBridge, prompts: Sequence[Prompt], sites: Sequence[Site], batch_size: int
) -> tuple[list[Suffix], Index]:
    """The base prompts, run and ready to be rerun, and where to find each of them."""
    shapes = _by_shape(prompts)

    def run(group: list[Prompt], from_start: bool) -> Suffix:
        tokens, position = _tokens(model, group), group[0][1]
        return Suffix(model, tokens, position, sites, batch_size=batch_size, from_start=from_start)

    groups = [run(group, from_start=False) for group in shapes]
    from_start = not all(group.is_exact() for group in groups)
    if from_start:
        warnings.warn(
            "this architecture cannot be resumed in mid-prompt: whole prompts are recomputed, "
            "which is exact but slower",
            stacklevel=4,
        )
        groups = [run(group, from_start=True) for group in shapes]
        if not all(group.is_exact() for group in groups):
            raise ValueError(
                "writing the activations of these sites back does not reproduce the model: this "
                "architecture computes them in a way the engine does not know"
            )
    index = {
        prompt: (number, row)
        for number, group in enumerate(shapes)
        for row, prompt in enumerate(group)
    }
    return groups, index


def _source_activations(
    model: TransformerBridge,
    sources: Sequence[Prompt],
    sites: Sequence[Site],
    groups: Sequence[Suffix],
    index: Index,
    batch_size: int,
) -> dict[Site, Float[Tensor, "pairs d"]]:
    """Activations of the source prompts; those that are base prompts too have been run already."""
    known = {
        prompt: {site: groups[number].activations[site][row] for site in sites}
        for prompt, (number, row) in index.items()
    }
    for group in _by_shape([prompt for prompt in sources if prompt not in known]):
        for start in range(0, len(group), batch_size):
            chunk = group[start : start + batch_size]
            acts = _run_to_sites(model, chunk, sites)
            known |= {
                prompt: {site: acts[site][row] for site in sites}
                for row, prompt in enumerate(chunk)
            }
    return {site: torch.stack([known[prompt][site] for prompt in sources]) for site in sites}


@torch.no_grad()
def _run_to_sites(
    model: TransformerBridge, prompts: Sequence[Prompt], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "prompts d"]]:
    """Activations at the sites, without the tokens after the position or the layers above."""
    position = prompts[0][1]
    tokens = _tokens(model, prompts)[:, : position + 1]
    top = max(site.layer for site in sites) + 1
    with (
        recording(model, {site.hook_name for site in sites}) as record,
        only_columns(model, torch.zeros(1, dtype=torch.long)),
    ):
        model(tokens, stop_at_layer=top if top < model.cfg.n_layers else None)
    return {site: at_site(record[site.hook_name], site, position) for site in sites}


def _gather(groups: Sequence[Tensor], group_of: Tensor, row_of: Tensor) -> Tensor:
    """Rows of several tensors: row `row_of[i]` of tensor `group_of[i]`."""
    offsets = torch.tensor([0, *map(len, groups)], device=row_of.device).cumsum(0)
    return torch.cat(list(groups))[offsets[group_of] + row_of]
