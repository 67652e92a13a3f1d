"""Mean ablation against one hook after the other, and on a model whose circuit is known."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from planted_circuit import COPIER, FETCHER, QUERY, planted_model, position_pairs
from test_patching import random_pairs

from helpers.circuits import (
    ablated_logit_difference,
    every_head,
    head_means,
    random_heads,
    random_subset,
    strongest,
)
from helpers.patching import Site, cache_pairs
from tools.circuits import ablated_accuracy, at_token, completeness, faithfulness, minimality


def name(layer):
    return f"blocks.{layer}.attn.hook_z"


def ablated_by_hand(model, tokens, circuit, means):
    """The last logits of one prompt, one head at a time."""
    hooks = []
    for layer, head in set(every_head(model)) - set(circuit):

        def ablate(z, hook, layer=layer, head=head):
            z = z.clone()
            for place in range(z.shape[1]):
                z[:, place, head] = means[layer, place, head]
            return z

        hooks.append((name(layer), ablate))
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        return model(tokens[None])[0, -1]


def by_hand(model, pairs, circuit, means):
    found = []
    for row, tokens in enumerate(pairs.base_tokens):
        logits = ablated_by_hand(model, tokens, circuit, means)
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


def test_entries_of_a_circuit_may_be_at_one_token(tiny_model):
    model = tiny_model("gpt2")
    pairs, heads = random_pairs(model, 3), every_head(model)
    means = head_means(model, pairs)
    place_by_place = [entry for at in range(9) for entry in at_token(heads, at)]
    full, last, *rest = (
        ablated_logit_difference(model, pairs, circuit, means)
        for circuit in (heads, at_token(heads, -1), at_token(heads, 8), place_by_place)
    )
    assert torch.equal(last, rest[0]) and torch.equal(full, rest[1])

    def ablate(z, hook, layer):
        z = z.clone()
        z[:, :-1] = means[layer, :-1]
        return z

    hooks = [(name(at), partial(ablate, layer=at)) for at in range(model.cfg.n_layers)]
    logits = model.run_with_hooks(torch.stack(pairs.base_tokens), fwd_hooks=hooks)[:, -1]
    rows = torch.arange(3)
    right = logits[rows, pairs.answer] - logits[rows, pairs.counterfactual]
    assert torch.allclose(last, right, atol=1e-4) and not torch.allclose(last, full, atol=1e-2)


def test_accuracy_counts_the_top_token(tiny_model):
    model = tiny_model("llama")
    pairs, circuit = random_pairs(model, 4), [(0, 1), (1, 2)]
    means = head_means(model, pairs)
    logits = [ablated_by_hand(model, tokens, circuit, means) for tokens in pairs.base_tokens]
    top = torch.stack(logits).argmax(-1)
    others = replace(pairs, answer=torch.where(torch.arange(4) < 3, top, pairs.answer))
    found = ablated_accuracy(model, others, circuit, means, batch_size=3)
    assert found.tolist() == (others.answer == top).float().tolist() and found.sum() >= 3


def test_a_planted_circuit_is_faithful_complete_and_minimal():
    model, pairs = planted_model(), position_pairs()
    means, circuit = head_means(model, pairs), at_token([COPIER, FETCHER], QUERY)
    whole = ablated_logit_difference(model, pairs, every_head(model), means).mean().item()
    found = faithfulness(model, pairs, [circuit, circuit[:1], circuit[1:]], means)
    assert [x.value for x in found] == pytest.approx([1, 0, 0], abs=1e-4) and whole > 1
    each = minimality(model, pairs, [*circuit, (0, 3)], means)
    assert list(each) == [*circuit, (0, 3)]
    assert [x.value for x in each.values()] == pytest.approx([whole, whole, 0], abs=1e-4)
    spare = minimality(model, pairs, circuit, means, knocked_out=circuit[:1])
    assert [x.value for x in spare.values()] == pytest.approx([whole, 0], abs=1e-4)
    sets = [circuit[:1], [FETCHER], [], [(0, 3), (1, 1)]]
    for left, right in zip(completeness(model, pairs, circuit, sets, means), (0, 0, whole, whole),
                           strict=True):  # fmt: skip
        assert left.difference.value == pytest.approx(0, abs=1e-4)
        assert left.model.value == pytest.approx(right, abs=1e-4)
    (left,) = completeness(model, pairs, [FETCHER], [[]], means)
    assert left.difference.value == pytest.approx(-whole, abs=1e-4) and left.circuit.value < 1e-4
    found = faithfulness(model, pairs, [circuit, circuit[:1]], means, measure=ablated_accuracy)
    assert [x.value for x in found] == [1, 0]


def test_random_subsets(tiny_model):
    entries = at_token(every_head(tiny_model("gpt2")), -1)
    found = random_subset(entries, 5, seed=0)
    assert len(set(found)) == 5 and set(found) <= set(entries)
    assert random_subset(entries, 5, seed=1) != found
    with pytest.raises(ValueError, match="k must be from 1 to 16 heads, not 17"):
        random_subset(entries, 17, seed=0)


def test_tokens_that_there_are_not(tiny_model):
    model = tiny_model("gpt2")
    pairs = random_pairs(model, 2)
    means = head_means(model, pairs)
    wrong = {(0, 0, 9): "no token 9 in prompts of 9", (0, 0, None): "a whole number"}
    for entry, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            ablated_logit_difference(model, pairs, [entry], means)
