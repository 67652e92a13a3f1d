"""Mean ablation against one hook after the other, written out."""

import pytest
import torch
from test_patching import random_pairs

from helpers.circuits import (
    ablated_logit_difference,
    every_head,
    faithfulness,
    head_means,
    random_heads,
    strongest,
)
from helpers.patching import Site, cache_pairs


def name(layer):
    return f"blocks.{layer}.attn.hook_z"


def by_hand(model, pairs, circuit, means):
    """One prompt and one head at a time."""
    found = []
    for row, tokens in enumerate(pairs.base_tokens):
        hooks = []
        for layer, head in set(every_head(model)) - set(circuit):

            def ablate(z, hook, layer=layer, head=head):
                z = z.clone()
                for place in range(z.shape[1]):
                    z[:, place, head] = means[layer, place, head]
                return z

            hooks.append((name(layer), ablate))
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            logits = model(tokens[None])[0, -1]
        found.append(logits[pairs.answer[row]] - logits[pairs.counterfactual[row]])
    return torch.stack(found)


def means_by_hand(model, pairs):
    runs = []
    for tokens in (*pairs.base_tokens, *pairs.source_tokens):
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens[None])
        runs.append(torch.stack([cache[name(at)][0] for at in range(model.cfg.n_layers)]))
    return torch.stack(runs).mean(0)


def test_only_the_circuit_works(any_model):
    pairs = random_pairs(any_model, 3)
    means = head_means(any_model, pairs, batch_size=2)
    assert torch.allclose(means, means_by_hand(any_model, pairs), rtol=1e-4, atol=1e-6)
    for circuit in ([], [(0, 1), (2, 3), (1, 0)], [(2, 0)]):
        found = ablated_logit_difference(any_model, pairs, circuit, means, batch_size=2)
        right = by_hand(any_model, pairs, circuit, means)
        assert torch.allclose(found, right, rtol=1e-4, atol=1e-5)


def test_all_heads_are_the_model_and_none_is_nothing(any_model):
    pairs = random_pairs(any_model, 4)
    means, heads = head_means(any_model, pairs), every_head(any_model)
    clean = cache_pairs(any_model, pairs, Site(0, "resid_pre")).clean_logit_difference
    full = ablated_logit_difference(any_model, pairs, heads, means)
    assert torch.allclose(full, clean, rtol=1e-4, atol=1e-5)
    found = faithfulness(any_model, pairs, [heads, []], means)
    assert [x.value for x in found] == pytest.approx([1, 0], abs=1e-6)


def test_faithfulness_is_a_ratio_of_means(tiny_model):
    model = tiny_model("llama")
    pairs, circuit = random_pairs(model, 4), [(0, 1), (1, 2)]
    means = head_means(model, pairs)
    part, none, full = (
        by_hand(model, pairs, heads, means).mean() for heads in (circuit, [], every_head(model))
    )
    (found,) = faithfulness(model, pairs, [circuit], means)
    assert found.value == pytest.approx(((part - none) / (full - none)).item(), rel=1e-4)
    assert found.low <= found.value <= found.high


def test_the_strongest_heads():
    scores = torch.zeros(2, 3, 4, 2)
    scores[:, 1, :, 0], scores[:, 2, 3, 1], scores[0, 0, 0, 0] = 1.0, -9.0, 1.0
    scores[0, 0, 1, 1], scores[1, 0, 1, 1] = 50.0, -50.0  # nothing on average
    assert strongest(scores, 3) == [(2, 1), (1, 0), (0, 0)]


def test_random_heads_are_different_heads(tiny_model):
    model = tiny_model("gpt2")
    heads = random_heads(model, 10, seed=0)
    assert len(set(heads)) == 10 and set(heads) <= set(every_head(model))
    assert heads == random_heads(model, 10, seed=0) != random_heads(model, 10, seed=1)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
