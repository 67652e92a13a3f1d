"""Rank-1 edits of a down projection: hold one while a block runs; from a patch to an edit and back.

With `W = W_out`, `[d_mlp, d_model]`, the MLP writes `x @ W` (plus a bias). A rank-1 edit
`W' = W + outer(b, a)` *reads* `b . x` and *writes* that much of `a`.

**From a patch to an edit** (section 6.4). Patching `h_B` towards `h_A` along `v` changes the output
by `a = (v . (h_A - h_B)) v @ W`. The edit does the same at the key `h_B` if `b . h_B = 1`. Of all
such `b`, the one that senses least elsewhere minimises `E[(b . x)^2] = b^T C b`, with
`C = E[x x^T]`: `b = C^-1 h_B / (h_B^T C^-1 h_B)`. This is also the `b` of a ROME edit.

**From an edit to a patch** (section 6.3). The intervention `x <- x - s (v . x) v` with `s = 1` or
`-1` changes the output by `-s (v . x) v @ W`. With `z = c v` and `beta = s c^2` demand that
`z @ W = beta a`, and minimise `E[((z + b) . x)^2]` over `z` and the number `beta`. Lagrange gives

    z = -b + C^-1 W M (beta a + b @ W)   with   M = (W^T C^-1 W)^-1

(the factors 2 cancel), and the minimum is a parabola in `beta`, least at
`beta = -(a^T M (b @ W)) / (a^T M a)`; `s` is its sign. Exactness at a key `k` is one more linear
constraint, `z . k = -b . k`. In whitened coordinates, `C = L L^T` and `u = L^T (z + b)`, `u` is the
shortest with `(L^-1 W)^T u = beta a + b @ W`. The code solves that one, by QR of `L^-1 W`, within
what `W` can write: centred weights have one dimension less, and what `a` has there is left out.

All is computed in float64 on the CPU, exactly for the `C` it is given; for a `C` from few tokens
see `helpers.editing.moments.regularised`. Ideas: Meng et al. 2022 (ROME); the paper.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.directions.geometry import cosine, project, row_space
from helpers.editing.moments import SecondMoment, in_double, whitener
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
            wanted = f"one edit of shape {tuple(weight.shape)}, got {shape}"
            asked = "was it made for another model, or is it a row of edits? Then choose: edits[0]"
            raise ValueError(f"layer {edit.layer} takes {wanted}: {asked}")
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


@dataclass(frozen=True, eq=False)
class DirectionIntervention:
    """`x <- x - sign (direction . x) direction` on a hidden activation; or several, one per row.

    `direction` may have any length: with `sign` 1, length 1 would remove the component, and length
    `sqrt(2)` would reverse it. A ValueError unless there is a sign, 1 or -1, for each.
    """

    layer: int
    direction: Float[Tensor, "*edits d_mlp"]
    sign: Float[Tensor, "*edits"]

    def __post_init__(self) -> None:
        require.floats("direction", self.direction)
        if self.sign.shape != self.direction.shape[:-1] or not (self.sign.abs() == 1).all():
            raise ValueError("one sign, 1 or -1, is needed for each direction")

    def __call__(self, hidden: Hidden) -> Hidden:
        """The changed activation: a row per intervention, or any rows for a single one."""
        require_dimensions("hidden", hidden, self.direction.shape[-1])
        v, sign = self.direction.to(hidden), self.sign.to(hidden)
        return hidden - (sign * (hidden * v).sum(-1))[..., None] * v

    def __getitem__(self, row: int | slice | Tensor) -> "DirectionIntervention":
        return DirectionIntervention(self.layer, self.direction[row], self.sign[row])

    def as_edit(self, W_out: Writer) -> RankOneEdit:
        """The edit that does the same at every token: reads `v`, writes `-sign v @ W_out`."""
        require_rows("W_out", W_out, self.direction)
        written = self.direction @ W_out.to(self.direction)
        return RankOneEdit(self.layer, self.direction, -self.sign[..., None] * written)


def least_read(key: Hidden, second_moment: SecondMoment) -> Hidden:
    """`b = C^-1 k / (k^T C^-1 k)`: of all `b` with `b . k = 1`, that with the least `b^T C b`."""
    require_rows("the second moment", second_moment, key)
    key64, whiten = in_double(key), whitener(second_moment)
    solved = key64 @ whiten.T @ whiten
    scale = dot(solved, key64)
    if not (scale > 0).all():
        raise ValueError("a key is the zero vector: no edit can recognise it")
    return (solved / scale).to(key)


def patch_to_edit(
    direction: Hidden,
    base: Hidden,
    source: Hidden,
    W_out: Writer,
    second_moment: SecondMoment,
    *,
    layer: int,
) -> RankOneEdit:
    """The rank-1 edit that does to `base` what the patch along `direction` does: see the module.

    Exact at `base`; elsewhere it writes `b . x` times as much, on average as little as can be. An
    edit per pair; the direction may be one for all or one for each, of any length. Raises
    ValueError: a zero direction or base, no fitting shapes, or a singular second moment.
    """
    if base.shape != source.shape or direction.shape[-1] != base.shape[-1]:
        shapes = [tuple(x.shape) for x in (direction, base, source)]
        raise ValueError(f"direction, base and source do not fit together: {shapes}")
    require_rows("W_out", W_out, base)
    if direction.shape not in (base.shape, base.shape[-1:]):
        raise ValueError(f"one direction for all pairs or one for each, not {len(direction)}")
    v, difference = in_double(direction), in_double(source) - in_double(base)
    if not (dot(v, v) > 0).all():
        raise ValueError("a direction is the zero vector, which points nowhere")
    write = dot(v, difference) / dot(v, v) * (v @ in_double(W_out))
    return RankOneEdit(layer, least_read(base, second_moment), write.to(base))


def edit_to_patch(
    edit: RankOneEdit,
    W_out: Writer,
    second_moment: SecondMoment,
    *,
    key: Hidden | None = None,
    beta: float | PerFact | None = None,
) -> DirectionIntervention:
    """The intervention along one direction that mimics the edit best on average: see the module.

    Compare its cost with `extra_variance(found.as_edit(W_out), C) / extra_variance(edit, C)`, and
    its direction with `cosine(found.direction, edit.read)`.

    With `key` it does exactly what the edit does at this activation. `beta` fixes this number
    instead of choosing the best, for all edits or for each: with 1, `v @ W` is `a` itself.

    Raises ValueError: `W_out` cannot write what the edit writes, the edit reads nothing that a
    direction could imitate, a singular second moment, other dimensions, or no such `beta`.
    """
    require_rows("W_out", W_out, edit.read)
    require_rows("the second moment", second_moment, edit.read)
    if key is not None:
        require_dimensions("the key", key, edit.read.shape[-1])
    if isinstance(beta, Tensor) and beta.shape != edit.read.shape[:-1]:
        raise ValueError(f"one beta, or one for each edit, not {tuple(beta.shape)}")
    if isinstance(beta, int | float):
        require.positive("the size of beta", abs(beta))
    read, write, weight = in_double(edit.read), in_double(edit.write), in_double(W_out)
    whiten = whitener(second_moment)
    shortest, seen = _shortest_writers(W_out, whiten)
    for_write, for_read = write @ shortest, read @ weight @ shortest  # u is made of these two
    if key is not None:
        whitened = in_double(key) @ whiten.T
        for_write, for_read = (_unread(u, whitened, seen) for u in (for_write, for_read))
    best = -dot(for_write, for_read) / dot(for_write, for_write)
    chosen = best if beta is None else torch.as_tensor(beta).to(best)[..., None].expand_as(best)
    if not (torch.isfinite(best * chosen) & (chosen != 0)).all():
        raise ValueError("no direction imitates this edit: W_out cannot write it, or it reads zero")
    z = (chosen * for_write + for_read) @ whiten - read
    direction, sign = z / chosen.abs().sqrt(), chosen.sign()[..., 0]
    return DirectionIntervention(edit.layer, direction.to(edit.read), sign.to(edit.read))


def anatomy(
    found: DirectionIntervention,
    edit: RankOneEdit,
    key: Hidden,
    W_out: Writer,
    second_moment: SecondMoment,
) -> dict[str, PerFact]:
    """What interventions that imitate edits do: to the key, to the output there, to other text.

    `beta` by its size; how far the key `moved`, in its own lengths; the `length` of the direction
    and the share of its square in the `kernel` of `W_out`; the share of `a` written `at key`; `cos`
    with what the edit reads, without sign; and the `variance` it adds, in units of the edit's.
    """
    v, as_edit = found.direction, found.as_edit(W_out)
    written = (as_edit.read * key).sum(-1, keepdim=True) * as_edit.write
    both = [extra_variance(each, second_moment) for each in (as_edit, edit)]
    in_rows = project(v, row_space(W_out)).square().sum(-1)
    return {
        "beta": (v @ W_out).square().sum(-1) / edit.write.square().sum(-1),
        "moved": (found(key) - key).norm(dim=-1) / key.norm(dim=-1),
        "length": v.norm(dim=-1),
        "kernel": 1 - in_rows / v.square().sum(-1),
        "at key": (written * edit.write).sum(-1) / edit.write.square().sum(-1),
        "cos": cosine(v, edit.read).abs(),
        "variance": both[0] / both[1],
    }


def extra_variance(edit: RankOneEdit, second_moment: SecondMoment) -> Float[Tensor, "*edits"]:
    """Mean square of what the edit adds to the MLP's output on ordinary text: `b^T C b |a|^2`."""
    require_rows("the second moment", second_moment, edit.read)
    read, write = in_double(edit.read), in_double(edit.write)
    return ((read @ in_double(second_moment) * read).sum(-1) * write.square().sum(-1)).to(edit.read)


def _shortest_writers(W_out: Writer, whiten: SecondMoment) -> tuple[Tensor, Tensor]:
    """`y @ first` is the shortest `u` with `(L^-1 W)^T u = y`; `second` is a basis of all those."""
    # The rank is counted in the precision of the weights: in centred ones, the dimension that is
    # missing is rounding noise of that size.
    weight = in_double(W_out)
    _, s, vh = torch.linalg.svd(weight, full_matrices=False)
    writable = vh[s > s.max() * max(weight.shape) * torch.finfo(W_out.dtype).eps].T
    q, r = torch.linalg.qr(whiten @ weight @ writable)
    return writable @ torch.linalg.solve_triangular(r, q.T, upper=True), q


def _unread(u: Hidden, key: Hidden, seen: Float[Tensor, "d_mlp rank"]) -> Hidden:
    """The shortest vector that writes what `u` writes and is orthogonal to the (whitened) key."""
    free = key - key @ seen @ seen.T  # writes nothing
    if not (free.norm(dim=-1) > 1e-6 * key.norm(dim=-1)).all():
        raise ValueError("W_out sees all of the key: no direction is exact there")
    return u - dot(key, u) / dot(key, free) * free


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
