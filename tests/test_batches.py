"""Measuring part by part gives what measuring at once gives."""

import pytest
import torch

from helpers.directions.geometry import patch_subspace, random_direction
from helpers.patching import cache_pairs
from helpers.patching.sites import Site
from helpers.tasks.ioi import make_pairs
from tools.batches import bytes_per_pair, in_batches, measure_in_batches

SITE = Site(1, "mlp_hidden")


@pytest.fixture(scope="module")
def task(tiny_model):
    model = tiny_model("llama")
    return model, make_pairs(model, 24, split="train", seed=0)


def test_parts_together_are_the_whole(task):
    model, pairs = task
    cached = cache_pairs(model, pairs, SITE)
    v = random_direction(cached.base.shape[1], seed=0)
    memory = 5.5 * bytes_per_pair(model, pairs, SITE)
    parts = list(in_batches(model, pairs, SITE, memory=memory))
    assert [len(part) for part in parts] == [5, 5, 5, 5, 4]
    close = {"rtol": 1e-4, "atol": 1e-4}  # batches of other shapes round differently
    torch.testing.assert_close(torch.cat([part.base for part in parts]), cached.base, **close)

    def patch(at):
        return patch_subspace(at.base, at.source, v)

    # A random model has no margin on average, only on those pairs that it happens to get right:
    # with one of the others, one part has no margin, but all parts together do.
    clean = cached.clean_logit_difference
    chosen = torch.cat([clean.argmin()[None], (clean > 0).nonzero()[:, 0]])
    assert clean[chosen].mean() > 0
    memory = 1.5 * bytes_per_pair(model, pairs, SITE)
    at_once = cache_pairs(model, pairs[chosen], SITE)
    whole = at_once.measure(patch(at_once))
    split = measure_in_batches(model, pairs[chosen], SITE, patch, memory=memory)
    torch.testing.assert_close(split.logit_difference, whole.logit_difference, **close)
    assert torch.equal(split.flipped, whole.flipped)
    assert split.fldd == pytest.approx(whole.fldd, abs=1e-3)
    assert split.interchange_accuracy == whole.interchange_accuracy


def test_what_a_pair_needs_counts_what_is_kept(task):
    model, pairs = task
    first = pairs[:1]
    cached = cache_pairs(model, first, SITE)
    kept = sum(
        layer.keys[:1].nbytes + layer.values[:1].nbytes
        for layer in cached._groups[0].prefix.layers[SITE.layer :]
    )
    logits = 2 * cached.patched_logits(cached.base).nbytes
    one_token = kept // (len(first.base_tokens[0]) - 1)  # the prefix is without the last token
    assert bytes_per_pair(model, first, SITE) == kept + one_token + logits


def test_one_pair_is_tried_whatever_it_needs(task):
    model, pairs = task
    assert [len(part) for part in in_batches(model, pairs[:3], SITE, memory=1)] == [1, 1, 1]


@pytest.mark.parametrize("memory", [0, -1, float("nan")])
def test_memory_must_be_positive(task, memory):
    with pytest.raises(ValueError, match="positive number of bytes"):
        next(in_batches(*task, SITE, memory=memory))
