"""Writes that depend on what comes by, for `clamp` of `CachedPairs.patched_logits`."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Running:
    """A write that depends on what comes by, and on something `other`."""

    other: Float[Tensor, "some d"]

    def __getitem__(self, rows: Int[Tensor, "rows"]) -> "Running":
        return replace(self, other=self.other[rows])

    def of(self, running: Float[Tensor, "some d"]) -> Float[Tensor, "some d"]:
        """What to write in place of what comes by."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mix(Running):
    """The share `keep` (0 to 1) of what comes by, and the rest of `other`."""

    keep: Float[Tensor, ""]

    def of(self, running: Float[Tensor, "some d"]) -> Float[Tensor, "some d"]:
        return torch.lerp(self.other, running, self.keep)


@dataclass(frozen=True)
class Along(Running):
    """What comes by, except along an orthonormal `basis`: there it is what `other` has.

    With a mean as `other`, and the basis of all that is left out, this compresses an activation;
    with a source and few directions it patches a subspace of what comes by.
    """

    basis: Float[Tensor, "d k"]

    def of(self, running: Float[Tensor, "some d"]) -> Float[Tensor, "some d"]:
        return running + (self.other - running) @ self.basis @ self.basis.T
