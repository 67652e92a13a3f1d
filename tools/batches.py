"""More pairs than fit into memory: `measure_in_batches(model, pairs, site, patch)`."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch

from helpers.models import Model
from helpers.patching import Acts, CachedPairs, Effect, Site, cache_pairs, check_sites
from helpers.patching.sites import key_value_heads
from helpers.tasks import Pairs

Patch: TypeAlias = Callable[[CachedPairs], Acts]


def in_batches(
    model: Model, pairs: Pairs, site: Site, *, memory: float = 1e9
) -> Iterator[CachedPairs]:
    """Consecutive parts of the pairs, each cached only when its turn comes.

    `memory` is what a part may need beside the model, in bytes: its keys and values, and twice its
    logits over the vocabulary. The prompts that are being run need up to about 100 MB more in a
    model of 135M parameters. A single pair is tried whatever it needs. Errors are those of
    `cache_pairs`, and a ValueError if `memory` is not positive.
    """
    if not isinstance(memory, (int, float)) or not memory > 0:
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}")
    check_sites(model, [site])
    size = max(1, int(min(memory / bytes_per_pair(model, pairs, site), len(pairs))))
    for start in range(0, len(pairs), size):
        yield cache_pairs(model, pairs[start : start + size], site)


def bytes_per_pair(model: Model, pairs: Pairs, site: Site) -> int:
    """What a cached pair keeps, plus two rows of logits; the longest prompt counts for all."""
    cfg = model.cfg
    longest = max(map(len, pairs.base_tokens))
    layers = cfg.n_layers - site.layer
    keys_and_values = 2 * key_value_heads(model) * cfg.d_head * longest * layers
    return (keys_and_values + 2 * cfg.d_vocab) * model.W_U.element_size()


@torch.no_grad()
def measure_in_batches(
    model: Model, pairs: Pairs, site: Site, patch: Patch, *, memory: float = 1e9
) -> Effect:
    """The effect that `cache_pairs(model, pairs, site).measure(patch(...))` finds, in less memory.

    `patch` gives the new activations of a part, for example
    `lambda cached: patch_subspace(cached.base, cached.source, direction)`; the rest is as for
    `in_batches`.
    """
    parts = in_batches(model, pairs, site, memory=memory)
    found = [(part.clean_logit_difference, *part.outcome(patch(part))) for part in parts]
    return Effect.of(*map(torch.cat, zip(*found, strict=True)))
