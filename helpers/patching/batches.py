"""Measure a patch on any number of pairs in bounded memory, part by part."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import TransformerBridge

from helpers.patching.cached import CachedPairs
from helpers.patching.caching import cache_pairs
from helpers.patching.metrics import Effect
from helpers.patching.sites import Site, check_sites
from helpers.tasks.pairs import Pairs

Patch = Callable[[CachedPairs], Float[Tensor, "pairs d"]]


def in_batches(
    model: TransformerBridge, pairs: Pairs, site: Site, *, memory: float = 1e9
) -> Iterator[CachedPairs]:
    """Consecutive parts of the pairs, each cached only when its turn comes.

    Args:
        memory: Bytes that one part may need beside the model: its keys and values, and twice its
            logits over the vocabulary. The prompts that are being run need up to about 100 MB more
            in a model of 135M parameters. A single pair is tried whatever it needs.

    Raises:
        ValueError: `memory` is not positive, or as for `cache_pairs`.
    """
    if not isinstance(memory, (int, float)) or not memory > 0:
        raise ValueError(f"memory must be a positive number of bytes, got {memory!r}")
    check_sites(model, [site])
    size = max(1, int(min(memory / bytes_per_pair(model, pairs, site), len(pairs))))
    for start in range(0, len(pairs), size):
        yield cache_pairs(model, pairs[start : start + size], site)


def bytes_per_pair(model: TransformerBridge, pairs: Pairs, site: Site) -> int:
    """What a cached pair keeps, plus two rows of logits; the longest prompt counts for all."""
    cfg = model.cfg
    heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    longest = max(len(tokens) for tokens in pairs.base_tokens)
    keys_and_values = 2 * heads * cfg.d_head * longest * (cfg.n_layers - site.layer)
    return (keys_and_values + 2 * cfg.d_vocab) * model.W_U.element_size()


@torch.no_grad()
def measure_in_batches(
    model: TransformerBridge, pairs: Pairs, site: Site, patch: Patch, *, memory: float = 1e9
) -> Effect:
    """The effect that `cache_pairs(model, pairs, site).measure(patch(...))` finds, in less memory.

    Only the logits of the answers and whether the answer flipped are kept of each part.

    Args:
        patch: Gives the new activations of a part, for example
            `lambda cached: patch_subspace(cached.base, cached.source, direction)`.

    Other arguments and errors are those of `in_batches`.
    """
    clean, patched, flipped = [], [], []
    for part in in_batches(model, pairs, site, memory=memory):
        differences, flips = part.outcome(patch(part))
        clean.append(part.clean_logit_difference)
        patched.append(differences)
        flipped.append(flips)
    return Effect.of(torch.cat(clean), torch.cat(patched), torch.cat(flipped))
