"""Path patching: does what one head says reach another, and does the answer depend on it?

The sender says what it says in the source prompt. All other heads say what they say in the base
prompt, so the change goes through the residual stream alone; MLPs on the way are recomputed. What
the receivers' queries, keys or values would then be is written into an ordinary run of the base
prompt (Wang et al. 2022, section 3.1; Goldowsky-Dill et al. 2023). The receiver may be the logits,
too: the direct effect. As attention is all that moves something between tokens, senders and the
inputs of receivers are at the same token: the one that the pairs say.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.circuits.ablation import Head, every_head
from helpers.directions.search import progress_bar
from helpers.models import Model
from helpers.patching import Acts, CachedPairs, Site, cache_sites
from helpers.patching.metrics import Logits, PerPair, logit_difference
from helpers.patching.sites import check_sites
from helpers.tasks import Pairs

SENDERS = ("head_output", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "resid_mid", "resid_post")
RECEIVERS = ("head_query", "head_key", "head_value")


class PathEffects(NamedTuple):
    """What each sender changes along the path, patched minus clean, and what it is clean."""

    logit_difference: Float[Tensor, "senders pairs"]  # in nats
    probability: Float[Tensor, "senders pairs"]  # of the answer
    clean_logit_difference: PerPair
    clean_probability: PerPair

    @property
    def relative(self) -> Float[Tensor, "senders"]:
        """The mean change of the answer's probability as a share of its clean mean."""
        return self.probability.mean(1) / self.clean_probability.mean()


def head_sites(heads: Collection[Head], position: int | None = None) -> list[Site]:
    """The outputs of these heads as places to patch."""
    return [Site(layer, "head_output", head=head, position=position) for layer, head in heads]


def specific_only(own: Acts, theirs: Acts) -> Acts:
    """The own mean, plus what is special about each prompt in a donor, see `tools.transplant`."""
    return own.mean(0) + (theirs - theirs.mean(0))


def with_entry(model: Model, pairs: Pairs, sites: Sequence[Site]) -> list[CachedPairs]:
    """The pairs cached at a place below all sites and, after that, at each of the sites."""
    entry = Site(min((site.layer for site in sites), default=0), "resid_pre")
    position = sites[0].position if sites else None
    return cache_sites(model, pairs, [replace(entry, position=position), *sites])


@torch.no_grad()
def path_effects(
    model: Model, pairs: Pairs, receivers: Sequence[Site] | None = None,
    senders: Sequence[Site] | None = None, *, progress: bool = True,
) -> PathEffects:  # fmt: skip
    """The effect of each sender by itself on the answer, over its paths to the receivers.

    Args:
        receivers: Inputs of heads, all written at once; None for the logits. A sender in a layer
            that is not below a receiver has no path to it.
        senders: Outputs of heads, of MLPs, or other sites; by default all heads, layer by layer.

    Raises ValueError: a site that cannot send or receive, the logits as receivers where the patched
    token is not the last one, or what `cache_sites` does not take.
    """
    senders = head_sites(every_head(model)) if senders is None else list(senders)
    _check(model, pairs, receivers, senders)
    at, n_layers = senders[0].position, model.cfg.n_layers
    frozen = [Site(layer, "attn_out", position=at) for layer in range(1, n_layers)]
    ends = [replace(site, position=at) for site in receivers or ()]
    entry = Site(min((site.layer for site in ends), default=n_layers - 1), "resid_pre", position=at)
    sites = list(dict.fromkeys([*senders, *frozen, *ends, entry]))
    cached = dict(zip(sites, cache_sites(model, pairs, sites), strict=True))
    clean = _outcome(pairs, cached[entry].patched_logits(cached[entry].base))
    effects = torch.zeros(len(senders), *clean.shape, device=clean.device)
    for number in progress_bar(len(senders), "path_effects", progress):
        sender = cached[senders[number]]
        held = {s: cached[s].base for s in frozen if s.layer > sender.site.layer}
        if receivers is None:
            logits = sender.patched_logits(sender.source, clamp=held)
        elif reached := [site for site in ends if site.layer > sender.site.layer]:
            seen = sender.record(sender.source, [s.hook_name for s in reached], clamp=held)
            new = {site: seen[site.hook_name][:, site.head] for site in reached}
            logits = cached[entry].patched_logits(cached[entry].base, clamp=new)
        else:
            continue
        effects[number] = _outcome(pairs, logits) - clean
    return PathEffects(*effects.unbind(1), *clean)


def _outcome(pairs: Pairs, logits: Logits) -> Float[Tensor, "2 pairs"]:
    """The logit difference and the answer's probability."""
    answer, counterfactual = (x.to(logits.device) for x in (pairs.answer, pairs.counterfactual))
    probability = logits.softmax(-1).gather(-1, answer[:, None])[:, 0]
    return torch.stack([logit_difference(logits, answer, counterfactual), probability])


def _check(
    model: Model, pairs: Pairs, receivers: Sequence[Site] | None, senders: Sequence[Site]
) -> None:
    check_sites(model, [*senders, *(receivers or ())])
    if not senders or (receivers is not None and not receivers):
        raise ValueError("give at least one sender and one receiver (or None for the logits)")
    ends = {"send": (senders, SENDERS), "receive": (receivers or (), RECEIVERS)}
    for what, (sites, kinds) in ends.items():
        if unfit := [site for site in sites if site.kind not in kinds]:
            raise ValueError(f"{unfit[0]} cannot {what}: choose one of {kinds}")
    lengths = torch.tensor([len(tokens) for tokens in pairs.base_tokens])
    given = senders[0].position
    places = pairs.position if given is None else torch.full_like(lengths, given) % lengths
    if receivers is None and (places != lengths - 1).any():
        raise ValueError("only the last token writes to the logits: patch there, or give receivers")
