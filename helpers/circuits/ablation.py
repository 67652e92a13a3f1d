"""Mean ablation: heads outside a circuit say what they say on average, at every token.

A head keeps its own output, or gets the mean of its outputs over base and source prompts at that
token. Prompts that differ in one thing only have then nothing left to tell them apart but what the
circuit says. MLPs and norms go on working. The share of the logit difference that is left is

    faithfulness = (LD(circuit) - LD(no head)) / (LD(all heads) - LD(no head))
"""

from collections.abc import Collection, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.models import Model, require
from helpers.patching import Estimate, recording
from helpers.patching.metrics import PerPair, bootstrap, logit_difference
from helpers.patching.suffix import only_columns
from helpers.tasks import Pairs

Head: TypeAlias = tuple[int, int]  # layer and number
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
    heads = every_head(model)
    if not 1 <= require.whole("k", k) <= len(heads):
        raise ValueError(f"k must be from 1 to {len(heads)} heads, not {k}")
    order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed))
    return [heads[place] for place in order[:k].tolist()]


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


@torch.no_grad()
def ablated_logit_difference(
    model: Model, pairs: Pairs, circuit: Collection[Head], means: Means, *, batch_size: int = 32
) -> PerPair:
    """Logit differences of the base prompts, in nats, when only the heads of the circuit work.

    `means` are those of `head_means`, also of other pairs of the same template. A ValueError: a
    head that the model does not have, means of another shape, or prompts of different lengths.
    """
    keep, tokens = _mask(model, circuit), _stacked(pairs.base_tokens)
    shape = (model.cfg.n_layers, tokens.shape[1], model.cfg.n_heads)
    if not isinstance(means, Tensor) or tuple(means.shape[:3]) != shape:
        raise ValueError(f"the means must be of shape {(*shape, 'd_head')}: are they of these?")

    def ablating(layer: int) -> tuple:
        def ablate(z: Tensor, hook: object) -> Tensor:
            return torch.where(keep[layer, :, None], z, means[layer])

        return _names(model)[layer], ablate

    answers, found = torch.stack([pairs.answer, pairs.counterfactual]).to(model.cfg.device), []
    with model.hooks(fwd_hooks=[ablating(layer) for layer in range(shape[0])]):
        for rows in torch.arange(len(pairs)).split(batch_size):
            columns, places = answers[:, rows].unique(return_inverse=True)
            with only_columns(model, columns):
                logits = model(tokens[rows].to(model.cfg.device))[:, -1]
            found.append(logit_difference(logits, *places))
    return torch.cat(found)


def faithfulness(
    model: Model, pairs: Pairs, circuits: Sequence[Collection[Head]], means: Means
) -> list[Estimate]:
    """How much of the logit difference each circuit has alone, between no head (0) and all (1).

    Ratios of means over the pairs, with intervals. Errors are those of `ablated_logit_difference`.
    """
    sets = [(), every_head(model), *circuits]
    none, full, *parts = (ablated_logit_difference(model, pairs, s, means) for s in sets)
    each = [torch.stack([part, none, full], -1) for part in parts]
    return [bootstrap(x, lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1])) for x in each]


def _names(model: Model) -> list[str]:
    return [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]


def _stacked(prompts: tuple[Tensor, ...]) -> Int[Tensor, "prompts pos"]:
    if len(lengths := {len(tokens) for tokens in prompts}) > 1:
        raise ValueError(f"prompts of {sorted(lengths)} tokens: take those of one template")
    return torch.stack(prompts)


def _mask(model: Model, circuit: Collection[Head]) -> Bool[Tensor, "layers heads"]:
    """Which heads work."""
    keep = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
    known = set(every_head(model))
    for head in circuit:
        if head not in known:
            raise ValueError(f"the model has no head {head!r}: give pairs (layer, head)")
        keep[head] = True
    return keep.to(model.cfg.device)
