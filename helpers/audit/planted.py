"""A real model with a pathway planted in it, so that we know what a patch acts through.

Units are added to one MLP of the model: each has an activation on every prompt, which we choose,
and a row that it writes into the residual stream. Behind that MLP there may be further units, which
read the stream and stay silent on every prompt. All else is computed by the model itself.

Whether a patch acts through a natural pathway is then a matter of fact: hold the planted units that
do not carry the feature at what they are without a patch, and see how much of its effect is left.
(After the planted pathways of Liu and Chen, moved to an activation with a kernel.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.audit.diagnostics import later_units, signs
from helpers.directions import random_direction, unit
from helpers.patching import Acts, CachedPairs, Site
from helpers.patching.cached import Clamp, Patchable
from helpers.patching.metrics import PerPair
from helpers.patching.suffix import ALL

Rows: TypeAlias = Int[Tensor, "rows"] | slice
Stream: TypeAlias = Float[Tensor, "rows d_model"]
SILENT = Site(0, "mlp_out")  # in `later_units`, stands for the planted units behind the MLP


class Unit(NamedTuple):
    """A planted unit: its activations, what it writes, its weight in the direction, and whether it
    carries the feature on ordinary prompts.
    """

    base: PerPair
    source: PerPair
    writes: Float[Tensor, "d_model"]
    weight: float
    natural: bool


class Silent(NamedTuple):
    """Planted units behind the MLP: `relu(stream @ reads - threshold) @ writes`."""

    reads: Float[Tensor, "d_model k"]
    threshold: float
    writes: Float[Tensor, "k d_model"]

    def fires(self, stream: Stream) -> Float[Tensor, "rows k"]:
        return torch.relu(stream @ self.reads - self.threshold)


@dataclass(frozen=True, eq=False)
class PlantedPairs(Patchable):
    """Pairs at the hidden activation of an MLP with planted units, which follow its own. What it
    shares with `CachedPairs` means the same.
    """

    hidden: CachedPairs  # at `mlp_hidden`
    stream: CachedPairs  # at `resid_post` of the layer
    base_units: Acts
    source_units: Acts
    writes: Float[Tensor, "k d_model"]  # what each planted unit writes into the residual stream
    natural: Sequence[bool]  # which of them carry the feature on ordinary prompts
    silent: Silent | None = None  # planted units behind the MLP
    turn: Float[Tensor, "k k"] | None = None  # from directions that `natural` is of, to the units

    def __len__(self) -> int:
        return len(self.hidden)

    @cached_property
    def W(self) -> Float[Tensor, "d d_model"]:
        """What the MLP writes: its own down projection, then the rows of the planted units."""
        own = self.hidden.model.blocks[self.hidden.site.layer].mlp.W_out.detach()
        return torch.cat([own, self.writes])

    @cached_property
    def base(self) -> Acts:
        return torch.cat([self.hidden.base, self.base_units], -1)

    @cached_property
    def source(self) -> Acts:
        return torch.cat([self.hidden.source, self.source_units], -1)

    def written(self, activation: Acts, rows: Rows = ALL) -> Stream:
        """The residual stream behind the MLP, before any silent unit."""
        own = self.hidden.base.shape[1]
        change = torch.cat([activation[:, :own] - self.hidden.base[rows], activation[:, own:]], -1)
        return self.stream.base[rows] + change @ self.W

    def logit_difference(
        self, activation: Acts, rows: Rows = ALL, *, clamp: Clamp | None = None
    ) -> PerPair:
        """As for `CachedPairs`; `clamp` may hold the silent units, too."""
        clamp, stream = dict(clamp or {}), self.written(activation, rows)
        if self.silent:
            fires = clamp[SILENT] if SILENT in clamp else self.silent.fires(stream)
            stream = stream + fires @ self.silent.writes
            clamp.pop(SILENT, None)
        numbers = None if isinstance(rows, slice) else rows
        return self.stream.logit_difference(stream, numbers, clamp=clamp)

    def later_units(self, activation: Acts) -> dict[Site, Tensor]:
        """Hidden activations of all MLPs above, under a patch, and those of the silent units."""
        stream = self.written(activation)
        if not self.silent:
            return later_units(self.stream, stream)
        fires = self.silent.fires(stream)
        return later_units(self.stream, stream + fires @ self.silent.writes) | {SILENT: fires}

    def without_planted(self, activation: Acts) -> Acts:
        """The activation with the units (or, if they are turned, the directions among them) that
        do not carry the feature as they are in the base.
        """
        held = torch.tensor([False] * self.hidden.base.shape[1] + [not n for n in self.natural])
        held = held.to(activation.device)
        if self.turn is None:
            return torch.where(held, self.base, activation)
        own = torch.eye(len(held) - len(self.turn)).to(self.turn)
        back = torch.block_diag(own, self.turn).T.to(activation)
        return torch.where(held, self.base @ back, activation @ back) @ back.T


def feature(pairs: CachedPairs) -> tuple[PerPair, PerPair, Float[Tensor, "d"]]:
    """A binary feature as the stream has it: a number near 1 or -1 for each prompt, and half the
    difference of the class means, which is one unit of the feature.
    """
    change = pairs.source - pairs.base
    half = (signs(change) * change).mean(0) / 2
    middle = (pairs.base + pairs.source).mean(0) / 2
    read = half / half.square().sum()
    return (pairs.base - middle) @ read, (pairs.source - middle) @ read, half


class Plan(NamedTuple):
    """What the families share: the signals, the sizes drawn for one model, and its generator."""

    order: tuple[PerPair, PerPair]
    push: Float[Tensor, "d_model"]  # what one unit of the feature writes for the readers
    elsewhere: Float[Tensor, "d_model"]  # as long, in a random direction
    size: float  # activation of a unit that carries the feature
    read: float  # weights of a direction's sensing and acting part
    act: float
    generator: torch.Generator

    def mediator(self, weight: float) -> Unit:
        """Carries the feature and writes it: the natural pathway."""
        return self.sensor(weight)._replace(writes=self.push / self.size)

    def sensor(self, weight: float, writes: float = 0.0) -> Unit:
        """Carries the feature and writes nothing, or something that nobody reads."""
        base, source = (self.size * order for order in self.order)
        return Unit(base, source, writes * self.elsewhere / self.size, weight, True)

    def dormant(self, weight: float, *, through_silent: bool = False) -> Unit:
        """The same on every prompt, and read by the readers (or by silent units)."""
        still = torch.zeros_like(self.order[0])
        return Unit(still, still, self._acting(through_silent), weight, False)

    def busy(self, weight: float) -> Unit:
        """Read by the readers and moved on every prompt, but by something else than the feature."""
        drawn = torch.randn(2, len(self.order[0]), generator=self.generator).to(self.order[0])
        base, source = 3 * self.size * self.read * self.act * drawn
        return Unit(base, source, self._acting(False), weight, False)

    def canceller(self) -> Unit:
        """Carries the feature and writes against it: a mediator beside it is undone."""
        return self.mediator(0)._replace(writes=-self.push / self.size)

    def loose(self, one: Unit) -> Unit:
        """The unit with something of its own on every prompt, so that it also varies alone."""
        base, source = 0.5 * self.size * torch.randn(
            2, len(one.base), generator=self.generator
        ).to(one.base)  # fmt: skip
        return one._replace(base=one.base + base, source=one.source + source)

    def _acting(self, through_silent: bool) -> Tensor:
        """Scaled so that the patch along sensor and actor writes as much as a mediator does."""
        writes = self.elsewhere if through_silent else self.push
        return writes / (self.size * self.read * self.act)


def _units(family: str, plan: Plan) -> list[Unit]:
    """The planted units of a family, with their weights in the direction to be judged."""
    r, a = plan.read, plan.act
    turn = torch.tensor(torch.rand((), generator=plan.generator).item() * torch.pi / 2)
    m, s = turn.cos().item(), turn.sin().item()  # of a mixture
    families = {  # the natural pathways first
        "mediator": lambda: [plan.mediator(1)],
        "mediator and twin": lambda: [plan.mediator(r), plan.sensor(a)],
        "mediator, others dormant": lambda: [plan.mediator(1), plan.sensor(0), plan.dormant(0)],
        "canceller": lambda: [plan.loose(plan.mediator(1)), plan.loose(plan.canceller())],
        "silent": lambda: [plan.sensor(r), plan.dormant(a)],
        "silent, with decoy": lambda: [plan.mediator(0), plan.sensor(r), plan.dormant(a)],
        "read, unused": lambda: [plan.sensor(r, writes=1), plan.dormant(a)],
        "hijack": lambda: [plan.sensor(r), plan.dormant(a, through_silent=True)],
        "in range": lambda: [plan.sensor(r), plan.busy(a)],
        "in range, with decoy": lambda: [plan.mediator(0), plan.sensor(r), plan.busy(a)],
        "cross term": lambda: (
            [plan.mediator(0), plan.sensor(r), plan.busy(a)]
            + (SHARED - 2) * [plan.dormant(0)._replace(writes=0 * plan.push)]
        ),
        "mixture": lambda: [plan.mediator(m), plan.sensor(r * s), plan.dormant(a * s)],
    }
    return families[family]()


NATURAL = (
    "mediator", "mediator and twin", "mediator, others dormant", "mediator, spread", "canceller",
)  # fmt: skip
OPENED = (
    "silent", "silent, spread", "hijack", "read, unused", "silent, with decoy",
    "in range", "in range, with decoy", "cross term",
)  # fmt: skip
FAMILIES = (*NATURAL, *OPENED, "mixture")
COPIES, SHARED = 32, 8


def plant(
    family: str, hidden: CachedPairs, before: CachedPairs, stream: CachedPairs, *, seed: int
) -> tuple[PlantedPairs, Float[Tensor, "d"]]:
    """A planted model of one of `FAMILIES`, and the direction in its MLP that is to be judged.

    Sizes, strength and angles are drawn anew for each seed, and up to a fifth of the direction's
    length is noise among the model's own units. `hidden`, `before` and `stream` are the same pairs
    at `mlp_hidden`, `resid_mid` and `resid_post` of one layer, of a feature that moves the residual
    stream there, or it is a ValueError, as is an unknown family.
    """
    parts = (hidden, before, stream)
    kinds, layers = [part.site.kind for part in parts], {part.site.layer for part in parts}
    fit = kinds == ["mlp_hidden", "resid_mid", "resid_post"] and len(layers) == 1
    if not fit or len({len(part) for part in parts}) > 1:
        needed = "the same pairs are needed at mlp_hidden, resid_mid and resid_post of one layer"
        raise ValueError(f"{needed}, but these are at {', '.join(str(x.site) for x in parts)}")
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}: choose from {list(FAMILIES)}")
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    angle = torch.tensor(uniform(25, 65)).deg2rad()
    push = uniform(0.4, 1.2) * feature(stream)[2]
    elsewhere = push.norm() * random_direction(len(push), seed=seed).to(push)
    size = uniform(0.25, 0.75) * (hidden.source - hidden.base).norm(dim=-1).mean().item()
    read, act = angle.cos().item(), angle.sin().item()
    plan = Plan(feature(before)[:2], push, elsewhere, size, read, act, generator)
    units = _units(family.removesuffix(", spread"), plan)
    if family.endswith(", spread"):
        units = [copy for one in units for copy in _spread(one, plan)]
    base, source = (torch.stack([one[side] for one in units], -1) for side in (0, 1))
    weights, turn = torch.tensor([one.weight for one in units]).to(base), None
    writes = torch.stack([one.writes for one in units])
    if family == "cross term":
        shared = torch.randn(SHARED, SHARED, generator=generator)
        turn = torch.block_diag(torch.eye(1), torch.linalg.qr(shared).Q).to(base)
        base, source, writes, weights = base @ turn, source @ turn, turn.T @ writes, weights @ turn
    planted = PlantedPairs(
        hidden, stream, base, source, writes, natural=[one.natural for one in units], turn=turn
    )
    if family == "hijack":
        planted = replace(planted, silent=_silent(planted, plan))
    noise = uniform(0, 0.2) * random_direction(hidden.base.shape[1], seed=seed + 1)
    return planted, unit(torch.cat([noise, weights.cpu()]))


def _spread(one: Unit, plan: Plan) -> list[Unit]:
    """A unit's work shared by many; each of those that carry it varies by itself as well."""
    shares = unit(torch.randn(COPIES, generator=plan.generator)).tolist()
    size = 0.5 * plan.size / COPIES**0.5 if one.natural else 0.0
    jitter = size * torch.randn(2, COPIES, len(one.base), generator=plan.generator).to(one.base)
    return [
        Unit(one.base * c + b, one.source * c + s, one.writes * c, one.weight * c, one.natural)
        for c, b, s in zip(shares, *jitter, strict=True)
    ]


def _silent(planted: PlantedPairs, plan: Plan) -> Silent:
    """Two units that read `elsewhere`, each one way; no prompt reaches their threshold."""
    axis = unit(plan.elsewhere)
    reads = torch.stack([axis, -axis], -1)
    source = planted.stream.source + planted.source_units @ planted.writes
    streams = [planted.written(planted.base), planted.written(planted.source), source]
    threshold = 1.02 * (torch.cat(streams) @ reads).max().item()
    gain = plan.push / (plan.elsewhere.norm() - threshold).clamp(min=0.2 * plan.elsewhere.norm())
    return Silent(reads, threshold, torch.stack([gain, -gain]))
