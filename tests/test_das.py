"""Direction search: closed forms, and TransformerLens's own DAS as an independent oracle."""

from types import SimpleNamespace

import pytest
import torch
from test_patching import random_pairs
from transformer_lens.tools.analysis import SubspaceInterchange, fit_das
from transformer_lens.tools.analysis.interchange import run_with_intervention

from helpers.directions import search
from helpers.directions.geometry import (
    cosine,
    orthonormal,
    patch_each,
    patch_subspace,
    read_write_patch,
    unit,
)
from helpers.directions.search import (
    answer_logit_difference,
    cross_entropy,
    find_direction,
    find_pair_directions,
)
from helpers.patching.caching import cache_pairs
from helpers.patching.sites import Site

W2 = torch.tensor([0.0, 2.0, 1.0])


def toy(n: int = 64, seed: int = 0) -> SimpleNamespace:
    """Lesson 01's network: hidden (x, 0, x), output 2 h2 + h3."""
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    W1 = torch.tensor([1.0, 0.0, 1.0])
    return SimpleNamespace(base=x[0][:, None] * W1, source=x[1][:, None] * W1)


def squared_error(toy, activation, rows):
    return (activation @ W2 - toy.source[rows] @ W2).square().mean()


SETTINGS = dict(loss=squared_error, lr=0.1, epochs=150, patience=None)


@pytest.mark.parametrize("seed", range(5))
def test_toy_solutions_lie_on_the_curve_of_perfect_directions(seed):
    v = find_direction(toy(), seed=seed, **SETTINGS).direction
    # (what is sensed) x (what is done) must be 1, see lesson 01
    assert (v[0] + v[2]) * (v @ W2) == pytest.approx(1, abs=1e-2)
    assert v.norm().item() == pytest.approx(1, abs=1e-5)


def test_the_seed_decides_everything():
    fits = [find_direction(toy(), seed=seed, **SETTINGS) for seed in (3, 3, 4)]
    assert torch.equal(fits[0].basis, fits[1].basis) and fits[0].losses == fits[1].losses
    assert not torch.equal(fits[0].basis, fits[2].basis)


def test_global_random_state_is_neither_used_nor_changed():
    state = torch.random.get_rng_state()
    find_direction(toy(), seed=0, **SETTINGS)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(("disable", "progress"), [("1", True), ("", True), ("", False)])
def test_the_environment_hides_the_bar(monkeypatch, disable, progress):
    drawn = []
    monkeypatch.setattr(search, "trange", lambda n, **kwargs: drawn.append(n) or range(n))
    monkeypatch.setenv("TQDM_DISABLE", disable)
    find_direction(toy(), progress=progress, **SETTINGS | {"epochs": 2})
    find_pair_directions(linear_pairs(), steps=1, progress=progress)
    assert drawn == ([2, 2] if progress and not disable else [])


def test_pairs_without_a_difference_are_left_out():
    data, seen = toy(8), set()
    data.source[2], data.source[5] = data.base[2], data.base[5] * (1 + 1e-6)  # rounding

    def watch(cached, activation, rows):
        seen.update(rows.tolist())
        return squared_error(cached, activation, rows)

    find_direction(data, loss=watch, epochs=3)
    assert seen == {0, 1, 3, 4, 6, 7}


def test_training_stops_when_nothing_improves():
    constant = lambda cached, activation, rows: 0 * activation.sum() + 1  # noqa: E731
    constant.__name__ = "constant"
    assert len(find_direction(toy(), loss=constant, epochs=100, patience=4).losses) == 5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: find_direction(toy(), 0, loss=squared_error), "rank must lie between 1 and 3"),
        (lambda: find_direction(toy(), 4, loss=squared_error), "rank must lie between 1 and 3"),
        (
            lambda: find_direction(SimpleNamespace(base=toy().base, source=toy().base)),
            "identical in every pair",
        ),
        (
            lambda: find_direction(toy(), loss=lambda *args: torch.tensor(torch.nan)),
            "loss became nan",
        ),
        (lambda: find_direction(toy(), 2, loss=squared_error, epochs=1).direction, "rank 2"),
        (lambda: find_direction(toy(), patience=0), "patience must be a whole number from 1 on"),
        (lambda: find_direction(toy(), 2, init=torch.ones(2, 3)), r"shape \(3, 2\), got \(2, 3\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def cached(tiny_model):
    model = tiny_model("llama")
    return cache_pairs(model, random_pairs(model, n=24, length=6), Site(1, "mlp_hidden"))


def oracle_loss(cached, basis):
    """Cross-entropy under TransformerLens's own interchange, in full forward passes."""
    logits = run_with_intervention(
        cached.model,
        cached.site.hook_name,
        SubspaceInterchange(basis),
        torch.stack(cached.pairs.base_tokens),
        cached.source,
        lambda tokens: cached.model(tokens)[:, -1],
        positions=cached.pairs.position,
    )
    return torch.nn.functional.cross_entropy(logits, cached.pairs.counterfactual)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_loss_is_that_of_transformer_lens(cached, rank):
    generator = torch.Generator().manual_seed(rank)
    basis = orthonormal(torch.randn(cached.base.shape[1], rank, generator=generator))
    ours = cross_entropy(
        cached, patch_subspace(cached.base, cached.source, basis), torch.arange(24)
    )
    assert ours.item() == pytest.approx(oracle_loss(cached, basis).item(), abs=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_search_does_as_well_as_transformer_lens(cached, rank):
    fit = find_direction(cached, rank, epochs=60, batch_size=8, lr=0.03, patience=None)
    tokens = torch.stack(cached.pairs.base_tokens), torch.stack(cached.pairs.source_tokens)
    theirs = fit_das(
        cached.model,
        cached.site.hook_name,
        *tokens,
        cached.pairs.counterfactual,
        lambda tokens: cached.model(tokens)[:, -1],
        rank=rank,
        base_positions=cached.pairs.position,
        source_positions=cached.pairs.source_position,
        epochs=60,
        batch_size=8,
        lr=0.03,
    )
    generator = torch.Generator().manual_seed(rank)
    random = torch.randn(cached.base.shape[1], rank, generator=generator)
    start = oracle_loss(cached, orthonormal(random))
    ours, oracle = oracle_loss(cached, fit.basis), oracle_loss(cached, theirs.basis)
    assert ours < oracle + 0.1 * (start - oracle)
    assert oracle < start


def test_full_rank_is_the_full_patch(cached):
    small = SimpleNamespace(base=cached.base[:, :4], source=cached.source[:, :4])
    losses = []

    def distance(cached, activation, rows):
        losses.append((activation - cached.source[rows]).abs().max())
        return losses[-1]

    find_direction(small, 4, loss=distance, epochs=1)
    assert max(losses) < 1e-5


def test_two_answer_loss_agrees_with_the_full_logits(cached):
    rows = torch.tensor([4, 1, 4])
    new = cached.source[rows]
    logits = cached.patched_logits(new, rows)
    pairs = cached.pairs
    expected = logits.gather(1, pairs.answer[rows, None]) - logits.gather(
        1, pairs.counterfactual[rows, None]
    )
    assert answer_logit_difference(cached, new, rows).item() == pytest.approx(
        expected.mean().item(), abs=1e-4
    )


def test_search_can_start_from_a_given_basis(cached):
    init = torch.eye(cached.base.shape[1])[:, :1]
    fit = find_direction(cached, init=init, epochs=1, lr=1e-6)
    assert cosine(fit.direction, init[:, 0]).abs().item() > 0.999


def linear_pairs(n: int = 5, d: int = 6) -> SimpleNamespace:
    """A model whose logit difference is linear in the activation, another for each pair."""
    base, source, weight = torch.randn(3, n, d, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        base=base, source=source, weight=weight, base_gradient=weight,
        logit_difference=lambda h: (h * weight).sum(-1),
    )  # fmt: skip


def test_in_a_linear_model_the_start_is_the_best_direction_of_each_pair():
    cached = linear_pairs()
    change = cached.source - cached.base
    # min over unit v of (change . v)(weight . v): half of (change . weight - |change| |weight|)
    drop = ((change * cached.weight).sum(-1) - change.norm(dim=-1) * cached.weight.norm(dim=-1)) / 2
    for steps in (0, 5):
        v = find_pair_directions(cached, steps=steps, progress=False)
        patched = cached.logit_difference(patch_each(cached.base, cached.source, v))
        assert torch.allclose(patched - cached.logit_difference(cached.base), drop, atol=1e-4)
        assert torch.allclose(v.norm(dim=-1), torch.ones(5))


def test_no_pair_feels_another(cached):
    together = find_pair_directions(cached, steps=4, progress=False)
    for row in range(3):
        alone = cache_pairs(cached.model, cached.pairs[row], cached.site)
        (direction,) = find_pair_directions(alone, steps=4, progress=False)
        assert torch.allclose(direction, together[row], atol=1e-4)


def test_steps_only_help(cached):
    reached = [
        cached.logit_difference(
            patch_each(
                cached.base,
                cached.source,
                find_pair_directions(cached, steps=steps, progress=False),
            )
        )
        for steps in (0, 3, 12)
    ]
    assert (reached[1] <= reached[0] + 1e-5).all() and (reached[2] <= reached[1] + 1e-5).all()
    assert reached[2].mean() < reached[0].mean() - 1e-3


def test_bad_requests_for_pair_directions():
    with pytest.raises(ValueError, match="steps must be a whole number from 0 on"):
        find_pair_directions(linear_pairs(), steps=-1)
    same = linear_pairs()
    same.source = same.base.clone()
    with pytest.raises(ValueError, match="zero vector"):
        find_pair_directions(same, progress=False)
    unread = linear_pairs()
    unread.site, unread.base_gradient = "the site", torch.zeros_like(unread.base)
    with pytest.raises(ValueError, match="does not depend on the site"):
        find_pair_directions(unread, progress=False)


def test_each_pair_is_patched_along_its_own_direction():
    base, source, v = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(1))
    found = patch_each(base, source, 3 * v)
    for row in range(4):
        alone = patch_subspace(base[row : row + 1], source[row : row + 1], unit(v[row]))
        assert torch.allclose(found[row], alone[0], atol=1e-6)
    read_and_write = read_write_patch(base, source, unit(v), unit(v))
    assert torch.allclose(found, read_and_write, atol=1e-5)
    with pytest.raises(ValueError, match="one direction per pair"):
        patch_each(base, source, v[0])
    with pytest.raises(ValueError, match="one vector or one per pair"):
        read_write_patch(base, source, v[:3], v[0])
