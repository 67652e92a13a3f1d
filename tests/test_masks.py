"""Masks against whole forward passes, and on a model whose circuit is known."""

from functools import partial

import pytest
import torch
from planted_circuit import COPIER, FETCHER, four_way_pairs, planted_model
from test_patching import random_pairs

from helpers.circuits import (
    every_head,
    find_heads,
    head_sites,
    random_heads,
)
from helpers.directions import patch_subspace
from helpers.patching import Site, cache_pairs
from tools.circuits import find_directions
from tools.transplant import transplant

QUIET = {"progress": False}


def interchanged(model, pairs, heads):
    """What the model says of the base prompts when these heads say what they say of the sources."""
    return transplant(model, model, pairs, head_sites(heads), from_source=True)


def mixed_by_hand(model, pairs, keep, place):
    """The target's logits of whole passes: every head gives way by 1 - m, at one token."""
    base, source = torch.stack(pairs.base_tokens), torch.stack(pairs.source_tokens)
    names = [f"blocks.{at}.attn.hook_z" for at in range(model.cfg.n_layers)]
    with torch.no_grad():
        other = model.run_with_cache(source)[1]

    def mix(z, hook, layer):
        m, new = keep.view(-1, model.cfg.n_heads)[layer, :, None], z.clone()
        new[:, place] = m * z[:, place] + (1 - m) * other[names[layer]][:, place]
        return new

    hooks = [(name, partial(mix, layer=at)) for at, name in enumerate(names)]
    logits = model.run_with_hooks(base, fwd_hooks=hooks)[:, -1]
    return logits.gather(-1, pairs.counterfactual[:, None])[:, 0]


def learnt_by_hand(model, pairs, place, penalty, steps):
    keep, losses = torch.ones(len(every_head(model)), requires_grad=True), []
    optimizer = torch.optim.Adam([keep], lr=0.1)
    for _ in range(steps):
        loss = penalty * (1 - keep).sum() - mixed_by_hand(model, pairs, keep, place).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            keep.clamp_(0, 1)
        losses.append(loss.item())
    return keep.detach(), losses


@pytest.mark.parametrize("architecture, place", [("gpt2", 5), ("llama", 8)])
def test_a_mask_is_learnt_as_by_whole_passes(tiny_model, architecture, place):
    model = tiny_model(architecture)
    pairs = random_pairs(model, 3, position=place)
    keep, losses = learnt_by_hand(model, pairs, place, 0.05, 6)
    found = find_heads(model, pairs, penalty=0.05, steps=6, batch_size=3, **QUIET)
    assert found.losses == pytest.approx(losses, abs=1e-3)
    assert torch.allclose(found.keep, keep, atol=1e-2) and 0 < found.keep.min() < 0.9


def test_of_several_desiderata_the_mean_is_raised(tiny_model):
    model = tiny_model("llama")
    parts = [random_pairs(model, 2, seed=seed) for seed in (1, 2)]
    one = [find_heads(model, pairs, steps=1, batch_size=2, **QUIET).losses[0] for pairs in parts]
    both = find_heads(model, parts, steps=1, batch_size=2, **QUIET).losses[0]
    assert both == pytest.approx(sum(one) / 2, abs=1e-4)


def test_the_planted_heads_are_found_and_no_others():
    model = planted_model()
    for target, head in (("position", COPIER), ("object", FETCHER)):
        pairs = four_way_pairs(target)
        mask = find_heads(model, pairs, penalty=0.3, steps=80, **QUIET)
        assert mask.chosen == [head] and mask.losses[-1] < mask.losses[0] - 1
        logits = interchanged(model, pairs, mask.chosen)
        assert (logits.argmax(-1) == pairs.counterfactual).all()
        logits = interchanged(model, pairs, [])
        assert (logits.argmax(-1) == pairs.answer).all()
    nothing = find_heads(model, pairs, penalty=99.0, steps=3, **QUIET)
    assert nothing.chosen == [] and (nothing.keep == 1).all()
    others = set(every_head(model)) - {FETCHER}
    assert FETCHER not in find_heads(model, pairs, others, penalty=0.05, **QUIET).chosen


def test_rounded_masks_are_whole_passes(any_model):
    pairs, heads = random_pairs(any_model, 3, position=5), random_heads(any_model, 4, seed=0)
    logits = interchanged(any_model, pairs, heads)
    keep = torch.tensor([float(head not in heads) for head in every_head(any_model)])
    right = mixed_by_hand(any_model, pairs, keep, 5)
    assert torch.allclose(logits.gather(-1, pairs.counterfactual[:, None])[:, 0], right, atol=1e-4)


def test_directions_that_carry_it_are_found():
    """The flag stands in one known direction of what layer 0 leaves at the query."""
    cached = cache_pairs(planted_model(), four_way_pairs("position"), Site(0, "resid_post"))
    basis = torch.linalg.qr(torch.randn(48, 6, generator=torch.Generator().manual_seed(0))).Q
    flag = torch.nn.functional.normalize((cached.source - cached.base)[0], dim=0)
    basis = torch.linalg.qr(torch.cat([flag[:, None], basis], 1)).Q.roll(3, 1)
    mask = find_directions(cached, basis, penalty=0.05, **QUIET)
    assert mask.chosen == [3]
    patched = patch_subspace(cached.base, cached.source, basis[:, mask.chosen])
    assert (cached.patched_logits(patched).argmax(-1) == cached.pairs.counterfactual).all()


def test_the_seed_decides(tiny_model):
    model, pairs = tiny_model("gpt2"), random_pairs(tiny_model("gpt2"), 5)
    draw = lambda seed: find_heads(model, pairs, steps=3, batch_size=2, seed=seed, **QUIET).losses  # noqa: E731
    assert draw(0) == draw(0) != draw(1)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": []}, "at least one component"),
        ({"heads": [(0, 9)]}, "head 9 is out of range"),
        ({"penalty": -1.0}, "penalty must be zero or a positive"),
        ({"steps": 0}, "steps must be a whole number from 1 on"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on"),
    ],
)
def test_masks_that_make_no_sense(tiny_model, options, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        find_heads(model, random_pairs(model, 2), **options)
    cached = cache_pairs(model, random_pairs(model, 2), Site(0, "mlp_out"))
    with pytest.raises(ValueError, match="not orthonormal"):
        find_directions(cached, torch.ones(48, 2))
