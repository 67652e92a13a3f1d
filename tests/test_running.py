"""Writes that depend on what comes by, at queries and keys behind rotary positions."""

from functools import partial

import pytest
import torch
from test_patching import random_pairs

from helpers.patching import Site, cache_sites
from helpers.patching.writes import Along, Mix

PLACE = 6


def orthonormal(d, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator)).Q


def kept(running, other, basis):
    """Term by term: of each direction of the basis what `other` has, of the rest what there is."""
    for direction in basis.T:
        running = running + ((other - running) @ direction)[:, None] * direction
    return running


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("kind", ["head_rotated_query", "head_rotated_key"])
def test_a_subspace_of_what_comes_by_is_patched_as_by_whole_passes(tiny_model, architecture, kind):
    model = tiny_model(architecture)
    pairs = random_pairs(model, 3, position=PLACE)
    sites = [Site(layer, kind, head=0) for layer in (1, 2)]  # the upper one feels the lower
    entry, *heads = cache_sites(model, pairs, [Site(1, "resid_pre"), *sites])
    bases = [orthonormal(heads[0].base.shape[1], k, seed=k) for k in (2, 3)]
    clamp = {at.site: Along(at.source, basis) for at, basis in zip(heads, bases, strict=True)}
    found = entry.patched_logits(entry.base, clamp=clamp)

    def patch(value, hook, other, basis):
        new = value.clone()
        new[:, PLACE, 0] = kept(value[:, PLACE, 0], other, basis)
        return new

    hooks = [
        (at.site.hook_name, partial(patch, other=at.source, basis=basis))
        for at, basis in zip(heads, bases, strict=True)
    ]
    with torch.no_grad():
        whole = model.run_with_hooks(torch.stack(pairs.base_tokens), fwd_hooks=hooks)[:, -1]
        clean = model(torch.stack(pairs.base_tokens))[:, -1]
    assert torch.allclose(found, whole, atol=1e-4)
    assert not torch.allclose(found, clean, atol=1e-3)


def test_a_query_that_is_rotated_is_not_the_one_before(tiny_model):
    model = tiny_model("llama")
    pairs = random_pairs(model, 2, position=PLACE)
    before, behind = cache_sites(
        model, pairs, [Site(1, kind, head=1) for kind in ("head_query", "head_rotated_query")]
    )
    assert torch.allclose(before.base.norm(dim=1), behind.base.norm(dim=1), atol=1e-5)
    assert not torch.allclose(before.base, behind.base, atol=1e-3)


def test_where_positions_are_not_rotary_there_is_none(tiny_model):
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match="no head_rotated_query: there is no hook"):
        cache_sites(model, random_pairs(model, 2), [Site(1, "head_rotated_query", head=0)])


def test_along_all_directions_is_the_other_and_along_none_nothing():
    running, other = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).unbind()
    everything = orthonormal(5, 5, seed=1)
    assert torch.allclose(Along(other, everything).of(running), other, atol=1e-6)
    assert torch.equal(Along(other, everything[:, :0]).of(running), running)
    rows = torch.tensor([2, 0])
    assert torch.equal(Along(other, everything)[rows].other, other[rows])
    assert torch.equal(Mix(other, torch.tensor(0.5))[rows].other, other[rows])


def test_a_write_of_another_width_is_refused(tiny_model):
    model = tiny_model("llama")
    pairs = random_pairs(model, 2, position=PLACE)
    entry = cache_sites(model, pairs, [Site(1, "resid_pre")])[0]
    query = Site(1, "head_rotated_query", head=0)
    wide = Along(torch.zeros(2, 3), torch.eye(3))
    with pytest.raises(ValueError, match="dimensions, not 3"):
        entry.patched_logits(entry.base, clamp={query: wide})
