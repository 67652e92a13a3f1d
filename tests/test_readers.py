"""Where readers' attention wants the site to go, and holding their queries."""

import pytest
import torch

from helpers.directions.geometry import unit
from helpers.directions.readers import (
    attention_preference,
    clean_queries,
    input_space,
    score_gradients,
)
from helpers.patching.caching import cache_pairs, cache_sites
from helpers.patching.sites import Site
from helpers.tasks.ioi import make_pairs


@pytest.fixture(scope="module")
def cached(tiny_model):
    model = tiny_model("llama")
    return cache_pairs(model, make_pairs(model, 6), Site(0, "resid_post"))


READERS = [(1, 0), (2, 3)]


def preference(model, tokens, residual, layer, head, first, second):
    """Score of the first name minus that of the second, from a full forward pass."""
    seen = {}

    def write(old, hook):
        new = old.clone()
        new[0, -1] = residual
        return new

    def read(scores, hook):
        seen["difference"] = scores[0, head, -1, first] - scores[0, head, -1, second]

    hooks = [("blocks.0.hook_resid_post", write), (f"blocks.{layer}.attn.hook_attn_scores", read)]
    model.run_with_hooks(tokens[None], fwd_hooks=hooks)
    return seen["difference"].item()


def test_gradient_is_the_slope_of_full_forward_passes(cached):
    table = cached.pairs.table
    step, gradients = 1e-2, []
    for layer, head in READERS:
        slope = torch.zeros_like(cached.base[0])
        for row, tokens in enumerate(cached.pairs.base_tokens):
            places = sorted([table["io_position"][row], table["subject_position"][row]])
            for axis in range(0, len(slope), 8):
                push = step * torch.eye(len(slope))[axis]
                up, down = (
                    preference(cached.model, tokens, cached.base[row] + sign * push, layer, head,
                               *places)
                    for sign in (1, -1)
                )  # fmt: skip
                slope[axis] += (up - down) / (2 * step) / len(cached)
        gradients.append(slope)
    found = score_gradients(cached, READERS)
    assert found.shape == (2, 48)
    assert torch.allclose(found.norm(dim=-1), torch.ones(2))
    for ours, slope in zip(found, gradients, strict=True):
        assert torch.allclose(unit(ours[::8]), unit(slope[::8]), atol=2e-2)


def test_clamping_with_clean_queries_cuts_the_readers_off(cached):
    every_head = [(layer, head) for layer in (1, 2) for head in range(4)]
    run = cached.record(cached.source, ["blocks.1.attn.hook_q", "blocks.2.attn.hook_q"])
    clamp = clean_queries(cached, every_head)
    held = cached.record(
        cached.source, ["blocks.1.attn.hook_q", "blocks.2.attn.hook_q"], clamp=clamp
    )
    clean = cached.record(cached.base, ["blocks.1.attn.hook_q", "blocks.2.attn.hook_q"])
    for name in clean:
        assert torch.equal(held[name], clean[name])
        assert not torch.allclose(run[name], clean[name], atol=1e-2)


def test_leaves_nothing_behind(cached):
    assert not score_gradients(cached, READERS).requires_grad
    assert not cached.base.requires_grad
    assert not any(point.fwd_hooks for point in cached.model.hook_dict.values())


@pytest.mark.parametrize("function", [score_gradients, clean_queries])
@pytest.mark.parametrize(
    ("readers", "message"),
    [
        ([], "no readers"),
        ([(0, 1)], "does not lie above"),
        ([(9, 0)], "out of range"),
        ([(1, 9)], "out of range"),
    ],
)
def test_bad_readers(cached, function, readers, message):
    with pytest.raises(ValueError, match=message):
        function(cached, readers)


def test_pairs_without_names(tiny_model, cached):
    pairs = cached.pairs
    bare = type(pairs)(**{**vars(pairs), "table": pairs.table[["base", "source"]]})
    with pytest.raises(ValueError, match="use IOI pairs"):
        score_gradients(cache_pairs(cached.model, bare, cached.site), READERS)


def test_attention_preference_is_read_pair_by_pair_and_head_by_head():
    pattern, io, subject = torch.rand(3, 2, 5), torch.tensor([0, 4, 2]), torch.tensor([1, 1, 3])
    found = attention_preference(pattern, io, subject)
    for pair in range(3):
        for head in range(2):
            expected = pattern[pair, head, io[pair]] - pattern[pair, head, subject[pair]]
            assert found[pair, head] == expected


@pytest.mark.parametrize("matrix, heads", [("W_Q", READERS), ("W_V", [(2, 0), (2, 1)])])
def test_heads_do_not_see_what_is_outside_their_input_space(cached, matrix, heads):
    model = cached.model
    basis = input_space(model, heads, matrix)
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5)
    for layer, head in heads:
        weights = getattr(model.blocks[layer].attn, matrix)[head]
        seen, stream = [], torch.randn(1, 1, model.cfg.d_model)
        outside = torch.randn(model.cfg.d_model)
        outside = outside - outside @ basis @ basis.T
        for added in (torch.zeros_like(outside), outside):
            x = model.blocks[layer].ln1(stream + added)
            scale = (stream + added).square().mean().sqrt()  # the norm divides by it
            seen.append(x[0, 0] @ weights * scale)
        assert torch.allclose(*seen, atol=1e-4)


def written(cached):
    """Source minus base of what an MLP or a head adds to the stream."""
    change, site = cached.source - cached.base, cached.site
    return change if site.head is None else change @ cached.model.W_O[site.layer, site.head]


def test_written_changes_of_all_components_add_up(cached):
    model, layer = cached.model, 1
    parts = [Site(at, "mlp_out") for at in range(layer + 1)]
    parts += [
        Site(at, "head_output", head=head)
        for at in range(layer + 1)
        for head in range(model.cfg.n_heads)
    ]
    ends = [Site(0, "resid_pre"), Site(layer, "resid_post")]
    *parts, start, end = cache_sites(model, cached.pairs, [*parts, *ends])
    total = sum(map(written, [start, *parts]))
    assert torch.allclose(total, end.source - end.base, atol=1e-4)
