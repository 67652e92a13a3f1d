"""The closed form against dense matrices, small steps of full runs, and what algebra promises."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_many_sites import cached_everywhere
from test_patching import brute_force, random_pairs

from helpers.audit.planted import PlantedPairs
from helpers.directions.closed_form import (
    best_directions,
    best_directions_at,
    best_pair_directions,
    linear_effect,
    spectrum_ends,
)
from helpers.directions.geometry import (
    cosine,
    orthonormal,
    patch_each,
    patch_subspace,
    random_direction,
    row_null_split,
    unit,
)
from helpers.directions.search import find_direction, find_pair_directions
from helpers.patching.cached import base_gradients, gradients
from helpers.patching.caching import cache_pairs, cache_sites
from helpers.patching.metrics import logit_difference
from helpers.patching.sites import Site
from tools.evidence.closed_form import refine

EXACT = {"rtol": 0, "atol": 1e-10}
seeds = st.integers(0, 2**31)


class Toy:
    """Pairs whose logit difference is a function of the activation that we write down."""

    site = "the toy"

    def __init__(self, base, source, answer) -> None:
        self.base, self.source, self.answer = base, source, answer

    def __len__(self) -> int:
        return len(self.base)

    def logit_difference(self, activation, rows=slice(None)):
        return self.answer(activation, rows)

    @property
    def clean_logit_difference(self):
        return self.logit_difference(self.base)

    @property
    def base_gradient(self):
        return gradients(self, self.base)

    def fldd(self, basis) -> float:
        """The exact effect."""
        patched = self.logit_difference(patch_subspace(self.base, self.source, basis))
        return (1 - patched.mean() / self.clean_logit_difference.mean()).item()


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def linear(n: int, d: int, seed: int) -> Toy:
    """Another linear answer for each pair, with a margin of 3."""
    base, source, weight = (normal(n, d, seed=seed + k) for k in range(3))
    shift = 3 - (base * weight).sum(-1)
    return Toy(base, source, lambda h, rows: (h * weight[rows]).sum(-1) + shift[rows])


def three_units(parts: torch.Tensor, n: int = 40) -> Toy:
    """Lesson 01's network with some of its units: hidden (x, 0, x), output 2 h2 + h3.

    The base has one sign of x, the source the other, and the answer is the base's sign.
    """
    x, y = normal(2, n, seed=0).abs() * torch.tensor([1.0, -1.0]).double()[:, None]
    side = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2)
    inputs, outputs = torch.tensor([[1.0, 0, 1], [0, 2, 1]], dtype=torch.float64) * parts
    margin = torch.zeros(n, dtype=torch.float64) + (1.0 - parts[2])  # where nothing is read

    def answer(h, rows):
        return side[rows] * (h @ outputs) + margin[rows]

    return Toy((side * x)[:, None] * inputs, (side * y)[:, None] * inputs, answer)


def dense(cached) -> np.ndarray:
    """The matrix M itself, term by term."""
    g, D = cached.base_gradient.double(), (cached.source - cached.base).double()
    M = -sum(torch.outer(*pair) + torch.outer(*pair).T for pair in zip(g, D, strict=True))
    return (M / (2 * len(g) * cached.clean_logit_difference.double().mean())).numpy()


def with_margin(cached):
    """The same with the answers named so that the model gets them right."""
    return replace(cached, pairs=named_right(cached))


def named_right(cached):
    pairs, right = cached.pairs, cached.clean_logit_difference > 0
    answer = torch.where(right, pairs.answer, pairs.counterfactual)
    counterfactual = torch.where(right, pairs.counterfactual, pairs.answer)
    return replace(pairs, answer=answer, counterfactual=counterfactual)


def at_mlp(model, n: int = 7, **kwargs):
    return with_margin(cache_pairs(model, random_pairs(model, n, **kwargs), Site(1, "mlp_hidden")))


# ---------------------------------------------------------------------------- the matrix itself


def test_equals_the_dense_matrix(any_model):
    cached = at_mlp(any_model)
    best, M = best_directions(cached, 3), dense(cached)
    values, vectors = np.linalg.eigh(M)
    n, scale = len(best.spectrum), np.abs(values).max()
    assert n == 14 and (best.spectrum.diff() <= 0).all()
    expected = np.concatenate([values, np.zeros(n)])  # zeros may be missing in either
    for found, all_of_them in ((best.spectrum[:3], values[::-1]), (best.spectrum[-3:], values)):
        ends = np.sort(all_of_them[:3])[::-1]
        assert np.allclose(found.numpy(), ends, rtol=0, atol=1e-5 * scale)
    nearest = np.abs(best.spectrum.numpy()[:, None] - expected).min(1)
    assert nearest.max() < 1e-5 * scale
    assert best.whole == pytest.approx(np.trace(M), abs=1e-5 * scale)
    for k in range(3):
        for found, other in ((best.top, vectors[:, -1 - k]), (best.bottom, vectors[:, k])):
            assert abs(found[:, k].double().numpy() @ other) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("n", "d"), [(2, 30), (9, 6), (3, 6)])
def test_fewer_or_more_pairs_than_dimensions(n, d):
    cached = linear(n, d, seed=n)
    best, values = best_directions(cached), np.linalg.eigvalsh(dense(cached))
    expected = values[::-1]
    assert len(best.spectrum) == min(d, 2 * n)
    half = min(d, 2 * n) // 2
    assert np.allclose(best.spectrum[:half], expected[:half], **EXACT)
    assert np.allclose(best.spectrum[-half:], expected[-half:], **EXACT)


def test_small_steps_of_full_runs(any_model):
    """A hundredth of the patch, in whole forward passes with one hook, is the linear effect."""
    cached = at_mlp(any_model, n=4)
    best, step = best_directions(cached), 1e-2
    axes = {"top": best.top, "bottom": best.bottom}
    axes["random"] = random_direction(len(best.top), seed=0)
    base, source = cached.base, cached.source
    changes = {name: patch_subspace(base, source, v) - base for name, v in axes.items()}
    changes["whole"] = source - base
    expected = {
        "top": best.spectrum[0].item(),
        "bottom": best.spectrum[-1].item(),
        "random": linear_effect(cached, axes["random"]),
        "whole": best.whole,
    }
    margin = cached.clean_logit_difference.mean()
    for name, change in changes.items():
        up, down = (
            logit_difference(
                brute_force(any_model, cached.pairs, cached.site, cached.base + s * step * change),
                cached.pairs.answer, cached.pairs.counterfactual,
            ).mean()
            for s in (1, -1)
        )  # fmt: skip
        found = -(up - down) / (2 * step * margin)
        assert found.item() == pytest.approx(expected[name], rel=0.03, abs=0.01), name


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(2, 5), rank=st.integers(1, 2))
def test_nothing_of_that_dimension_does_more(seed, n, rank):
    """Ky Fan: the sum of the largest eigenvalues is the most a subspace can do. All is linear."""
    cached = linear(n, 8, seed)
    best = best_directions(cached, rank)
    top, bottom = best.spectrum[:rank].sum(), best.spectrum[-rank:].sum()
    assert cached.fldd(best.top) == pytest.approx(top.item(), abs=1e-9)
    assert cached.fldd(best.bottom) == pytest.approx(bottom.item(), abs=1e-9)
    for other in range(20):
        effect = cached.fldd(normal(8, rank, seed=seed + other))
        assert bottom - 1e-9 <= effect <= top + 1e-9


@given(seed=seeds, n=st.integers(1, 6))
def test_the_trace_is_the_whole(seed, n):
    cached = linear(n, 7, seed)
    whole = 1 - cached.logit_difference(cached.source).mean() / cached.clean_logit_difference.mean()
    best = best_directions(cached)
    assert best.whole == pytest.approx(best.spectrum.sum().item(), abs=1e-9)
    assert best.whole == pytest.approx(whole.item(), abs=1e-9)
    identity = torch.eye(7, dtype=torch.float64)
    assert linear_effect(cached, identity) == pytest.approx(best.whole, abs=1e-9)


@given(seed=seeds)
def test_directions_and_their_partners_share_one_plane(seed):
    """s(v) + s(w) = s(r) + s(n): what v gains beyond its parts, its partner loses."""
    cached, W = linear(4, 9, seed), normal(9, 4, seed=seed + 9)
    v = unit(normal(9, seed=seed + 10))
    row, null = row_null_split(v, W)
    r, n = unit(row), unit(null)
    partner = null.norm() * r - row.norm() * n
    s = {name: linear_effect(cached, u) for name, u in zip("vwrn", (v, partner, r, n), strict=True)}
    assert s["v"] + s["w"] == pytest.approx(s["r"] + s["n"], abs=1e-10)
    plane = torch.stack([v, partner], -1)
    assert linear_effect(cached, plane) == pytest.approx(s["v"] + s["w"], abs=1e-10)


def test_a_partner_in_a_model(any_model):
    cached, W = at_mlp(any_model), any_model.blocks[1].mlp.W_out
    v = best_directions(cached).top
    row, null = row_null_split(v, W)
    if null.norm() < 1e-3:
        pytest.skip("this MLP has no kernel")
    r, n = unit(row), unit(null)
    s = [linear_effect(cached, u) for u in (v, null.norm() * r - row.norm() * n, r, n)]
    assert s[0] + s[1] == pytest.approx(s[2] + s[3], abs=1e-5 * (1 + abs(s[0])))
    assert abs(s[3]) < 1e-4 * (1 + abs(s[0])), "nobody reads what the MLP does not write"


# ------------------------------------------------------------------------- toys with known answers


def test_lesson_01_is_half_sensor_half_actuator():
    """Without the unit that is both, the 45 degree mix: the whole does nothing, +1 and -1 do."""
    cached = three_units(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    best = best_directions(cached)
    half = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(best.top, half, **EXACT)
    mirrored = half * torch.tensor([1.0, -1.0, 1.0])
    assert cosine(best.bottom, mirrored).abs().item() == pytest.approx(1)
    change = (cached.source - cached.base).norm(dim=-1).mean().item()
    assert best.spectrum[0].item() == pytest.approx(change, abs=1e-10)  # |g| = 2, margin 1
    assert best.spectrum[-1].item() == pytest.approx(-change, abs=1e-10)
    assert best.whole == pytest.approx(0, abs=1e-10)
    assert cached.fldd(best.top) == pytest.approx(change) == -cached.fldd(best.bottom)


def test_lesson_01_in_full():
    """Sensor (1, 0, 1), actuator (0, 2, 1): the best direction overshoots that lesson's curve."""
    cached = three_units(torch.ones(3, dtype=torch.float64))
    sensor, actuator = torch.tensor([[1.0, 0, 1], [0, 2, 1]], dtype=torch.float64)
    best = best_directions(cached)
    torch.testing.assert_close(best.top, unit(unit(sensor) + unit(actuator)), **EXACT)
    senses_times_does = (best.top @ sensor * (best.top @ actuator)).item()
    assert senses_times_does == pytest.approx((1 + 10**0.5) / 2)
    faithful = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    assert linear_effect(cached, faithful) == pytest.approx(best.whole, abs=1e-10)
    assert best.spectrum[0].item() == pytest.approx(best.whole * senses_times_does)


@given(seed=seeds)
def test_one_pair_is_the_mix_of_gradient_and_difference(seed):
    cached = linear(1, 6, seed)
    g, D = cached.base_gradient[0], (cached.source - cached.base)[0]
    best = best_directions(cached)
    assert cosine(best.top, unit(D) - unit(g)).abs().item() == pytest.approx(1)
    assert cosine(best.bottom, unit(D) + unit(g)).abs().item() == pytest.approx(1)
    ends = (torch.stack([-1 * (g @ D) + g.norm() * D.norm(), -(g @ D) - g.norm() * D.norm()])) / 6
    torch.testing.assert_close(best.spectrum, ends, **EXACT)
    assert cosine(best_pair_directions(cached)[0], best.top).abs().item() == pytest.approx(1)


def test_each_pair_alone(tiny_model):
    cached = at_mlp(tiny_model("llama"), n=4)
    directions = best_pair_directions(cached)
    started = find_pair_directions(cached, steps=0, progress=False)
    torch.testing.assert_close(started, directions)
    change = patch_each(cached.base, cached.source, directions) - cached.base
    for row, v in enumerate(directions):
        alone = best_directions(cache_pairs(cached.model, cached.pairs[row], cached.site))
        assert cosine(v, alone.top).abs().item() == pytest.approx(1, abs=1e-4)
        nats = -(cached.base_gradient[row] @ change[row]).item()
        share = alone.spectrum[0] * cached.clean_logit_difference[row]
        assert nats == pytest.approx(share.item(), rel=1e-3)


# ------------------------------------------------------------------------------------ more passes


def curved(seed: int = 0) -> Toy:
    """Three pairs whose answers are quadratic in the activation."""
    linear_part, bend = linear(3, 5, seed), normal(5, 5, seed=seed + 5) / 8

    def answer(h, rows):
        return linear_part.logit_difference(h, rows) + ((h @ bend) * h).sum(-1) + 9

    return Toy(linear_part.base, linear_part.source, answer)


def refined(cached, passes: int, rank: int = 1) -> SimpleNamespace:
    """Both ends of the spectrum after so many passes."""
    ends = spectrum_ends(cached.base_gradient, cached.source - cached.base, rank)
    top = refine(cached, ends.top, passes).squeeze(1)
    bottom = refine(cached, ends.bottom, passes, bottom=True).squeeze(1)
    return SimpleNamespace(top=top, bottom=bottom)


def at_midpoint(cached, v):
    """The matrix M with gradients half-way to the states that a patch leads to."""
    middle = (cached.base + patch_subspace(cached.base, cached.source, v)) / 2
    there = SimpleNamespace(
        base=cached.base, source=cached.source, base_gradient=gradients(cached, middle),
        clean_logit_difference=cached.clean_logit_difference,
    )  # fmt: skip
    return dense(there)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("end", "column"), [("top", -1), ("bottom", 0)])
def test_a_second_pass_takes_gradients_half_way(seed, end, column):
    cached = curved(seed)
    first, second = (getattr(refined(cached, p), end) for p in (1, 2))
    expected = np.linalg.eigh(at_midpoint(cached, first))[1][:, column]
    assert abs(second.numpy() @ expected) == pytest.approx(1, abs=1e-9)
    assert cosine(first, second).abs() < 1 - 1e-6, "a toy without curvature proves nothing"
    # the midpoint rule is exact for a quadratic
    M = at_midpoint(cached, first)
    assert first.numpy() @ M @ first.numpy() == pytest.approx(cached.fldd(first), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_passes_settle(seed):
    """And do not go to and fro, as the gradients of the last midpoint alone do with seed 2."""
    cached = curved(seed)
    few, some, many = (refined(cached, p) for p in (1, 20, 30))
    assert cached.fldd(some.top) > cached.fldd(few.top)
    assert cached.fldd(some.bottom) < cached.fldd(few.bottom)
    assert cosine(some.top, many.top).item() > 0.99
    assert cosine(some.bottom, many.bottom).item() > 0.99


def test_a_subspace_goes_half_way_as_one(tiny_model):
    cached = at_mlp(tiny_model("llama"))
    first, second = (refined(cached, p, rank=2) for p in (1, 2))
    values, vectors = np.linalg.eigh(at_midpoint(cached, first.top))
    overlap = vectors[:, -2:].T @ second.top.double().numpy()
    assert np.linalg.svd(overlap)[1].min() == pytest.approx(1, abs=1e-4)


def test_a_good_start_needs_few_steps(tiny_model):
    cached = at_mlp(tiny_model("llama"), n=24, length=6)

    def loss_after(epochs, lr, **start):
        fit = find_direction(
            cached, loss=difference, epochs=epochs, batch_size=24, lr=lr, patience=None,
            progress=False, **start,
        )  # fmt: skip
        moved = patch_subspace(cached.base, cached.source, fit.direction)
        return cached.logit_difference(moved).mean().item()

    def difference(cached, activation, rows):
        return cached.logit_difference(activation, rows).mean()

    best = refined(cached, 2).top
    clean, long = cached.clean_logit_difference.mean().item(), loss_after(60, 0.03)
    short = loss_after(3, 0.003, init=best)
    assert clean - short > 0.9 * (clean - long) > 0
    assert clean - short > 1.5 * (clean - loss_after(3, 0.03))


# ------------------------------------------------------------------------ shapes, chunks and sites


def test_shapes_and_order(tiny_model):
    cached = at_mlp(tiny_model("gpt2"))
    one, three = best_directions(cached), best_directions(cached, 3)
    d = cached.base.shape[1]
    assert one.top.shape == one.bottom.shape == (d,) and three.top.shape == (d, 3)
    for end in ("top", "bottom"):
        basis = getattr(three, end)
        torch.testing.assert_close(basis[:, 0], getattr(one, end))
        torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-5)
        effects = [linear_effect(cached, column) for column in basis.T]
        assert effects == sorted(effects, reverse=end == "top")
        assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()
    assert one.top.dtype == cached.base.dtype and not one.top.requires_grad


def test_parts_give_the_same(tiny_model, monkeypatch):
    cached = at_mlp(tiny_model("llama"))
    whole = best_directions(cached, 2)
    monkeypatch.setattr("helpers.patching.cached.ROWS_PER_FORWARD", 3)
    rows, forward = [], cached.model.unembed.register_forward_hook(
        lambda module, inputs, output: rows.append(len(output))
    )  # fmt: skip
    try:
        parts = best_directions(at_mlp(tiny_model("llama")), 2)
    finally:
        forward.remove()
    assert 3 in rows
    torch.testing.assert_close(parts.top, whole.top, rtol=0, atol=1e-4)
    torch.testing.assert_close(parts.bottom, whole.bottom, rtol=0, atol=1e-4)
    torch.testing.assert_close(parts.spectrum, whole.spectrum, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("tokens", "position"), [(192, -1), (7, 1)])
def test_all_sites_from_one_pass(any_model, position, tokens, monkeypatch):
    monkeypatch.setattr("helpers.patching.cached.TOKENS_PER_FORWARD", tokens)
    cached, moves = cached_everywhere(any_model, position), 0
    cached = cached[abs(position) :: 2]
    for gradient, at in zip(base_gradients(cached), cached, strict=True):
        alone = at.base_gradient
        moves += alone.any().item()
        scale = alone.abs().max().item()
        torch.testing.assert_close(gradient, alone, rtol=0, atol=1e-4 * max(1, scale))
    assert moves > len(cached) / 2, "gradients that are all zero prove nothing"


def test_sites_together_are_sites_alone(tiny_model):
    cached = cached_everywhere(tiny_model("llama"))[::4]
    for together, at in zip(best_directions_at(cached), cached, strict=True):
        alone = best_directions(at)
        assert together.whole == pytest.approx(alone.whole, abs=1e-4), at.site
        torch.testing.assert_close(together.spectrum, alone.spectrum, rtol=0, atol=1e-4)
        assert cosine(together.top, alone.top).item() == pytest.approx(1, abs=1e-3), at.site


def test_one_backward_pass_for_many_sites(tiny_model, monkeypatch):
    cached, calls = cached_everywhere(tiny_model("llama")), []
    backward = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: calls.append(1) or backward(*a))
    best_directions_at(cached)
    assert len(calls) == len(cached[0]._groups) < len(cached)


def test_models_that_run_whole_prompts(tiny_model, monkeypatch):
    monkeypatch.setattr("helpers.patching.suffix.Suffix.is_exact", lambda self: self.from_start)
    with pytest.warns(UserWarning, match="cannot be resumed"):
        cached = cached_everywhere(tiny_model("llama"))
    for gradient, at in zip(base_gradients(cached), cached, strict=True):
        torch.testing.assert_close(gradient, at.base_gradient, rtol=0, atol=1e-3)


def test_planted_pathways_have_closed_forms_too(tiny_model):
    model = tiny_model("llama")
    pairs = random_pairs(model, 5)
    hidden, stream = (with_margin(cache_pairs(model, pairs, Site(1, kind))) for kind in
                      ("mlp_hidden", "resid_post"))  # fmt: skip
    units = normal(2, 5, 1, seed=3).float()
    planted = PlantedPairs(hidden, stream, *units, random_direction(48, seed=1)[None] * 4, [True])
    best = best_directions(planted)
    assert best.top.shape == (hidden.base.shape[1] + 1,)
    values = np.linalg.eigvalsh(dense(planted))
    assert best.spectrum[0].item() == pytest.approx(values[-1], rel=1e-4)


# -------------------------------------------------------------------------------------- mistakes


def test_what_has_no_closed_form_is_refused():
    cached = linear(3, 5, seed=0)
    same = Toy(cached.base, cached.base * (1 + 1e-6), cached.answer)
    with pytest.raises(ValueError, match="identical in every pair"):
        best_directions(same)
    hopeless = Toy(cached.base, cached.source, lambda h, rows: cached.answer(h, rows) - 9)
    for call in (best_directions, lambda c: linear_effect(c, torch.ones(5))):
        with pytest.raises(ValueError, match="difference is -6.000: the model does not do this"):
            call(hopeless)
    unread = Toy(cached.base, cached.source, lambda h, rows: 0 * h.sum(-1) + 1)
    for call in (best_directions, best_pair_directions):
        with pytest.raises(ValueError, match="does not depend on the toy"):
            call(unread)
    with pytest.raises(ValueError, match="holds NaN"):
        spectrum_ends(cached.base * torch.nan, cached.source)
    with pytest.raises(ValueError, match="between 1 and 5, got 6"):
        best_directions(cached, 6)
    with pytest.raises(ValueError, match="between 1 and 1, got 2"):
        best_directions(linear(1, 5, seed=0), 2)


def test_orthonormal_columns_are_what_is_patched():
    cached = linear(4, 6, seed=2)
    skewed = normal(6, 2, seed=4)
    expected = linear_effect(cached, orthonormal(skewed))
    assert linear_effect(cached, skewed) == pytest.approx(expected, abs=1e-10)


def test_sites_where_no_direction_does_anything_have_none(tiny_model):
    """Nothing above the last block reads an earlier token, and equal runs leave nothing to move."""
    model = tiny_model("llama")
    pairs = random_pairs(model, 6)
    sites = [Site(layer, "resid_post", position=2) for layer in (0, 2)]
    first, last = best_directions_at(cache_sites(model, pairs, sites))
    assert first is not None and last is None
    same = replace(pairs, source_tokens=pairs.base_tokens, source_position=pairs.position)
    assert best_directions_at(cache_sites(model, same, sites[:1])) == [None]
