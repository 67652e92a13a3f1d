"""The tests of lesson 05 for one direction of every query, and for an illusion that is made.

Made: in each head half a sensor, the queries' mean difference between first and third place less
what keys see, and half an actuator, what the keys of the two places differ by, turned to where
queries hardly vary. Keys see the span of their mean differences between tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.directions import project, row_space, unit
from helpers.models import Model
from helpers.patching import CachedPairs, metrics
from helpers.patching.sites import key_value_heads
from helpers.patching.writes import Running
from helpers.tasks import Pairs, lists
from tools.ranks import places_of, random_basis

RIDGE = 0.003  # of the mean variance: how strictly the actuator avoids what varies


@dataclass(frozen=True)
class ReadWrite(Running):
    """What comes by, and along `writes` what `other` has more along `reads`."""

    reads: Float[Tensor, "d"]
    writes: Float[Tensor, "d"]

    def of(self, running: Float[Tensor, "some d"]) -> Float[Tensor, "some d"]:
        return running + ((self.other - running) @ self.reads)[:, None] * self.writes


class Head(NamedTuple):
    """What is known of one head's queries from train prompts."""

    seen: Float[Tensor, "d k"]  # what keys see
    axis: Float[Tensor, "d"]  # key of the first less that of the third place
    difference: Float[Tensor, "d"]  # mean query for the first less that for the third place
    variance: Float[Tensor, "d d"]

    def made(self) -> tuple[Tensor, Tensor]:
        """Sensor and actuator, orthogonal unit vectors."""
        sensor = unit(self.difference - project(self.difference, self.seen))
        ridge = RIDGE * self.variance.diagonal().mean() * torch.eye(len(sensor))
        still = torch.linalg.solve(self.variance + ridge, self.axis)
        return sensor, unit(still - (still @ sensor) * sensor)


@torch.no_grad()
def heads_of(model: Model, learn: Pairs, cached: Sequence[CachedPairs]) -> list[Head]:
    """One for each of the cached queries of the train pairs."""
    layers = sorted({at.site.layer for at in cached})
    names = {layer: f"blocks.{layer}.attn.hook_rot_k" for layer in layers}
    tokens = torch.stack(learn.base_tokens)
    seen = model.run_with_cache(tokens, names_filter=list(names.values()))[1]
    keys = {layer: seen[name].mean(0) for layer, name in names.items()}
    first, _, third = places_of(learn, [f"{place}_position" for place in lists.PLACES])
    place = torch.tensor(learn.table["place"].tolist())
    shared = model.cfg.n_heads // key_value_heads(model)
    found = []
    for at in cached:
        key = keys[at.site.layer][:, at.site.head // shared]
        x = at.base - at.base.mean(0)
        difference = x[place == 0].mean(0) - x[place == 2].mean(0)
        found.append(Head(row_space((key - key.mean(0)).T), key[first] - key[third], difference,
                          x.T @ x / len(x)))  # fmt: skip
    return found


def trial(
    cached: Sequence[CachedPairs], heads: Sequence[Head], bases: Sequence[Tensor]
) -> dict[str, dict]:
    """Every test, for the first direction, the mean difference, the made one and a random one."""
    entry, *queries = cached
    d = len(bases[0])
    pieces = [head.made() for head in heads]
    suspects = {
        "first direction": [basis[:, 0] for basis in bases],
        "mean difference": [unit(head.difference) for head in heads],
        "made": [(sensor + actuator) / 2**0.5 for sensor, actuator in pieces],
        "random": [random_basis(d, 7000 + n)[:, 0] for n in range(len(queries))],
    }
    found = {name: examine(entry, queries, heads, u) for name, u in suspects.items()}
    for n, name in enumerate(("sensor", "actuator")):
        part = [piece[n] for piece in pieces]
        found["made"][name] = removed(entry, queries, part, part)
    return found


def examine(
    entry: CachedPairs, queries: Sequence[CachedPairs], heads: Sequence[Head],
    u: Sequence[Tensor],
) -> dict:  # fmt: skip
    """The tests of one suspect; all but the last in percent of the margin that is removed."""
    seen = [project(x, head.seen) for x, head in zip(u, heads, strict=True)]
    unseen = [x - y for x, y in zip(u, seen, strict=True)]
    lines = [unit(head.difference)[:, None] for head in heads]
    mean = [project(x, line) for x, line in zip(u, lines, strict=True)]
    rest = [x - y for x, y in zip(u, mean, strict=True)]
    return {
        "effect": removed(entry, queries, u, u),
        "same place, other list": removed(entry, queries, u, u, same_place(entry.pairs)),
        "seen alone": removed(entry, queries, seen, seen),
        "unseen alone": removed(entry, queries, unseen, unseen),
        "read unseen": removed(entry, queries, unseen, u),
        "natural alone": removed(entry, queries, mean, mean),
        "rest alone": removed(entry, queries, rest, rest),
        "in range": inside(queries, heads, u),
    }


def removed(
    entry: CachedPairs, queries: Sequence[CachedPairs], reads: Sequence[Tensor],
    writes: Sequence[Tensor], donor: Tensor | None = None,
) -> list[float]:  # fmt: skip
    """Percent of the margin between the two missing names, with its interval."""
    clamp: Mapping = {
        at.site: ReadWrite(at.source if donor is None else at.base[donor], read, write)
        for at, read, write in zip(queries, reads, writes, strict=True)
    }
    both = torch.stack([entry.logit_difference(entry.base, clamp=now) for now in ({}, clamp)], 1)
    return list(metrics.bootstrap(both, lambda m: 100 * (1 - m[..., 1] / m[..., 0])))


def same_place(pairs: Pairs) -> Tensor:
    """For every pair another one in which the same place is missing."""
    place = torch.tensor(pairs.table["place"].tolist())
    order = torch.argsort(place, stable=True)
    new = torch.empty_like(order)
    new[order] = torch.cat([order[place[order] == at].roll(1) for at in range(3)])
    return new


def inside(queries: Sequence[CachedPairs], heads: Sequence[Head], u: Sequence[Tensor]) -> float:
    """Percent of patched queries whose part along the keys' axis is one that occurs."""
    shares = []
    for at, head, x in zip(queries, heads, u, strict=True):
        natural = at.base @ head.axis
        now = natural + ((at.source - at.base) @ x) * (x @ head.axis)
        shares.append(((now >= natural.min()) & (now <= natural.max())).float().mean())
    return 100 * torch.stack(shares).mean().item()
