"""Tests of a direction: every number against full runs with hooks, or worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import build_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from test_patching import brute_force, hooks_of, join, perturbed, random_pairs

from helpers.audit.diagnostics import (
    NATURAL_SHARE,
    Score,
    beyond_range,
    distance_ratio,
    downstream,
    falls,
    has_kernel,
    mean_change,
    natural_changes,
    patches,
    scores,
    writing_matrix,
)
from helpers.directions.geometry import patch_subspace, random_direction, unit
from helpers.patching.caching import cache_pairs
from helpers.patching.metrics import logit_difference
from helpers.patching.sites import Site
from helpers.tasks.pairs import Pairs

EVERYWHERE = [
    "whole does less",
    "not necessary",
    "lost off natural changes",
    "cross term",
    "beyond range",
    "far at the site",
    "far downstream",
    "lost in range",
]
WITH_KERNEL = ["null norm", "read by the null part", "lost by the row part", "lost unit by unit"]
seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def one_token_pairs(model, n: int = 6, length: int = 9, position: int = 8) -> Pairs:
    """Pairs that differ in the patched token only."""
    pairs = random_pairs(model, n, length, position)
    sources = [tokens.clone() for tokens in pairs.base_tokens]
    for base, source in zip(sources, pairs.source_tokens, strict=True):
        base[position] = source[position]
    return Pairs(**{**vars(pairs), "source_tokens": tuple(sources)})


def full_runs(cached, activation: torch.Tensor) -> torch.Tensor:
    """Logit differences of full forward passes, with the activation written by a hook."""
    logits = brute_force(cached.model, cached.pairs, cached.site, activation)
    return logit_difference(logits, cached.pairs.answer, cached.pairs.counterfactual)


def unpatched(cached) -> torch.Tensor:
    """Logit differences of the model as it is."""
    logits = [cached.model(tokens[None])[0, -1] for tokens in cached.pairs.base_tokens]
    pairs = cached.pairs
    return logit_difference(torch.stack(logits), pairs.answer, pairs.counterfactual)


def null_part(v: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    return v - v @ W @ torch.linalg.pinv(W)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def cached(request, tiny_model):
    """Pairs of two lengths at the hidden activation of an MLP."""
    model = tiny_model(request.param)
    pairs = join(random_pairs(model, 4), random_pairs(model, 2, length=6, seed=4))
    return cache_pairs(model, pairs, Site(1, "mlp_hidden"))


@pytest.fixture(scope="module")
def W(cached):
    return writing_matrix(cached.model, cached.site)


@pytest.fixture(scope="module")
def v(cached):
    return random_direction(cached.base.shape[1], seed=7)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_what_is_written_is_what_the_sublayers_add(architecture, tiny_model):
    model = tiny_model(architecture)
    _, seen = model.run_with_cache(torch.stack(random_pairs(model).base_tokens))
    block, heads = model.blocks[1], range(model.cfg.n_heads)
    hidden, z = seen["blocks.1.mlp.hook_post"], seen["blocks.1.attn.hook_z"]
    mlp = hidden @ writing_matrix(model, Site(1, "mlp_hidden"))
    mlp = mlp if block.mlp.b_out is None else mlp + block.mlp.b_out
    assert torch.allclose(mlp, seen["blocks.1.hook_mlp_out"], atol=1e-4)
    written = [z[:, :, h] @ writing_matrix(model, Site(1, "head_output", head=h)) for h in heads]
    attention = sum(written) if block.attn.b_O is None else sum(written) + block.attn.b_O
    assert torch.allclose(attention, seen["blocks.1.hook_attn_out"], atol=1e-4)


def test_only_a_projection_to_fewer_dimensions_has_a_kernel(tiny_model):
    model = tiny_model("llama")
    assert has_kernel(writing_matrix(model, Site(1, "mlp_hidden")))
    assert not has_kernel(writing_matrix(model, Site(1, "head_output", head=0)))
    for kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        assert writing_matrix(model, Site(1, kind)) is None
    assert not has_kernel(None)
    with pytest.raises(ValueError, match="writes nothing"):
        writing_matrix(model, Site(1, "head_query", head=0))


def test_score_is_a_ratio_of_means():
    assert Score(torch.tensor([1.0, 5.0]), torch.tensor([4.0, 0.0])).value == 1.5


def test_patches_add_up(cached, W, v):
    base, source = cached.base, cached.source
    patched = patches(cached, -3 * v, W)
    assert torch.allclose(patched["direction"], patch_subspace(base, source, v), atol=1e-5)
    assert torch.equal(patched["whole"], source)
    change, rest = patched["direction"] - base, patched["whole without"] - base
    assert torch.allclose(change + rest, source - base, atol=1e-5)
    assert (rest @ v).abs().max() < 1e-4


def test_parts_are_told_apart_where_there_is_a_kernel_only(cached, W, v):
    base, source, null = cached.base, cached.source, null_part(v, W)
    patched = patches(cached, v, W)
    assert torch.allclose(patched["row"], patch_subspace(base, source, v - null), atol=1e-4)
    sensed = ((source - base) @ null)[:, None] * v
    assert torch.allclose(patched["read null"], base + sensed, atol=1e-4)
    for without in (None, W[: W.shape[1]]):
        assert not {"row", "read null"} & patches(cached, v, without).keys()


def test_a_direction_of_one_part_only(cached, W, v):
    null = patches(cached, null_part(v, W), W)
    fall = falls(cached, null)
    assert (null["direction"] - cached.base).abs().max() > 0.1
    assert fall["direction"].abs().max() < 1e-3  # moved, and nobody sees it
    assert torch.equal(null["row"], cached.base)
    assert torch.allclose(null["read null"], null["direction"], atol=1e-4)
    row = patches(cached, v - null_part(v, W), W)
    assert torch.allclose(row["row"], row["direction"], atol=1e-4)
    assert torch.allclose(row["read null"], cached.base, atol=1e-4)


@given(seed=seeds)
def test_what_real_inputs_do_not_do_is_taken_out(seed):
    axes = torch.linalg.qr(normal(10, 4, seed=seed))[0]
    inside, outside = axes[:, 0], axes[:, 3]
    base = normal(30, 10, seed=seed + 1)
    source = base + normal(30, 3, seed=seed + 2) @ axes[:, :3].T
    pairs = SimpleNamespace(base=base, source=source)
    found = patches(pairs, inside, None)
    assert torch.allclose(found["natural changes"], found["direction"], atol=1e-8)
    half = patches(pairs, inside + outside, None)
    removed = half["direction"] - half["natural changes"]
    expected = ((half["direction"] - base) @ outside)[:, None] * outside
    assert torch.allclose(removed, expected, atol=1e-8)
    assert removed.abs().max() > 1e-2


def test_natural_changes_hold_most_of_the_change():
    base, size = normal(3, 5, seed=0), torch.tensor([9.0, 0.6, 0.4], dtype=torch.float64)
    change = torch.zeros(3, 5, dtype=torch.float64)
    change[[0, 1, 2], [4, 0, 2]] = size.sqrt()
    axes = natural_changes(SimpleNamespace(base=base, source=base + change))
    assert torch.allclose(axes.abs(), torch.eye(5, dtype=torch.float64)[:, [4, 0]])  # 96 %


@given(seed=seeds, d=st.integers(1, 8))
def test_natural_changes_are_no_more_than_needed(seed, d):
    base, source = normal(6, d, seed=seed), normal(6, d, seed=seed + 1)
    axes = natural_changes(SimpleNamespace(base=base, source=source))
    assert torch.allclose(axes.T @ axes, torch.eye(axes.shape[1], dtype=torch.float64))
    held = ((source - base) @ axes).square().sum(0) / (source - base).square().sum()
    assert held.sum() >= NATURAL_SHARE - 1e-9
    assert held.sum() - held.min() < NATURAL_SHARE


def test_falls_equal_full_runs_with_hooks(cached, W, v):
    patched, clean = patches(cached, v, W), unpatched(cached)
    found = falls(cached, patched)
    assert found.keys() == patched.keys()
    for name, activation in patched.items():
        assert torch.allclose(found[name], clean - full_runs(cached, activation), atol=1e-3), name
    small = ("mean part", "rest", "unit by unit")
    assert all(fall.abs().max() > (0 if name in small else 1e-2) for name, fall in found.items())


BASE = torch.tensor([[0.0, 7.0], [1.0, -3.0], [2.0, 0.0]])
SOURCE = torch.tensor([[4.0, 1.0], [3.0, 0.0], [1.0, 2.0]])
MOVED = torch.tensor([[8.0, 7.0], [-2.0, -3.0], [3.0, 0.0]])  # natural along x: from 0 to 4


def test_range_by_hand():
    pairs = SimpleNamespace(base=BASE, source=SOURCE)
    assert beyond_range(pairs, MOVED, None).tolist() == pytest.approx([1, 0.5, 0])
    mirrored = SimpleNamespace(base=-BASE, source=-SOURCE)
    assert beyond_range(mirrored, -MOVED, None).tolist() == pytest.approx([1, 0.5, 0])


def test_range_is_that_of_what_is_written():
    W = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])  # the sum of two units, twice
    base = torch.tensor([[1.0, 0.0, 5.0], [0.0, -1.0, 0.0]])
    source = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 9.0]])  # sums from -1 to 3
    pairs = SimpleNamespace(base=base, source=source)
    moved = base + torch.tensor([[3.0, 0.0, 70.0], [2.0, 2.0, -70.0]])  # to sums of 4 and 3
    assert beyond_range(pairs, moved, W).tolist() == pytest.approx([0.25, 0], abs=1e-6)
    unseen = base + torch.tensor([[100.0, -100.0, 1.0], [0.0, 0.0, -50.0]])
    assert beyond_range(pairs, unseen, W).tolist() == [0, 0]


@given(seed=seeds, scale=st.floats(1e-2, 1e2), shift=st.floats(-100, 100))
def test_range_does_not_depend_on_units_origin_or_axes(seed, scale, shift):
    base, source, moved = (normal(5, 4, seed=seed + i) for i in range(3))
    turn = torch.linalg.qr(normal(4, 4, seed=seed + 3))[0] * scale
    pairs = SimpleNamespace(base=base, source=source)
    other = SimpleNamespace(base=base @ turn + shift, source=source @ turn + shift)
    expected = beyond_range(pairs, 3 * moved, None)
    assert torch.allclose(beyond_range(other, 3 * moved @ turn + shift, None), expected, atol=1e-6)
    assert (expected >= 0).all()


def by_loop(natural: torch.Tensor, patched: torch.Tensor) -> torch.Tensor:
    def nearest(point, own):
        others = [other for j, other in enumerate(natural) if j != own]
        return min((point - other).norm() for other in others)

    usual = sum(nearest(point, j) for j, point in enumerate(natural)) / len(natural)
    return torch.stack([nearest(point, i) / usual for i, point in enumerate(patched)])


@given(seed=seeds, n=st.integers(2, 30))
def test_distances_equal_a_loop(seed, n):
    natural, patched = normal(2 * n, 3, seed=seed), normal(n, 3, seed=seed + 1)
    assert torch.allclose(
        distance_ratio(natural, patched), by_loop(natural, patched), rtol=1e-4, atol=1e-6
    )


def test_distances_in_batches_are_the_same(monkeypatch):
    natural, patched = normal(40, 3, seed=0).float(), normal(20, 3, seed=1).float()
    natural[[3, 31]] = natural[8].clone()
    whole = distance_ratio(natural, patched)
    for rows in (1, 7, 20, 39):
        monkeypatch.setattr("helpers.audit.diagnostics.ROWS_TOGETHER", rows)
        assert torch.allclose(distance_ratio(natural, patched), whole, rtol=1e-6)


def test_distances_are_exact_far_from_the_origin():
    """Matrix products of float32 would be wrong by more than the distances."""
    natural = normal(60, 40, seed=0).float() + 1e3
    patched = natural[:30] + 0.1 * normal(30, 40, seed=1).float()
    assert torch.allclose(distance_ratio(natural, patched), by_loop(natural, patched), rtol=1e-4)


def test_a_state_is_not_compared_with_the_base_it_was_made_from():
    natural = torch.tensor([[0.0], [10.0], [4.0], [12.0]])  # nearest others at 4, 2, 4, 2
    assert distance_ratio(natural, natural[:2]).tolist() == pytest.approx([4 / 3, 2 / 3])
    assert distance_ratio(natural, natural[[2, 3]]).tolist() == [0, 0]
    assert distance_ratio(natural, natural[[1, 0]]).tolist() == [0, 0]


def test_states_that_coincide_count_once():
    natural = torch.tensor([[0.0], [10.0], [4.0], [12.0], [10.0], [0.001]])
    patched = torch.tensor([[1.0], [11.0], [4.0]])  # usual: the mean of 4, 2, 4, 2, 2, 4
    assert distance_ratio(natural, patched).tolist() == pytest.approx([1, 1 / 3, 4 / 3], abs=1e-3)


def test_where_all_natural_states_coincide_whatever_moves_is_far():
    still, moved = distance_ratio(torch.ones(4, 2), torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
    assert still == 0 and moved > 1e6


def test_a_prompt_in_two_pairs_does_not_make_all_else_look_far(tiny_model):
    """Pairs of words, and the same pairs turned round: every natural state is there twice."""
    model, site = tiny_model("llama"), Site(1, "resid_post")
    pairs = one_token_pairs(model)
    turned = replace(pairs, base_tokens=pairs.source_tokens, source_tokens=pairs.base_tokens)
    once, twice = (cache_pairs(model, p, site) for p in (pairs, join(pairs, turned)))
    far = [downstream(c, c.base + 0.3 * (c.source - c.base))[1][:6] for c in (once, twice)]
    assert torch.allclose(*far, rtol=1e-3)


def later_units(cached, tokens, activation=None) -> dict[str, torch.Tensor]:
    """Hidden units of the MLPs above the site at the patched token, from a full run."""
    model, site, position = cached.model, cached.site, cached.pairs.position[0]
    names = [f"blocks.{at}.mlp.hook_post" for at in range(site.layer + 1, model.cfg.n_layers)]

    def write(act, hook):
        act = act.clone()
        act[:, position] = activation
        return act

    with model.hooks(fwd_hooks=[] if activation is None else [(site.hook_name, write)]):
        _, seen = model.run_with_cache(torch.stack(tokens), names_filter=names)
    return {name: seen[name][:, position] for name in names}


def held_in_range(cached, activation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logit differences with the later units clipped, and the units of the next MLP by hooks."""
    pairs, site, position = cached.pairs, cached.site, cached.pairs.position[0]
    base, source = (later_units(cached, t) for t in (pairs.base_tokens, pairs.source_tokens))
    patched = later_units(cached, pairs.base_tokens, activation)
    hooks = [(site.hook_name, activation)]
    for name, units in patched.items():
        seen = torch.cat([base[name], source[name]])
        hooks.append((name, torch.minimum(torch.maximum(units, seen.amin(0)), seen.amax(0))))

    def write(value):
        def hook(act, hook):
            act = act.clone()
            act[:, position] = value
            return act

        return hook

    tokens = torch.stack(pairs.base_tokens)
    hooks = [(name, write(value)) for name, value in hooks]
    logits = cached.model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]
    name = next(iter(patched))
    far = by_loop(torch.cat([base[name], source[name]]), patched[name])
    return logit_difference(logits, pairs.answer, pairs.counterfactual), far


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def stream(request, tiny_model):
    """Pairs that differ in the patched token only, so that the whole patch is a real state."""
    model = tiny_model(request.param)
    return cache_pairs(model, one_token_pairs(model), Site(0, "resid_post"))


def test_later_units_are_clipped_as_by_hooks(stream):
    moved = stream.base + 3 * (perturbed(stream) - stream.base)
    held, far = downstream(stream, moved)
    expected, distance = held_in_range(stream, moved)
    assert torch.allclose(held, unpatched(stream) - expected, atol=1e-3)
    assert torch.allclose(far, distance, atol=1e-3)
    fall = falls(stream, {"far out": moved})["far out"]
    assert (fall - held).abs().max() > 0.1  # so clipping did something


def test_nothing_is_held_where_nothing_is_out_of_range(stream):
    """The whole patch brings the patched token to what it is in the source prompt."""
    held, far = downstream(stream, stream.source)
    fall = falls(stream, {"whole": stream.source})["whole"]
    assert torch.allclose(held, fall, atol=1e-3) and fall.abs().max() > 0.1
    assert torch.allclose(far, torch.zeros(6), atol=1e-3)


def test_nothing_is_held_where_no_mlp_follows(tiny_model):
    model = tiny_model("llama")
    last = cache_pairs(model, random_pairs(model), Site(model.cfg.n_layers - 1, "mlp_hidden"))
    held, far = downstream(last, perturbed(last))
    assert torch.allclose(held, falls(last, {"it": perturbed(last)})["it"], atol=1e-4)
    assert far.tolist() == [1] * 5


def test_scores_have_the_documented_names(cached, W, v):
    assert list(scores(cached, v, W)) == EVERYWHERE + WITH_KERNEL
    assert list(scores(cached, v, None)) == EVERYWHERE
    assert all(len(part) == 6 for score in scores(cached, v, W).values() for part in score)


def by_hand_mean_change(cached) -> torch.Tensor:
    """Of all divisions of the pairs in two classes, that with the axis of the largest change."""
    change = (cached.source - cached.base).double()
    axis = torch.linalg.eigh(change.T @ change)[1][:, -1]
    sign = (change @ axis).sign()[:, None]
    return (sign * (sign * change).mean(0)).float()


@given(seed=seeds)
def test_mean_changes_do_not_depend_on_which_of_two_is_the_base(seed):
    base, source = normal(9, 5, seed=seed), 0.2 * normal(9, 5, seed=seed + 1)
    source = source + base + torch.tensor([3.0, 1, 0, 0, 0], dtype=torch.float64)
    swap = torch.arange(9)[:, None] % 2 == 0
    one = mean_change(SimpleNamespace(base=base, source=source))
    assert torch.allclose(one, (source - base).mean(0).expand(9, 5))
    mixed = SimpleNamespace(base=source.where(swap, base), source=base.where(swap, source))
    assert torch.allclose(mean_change(mixed), (-one).where(swap, one))


class LinearSite:
    """Pairs at a site that is read by one vector, for both classes with its sign."""

    def __init__(self, change: torch.Tensor, reads: torch.Tensor) -> None:
        self.base, self.source = torch.zeros_like(change), change
        self.sign, self.reads = change[:, 0].sign(), reads
        self.clean_logit_difference = torch.zeros(len(change), dtype=change.dtype)

    def logit_difference(self, activation, rows=slice(None)):
        return -self.sign[rows] * (activation @ self.reads)

    def __len__(self):
        return len(self.base)


@pytest.mark.parametrize(
    ("direction", "cross", "lost"),
    [
        ((1, 0, 0), 0, 0),  # carries the feature and acts
        ((1, 1, 0), 0.5, 0.5),  # the feature senses, what moves for another reason acts as well
        ((0, 1, 0), 0, 1),
    ],
)
def test_cross_terms_by_hand(direction, cross, lost):
    """One unit carries the feature, another moves for another reason; both are read alike."""
    feature, other = torch.tensor([1.0, 1, -1, -1] * 3), torch.tensor([0.5, -0.5] * 6)
    change = torch.stack([feature, other, torch.zeros(12)], -1).double()
    site = LinearSite(change, torch.tensor([1.0, 1, 0], dtype=torch.float64))
    v = unit(torch.tensor(direction, dtype=torch.float64))
    fall = falls(site, patches(site, v, torch.ones(3, 1, dtype=torch.float64)))
    fall = {name: value.mean().item() for name, value in fall.items()}
    alone = fall["mean part"] + fall["rest"]
    effect = float(v[0] * (v[0] + v[1]))  # senses the feature, acts with both
    assert fall["direction"] == pytest.approx(effect, abs=1e-9)
    if effect:
        assert (fall["natural changes"] - alone) / effect == pytest.approx(cross, abs=1e-9)
        assert 1 - fall["unit by unit"] / effect == pytest.approx(lost, abs=1e-9)


def test_scores_are_shares_of_the_effect(cached, W, v):
    base, source, clean = cached.base, cached.source, unpatched(cached)
    null = null_part(v, W)
    along = ((source - base) @ v)[:, None] * v
    axes, mean = natural_changes(cached), by_hand_mean_change(cached)
    inside = v @ axes @ axes.T
    usual = unit(mean[0] @ axes @ axes.T)
    part, change = (inside @ usual) * usual, source - base
    up, down = 1.5 * mean.clamp(min=0), 1.5 * mean.clamp(max=0)
    unit_by_unit = torch.maximum(torch.minimum(along, up), down)
    fall = {
        name: (clean - full_runs(cached, activation)).mean().item()
        for name, activation in {
            "it": base + along,
            "whole": source,
            "without": source - along,
            "natural": base + along @ axes @ axes.T,
            "row": patch_subspace(base, source, v - null),
            "null": base + ((source - base) @ null)[:, None] * v,
            "part": base + (change @ part)[:, None] * part,
            "rest": base + (change @ (inside - part))[:, None] * (inside - part),
            "units": base + unit_by_unit,
        }.items()
    }
    held, far = downstream(cached, base + along)
    found = {name: score.value for name, score in scores(cached, 2 * v, W).items()}
    expected = {
        "whole does less": 1 - fall["whole"] / fall["it"],
        "not necessary": 1 - (fall["whole"] - fall["without"]) / fall["it"],
        "lost off natural changes": 1 - fall["natural"] / fall["it"],
        "cross term": (fall["natural"] - fall["part"] - fall["rest"]) / fall["it"],
        "lost unit by unit": 1 - fall["units"] / fall["it"],
        "beyond range": beyond_range(cached, base + along, W).mean().item(),
        "far at the site": by_loop(torch.cat([base, source]), base + along).mean().item(),
        "far downstream": far.mean().item(),
        "lost in range": 1 - held.mean().item() / fall["it"],
        "null norm": null.norm().item(),
        "read by the null part": fall["null"] / fall["it"],
        "lost by the row part": 1 - fall["row"] / fall["it"],
    }
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-2)


def test_no_hooks_stay_behind():
    model = build_tiny_model("gpt2")
    cached = cache_pairs(model, random_pairs(model), Site(1, "mlp_hidden"))
    W = writing_matrix(model, cached.site)
    scores(cached, random_direction(len(W), seed=0), W)
    with pytest.raises(ValueError, match="NaN"):
        downstream(cached, cached.base * torch.nan)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    "direction, message",
    [
        (lambda d: torch.ones(d + 1), "dimensions"),
        (lambda d: torch.zeros(d), "zero vector"),
        (lambda d: torch.full((d,), torch.nan), "NaN"),
    ],
)
def test_bad_directions_are_named(cached, W, direction, message):
    for matrix in (W, None):
        with pytest.raises(ValueError, match=message):
            scores(cached, direction(cached.base.shape[1]), matrix)


def test_inputs_are_left_alone(cached, W, v):
    before = [part.clone() for part in (cached.base, cached.source, W, v)]
    scores(cached, unit(v), W)
    assert all(map(torch.equal, (cached.base, cached.source, W, v), before))
