"""Sites that share forward passes, against a full forward pass for each of them."""

import warnings
from dataclasses import replace

import pytest
import torch
from test_patching import brute_force, join, perturbed, random_pairs, sites_of

from helpers.patching.cached import effects, logit_differences
from helpers.patching.caching import cache_pairs, cache_sites
from helpers.patching.metrics import logit_difference
from helpers.patching.sites import Site


def cached_everywhere(model, position=-1):
    """Pairs of two lengths in mixed order, at sites of all kinds, not in the order of depth."""
    pairs = join(
        random_pairs(model, n=3, position=position),
        random_pairs(model, n=2, length=6, position=position, seed=4),
    )[torch.tensor([3, 0, 2, 4, 1])]
    sites = sites_of(model)
    cached = cache_sites(model, pairs, sites[::2] + sites[1::2])
    right = cached[0].clean_logit_difference > 0  # the effect is a share of a positive margin
    answer, counterfactual = pairs.answer, pairs.counterfactual
    pairs = replace(
        pairs,
        answer=torch.where(right, answer, counterfactual),
        counterfactual=torch.where(right, counterfactual, answer),
    )
    return [replace(at, pairs=pairs) for at in cached]


@pytest.mark.parametrize("tokens", [7, 192])
@pytest.mark.parametrize("position", [-1, 1])
def test_equals_brute_force(any_model, position, tokens, monkeypatch):
    monkeypatch.setattr("helpers.patching.cached.TOKENS_PER_FORWARD", tokens)
    cached = cached_everywhere(any_model, position)
    new = [perturbed(at, seed) for seed, at in enumerate(cached)]
    found, measured = logit_differences(cached, new), effects(cached, new)
    pairs = cached[0].pairs
    for at, x, difference, effect in zip(cached, new, found, measured, strict=True):
        logits = brute_force(any_model, pairs, at.site, x)
        expected = logit_difference(logits, pairs.answer, pairs.counterfactual)
        assert torch.allclose(difference, expected, atol=1e-4), at.site
        assert torch.allclose(effect.logit_difference, expected, atol=1e-4), at.site
        assert torch.equal(effect.flipped, logits.argmax(-1) == pairs.counterfactual)
    assert found.std(0).min() > 1e-3, "sites that do the same prove nothing"


def test_the_whole_component_is_the_default(any_model):
    cached = cached_everywhere(any_model)
    whole = [at.source for at in cached]
    assert torch.equal(logit_differences(cached), logit_differences(cached, whole))
    for effect, at in zip(effects(cached), cached, strict=True):
        alone = at.measure(at.source)
        assert effect.fldd == pytest.approx(alone.fldd, abs=1e-4)
        assert effect.interchange_accuracy == alone.interchange_accuracy


def test_sites_of_a_model_that_runs_whole_prompts(tiny_model, monkeypatch):
    monkeypatch.setattr("helpers.patching.suffix.Suffix.is_exact", lambda self: self.from_start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cached = cached_everywhere(tiny_model("llama"))
    assert cached[0]._groups[0].from_start
    expected = torch.stack([at.logit_difference(at.source) for at in cached])
    assert torch.allclose(logit_differences(cached), expected, atol=1e-4)


def test_few_forward_passes_for_many_sites(tiny_model, monkeypatch):
    model, passes = tiny_model("llama"), []
    cached = cached_everywhere(model)
    handle = model.unembed.register_forward_hook(lambda *_: passes.append(1))
    try:
        logit_differences(cached)
    finally:
        handle.remove()
    assert len(passes) <= len(cached[0]._groups) < len(cached)


def test_what_does_not_belong_together_is_refused(tiny_model):
    model = tiny_model("llama")
    cached = cached_everywhere(model)
    other = cache_pairs(model, cached[0].pairs, Site(0, "mlp_out"))
    for refuse in (logit_differences, effects):
        with pytest.raises(ValueError, match="not one alone"):
            refuse(other)
        with pytest.raises(ValueError, match="no sites"):
            refuse([])
        with pytest.raises(ValueError, match="the same pairs"):
            refuse([*cached, replace(cached[0], pairs=other.pairs[[1, 0, 2, 3, 4]])])
        with pytest.raises(ValueError, match="one call of cache_sites"):
            refuse([*cached, other])
        with pytest.raises(ValueError, match="1 activations for"):
            refuse(cached, [cached[0].source])
        with pytest.raises(ValueError, match="has shape"):
            refuse(cached, [at.source[:2] for at in cached])
        with pytest.raises(ValueError, match="NaN"):
            refuse(cached, [at.source * float("nan") for at in cached])
