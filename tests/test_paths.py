"""Path patching against whole forward passes with hooks, and on a model whose paths are known."""

from functools import partial

import pytest
import torch
from planted_circuit import COPIER, FETCHER, QUERY, planted_model, position_pairs
from test_patching import random_pairs

from helpers.circuits import every_head, head_sites, path_effects
from helpers.patching import Site
from helpers.patching.sites import key_value_heads
from tools.circuits import head_inputs

HOOKS = {"head_query": "hook_q", "head_key": "hook_k", "head_value": "hook_v"}


@torch.no_grad()
def by_hand(model, pairs, sender, receivers, place):
    """Logits of whole passes in which every other head is held at every token."""
    base, source = torch.stack(pairs.base_tokens), torch.stack(pairs.source_tokens)
    runs = [model.run_with_cache(tokens)[1] for tokens in (base, source)]
    names = {site: f"blocks.{site.layer}.attn.{HOOKS[site.kind]}" for site in receivers or ()}
    seen = {}

    def freeze(z, hook, name):
        z = runs[0][name].clone()
        if name == sender.hook_name:
            z[:, place, sender.head] = runs[1][name][:, place, sender.head]
        return z

    def see(x, hook, name):
        seen[name] = x.clone()

    def write(x, hook, name):
        x = x.clone()
        for site in (site for site in names if names[site] == name):
            x[:, place, site.head] = seen[name][:, place, site.head]
        return x

    heads = [f"blocks.{at}.attn.hook_z" for at in range(model.cfg.n_layers)]
    hooks = [(name, partial(freeze, name=name)) for name in heads]
    hooks += [(name, partial(see, name=name)) for name in set(names.values())]
    logits = model.run_with_hooks(base, fwd_hooks=hooks)[:, -1]
    if receivers is None:
        return logits
    writes = [(name, partial(write, name=name)) for name in set(names.values())]
    return model.run_with_hooks(base, fwd_hooks=writes)[:, -1]


def outcomes(pairs, logits):
    rows = torch.arange(len(pairs))
    difference = logits[rows, pairs.answer] - logits[rows, pairs.counterfactual]
    return difference, logits.softmax(-1)[rows, pairs.answer]


def close(found, expected):
    return torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "architecture, kind",
    [("gpt2", "query"), ("gpt_neox", "query"), ("gemma3", "query"), ("llama", "query"),
     ("llama", "key"), ("llama", "value")],
)  # fmt: skip
def test_paths_to_the_inputs_of_heads_are_those_of_whole_passes(tiny_model, architecture, kind):
    model = tiny_model(architecture)
    top = model.cfg.n_layers - 1
    place = 8 if kind == "query" else 5  # keys and values are read by later tokens
    pairs = random_pairs(model, 2, position=place)
    receivers = head_inputs(model, [(top, 0), (top, 3), (1, 2)], kind)
    senders = head_sites([(0, 1), (1, 2)])
    found = path_effects(model, pairs, receivers, senders, progress=False)
    clean = model(torch.stack(pairs.base_tokens))[:, -1]
    assert close(found.clean_logit_difference, outcomes(pairs, clean)[0])
    moved = []
    for number, sender in enumerate(senders):
        right = outcomes(pairs, by_hand(model, pairs, sender, receivers, place))
        assert close(found.logit_difference[number] + found.clean_logit_difference, right[0])
        assert close(found.probability[number] + found.clean_probability, right[1])
        moved.append(found.logit_difference[number].abs().max() > 1e-3)
    assert any(moved), "paths that move nothing prove nothing"


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_direct_effects_are_those_of_whole_passes(tiny_model, architecture):
    model = tiny_model(architecture)
    pairs, senders = random_pairs(model, 2), head_sites([(0, 1), (1, 0)])
    found = path_effects(model, pairs, senders=senders, progress=False)
    for number, sender in enumerate(senders):
        right = outcomes(pairs, by_hand(model, pairs, sender, None, -1))
        assert close(found.logit_difference[number] + found.clean_logit_difference, right[0])
        assert found.logit_difference[number].abs().max() > 1e-3


def test_heads_that_share_keys_are_written_once(tiny_model):
    model = tiny_model("llama")
    assert key_value_heads(model) == 2
    found = head_inputs(model, [(1, 0), (1, 1), (1, 2)], "key")
    assert found == [Site(1, "head_key", head=0), Site(1, "head_key", head=1)]
    assert len(head_inputs(model, [(1, 0), (1, 1)], "query")) == 2


def test_the_planted_path_is_found_and_none_else():
    model, pairs = planted_model(), position_pairs()
    heads = every_head(model)
    for kind, there in (("query", True), ("key", False), ("value", False)):
        receivers = head_inputs(model, [FETCHER], kind)
        found = path_effects(model, pairs, receivers, progress=False)
        for head, change in zip(heads, found.logit_difference, strict=True):
            if there and head == COPIER:
                clean = found.clean_logit_difference
                assert torch.allclose(change, -2 * clean, rtol=1e-4)  # as after the source
                assert (clean > 1).all()
                assert found.relative[heads.index(head)] < -0.5
            else:
                assert change.abs().max() < 1e-3, (kind, head)
    direct = path_effects(model, pairs, progress=False).logit_difference
    assert [h for h, x in zip(heads, direct, strict=True) if x.abs().max() > 1e-3] == [FETCHER]
    assert int(pairs.position[0]) == QUERY


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"senders": []}, "at least one sender"),
        ({"receivers": []}, "at least one sender and one receiver"),
        ({"senders": [Site(0, "resid_pre")]}, "resid_pre.0 cannot send"),
        ({"receivers": [Site(1, "mlp_in")]}, "mlp_in.1 cannot receive"),
        ({"receivers": [Site(1, "head_key", head=2)]}, "the model has 2 per layer"),
        ({"senders": head_sites([(0, 0)], position=3)}, "only the last token writes to the logits"),
    ],
)
def test_paths_that_there_are_not(tiny_model, arguments, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        path_effects(model, random_pairs(model, 2), **arguments)
