"""The heads that read a site: where their attention wants the site to go, and how to hold it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.directions.geometry import row_space, unit
from helpers.models import Model, norm_gain, require
from helpers.patching import CachedPairs, Site, check_sites

Heads = Sequence[Sequence[int]]  # (layer, head), ...


def score_gradients(cached: CachedPairs, readers: Heads) -> Float[Tensor, "readers d"]:
    """For each reader, the direction in which the site turns its attention (section 4.2).

    The gradient, with respect to the site's activation, of the reader's attention score (before the
    softmax) for the first of the two names minus the score for the second: by place, not by role,
    so that ABB and BAB prompts agree. Averaged over the base prompts and normalised. Raises
    ValueError: no readers, one that is not above the site, or no name positions.
    """
    _check(cached, readers)
    if missing := {"io_position", "subject_position"} - set(cached.pairs.table):
        raise ValueError(f"the table of the pairs has no {sorted(missing)}: use IOI pairs")
    places = cached.pairs.table[["io_position", "subject_position"]]
    for name, column in places.items():
        for place, tokens in zip(column, cached.pairs.base_tokens, strict=True):
            if require.whole(name, place, least=0) >= len(tokens):
                raise ValueError(f"{name} {place} is outside a prompt of {len(tokens)} tokens")
    first, second = (torch.tensor(p.to_numpy()) for p in (places.min(axis=1), places.max(axis=1)))
    activation = cached.base.clone().requires_grad_()
    names = {head: f"blocks.{head[0]}.attn.hook_attn_scores" for head in map(tuple, readers)}
    scores = cached.record(activation, list(names.values()))
    gradients = []
    for (_, head), name in names.items():
        preference = attention_preference(scores[name], first, second)[:, head].sum()
        (gradient,) = torch.autograd.grad(preference, activation, retain_graph=True)
        gradients.append(gradient.mean(0))
    return unit(torch.stack(gradients))


def clean_queries(cached: CachedPairs, readers: Heads) -> dict[Site, Float[Tensor, "pairs d_head"]]:
    """The readers' queries in the unpatched base run: as `clamp`, they cut the readers off."""
    _check(cached, readers)
    names = {layer: f"blocks.{layer}.attn.hook_q" for layer, _ in readers}
    with torch.no_grad():
        run = cached.record(cached.base, list(names.values()))
    return {Site(layer, "head_query", head=h): run[names[layer]][:, h] for layer, h in readers}


def attention_preference(
    pattern: Float[Tensor, "pairs heads keys"], io: Int[Tensor, "pairs"], subject: Tensor
) -> Float[Tensor, "pairs heads"]:
    """Attention to the IO minus attention to the subject, which stand at these places."""
    rows = torch.arange(len(pattern))
    return pattern[rows, :, io] - pattern[rows, :, subject]


def input_space(model: Model, heads: Heads, matrix: str = "W_Q") -> Tensor:
    """What heads read of the stream by a matrix: an orthonormal basis `[d_model rank]`."""
    weights = getattr(model, matrix)
    gains = [norm_gain(model, model.blocks[layer].ln1)[:, None] for layer, _ in heads]
    columns = [gain * weights[tuple(head)] for gain, head in zip(gains, heads, strict=True)]
    return row_space(torch.cat(columns, dim=1).detach())


def _check(cached: CachedPairs, readers: Heads) -> None:
    if readers is None or not len(readers):
        raise ValueError("there are no readers: run lesson 02 for this model first")
    for reader in readers:
        try:
            layer, head = reader
        except (TypeError, ValueError) as error:
            raise ValueError(f"a reader is a pair (layer, head), not {reader!r}") from error
        check_sites(cached.model, [Site(layer, "head_query", head=head)])
        if layer <= cached.site.layer:
            raise ValueError(f"head {layer}.{head} does not lie above {cached.site}")
