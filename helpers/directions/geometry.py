"""Directions, subspaces and the patches built from them: pure functions of activations.

Throughout, `W_out` is a down projection as TransformerLens stores it, `[d_mlp, d_model]`, so the
MLP writes `hidden @ W_out` (plus a bias). What `W_out` cannot see is its *null space*
`{v : v @ W_out = 0}`; what it can see is the orthogonal complement, its *row space* (section 3).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.models import require

Vectors: TypeAlias = Float[Tensor, "*k d"]
Acts: TypeAlias = Float[Tensor, "pairs d"]  # a row per pair
Writer: TypeAlias = Float[Tensor, "d_mlp d_model"]  # a down projection
SHORTEST = 1e-15  # float32 does not hold the squares of smaller lengths exactly


class RowNullSplit(NamedTuple):
    """`direction = row + null`; neither part is rescaled."""

    row: Vectors
    null: Vectors


def unit(direction: Vectors) -> Vectors:
    """The direction scaled to length 1; a ValueError if it is zero, NaN or infinite."""
    require.floats("a direction", direction)
    if not direction.shape[-1]:
        raise ValueError("a direction of no dimensions points nowhere")
    norm = direction.norm(dim=-1, keepdim=True)
    require.finite("a direction", norm)  # of the numbers, and of their squares
    if not (norm > SHORTEST).all():
        raise ValueError("a direction is the zero vector, which points nowhere")
    return direction / norm


def random_direction(d: int, *, seed: int) -> Float[Tensor, "d"]:
    """A unit vector drawn uniformly from the sphere: the control every direction should beat."""
    require.whole("d", d, least=1)
    return unit(torch.randn(d, generator=torch.Generator().manual_seed(seed)))


def cosine(a: Vectors, b: Vectors) -> Float[Tensor, "*k"]:
    """Cosine of the angle between directions of one dimension, neither zero nor NaN."""
    for direction in (a, b):
        require.floats("a direction", direction)
    _require_dimension("the second direction", b.shape[-1], a.shape[-1])
    return (unit(a) * unit(b)).sum(-1)


def moves(base: Acts, source: Acts) -> Bool[Tensor, "pairs"]:
    """Whether the two differ, by more than rounding: run along different paths all do."""
    require.finite("an activation of the pairs", base, source)
    return (base - source).norm(dim=-1) > 1e-4 * base.norm(dim=-1)


def orthonormal(basis: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """An orthonormal basis of the column space, differentiable in `basis`.

    Raises ValueError: no columns or more than dimensions, zero, NaN, or linearly dependent ones.
    """
    _require_matrix("the basis", basis)
    d, k = basis.shape
    if k > d:
        raise ValueError(f"a basis of {k} directions does not fit in a space of {d} dimensions")
    q, r = torch.linalg.qr(unit(basis.mT).mT)
    if r.diagonal().abs().min() <= max(d, k) * torch.finfo(basis.dtype).eps:
        raise ValueError(f"the {k} columns of the basis are linearly dependent: drop some")
    return q


def patch_subspace(base: Acts, source: Acts, basis: Float[Tensor, "d *k"]) -> Acts:
    """The base activation with its component in the subspace replaced by the source's.

    `h = base + P (source - base)` with `P` the orthogonal projector on the span of `basis`: the
    subspace activation patch of section 2. A single direction `[d]` may have any length, a basis
    `[d, k]` any shape. A ValueError if shapes do not fit, or it is zero, NaN or rank-deficient.
    """
    _require_alike(base, source)
    if not isinstance(basis, Tensor) or basis.ndim not in (1, 2):
        raise ValueError("the basis must be a tensor, one direction [d] or several [d, k]")
    _require_dimension("basis", basis.shape[0], base.shape[-1])
    basis = basis.to(base)
    if basis.ndim == 1:
        v = unit(basis)
        return base + ((source - base) @ v)[..., None] * v
    return base + project(source - base, orthonormal(basis))


def patch_each(base: Acts, source: Acts, directions: Acts) -> Acts:
    """As `patch_subspace` along one direction, with a direction of its own for every pair."""
    _require_alike(base, source)
    require.floats("directions", directions)
    if directions.shape != base.shape:
        shapes = f"{tuple(base.shape)}, not {tuple(directions.shape)}"
        raise ValueError(f"one direction per pair is needed, {shapes}")
    v = unit(directions.to(base))
    return base + ((source - base) * v).sum(-1, keepdim=True) * v


def read_write_patch(
    base: Acts, source: Acts, read: Float[Tensor, "*pairs d"], write: Float[Tensor, "*pairs d"]
) -> Acts:
    """Senses the difference along one vector and acts along another: `base + (read . diff) write`.

    With `read = write = v` of length 1 this is `patch_subspace`; with `row` and `null` in turn as
    `read`, the two moves add up to that of `v = row + null`. Each is one vector for all pairs, or
    one for each. Nothing is normalised here.
    """
    _require_alike(base, source)
    for name, vector in (("read", read), ("write", write)):
        require.floats(name, vector)
        _require_dimension(name, vector.shape[-1], base.shape[-1])
        if vector.ndim > 1 and vector.shape != base.shape:
            shapes = f"{tuple(base.shape)}, not {tuple(vector.shape)}"
            raise ValueError(f"{name} must be one vector or one per pair, {shapes}")
    sensed = ((source - base) * read.to(base)).sum(-1, keepdim=True)
    return base + sensed * write.to(base)


def row_space(W_out: Writer) -> Float[Tensor, "d_mlp rank"]:
    """An orthonormal basis of the hidden directions that `W_out` reads, by rank-aware SVD.

    The rank is counted, not assumed: centring the writing weights removes one dimension, and a
    plain QR would return a direction of noise in its place.
    """
    _require_matrix("W_out", W_out)
    require.finite("W_out", W_out)
    u, s, _ = torch.linalg.svd(W_out, full_matrices=False)
    tolerance = s.max() * max(W_out.shape) * torch.finfo(W_out.dtype).eps
    return u[:, s > tolerance]


def row_null_split(direction: Float[Tensor, "*k d_mlp"], W_out: Writer) -> RowNullSplit:
    """The part of a hidden direction that `W_out` reads and the part it cannot see (section 4.3).

    They are orthogonal, add up to `direction`, and `null @ W_out = 0`. Normalise them yourself if
    the patch you want is along a unit vector: the normalised row part patches `1 / |row|^2` times
    more strongly than the row part as it stands. Raises ValueError: no direction in the hidden
    space of `W_out`, or NaN.
    """
    require.finite("a direction", direction)
    _require_matrix("W_out", W_out)
    _require_dimension("direction", direction.shape[-1], W_out.shape[0])
    row = project(direction, row_space(W_out).to(direction))
    return RowNullSplit(row, direction - row)


def project(direction: Vectors, basis: Float[Tensor, "d rank"]) -> Vectors:
    """The part of a direction in the span of an orthonormal basis."""
    return direction @ basis @ basis.T


def shortest_hidden(W_out: Writer) -> Callable[[Tensor], Tensor]:
    """Takes an output `[d_model]` to the shortest hidden vector `[d_mlp]` that writes it."""
    inverse = torch.linalg.pinv(W_out)
    return lambda output: output @ inverse


def four_point_products(x: Float[Tensor, "n d"], four: Int[Tensor, "rows 4"]) -> Tensor:
    """`(x[a] - x[b]) . (x[c] - x[e])` for each row (a, b, c, e): `[rows]`, in float64."""
    table, (a, b, c, e) = x.double() @ x.double().T, four.unbind(1)
    return table[a, c] - table[a, e] - table[b, c] + table[b, e]


def chance_norms(W_out: Writer) -> tuple[float, float]:
    """Root-mean-square norms of the (row, null) parts of a random unit direction."""
    share = row_space(W_out).shape[1] / W_out.shape[0]
    return share**0.5, (1 - share) ** 0.5


def _require_alike(base: Tensor, source: Tensor) -> None:
    require.floats("base", base)
    require.floats("source", source)
    if base.dtype != source.dtype:
        kinds = f"{base.dtype} and source {source.dtype}"
        raise ValueError(f"base is {kinds}: convert one, source.to(base)")
    if base.shape != source.shape:
        shapes = f"{tuple(base.shape)} and {tuple(source.shape)}"
        raise ValueError(f"base and source must have one shape, got {shapes}")


def _require_matrix(name: str, matrix: Tensor) -> None:
    require.floats(name, matrix, ndim=2)
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {matrix.dtype}, too coarse to take apart: pass {name}.float()")
    if not matrix.numel():
        raise ValueError(f"{name} is empty: its shape is {tuple(matrix.shape)}")


def _require_dimension(name: str, found: int, expected: int) -> None:
    if found != expected:
        sizes = f"{name} has {found} dimensions but the activation has {expected}"
        raise ValueError(f"{sizes}: was it found at another site or in another model?")
