"""What else than a subspace can be audited: features of sparse autoencoders, steering vectors.

Feature(encoder, decoder)  # reads along one vector, writes along another, as an SAE feature does
Feature(encoder, decoder, clamp=8.0)  # sets the feature to a value, whatever the source holds
Steering(v, 4.0)           # adds a multiple of a vector, whatever the source holds

Each is an `Intervention` of `helpers.audit.interventions`, which says what their members mean. A
change that does not exchange anything has rules of its own, `CHANGE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.audit import verdicts
from helpers.audit.criteria import AGAINST, DOWNSTREAM, FOR, TESTS, Criterion, Finding
from helpers.audit.interventions import Matrix
from helpers.audit.verdicts import (
    INTERCHANGE,
    OPPOSITE,
    UNDECIDED,
    Rules,
    accusers,
    conclude,
    values_of,
)
from helpers.directions import random_direction, unit
from helpers.models import require
from helpers.patching import Acts, Estimate

Vector: TypeAlias = Float[Tensor, "d"]

# Of a change that is not the source's, nobody says that the model makes it: does it steer, and how?
DISRUPTS = "disrupts, whichever way it is added"
WITHIN = "steers within what real inputs do"
BEYOND = "steers, away from what real inputs do"

REVERSED = Criterion(  # asked only of such a change
    "not reversed",
    "How much of the effect does the opposite change not have, with the opposite sign?",
    "A large change in either direction may do the same damage; a small one tells more.",
    against=0.75,
    acquits=0.5,
    two_sided=True,
)


def conclude_change(
    effect: Estimate, random: Sequence[Estimate], findings: Sequence[Finding]
) -> str:
    """The verdict on a change that is not the source's: a steering vector, a clamped feature.

    `NO_EFFECT` and `OPPOSITE` as by `conclude`. `DISRUPTS` if the opposite change does not have
    the opposite effect. `BEYOND` if any other test speaks against it, `WITHIN` if that of the
    distance downstream speaks for it and none against, else `UNDECIDED`.
    """
    verdict = conclude(effect, random, [])
    if verdict != UNDECIDED:
        return verdict
    said = {finding.test: finding.verdict for finding in findings}
    if said.get(REVERSED.name) == AGAINST:
        return DISRUPTS
    if AGAINST in said.values():
        return BEYOND
    return WITHIN if said.get(DOWNSTREAM) == FOR else UNDECIDED


def _reasons(verdict: str, findings: Sequence[Finding]) -> str:
    """Why a change that is not the source's, and has an effect, is judged so."""
    shown = values_of(findings)
    if verdict == DISRUPTS:
        return f", and the opposite change does not do the opposite ({shown[REVERSED.name]})"
    against = accusers([f for f in findings if f.test != REVERSED.name])
    if against and verdict != UNDECIDED:
        return f"; {against} it" if verdict == OPPOSITE else f", but {against} natural states"
    if verdict == WITHIN:
        return f"; {shown[DOWNSTREAM]} says that later units stay near real states"
    silent = (
        f"and {shown[DOWNSTREAM]} is not clearly near real states" if DOWNSTREAM in shown else ""
    )
    return f"; no test speaks against natural states, {silent or 'and none decides'}"


NOT_SHOWN = {
    DISRUPTS: "So it does damage rather than move the model along a feature: try a smaller amount.",
    WITHIN: "This does not show that the model uses what was added: a change of natural size may "
    "act through another pathway than the one that real inputs take.",
    BEYOND: "It may be useful all the same. It is no evidence of how the model computes the answer "
    "of real inputs.",
}
CHANGE = Rules((*TESTS, REVERSED), conclude_change, _reasons, verdicts.NOT_SHOWN | NOT_SHOWN)


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature of a sparse autoencoder: read along one vector, written along another.

    Its value is `relu(encoder . (activation - centre) + bias)`, or zero up to `threshold` (a
    JumpReLU). The patch changes the base's value to the source's, or to `clamp`, along `decoder`,
    and leaves what the autoencoder does not reconstruct as it is.

    Raises ValueError: vectors of different dimensions, zero or NaN.
    """

    encoder: Vector
    decoder: Vector
    bias: float = 0.0
    centre: Vector | None = None  # often the decoder's bias
    threshold: float = 0.0
    clamp: float | None = None
    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder", "centre"):
            if (vector := getattr(self, name)) is not None:
                require.floats(f"the feature's {name}", vector, ndim=1)
                require.finite(f"the feature's {name}", vector)
                if len(vector) != len(self.decoder):
                    sizes = f"{len(vector)} dimensions, but its decoder {len(self.decoder)}"
                    raise ValueError(f"the feature's {name} has {sizes}")
        unit(self.encoder), unit(self.decoder)  # refuses zero

    def __call__(self, base: Acts, source: Acts) -> Acts:
        now = self.value(base)
        then = self.value(source) if self.clamp is None else torch.full_like(now, self.clamp)
        return base + (then - now)[..., None] * self.decoder.to(base)

    def __str__(self) -> str:
        return "an SAE feature" + ("" if self.clamp is None else f", clamped to {self.clamp:g}")

    @property
    def exchanges(self) -> bool:
        return self.clamp is None

    @property
    def rules(self) -> Rules:
        return INTERCHANGE if self.exchanges else CHANGE

    @property
    def writes(self) -> Matrix:
        return unit(self.decoder)[:, None]

    def value(self, activation: Acts) -> Float[Tensor, "pairs"]:
        """How strongly the feature is active."""
        centred = activation if self.centre is None else activation - self.centre.to(activation)
        before = centred @ self.encoder.to(activation) + self.bias
        return before.relu() * (before > self.threshold)

    def to(self, like: Tensor) -> "Feature":
        centre = None if self.centre is None else self.centre.to(like)
        return replace(
            self, encoder=self.encoder.to(like), decoder=self.decoder.to(like), centre=centre
        )

    def in_words(self, base: Acts, source: Acts) -> str:
        """How active it is in base and source, and in how many pairs the patch changes it."""
        before, after = self.value(base), self.value(source)
        moved = (self(base, source) - base).norm(dim=-1) > 0
        return (
            f"The feature is active in {(before > 0).float().mean():.0%} of the bases and "
            f"{(after > 0).float().mean():.0%} of the sources, up to "
            f"{torch.cat([before, after]).max():.2f}; its value changes in "
            f"{moved.float().mean():.0%} of the pairs, and what it does not reconstruct stays."
        )

    def random(self, seed: int) -> "Feature":
        """The same reading, written along a random vector as long as the decoder."""
        other = random_direction(len(self.decoder), seed=seed).to(self.decoder)
        return replace(self, decoder=other * self.decoder.norm())


@dataclass(frozen=True, eq=False)
class Steering:
    """A steering vector: `amount` times the vector, as long as it is, is added to every base.

    Raises ValueError: no vector of finite numbers, zero, or an amount of zero.
    """

    vector: Vector
    amount: float = 1.0
    exchanges: ClassVar[bool] = False
    rules: ClassVar[Rules] = CHANGE
    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require.floats("a steering vector", self.vector, ndim=1)
        unit(self.vector)
        require.positive("the amount of a steering vector", abs(self.amount))

    def __call__(self, base: Acts, source: Acts) -> Acts:
        return base + self.amount * self.vector.to(base)

    def __str__(self) -> str:
        return f"a steering vector, times {self.amount:g}"

    @property
    def writes(self) -> Matrix:
        return unit(self.vector)[:, None]

    def to(self, like: Tensor) -> "Steering":
        return replace(self, vector=self.vector.to(like))

    def in_words(self, base: Acts, source: Acts) -> str:
        """How long what is added is, beside the activations and their natural change."""
        added = abs(self.amount) * self.vector.norm().item()
        whole, change = (x.norm(dim=-1).mean().item() for x in (base, source - base))
        return (
            f"What is added, only at the patched token, is {added:.2f} long: {added / whole:.0%} "
            f"of the activation's, {added / max(change, 1e-9):.0%} of that from base to source."
        )

    def random(self, seed: int) -> "Steering":
        """A random vector of equal length, as often."""
        other = random_direction(len(self.vector), seed=seed).to(self.vector)
        return replace(self, vector=other * self.vector.norm())
