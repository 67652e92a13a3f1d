"""Which heads carry what a pair of prompts differs in: a mask finds them.

Desiderata-based component masking (DCM; Davies et al. 2023; Prakash et al. 2024, section 4.2). Each
component keeps a share m of what comes by and gets 1 - m of the source's activation. A desideratum
is pairs whose counterfactual is what the model should say when the source's value of one variable,
and nothing else, gets through. All m start at 1 and follow the gradient of

    - mean logit of the counterfactual + penalty * sum(1 - m)

within [0, 1]. A component below one half is chosen. The answer need not rise to the top for that:
judge the chosen ones on other pairs, and beside as many random ones.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.circuits.ablation import Head, every_head
from helpers.circuits.paths import head_sites, with_entry
from helpers.directions.search import progress_bar
from helpers.models import Model, require
from helpers.patching import CachedPairs
from helpers.patching.writes import Mix
from helpers.tasks import Pairs

Desiderata: TypeAlias = Pairs | Sequence[Pairs]
Rows: TypeAlias = Int[Tensor, "rows"]
Keep: TypeAlias = Float[Tensor, "components"]  # of each, the share of what comes by
Masked: TypeAlias = Callable[[Keep, Rows], Float[Tensor, "rows"]]  # the target's logits
Component: TypeAlias = Head | int  # a head, or the number of a direction


@dataclass(frozen=True)
class Mask:
    """The components that were chosen, the mask before rounding, and the loss at each step."""

    chosen: list[Component]
    keep: Keep
    losses: list[float]


def find_heads(
    model: Model, desiderata: Desiderata, heads: Collection[Head] | None = None, **options: float
) -> Mask:
    """The heads that carry what the desiderata ask for, at the token that the pairs say.

    Heads (all of them by default) feel what lower ones pass on: the mask is of what comes by, not
    of the clean run. Judge them on other pairs, by `transplant` of `tools.transplant` with
    `from_source=True`. `options` are those of `learn_mask`. Errors: those, and of `cache_sites`.
    """
    heads = every_head(model) if heads is None else list(heads)
    parts = [desiderata] if isinstance(desiderata, Pairs) else list(desiderata)
    found = [with_entry(model, pairs, head_sites(heads)) for pairs in parts]
    return learn_mask(heads, [partial(_masked, cached) for cached in found], parts, **options)


@torch.enable_grad()
def learn_mask(
    components: Sequence[Component],
    masked: Sequence[Masked],
    desiderata: Sequence[Pairs],
    *,
    penalty: float = 0.01,
    steps: int = 40,
    batch_size: int = 16,
    lr: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> Mask:
    """The mask of these components, by Adam with step size `lr`.

    Each step takes `batch_size` pairs of every desideratum. `penalty` is what a chosen component
    must bring, in nats of the target's logit. A ValueError: a number that makes no sense, or
    nothing to choose from.
    """
    require.positive("penalty", penalty, zero=True)
    require.positive("lr", lr)
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        require.whole(name, number, least=1)
    if not components or not desiderata:
        raise ValueError("give at least one component and one desideratum")
    keep = torch.ones(len(components), requires_grad=True)
    optimizer = torch.optim.Adam([keep], lr=lr)
    generator, losses = torch.Generator().manual_seed(seed), []
    batches = [_batches(len(pairs), batch_size, generator) for pairs in desiderata]
    for _ in progress_bar(steps, "learn_mask", progress):
        logits = [f(keep, next(rows)).mean() for f, rows in zip(masked, batches, strict=True)]
        loss = penalty * (1 - keep).sum() - torch.stack(logits).mean().to(keep.device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            keep.clamp_(0, 1)
        losses.append(loss.item())
    chosen = [components[place] for place in (keep < 0.5).nonzero()[:, 0].tolist()]
    return Mask(chosen, keep.detach(), losses)


def _masked(cached: Sequence[CachedPairs], keep: Keep, rows: Rows) -> Float[Tensor, "rows"]:
    """The target's logits when each head gives way to its source's output by 1 - m."""
    entry, *heads = cached
    shares = keep.to(entry.base)
    mixes = {h.site: Mix(h.source[rows], m) for h, m in zip(heads, shares, strict=True)}
    targets = entry.pairs.counterfactual[rows, None]
    return entry.patched_logits(entry.base[rows], rows, tokens=targets, clamp=mixes)[:, 0]


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Rows]:
    """Numbers below `n` without end, so many at a time, each once before any comes again."""
    while True:
        yield from torch.randperm(n, generator=generator).split(size)
