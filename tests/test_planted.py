"""Planted pathways: against full runs with hooks, and algebra where the read-out is linear."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import build_tiny_model
from test_patching import hooks_of, join, random_pairs

from helpers.audit.diagnostics import downstream, later_units, scores
from helpers.audit.planted import (
    FAMILIES,
    NATURAL,
    OPENED,
    SILENT,
    PlantedPairs,
    feature,
    plant,
)
from helpers.directions.geometry import patch_subspace, row_null_split
from helpers.patching.cached import CachedPairs
from helpers.patching.caching import cache_sites
from helpers.patching.metrics import logit_difference
from helpers.patching.sites import Site
from tools.audit.benchmark import share_opened

LAYER, POSITION = 1, 5
KINDS = ("mlp_hidden", "resid_mid", "resid_post")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pairs(request, tiny_model) -> list[CachedPairs]:
    """The same pairs at the three activations of one layer that a plant needs."""
    model = tiny_model(request.param)
    return cache_sites(model, random_pairs(model, 6, position=POSITION), sites())


def sites() -> list[Site]:
    return [Site(LAYER, kind) for kind in KINDS]


def full_run(
    planted: PlantedPairs, activation: torch.Tensor, held: dict | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logit differences of full runs with the planted units added by a hook, and later units.

    `held` are activations to write: of the silent units, or at hooks of later layers.
    """
    model, task = planted.hidden.model, planted.hidden.pairs
    own, held = planted.hidden.base.shape[1], dict(held or {})
    fires = held.pop("silent", None)

    def writes(value):
        def hook(act, hook):
            act = act.clone()
            act[:, POSITION] = value
            return act

        return hook

    def add_planted(act, hook):
        stream = act[:, POSITION] + activation[:, own:] @ planted.writes
        if planted.silent:
            reads, threshold, back = planted.silent
            fired = (stream @ reads - threshold).clamp(min=0)
            stream = stream + (fired if fires is None else fires) @ back
        return writes(stream)(act, hook)

    names = [f"blocks.{at}.mlp.hook_post" for at in range(LAYER + 1, model.cfg.n_layers)]
    hooks = [(f"blocks.{LAYER}.mlp.hook_post", writes(activation[:, :own]))]
    hooks += [(f"blocks.{LAYER}.hook_resid_post", add_planted)]
    hooks += [(name, writes(value)) for name, value in held.items()]
    with model.hooks(fwd_hooks=hooks):
        logits, seen = model.run_with_cache(torch.stack(task.base_tokens), names_filter=names)
    found = logit_difference(logits[:, -1], task.answer, task.counterfactual)
    return found, {name: seen[name][:, POSITION] for name in names}


def noisy(planted: PlantedPairs, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(planted.base.shape, generator=torch.Generator().manual_seed(seed))
    return planted.base + noise


def firing(pairs: list[CachedPairs]) -> tuple[PlantedPairs, torch.Tensor]:
    """A plant with silent units, and a patch that makes them fire."""
    planted, direction = plant("hijack", *pairs, seed=0)
    patched = planted.base + 5 * (
        patch_subspace(planted.base, planted.source, direction) - planted.base
    )
    assert (planted.silent.fires(planted.written(patched)) > 0).any()
    return planted, patched


class Linear:
    """A read-out in place of the layers above: what is along `axis`, as the feature of a base."""

    def __init__(self, stream: CachedPairs, axis: torch.Tensor) -> None:
        self.base, self.axis = stream.base, axis
        base, source, _ = feature(stream)
        self.sign = (base - source).sign()

    def logit_difference(self, stream, rows=None, *, clamp=None):
        return (self.sign if rows is None else self.sign[rows]) * (stream @ self.axis)


def linear(planted: PlantedPairs, blind: torch.Tensor | None = None) -> PlantedPairs:
    """The plant with a linear read-out of the feature, which does not see what is `blind`."""
    axis = feature(planted.stream)[2]
    if blind is not None:
        axis = axis - (axis @ blind) / (blind @ blind) * blind
    return replace(planted, stream=Linear(planted.stream, axis))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_full_runs_with_the_units_added_by_a_hook(pairs, family):
    planted, direction = plant(family, *pairs, seed=1)
    for activation in (
        planted.base,
        planted.source,
        noisy(planted),
        patch_subspace(planted.base, planted.source, direction),
    ):
        expected, later = full_run(planted, activation)
        assert torch.allclose(planted.logit_difference(activation), expected, atol=1e-3)
        rows = torch.tensor([4, 0, 0, 2])
        some = planted.logit_difference(activation[rows], rows)
        assert torch.allclose(some, expected[rows], atol=1e-3)
        found = planted.later_units(activation)
        assert {site.hook_name for site in found if site != SILENT} == later.keys()
        for site in found.keys() - {SILENT}:
            assert torch.allclose(found[site], later[site.hook_name], atol=1e-2)
    assert torch.equal(planted.clean_logit_difference, planted.logit_difference(planted.base))


def test_with_no_change_and_the_units_at_zero_it_is_the_clean_model(pairs):
    planted, _ = plant("silent, spread", *pairs, seed=1)
    hidden = planted.hidden
    nothing = torch.cat([hidden.base, torch.zeros_like(planted.base_units)], -1)
    tokens, task = torch.stack(hidden.pairs.base_tokens), hidden.pairs
    expected = logit_difference(hidden.model(tokens)[:, -1], task.answer, task.counterfactual)
    assert torch.allclose(planted.logit_difference(nothing), expected, atol=1e-4)
    assert torch.equal(planted.written(nothing), planted.stream.base)


def test_prompts_of_several_lengths(tiny_model):
    model = tiny_model("llama")
    task = join(random_pairs(model, 2, position=4), random_pairs(model, 3, length=6, seed=4))
    parts = cache_sites(model, task, sites())
    planted, _ = plant("mediator", *parts, seed=1)
    moved = noisy(planted)
    for row in range(5):
        alone = cache_sites(model, task[[row]], sites())
        one = replace(
            planted, hidden=alone[0], stream=alone[2],
            base_units=planted.base_units[[row]], source_units=planted.source_units[[row]],
        )  # fmt: skip
        expected = one.logit_difference(moved[[row]])
        assert torch.allclose(planted.logit_difference(moved)[[row]], expected, atol=1e-3)


def test_planted_units_follow_the_models_own(pairs):
    planted, direction = plant("mixture", *pairs, seed=1)
    own, model = planted.hidden.base.shape[1], planted.hidden.model
    assert torch.equal(planted.base[:, :own], planted.hidden.base)
    assert torch.equal(planted.source[:, own:], planted.source_units)
    assert torch.equal(planted.W[:own], model.blocks[LAYER].mlp.W_out)
    assert torch.equal(planted.W[own:], planted.writes)
    assert len(planted) == 6 and len(planted.natural) == planted.base_units.shape[1]
    assert direction.shape == planted.base.shape[1:]
    assert direction.norm().item() == pytest.approx(1)


def test_silent_units_never_fire_on_a_prompt(pairs):
    planted, patched = firing(pairs)
    for prompts in (planted.base, planted.source):
        assert not planted.silent.fires(planted.written(prompts)).any()
        assert not planted.later_units(prompts)[SILENT].any()
    assert planted.later_units(patched)[SILENT].any()


def test_silent_units_can_be_held(pairs):
    planted, patched = firing(pairs)
    later = Site(LAYER + 1, "mlp_hidden")
    moved = later_units(planted.stream, planted.stream.source)[later]
    clamp = {SILENT: torch.rand(6, 2), later: moved}
    expected, _ = full_run(planted, patched, {"silent": clamp[SILENT], later.hook_name: moved})
    found = planted.logit_difference(patched, clamp=clamp)
    assert torch.allclose(found, expected, atol=1e-3)
    assert clamp.keys() == {SILENT, later}  # the caller's own is left alone
    rows = torch.tensor([3, 3, 1])
    part = {site: value[rows] for site, value in clamp.items()}
    some = planted.logit_difference(patched[rows], rows, clamp=part)
    assert torch.allclose(some, expected[rows], atol=1e-3)
    free = planted.logit_difference(patched)
    assert (free - planted.logit_difference(patched, clamp={SILENT: torch.zeros(6, 2)})).any()


def test_holding_later_units_in_range_silences_the_silent_ones(pairs):
    planted, patched = firing(pairs)
    later = planted.later_units(patched)
    natural = [planted.later_units(prompts) for prompts in (planted.base, planted.source)]
    held = {"silent": torch.zeros(6, 2)}
    for site in later.keys() - {SILENT}:
        seen = torch.cat([units[site] for units in natural])
        held[site.hook_name] = later[site].clamp(seen.amin(0), seen.amax(0))
    expected, _ = full_run(planted, patched, held)
    fall, _ = downstream(planted, patched)
    assert torch.allclose(fall, planted.clean_logit_difference - expected, atol=1e-3)


def test_only_what_does_not_carry_the_feature_is_held(pairs):
    planted, _ = plant("silent, with decoy", *pairs, seed=1)
    moved, base = noisy(planted), planted.base
    held, own = planted.without_planted(moved), planted.hidden.base.shape[1]
    assert list(planted.natural) == [True, True, False]
    assert torch.equal(held[:, : own + 2], moved[:, : own + 2])
    assert torch.equal(held[:, own + 2], base[:, own + 2])
    assert not torch.equal(moved[:, own + 2], base[:, own + 2])


@pytest.mark.parametrize("family", NATURAL)
def test_nothing_is_opened_by_a_natural_pathway(pairs, family):
    for seed in range(3):
        planted, direction = plant(family, *pairs, seed=seed)
        patched = patch_subspace(planted.base, planted.source, direction)
        assert share_opened(planted, patched) == pytest.approx(0, abs=1e-4)
        assert share_opened(linear(planted), patched) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("family", OPENED)
def test_all_is_opened_where_nothing_natural_is_read(pairs, family):
    """Without the noise among the model's own units, and read by readers blind to `elsewhere`."""
    for seed in range(3):
        planted, direction = plant(family, *pairs, seed=seed)
        direction[: planted.hidden.base.shape[1]] = 0
        blind = planted.writes[{"read, unused": 0, "hijack": 1}.get(family, 0)]
        blind = blind if family in ("read, unused", "hijack") else None
        patched = patch_subspace(planted.base, planted.source, direction)
        if family == "hijack":  # far enough for the silent units of a tiny model
            patched = planted.base + 9 * (patched - planted.base)
        assert share_opened(linear(planted, blind), patched) == pytest.approx(1, abs=1e-3)


TURNED = ("hijack", "cross term")  # not one unit for each part


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in TURNED])
def test_share_opened_is_that_of_the_algebra(pairs, family):
    """A patch along `v` acts by `v @ W`, to which each unit adds its own part."""
    for seed in range(3):
        planted, v = plant(family, *pairs, seed=seed)
        patched = patch_subspace(planted.base, planted.source, v)
        read = linear(planted)
        parts = v * (planted.W @ read.stream.axis)
        own = planted.hidden.base.shape[1]
        opened = sum(
            part for part, natural in zip(parts[own:], planted.natural, strict=True) if not natural
        )
        expected = float(opened / parts.sum())
        assert share_opened(read, patched) == pytest.approx(expected, rel=1e-2, abs=1e-3)
    if family == "mixture":
        assert 0 < float(opened / parts[own:].sum()) < 1


def test_a_canceller_undoes_the_mediator_and_not_its_patch(pairs):
    planted, v = plant("canceller", *pairs, seed=1)
    mediator, canceller = planted.writes
    assert torch.equal(mediator, -canceller) and all(planted.natural)
    order = feature(pairs[1])[:2]
    loose = planted.base_units - planted.base_units[:, :1]
    assert loose[:, 1].abs().max() > 0, "each also varies alone"
    change = planted.source_units - planted.base_units
    same = ((order[1] - order[0])[:, None] * change).mean(0).sign()
    assert same[0] == same[1]
    assert v[-1] == 0 and v[-2] > 0.9


def test_a_cross_term_is_sensor_and_busy_unit_spread_over_the_same_units(pairs):
    """Turned back, the plant is that of `in range, with decoy`, and idle units beside it."""
    turned, v = plant("cross term", *pairs, seed=2)
    own, back = turned.hidden.base.shape[1], turned.turn.T
    plain, w = plant("in range, with decoy", *pairs, seed=2)
    assert torch.allclose(turned.turn @ back, torch.eye(len(back)), atol=1e-5)
    for name in ("base_units", "source_units"):
        units = getattr(turned, name) @ back
        assert torch.allclose(units[:, :3], getattr(plain, name), atol=1e-4)
        assert units[:, 3:].abs().max() < 1e-4
    assert torch.allclose((turned.turn @ turned.writes)[:3], plain.writes, atol=1e-4)
    assert torch.allclose((v[own:] @ back)[:3], w[own:], atol=0.02)  # the noise is drawn later
    assert (turned.writes[1:].norm(dim=-1) > 0).all(), "every one of them writes"
    moved = noisy(turned)
    held = turned.without_planted(moved)
    assert torch.allclose(held[:, :own], moved[:, :own], atol=1e-4)
    units, base = held[:, own:] @ back, turned.base_units @ back
    assert torch.allclose(units[:, 2:], base[:, 2:], atol=1e-4), "the busy direction is held"
    assert torch.allclose(units[:, :2], (moved[:, own:] @ back)[:, :2], atol=1e-4)


def test_both_pathways_write_as_much(pairs):
    """The patch along a mediator, and that along sensor and actuator, push the readers alike."""
    pushed = []
    for family in ("mediator", "silent", "silent, with decoy"):
        planted, v = plant(family, *pairs, seed=2)
        v[: planted.hidden.base.shape[1]] = 0
        moved = patch_subspace(planted.base, planted.source, v) - planted.base
        pushed.append(moved @ planted.W)
        half, units = feature(pairs[2])[2], feature(pairs[1])
        along = (units[1] - units[0])[:, None] * half
        strength = pushed[-1].norm() / along.norm()
        assert torch.allclose(pushed[-1], strength * along, atol=1e-3)
        assert 0.4 <= strength <= 1.2
    assert torch.allclose(pushed[0], pushed[1], atol=1e-3)
    assert torch.allclose(pushed[0], pushed[2], atol=1e-3)


@pytest.mark.parametrize("family", ["silent", "silent, with decoy", "in range", "hijack"])
def test_nobody_reads_a_sensor(pairs, family):
    planted, _ = plant(family, *pairs, seed=1)
    own, last = planted.hidden.base.shape[1], len(planted.natural) - 1
    sensor = torch.zeros(planted.base.shape[1])
    sensor[own + last - 1] = 1  # before the actuator
    assert not (sensor @ planted.W).any()
    assert torch.allclose(row_null_split(sensor, planted.W).null, sensor, atol=1e-4)
    order, units = feature(pairs[1])[:2], planted.base_units[:, last - 1]
    assert torch.allclose(units / units[0], order[0] / order[0][0], atol=1e-4)


def test_a_dormant_unit_is_the_same_on_every_prompt(pairs):
    planted, _ = plant("silent", *pairs, seed=1)
    assert not planted.base_units[:, 1].any() and not planted.source_units[:, 1].any()
    busy, _ = plant("in range", *pairs, seed=1)
    assert (busy.base_units[:, 1] != busy.source_units[:, 1]).all()


def test_a_spread_plant_is_many_units_that_work_as_one(pairs):
    for family, units in (("mediator", 1), ("silent", 2)):
        one, v = plant(family, *pairs, seed=3)
        many, w = plant(f"{family}, spread", *pairs, seed=3)
        assert many.writes.shape[0] == 32 * units == 32 * one.writes.shape[0]
        own = one.hidden.base.shape[1]
        assert torch.allclose(v[own:] @ one.writes, w[own:] @ many.writes, rtol=0.1, atol=1e-4)
        assert torch.equal(
            torch.tensor(many.natural), torch.tensor(one.natural).repeat_interleave(32)
        )


def test_seed_alone_decides(pairs):
    for family in ("mixture", "silent, spread", "in range"):
        first, again, other = (plant(family, *pairs, seed=seed) for seed in (3, 3, 4))
        for name in ("base", "source", "writes"):
            assert torch.equal(getattr(first[0], name), getattr(again[0], name))
            assert not torch.equal(getattr(first[0], name), getattr(other[0], name))
        assert torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])


def test_no_other_random_numbers_are_used(pairs):
    before = torch.get_rng_state()
    plant("silent, spread", *pairs, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["nature", "", "mixture, spread"])
def test_unknown_families_are_named(pairs, family):
    with pytest.raises(ValueError, match=f"no family '{family}'.*mediator"):
        plant(family, *pairs, seed=0)


def test_families_are_all_there():
    assert set(NATURAL).isdisjoint(OPENED) and "mixture" not in NATURAL + OPENED
    assert set(FAMILIES) == {*NATURAL, *OPENED, "mixture"}


def test_feature_is_one_and_minus_one_on_average(pairs):
    for cached in pairs:
        base, source, half = feature(cached)
        sides = torch.tensor(list(itertools.product([1.0, -1.0], repeat=6)))
        halves = sides @ (cached.base - cached.source) / 12
        distance, best = (halves - half).norm(dim=-1).min(0)
        assert distance < 1e-4  # half a difference of means, for some division in two classes
        first = sides[best] > 0
        assert torch.where(first, base, source).mean().item() == pytest.approx(1, abs=1e-4)
        assert torch.where(first, source, base).mean().item() == pytest.approx(-1, abs=1e-4)


def test_feature_finds_what_was_put_there(pairs):
    generator = torch.Generator().manual_seed(0)
    push, sign = torch.randn(7, generator=generator), torch.tensor([1.0, -1, 1, 1, -1, 1])
    middle = torch.randn(7, generator=generator)
    made = replace(
        pairs[0], base=middle + sign[:, None] * push, source=middle - sign[:, None] * push
    )
    base, source, half = feature(made)
    turned = (half @ push).sign()
    assert torch.allclose(half, turned * push, atol=1e-5)
    assert torch.allclose(base, turned * sign, atol=1e-5)
    assert torch.allclose(source, -turned * sign, atol=1e-5)


def test_nothing_stays_behind():
    model = build_tiny_model("llama")
    parts = cache_sites(model, random_pairs(model, 5), sites())
    planted, direction = plant("hijack", *parts, seed=0)
    before = planted.base.clone(), planted.source.clone(), planted.W.clone()
    found = scores(planted, direction, planted.W)
    share_opened(planted, planted.source)
    with pytest.raises(ValueError, match="NaN"):
        planted.logit_difference(planted.base * torch.nan)
    assert hooks_of(model) == 0
    assert all(len(part) == 5 for score in found.values() for part in score)
    assert all(map(torch.equal, (planted.base, planted.source, planted.W), before))
