"""Projections and patches against their defining properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.directions.geometry import (
    chance_norms,
    cosine,
    four_point_products,
    orthonormal,
    patch_subspace,
    project,
    random_direction,
    read_write_patch,
    row_null_split,
    row_space,
    shortest_hidden,
    unit,
)

seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@given(seed=seeds, d=st.integers(1, 12), rank=st.integers(1, 12))
def test_patch_is_an_orthogonal_projection_of_the_difference(seed, d, rank):
    rank = min(rank, d)
    base, source, basis = (
        normal(7, d, seed=seed),
        normal(7, d, seed=seed + 1),
        normal(d, rank, seed=seed + 2),
    )
    patched = patch_subspace(base, source, basis)
    # inside the subspace the source, outside it the base: this determines the patch
    assert torch.allclose(patched @ basis, source @ basis, atol=1e-8)
    residue = torch.linalg.lstsq(basis, (patched - base).T).solution
    assert torch.allclose(basis @ residue, (patched - base).T, atol=1e-8)
    # idempotent, and nothing happens to a base patched with itself
    assert torch.allclose(patch_subspace(patched, source, basis), patched, atol=1e-8)
    assert torch.allclose(patch_subspace(base, base, basis), base, atol=1e-12)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_patch_does_not_depend_on_the_length_or_basis_of_the_subspace(seed, scale):
    base, source, basis = (
        normal(4, 6, seed=seed),
        normal(4, 6, seed=seed + 1),
        normal(6, 3, seed=seed + 2),
    )
    mixed = basis @ normal(3, 3, seed=seed + 3)
    assert torch.allclose(
        patch_subspace(base, source, mixed), patch_subspace(base, source, basis), atol=1e-6
    )
    v = basis[:, 0]
    assert torch.allclose(
        patch_subspace(base, source, -scale * v), patch_subspace(base, source, v), atol=1e-9
    )
    assert torch.allclose(
        patch_subspace(base, source, v[:, None]), patch_subspace(base, source, v), atol=1e-9
    )


@given(seed=seeds)
def test_orthogonal_ranks_add_up(seed):
    base, source = normal(5, 8, seed=seed), normal(5, 8, seed=seed + 1)
    q = orthonormal(normal(8, 8, seed=seed + 2))
    parts = sum(patch_subspace(base, source, q[:, k]) - base for k in range(8))
    assert torch.allclose(base + parts, source, atol=1e-9)


def test_patch_leaves_its_inputs_alone():
    base, source, v = normal(3, 4, seed=0), normal(3, 4, seed=1), normal(4, seed=2)
    before = base.clone(), source.clone(), v.clone()
    patch_subspace(base, source, v)
    read_write_patch(base, source, v, v)
    assert all(map(torch.equal, (base, source, v), before))


@given(seed=seeds, rank=st.integers(1, 5))
def test_split_by_a_rank_deficient_matrix(seed, rank):
    W_out = normal(9, rank, seed=seed) @ normal(rank, 5, seed=seed + 1)  # [9, 5] of the given rank
    directions = normal(4, 9, seed=seed + 2)
    row, null = row_null_split(directions, W_out)
    assert row_space(W_out).shape == (9, rank)
    assert torch.allclose(row + null, directions)
    assert torch.allclose(null @ W_out, torch.zeros(4, 5, dtype=torch.float64), atol=1e-8)
    assert torch.allclose((row * null).sum(-1), torch.zeros(4, dtype=torch.float64), atol=1e-8)
    # closed form of the same projector, by the pseudo-inverse
    assert torch.allclose(row, directions @ W_out @ torch.linalg.pinv(W_out), atol=1e-6)


def test_rank_is_counted_after_centring():
    W_out = normal(40, 12, seed=0).float()
    assert row_space(W_out).shape[1] == 12
    assert row_space(W_out - W_out.mean(-1, keepdim=True)).shape[1] == 11


@given(seed=seeds)
def test_reading_the_parts_adds_up_to_the_patch(seed):
    base, source, W_out = (
        normal(5, 9, seed=seed),
        normal(5, 9, seed=seed + 1),
        normal(9, 4, seed=seed + 2),
    )
    v = unit(normal(9, seed=seed + 3))
    row, null = row_null_split(v, W_out)
    by_row = read_write_patch(base, source, row, v) - base
    by_null = read_write_patch(base, source, null, v) - base
    assert torch.allclose(base + by_row + by_null, patch_subspace(base, source, v), atol=1e-9)
    # downstream, the row part as it stands acts as "read row, write all" does ...
    assert torch.allclose(
        read_write_patch(base, source, row, row) @ W_out, (base + by_row) @ W_out, atol=1e-9
    )
    # ... and rescaled to length 1 it acts 1 / |row|^2 times as strongly
    rescaled = (patch_subspace(base, source, row) - base) @ W_out
    assert torch.allclose(rescaled * (row @ row), by_row @ W_out, atol=1e-9)


def test_chance_norms_are_those_of_random_directions():
    W_out = normal(64, 16, seed=0)
    directions = unit(normal(20_000, 64, seed=1))
    row, null = row_null_split(directions, W_out)
    measured = row.square().sum(-1).mean().sqrt(), null.square().sum(-1).mean().sqrt()
    assert chance_norms(W_out) == pytest.approx([float(m) for m in measured], abs=5e-3)


def test_random_direction_is_seeded_and_of_length_one():
    assert torch.equal(random_direction(10, seed=3), random_direction(10, seed=3))
    assert not torch.equal(random_direction(10, seed=3), random_direction(10, seed=4))
    assert random_direction(10, seed=3).norm().item() == pytest.approx(1)


def test_cosine():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    assert cosine(a, b).item() == pytest.approx(0.5**0.5)
    assert cosine(a, -7 * a).item() == pytest.approx(-1)


BASE, SOURCE = torch.zeros(2, 4), torch.ones(2, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: patch_subspace(BASE, SOURCE, torch.zeros(4)), "zero vector"),
        (lambda: patch_subspace(BASE, SOURCE, torch.full((4,), torch.nan)), "NaN"),
        (lambda: patch_subspace(BASE, SOURCE, torch.ones(5)), "5 dimensions"),
        (lambda: patch_subspace(BASE, SOURCE[:1], torch.ones(4)), "one shape"),
        (lambda: patch_subspace(BASE, SOURCE, torch.ones(4, 5)), "does not fit"),
        (lambda: patch_subspace(BASE, SOURCE, torch.ones(4, 2)), "dependent"),
        (lambda: patch_subspace(BASE, SOURCE, torch.full((4, 2), torch.inf)), "NaN or infinity"),
        (lambda: patch_subspace(BASE, SOURCE, torch.zeros(4, 2)), "zero vector"),
        (lambda: read_write_patch(BASE, SOURCE, torch.ones(3), torch.ones(4)), "read has 3"),
        (lambda: read_write_patch(BASE, SOURCE, torch.ones(4), torch.ones(3)), "write has 3"),
        (lambda: row_null_split(torch.ones(5), torch.ones(4, 2)), "5 dimensions"),
        (lambda: unit(torch.zeros(2, 3)), "zero vector"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_projection_is_the_nearest_point_of_the_span():
    direction, basis = normal(8, seed=0), orthonormal(normal(8, 3, seed=1))
    weights = torch.linalg.lstsq(basis, direction[:, None]).solution
    assert torch.allclose(project(direction, basis), (basis @ weights)[:, 0])


def test_the_shortest_hidden_vector_writes_what_it_should_and_is_shortest():
    W_out, written = normal(12, 5, seed=0), normal(5, seed=1)
    hidden = shortest_hidden(W_out)(written)
    assert torch.allclose(hidden @ W_out, written)
    for seed in range(5):  # all others that write the same
        null = row_null_split(normal(12, seed=2 + seed), W_out).null
        assert torch.allclose((hidden + null) @ W_out, written)
        assert (hidden + null).norm() > hidden.norm()


def test_four_point_products_are_inner_products_of_differences():
    x, four = normal(6, 4, seed=0), torch.tensor([[0, 1, 2, 3], [4, 5, 4, 5], [1, 1, 0, 2]])
    expected = [torch.dot(x[a] - x[b], x[c] - x[e]).item() for a, b, c, e in four.tolist()]
    assert four_point_products(x, four).tolist() == pytest.approx(expected)
