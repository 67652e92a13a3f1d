"""What an audit is about: a way to change an activation, `new = what(base, source)`.

Subspace(v)  # [d] or [d, k]: takes the source's value along it

SAE features and steering vectors are in `tools.audit.changes`; whatever is an `Intervention` will
do.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.audit.verdicts import INTERCHANGE, Rules
from helpers.directions import patch_subspace, random_direction, unit
from helpers.directions.geometry import orthonormal
from helpers.models import require
from helpers.patching import Acts

Matrix: TypeAlias = Float[Tensor, "d k"]


@runtime_checkable
class Intervention(Protocol):
    """What can be audited. Its text, `str(what)`, is an article and what it is: "a direction"."""

    exchanges: bool  # whether it writes what the source holds
    rules: Rules  # by which it is judged
    is_linear: bool  # in source - base

    def __call__(self, base: Acts, source: Acts) -> Acts: ...

    @property
    def writes(self) -> Matrix:
        """What it moves the activation along, orthonormal."""

    def to(self, like: Tensor) -> "Intervention":
        """The same with the kind of numbers, and on the device, of `like`."""

    def in_words(self, base: Acts, source: Acts) -> str:
        """What it does to these activations, in a sentence; empty if its name says it."""

    def random(self, seed: int) -> "Intervention":
        """Another like it, drawn at random: the control."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The interchange of a subspace: the component of the base in it becomes the source's.

    Attributes:
        basis: One direction `[d]` of any length, or several `[d, k]`; kept as a unit vector, or
            orthonormal.

    Raises ValueError: no floats, zero, NaN, or linearly dependent columns.
    """

    basis: Float[Tensor, "d *k"]
    exchanges: ClassVar[bool] = True
    rules: ClassVar[Rules] = INTERCHANGE
    is_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require.finite("a direction", self.basis)
        if self.basis.ndim > 2:
            raise ValueError(f"a direction is [d], a subspace [d, k], not {list(self.basis.shape)}")
        basis = self.basis.detach()
        object.__setattr__(self, "basis", unit(basis) if basis.ndim == 1 else orthonormal(basis))

    def __call__(self, base: Acts, source: Acts) -> Acts:
        return patch_subspace(base, source, self.basis)

    def __str__(self) -> str:
        return "a direction" if self.rank == 1 else f"a subspace of {self.rank} dimensions"

    @property
    def rank(self) -> int:
        return self.writes.shape[1]

    @property
    def writes(self) -> Matrix:
        return self.basis.reshape(len(self.basis), -1)

    def to(self, like: Tensor) -> "Subspace":
        return replace(self, basis=self.basis.to(like))

    def in_words(self, base: Acts, source: Acts) -> str:
        return "" if self.rank == 1 else "The basis was orthonormalised: only its span matters."

    def random(self, seed: int) -> "Subspace":
        """Another of the same dimension."""
        d = len(self.basis)
        if self.rank == 1:
            return Subspace(random_direction(d, seed=seed))
        return Subspace(torch.randn(d, self.rank, generator=torch.Generator().manual_seed(seed)))


def intervention(what: Intervention | Float[Tensor, "d *k"]) -> Intervention:
    """What is meant: a tensor is a direction or subspace whose value is exchanged."""
    return what if isinstance(what, Intervention) else Subspace(what)
