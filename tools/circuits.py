"""More about sets of heads, and the same for directions.

faithfulness(model, pairs, [circuit], means)  # 1: does as much as the whole model
path_effects(model, pairs, head_inputs(model, [(20, 1)], "query")).relative  # who speaks to 20.1?
completeness(model, pairs, circuit, [circuit[:3]], means)  # loses it what the model loses?
minimality(model, pairs, circuit, means)  # which entries could it spare?
mask = find_directions(cached, basis)  # which directions carry what base and source differ in?

With `F` a measure of what is left, for a circuit C of the model M and any set of heads K (Wang et
al. 2022, section 4)

    faithfulness:  (F(C) - F(no head)) / (F(M) - F(no head))
    completeness:  F(C without K) is F(M without K)
    minimality of a head:  F(C without K) - F(C without K and the head) is not zero

A circuit of `at_token` works at one token only.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.circuits.ablation import (
    Circuit,
    Entry,
    Head,
    Means,
    ablated_logit_difference,
    ablated_logits,
    every_head,
    working,
)
from helpers.circuits.masks import Keep, Mask, Rows, learn_mask
from helpers.models import Model, require
from helpers.patching import CachedPairs, Estimate, Site
from helpers.patching.metrics import PerPair, bootstrap
from helpers.patching.sites import key_value_heads
from helpers.tasks import Pairs

Input: TypeAlias = Literal["query", "key", "value"]
Measure: TypeAlias = Callable[[Model, Pairs, Circuit, Means], PerPair]  # of the ablated model


def at_token(heads: Collection[Head], token: int) -> list[Entry]:
    """The heads at one token only, as entries of a circuit; negative tokens count from the end."""
    return [(layer, head, token) for layer, head in heads]


def ablated_accuracy(
    model: Model, pairs: Pairs, circuit: Circuit, means: Means, *, batch_size: int = 32
) -> PerPair:
    """1 where the answer is the top token of all, else 0: a measure, as the logit difference is.

    Arguments and errors are those of `ablated_logit_difference`.
    """
    logits = ablated_logits(model, pairs, circuit, means, batch_size=batch_size)
    return (logits.argmax(-1) == pairs.answer.to(logits.device)).float()


def head_inputs(model: Model, heads: Collection[Head], kind: Input) -> list[Site]:
    """What these heads ask, are found by, or hand on; heads that share keys and values, once."""
    shared = 1 if kind == "query" else model.cfg.n_heads // key_value_heads(model)
    return list(dict.fromkeys(Site(at, f"head_{kind}", head=head // shared) for at, head in heads))


def faithfulness(
    model: Model, pairs: Pairs, circuits: Sequence[Circuit], means: Means, *,
    measure: Measure = ablated_logit_difference,
) -> list[Estimate]:  # fmt: skip
    """How much of the measure each circuit has alone, between no head (0) and all (1).

    Ratios of means over the pairs, with intervals. Errors are those of the measure.
    """
    sets = [(), every_head(model), *circuits]
    none, full, *parts = (measure(model, pairs, s, means) for s in sets)
    each = [torch.stack([part, none, full], -1) for part in parts]
    return [bootstrap(x, lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 1])) for x in each]


class KnockedOut(NamedTuple):
    """What is left of a circuit and of the model without the same heads, and the difference."""

    circuit: Estimate
    model: Estimate
    difference: Estimate


def completeness(
    model: Model, pairs: Pairs, circuit: Circuit, knockouts: Sequence[Circuit], means: Means, *,
    measure: Measure = ablated_logit_difference,
) -> list[KnockedOut]:  # fmt: skip
    """For each set of heads, the measure of the circuit and of the model, both without that set.

    A complete circuit loses what the model loses. The sets may be `random_subset`s of the circuit.
    Errors are those of the measure.
    """
    found = []
    for heads in knockouts:
        out = working(model, heads, len(pairs.base_tokens[0]))
        ours = measure(model, pairs, working(model, circuit, out.shape[1]) & ~out, means)
        both = torch.stack([ours, measure(model, pairs, ~out, means)], -1)
        weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        found.append(KnockedOut(*(bootstrap(both, lambda m, w=w: m @ w) for w in weights)))
    return found


def minimality(
    model: Model, pairs: Pairs, circuit: Collection[Entry], means: Means, *,
    knocked_out: Circuit = (), measure: Measure = ablated_logit_difference,
) -> dict[Entry, Estimate]:  # fmt: skip
    """For each entry of the circuit, how much the measure falls when that is removed as well.

    Heads in `knocked_out` are removed before and after (except the one in question): a head whose
    work a spare one does otherwise shows only then. Errors are those of the measure.
    """
    length, found = len(pairs.base_tokens[0]), {}
    rest = working(model, circuit, length) & ~working(model, knocked_out, length)
    for entry in circuit:
        one = working(model, [entry], length)
        with_it, without = (measure(model, pairs, m, means) for m in (rest | one, rest & ~one))
        found[entry] = bootstrap((with_it - without)[:, None], lambda m: m[..., 0])
    return found


def find_directions(
    cached: CachedPairs | Sequence[CachedPairs], basis: Float[Tensor, "d k"], **options: float
) -> Mask:
    """Which columns of an orthonormal basis carry it at one site: one desideratum, or several.

    `patch_subspace(other.base, other.source, basis[:, mask.chosen])` is the patch of those.
    `options` are those of `learn_mask`. A ValueError if the columns are not orthonormal.
    """
    require.floats("the basis", basis, ndim=2)
    if not torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).to(basis), atol=1e-4):
        raise ValueError("the columns of the basis are not orthonormal: see `orthonormal`")
    parts = [cached] if isinstance(cached, CachedPairs) else list(cached)
    masked = [partial(_masked, part, basis.to(part.base)) for part in parts]
    return learn_mask(range(basis.shape[1]), masked, [part.pairs for part in parts], **options)


def _masked(
    cached: CachedPairs, basis: Float[Tensor, "d k"], keep: Keep, rows: Rows
) -> Float[Tensor, "rows"]:
    """The target's logits when each direction gives way to its source's component by 1 - m."""
    change = (cached.source[rows] - cached.base[rows]) @ basis
    new = cached.base[rows] + (change * (1 - keep.to(change))) @ basis.T
    targets = cached.pairs.counterfactual[rows, None]
    return cached.patched_logits(new, rows, tokens=targets)[:, 0]
