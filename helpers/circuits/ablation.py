"""Mean ablation: heads outside a circuit say what they say on average, at every token.

A head keeps its own output, or gets the mean of its outputs over base and source prompts at that
token. Prompts that differ in one thing only have then nothing left to tell them apart but what the
circuit says. MLPs and norms go on working. `tools.circuits` judges circuits by what is left.
"""

from collections.abc import Collection
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.models import Model, require
from helpers.patching import recording
from helpers.patching.metrics import PerPair, logit_difference
from helpers.patching.suffix import only_columns
from helpers.tasks import Pairs

Head: TypeAlias = tuple[int, int]  # layer and number
# A head at every token, or (layer, number, token) at one; negative tokens count from the end.
Entry: TypeAlias = Head | tuple[int, int, int]
Mask: TypeAlias = Bool[Tensor, "layers pos heads"]  # which heads work at which tokens
Circuit: TypeAlias = Collection[Entry] | Mask
Means: TypeAlias = Float[Tensor, "layers pos heads d_head"]


def every_head(model: Model) -> list[Head]:
    """All heads of the model, layer by layer."""
    return [(at, head) for at in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def strongest(scores: Float[Tensor, "pairs layers pos heads"], k: int) -> list[Head]:
    """The `k` heads with the largest score by size, summed over tokens, meant over pairs.

    A ValueError: scores of another kind of site, or fewer heads than `k`.
    """
    require.floats("the scores", scores, ndim=4)
    each = scores.sum(2).mean(0).abs()
    if require.whole("k", k, least=1) > each.numel():
        raise ValueError(f"there are {each.numel()} heads, not {k}")
    order = each.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return [divmod(place, each.shape[1]) for place in order]


def random_heads(model: Model, k: int, *, seed: int) -> list[Head]:
    """So many different heads at random: what a circuit of that size does by chance."""
    return random_subset(every_head(model), k, seed=seed)


def random_subset(entries: Collection[Entry], k: int, *, seed: int) -> list[Entry]:
    """So many different heads of these: what to knock out of a circuit, for example."""
    entries = list(entries)
    if not 1 <= require.whole("k", k) <= len(entries):
        raise ValueError(f"k must be from 1 to {len(entries)} heads, not {k}")
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed))
    return [entries[place] for place in order[:k].tolist()]


@torch.no_grad()
def head_means(model: Model, pairs: Pairs, *, batch_size: int = 32) -> Means:
    """The mean output of every head at every token, over base and source prompts.

    A ValueError if the prompts are not of one length: their tokens do not correspond.
    """
    total = 0.0
    for tokens in _stacked(pairs.base_tokens + pairs.source_tokens).split(batch_size):
        with recording(model, set(_names(model))) as seen, only_columns(model, [0]):
            model(tokens.to(model.cfg.device))
        total = total + torch.stack([seen[name].sum(0) for name in _names(model)])
    return total / (2 * len(pairs))


def ablated_logit_difference(
    model: Model, pairs: Pairs, circuit: Circuit, means: Means, *, batch_size: int = 32
) -> PerPair:
    """Logit differences of the base prompts, in nats, when only the heads of the circuit work.

    `means` are those of `head_means`, also of other pairs of the same template. A ValueError: a
    head or token that there is not, means of another shape, or prompts of different lengths.
    """
    answers = torch.stack([pairs.answer, pairs.counterfactual]).to(model.cfg.device)
    columns, places = answers.unique(return_inverse=True)
    options = {"columns": columns, "batch_size": batch_size}
    return logit_difference(ablated_logits(model, pairs, circuit, means, **options), *places)


@torch.no_grad()
def ablated_logits(
    model: Model, pairs: Pairs, circuit: Circuit, means: Means, *,
    columns: Int[Tensor, "columns"] | None = None, batch_size: int = 32,
) -> Float[Tensor, "pairs columns"]:  # fmt: skip
    """The same for the next-token logits of some tokens, `columns`, or of the whole vocabulary."""
    tokens = _stacked(pairs.base_tokens)
    keep = working(model, circuit, tokens.shape[1])
    if not isinstance(means, Tensor) or means.shape[:3] != keep.shape:
        shape = (*keep.shape, "d_head")
        raise ValueError(f"the means must be of shape {shape}: are they of these?")

    def ablate(z: Tensor, hook: object, layer: int) -> Tensor:
        return torch.where(keep[layer, ..., None], z, means[layer])

    hooks = [(name, partial(ablate, layer=layer)) for layer, name in enumerate(_names(model))]
    with model.hooks(fwd_hooks=hooks), only_columns(model, columns):
        parts = tokens.to(model.cfg.device).split(batch_size)
        return torch.cat([model(part)[:, -1] for part in parts])


def working(model: Model, circuit: Circuit, length: int) -> Mask:
    """Which heads work at which of so many tokens; a ValueError if there is no such entry."""
    if isinstance(circuit, Tensor):
        return circuit
    keep = torch.zeros(model.cfg.n_layers, length, model.cfg.n_heads, dtype=torch.bool)
    known = set(every_head(model))
    for entry in circuit:
        if not isinstance(entry, tuple) or len(entry) not in (2, 3) or entry[:2] not in known:
            wanted = "give pairs (layer, head), or (layer, head, token)"
            raise ValueError(f"the model has no head {entry!r}: {wanted}")
        token = entry[2] if len(entry) == 3 else slice(None)
        if len(entry) == 3 and not -length <= require.whole("the token", token) < length:
            raise ValueError(f"there is no token {token} in prompts of {length} tokens")
        keep[entry[0], token, entry[1]] = True
    return keep.to(model.cfg.device)


def _names(model: Model) -> list[str]:
    return [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]


def _stacked(prompts: tuple[Tensor, ...]) -> Int[Tensor, "prompts pos"]:
    if len(lengths := {len(tokens) for tokens in prompts}) > 1:
        raise ValueError(f"prompts of {sorted(lengths)} tokens: take those of one template")
    return torch.stack(prompts)
