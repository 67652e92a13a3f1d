"""Activations of one model in another, against whole forward passes with hooks."""

from functools import partial

import pytest
import torch
from conftest import WORDS, build_tiny_model
from planted_circuit import COPIER, FETCHER, planted_model, position_pairs
from test_patching import random_pairs

from helpers.circuits import every_head, head_sites, specific_only
from helpers.patching import Site
from tools.transplant import clipped, shift_only, transplant, whole

READS = ("q_proj", "k_proj", "v_proj", "q", "k", "v")


def by_hand(model, donor, pairs, heads, place, change, from_source=False):
    base = torch.stack(pairs.base_tokens)
    read = torch.stack(pairs.source_tokens) if from_source else base
    own, theirs = model.run_with_cache(base)[1], donor.run_with_cache(read)[1]

    def write(z, hook, name, head):
        z = z.clone()
        z[:, place, head] = change(own[name][:, place, head], theirs[name][:, place, head])
        return z

    names = [(f"blocks.{layer}.attn.hook_z", head) for layer, head in heads]
    hooks = [(name, partial(write, name=name, head=head)) for name, head in names]
    return model.run_with_hooks(base, fwd_hooks=hooks)[:, -1]


def formulas():
    return {
        whole: lambda own, theirs: theirs,
        shift_only: lambda own, theirs: own + theirs.mean(0) - own.mean(0),
        specific_only: lambda own, theirs: theirs - theirs.mean(0) + own.mean(0),
        clipped: lambda own, theirs: torch.minimum(
            torch.maximum(theirs, own.min(0).values), own.max(0).values
        ),
    }


def models(architecture):
    return [build_tiny_model(architecture, seed=seed, processed=False) for seed in (0, 1)]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_transplants_are_whole_passes_with_hooks(architecture):
    model, donor = models(architecture)
    pairs, heads = random_pairs(model, 4, position=5), [(1, 0), (1, 3), (2, 2)]
    for change, formula in formulas().items():
        for from_source in (False, True):
            found = transplant(
                model, donor, pairs, head_sites(heads), change, from_source=from_source
            )
            right = by_hand(model, donor, pairs, heads, 5, formula, from_source)
            assert torch.allclose(found, right, atol=1e-4), (change, from_source)


def test_a_model_into_itself_changes_nothing(any_model):
    pairs = random_pairs(any_model, 3)
    clean = any_model(torch.stack(pairs.base_tokens))[:, -1]
    sites = head_sites(every_head(any_model))
    for change in formulas():
        found = transplant(any_model, any_model, pairs, sites, change)
        assert torch.allclose(found, clean, atol=1e-4)
    other = transplant(any_model, any_model, pairs, sites, from_source=True)
    assert (other - clean).abs().max() > 1e-2


def test_all_heads_of_a_donor_with_the_same_rest_are_the_donor():
    """The donor differs in queries, keys and values only: what its heads say is all there is."""
    model, donor = models("llama")
    own = dict(model.original_model.named_parameters())
    for name, parameter in donor.original_model.named_parameters():
        if not any(part in name.split(".") for part in READS):
            parameter.copy_(own[name])
    pairs = random_pairs(model, 3)
    clean, wanted = (m(torch.stack(pairs.base_tokens))[:, -1] for m in (model, donor))
    found = transplant(model, donor, pairs, head_sites(every_head(model)))
    assert torch.allclose(found, wanted, atol=1e-4) and (clean - wanted).abs().max() > 1e-2
    one = transplant(model, donor, pairs, [Site(1, "resid_mid")])
    assert (one - clean).abs().max() > 1e-2


def test_a_donor_that_can_do_it_hands_it_over():
    """The receiver lacks the copier: it attends nowhere in particular."""
    donor, model, pairs = planted_model(), planted_model(without=COPIER), position_pairs()
    hit = lambda logits: (logits.argmax(-1) == pairs.answer).float().mean().item()  # noqa: E731
    assert hit(donor(torch.stack(pairs.base_tokens))[:, -1]) == 1
    for head, right in (((0, 2), 0.5), (COPIER, 1), (FETCHER, 1)):
        assert hit(transplant(model, donor, pairs, head_sites([head]))) == right


def test_models_that_do_not_fit(tiny_model):
    gpt2, llama = tiny_model("gpt2"), tiny_model("llama")
    pairs, site = random_pairs(llama, 2), head_sites([(0, 0)])
    with pytest.raises(ValueError, match="n_layers is 3 here, but 4 in the donor"):
        transplant(llama, gpt2, pairs, site)
    with pytest.raises(ValueError, match="another vocabulary"):
        transplant(llama, build_tiny_model("llama", words=WORDS[::-1]), pairs, site)
    with pytest.raises(ValueError, match="a basis of their own"):
        transplant(gpt2, build_tiny_model("gpt2", seed=1), pairs, site)
    with pytest.raises(ValueError, match="cannot be clamped"):
        transplant(llama, llama, pairs, [Site(1, "resid_mid"), Site(2, "mlp_out")])
