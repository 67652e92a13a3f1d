"""Rank-1 edits of a down projection: hold one while a block runs, and take it back.

With `W = W_out`, `[d_mlp, d_model]`, the MLP writes `x @ W` (plus a bias). A rank-1 edit
`W' = W + outer(b, a)` *reads* `b . x` and *writes* that much of `a`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.editing.moments import in_double
from helpers.models import Model, require
from helpers.patching import Site, check_sites

Hidden: TypeAlias = Float[Tensor, "*k d_mlp"]
Writer: TypeAlias = Float[Tensor, "d_mlp d_model"]
PerFact: TypeAlias = Float[Tensor, "facts"]


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class RankOneEdit:
    """`W_out' = W_out + outer(read, write)` in one layer; or several alternatives, one per row."""

    layer: int
    read: Float[Tensor, "*edits d_mlp"]
    write: Float[Tensor, "*edits d_model"]

    def __post_init__(self) -> None:
        require.finite("read", self.read)
        require.finite("write", self.write)
        if self.read.shape[:-1] != self.write.shape[:-1]:
            shapes = f"{tuple(self.read.shape)} and {tuple(self.write.shape)}"
            raise ValueError(f"one write per read is needed, got shapes {shapes}")

    def __len__(self) -> int:
        if self.read.ndim == 1:
            raise TypeError("this is one edit, not a row of them")
        return len(self.read)

    def __getitem__(self, row: int | slice | Tensor) -> "RankOneEdit":
        len(self)  # a single edit has no rows to choose from
        return RankOneEdit(self.layer, self.read[row], self.write[row])


@contextmanager
def rank_one_edit(model: Model, *edits: RankOneEdit) -> Iterator[None]:
    """Inside, the model's own weights are edited; afterwards they are bit for bit as before.

    Also after an exception, and nested. Run prompts inside: what was cached before (`CachedPairs`)
    comes from the unedited model. The single edits may be at any layers; those at one add up.
    Raises ValueError: a row of edits, a layer or shape that the model does not have, or numbers too
    large for the weights.
    """
    weights = [down_projection(model, edit.layer) for edit in edits]
    for edit, weight in zip(edits, weights, strict=True):
        shape = (*edit.read.shape, *edit.write.shape)
        if shape != tuple(weight.shape):
            raise ValueError(
                f"layer {edit.layer} takes one edit of shape {tuple(weight.shape)}, got {shape}: "
                "was it made for another model, or is it a row of edits? Then choose: edits[0]"
            )
    originals = [weight.clone() for weight in weights]
    try:
        with torch.no_grad():
            for edit, weight in zip(edits, weights, strict=True):
                weight.add_(torch.outer(in_double(edit.read), in_double(edit.write)).to(weight))
                if not torch.isfinite(weight).all():
                    raise ValueError(f"the edit of layer {edit.layer} is too large for its weights")
        yield
    finally:
        with torch.no_grad():  # clones of one weight are equal, so the order does not matter
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


@contextmanager
def edits_side_by_side(model: Model, edits: RankOneEdit) -> Iterator[None]:
    """Inside, row `i` of a batch is run with edit `i`: `x @ W + (b_i . x) a_i` at every token.

    The same as an edit in the weights for each row, but all rows share one forward pass. Without
    one edit per row, all at one layer, there is a ValueError.
    """
    if edits.read.ndim != 2:
        raise ValueError("one edit per row of the batch is needed, not a single one")
    down_projection(model, edits.layer)  # is there such a layer?
    read, write = edits.read[:, None], edits.write[:, None]

    def add(module: object, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = inputs
        if len(x) != len(edits):
            raise ValueError(f"{len(edits)} edits cannot be run on a batch of {len(x)} prompts")
        return output + (x * read.to(x)).sum(-1, keepdim=True) * write.to(x)

    handle = model.blocks[edits.layer].mlp.out.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def down_projection(model: Model, layer: int) -> Writer:
    """`W_out` of a layer as the model uses it, not a copy: changing it in place edits the model."""
    check_sites(model, [Site(layer, "mlp_out")])
    mlp = model.blocks[layer].mlp
    weight = getattr(mlp, "W_out", None)
    storages = {parameter.untyped_storage().data_ptr() for parameter in mlp.parameters()}
    if weight is None or weight.untyped_storage().data_ptr() not in storages:
        raise ValueError(f"this architecture keeps no single W_out in the MLP of layer {layer}")
    return weight.detach()


def rewrite_score(original: PerFact, edited: PerFact) -> PerFact:
    """How much of the missing probability of the new answer an edit supplied (Hase et al. 2023).

    `(p_edited - p_original) / (1 - p_original)`: 1 is certainty, 0 no effect, below 0 harm. A
    ValueError if these are no probabilities, or an answer was certain before.
    """
    if original.shape != edited.shape:
        raise ValueError(f"{tuple(original.shape)} and {tuple(edited.shape)} probabilities")
    both = torch.stack([original, edited])
    if not ((both >= 0) & (both <= 1 + 1e-6)).all():
        raise ValueError("probabilities lie between 0 and 1: were these logits?")
    if (original >= 1).any():
        raise ValueError("an answer was certain before the edit: there is nothing to supply")
    return (edited - original) / (1 - original)


def require_dimensions(name: str, vectors: Tensor, d: int) -> None:
    """Vectors must have as many dimensions as an edit reads."""
    require.floats(name, vectors)
    if vectors.shape[-1] != d:
        raise ValueError(f"{name} has {vectors.shape[-1]} dimensions, but the edit reads {d}")


def require_rows(name: str, matrix: Tensor, vectors: Float[Tensor, "*k d"]) -> None:
    """A matrix must have one row for each dimension of the hidden activation."""
    require.floats(name, matrix, ndim=2)
    require.floats("a hidden activation", vectors)
    if len(matrix) != (d := vectors.shape[-1]):
        reason = "is it transposed, or of another model?"
        raise ValueError(f"{name} has {len(matrix)} rows for {d} hidden dimensions: {reason}")


def dot(a: Float[Tensor, "*k d"], b: Float[Tensor, "*k d"]) -> Float[Tensor, "*k 1"]:
    """Inner products along the last dimension, which stays."""
    return (a * b).sum(-1, keepdim=True)
