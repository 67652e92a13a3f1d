"""Shortcuts against brute force: conservation, finite differences, TransformerLens's own tool."""

import functools
import itertools
import re

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, build_tiny_model
from test_patching import join, random_pairs
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from helpers.attribution import METHODS, agreement, attribution, coefficients, linearised
from helpers.attribution import scores as module
from helpers.attribution.scores import RULES
from helpers.patching import Site, cache_pairs, cache_sites, recording
from helpers.patching.cached import base_gradients
from helpers.patching.metrics import logit_difference

LENGTH = 9
KINDS = ("resid_pre", "attn_out", "mlp_out", "mlp_hidden", "head_output")
GATED = ("llama", "qwen2", "gemma3")


@functools.cache
def without_biases(architecture):
    model = build_tiny_model(architecture, processed=False)  # before any is folded
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def streams(model):
    """The stream before every block, and what leaves the last."""
    kinds = [(n, "resid_pre") for n in range(model.cfg.n_layers)]
    return [*kinds, (model.cfg.n_layers - 1, "resid_post")]


def conserved(model, pairs, method="relp+pattern"):
    """The sum of coefficient times activation of the whole stream, `[layers pairs]`, and the LD."""
    places = itertools.product(streams(model), range(len(pairs.base_tokens[0])))
    sites = [Site(*where, position=place) for where, place in places]
    found = coefficients(model, pairs, sites, method=method)
    tokens = torch.stack(pairs.base_tokens)
    with torch.no_grad(), recording(model, {site.hook_name for site in sites}) as seen:
        clean = logit_difference(model(tokens)[:, -1], pairs.answer, pairs.counterfactual)
    each = [
        (c * seen[site.hook_name][:, site.position]).sum(-1)
        for c, site in zip(found, sites, strict=True)
    ]
    return torch.stack(each).unflatten(0, (len(streams(model)), -1)).sum(1), clean


def by_biases(model, pairs):
    """What the biases above every stream add, by their own gradients: `[layers pairs]`."""
    biases = {n: p for n, p in model.named_parameters() if n.endswith("bias")}
    layer_of = {n: int((re.findall(r"\.(\d+)\.", n) or [99])[0]) for n in biases}
    columns = []
    model.requires_grad_(True)
    try:
        for row, tokens in enumerate(pairs.base_tokens):
            with linearised(model, RULES):
                logits = model(tokens[None])[0, -1]
            total = logits[pairs.answer[row]] - logits[pairs.counterfactual[row]]
            found = torch.autograd.grad(total, list(biases.values()), allow_unused=True)
            each = {
                n: 0.0 if g is None else (g * p).sum().item()
                for (n, p), g in zip(biases.items(), found, strict=True)
            }
            columns.append(
                [
                    sum(x for n, x in each.items() if layer_of[n] >= layer)
                    for layer in range(len(streams(model)))
                ]
            )
    finally:
        model.requires_grad_(False)
    return torch.tensor(columns).T


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_coefficients_times_the_stream_are_the_logit_difference_at_every_layer(architecture):
    model = without_biases(architecture)
    found, clean = conserved(model, random_pairs(model, 3, LENGTH))
    assert torch.allclose(found, clean.expand_as(found), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_with_biases_it_is_what_they_leave(architecture):
    model = build_tiny_model(architecture, processed=False)
    pairs = random_pairs(model, 3, LENGTH)
    found, clean = conserved(model, pairs)
    rest = by_biases(model, pairs)
    assert rest.abs().max() > 0.1, "there is something to add"
    assert torch.allclose(found + rest, clean.expand_as(found), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "qwen2"])
def test_without_one_of_the_rules_nothing_is_conserved(architecture):
    model = without_biases(architecture)
    found, clean = conserved(model, random_pairs(model, 3, LENGTH), "relp")
    assert (found[0] - clean).abs().max() > 0.05


def test_conservation_in_the_packaged_model(smollm):
    pairs = random_pairs(smollm, 1, 5)
    found, clean = conserved(smollm, pairs)
    assert torch.allclose(found, clean.expand_as(found), rtol=0, atol=1e-4 * clean.abs().max())


def test_rules_leave_every_logit(any_model):
    tokens = torch.stack(random_pairs(any_model, 3, LENGTH).base_tokens)
    plain = any_model(tokens)
    for rules in [(rule,) for rule in RULES] + [RULES]:
        with linearised(any_model, rules):
            assert torch.allclose(any_model(tokens), plain, rtol=0, atol=1e-5 * plain.abs().max())


def test_each_rule_changes_the_gradient_where_it_can(any_model):
    pairs = random_pairs(any_model, 2, LENGTH)
    site = [Site(0, "resid_pre", position=2)]
    (plain,) = coefficients(any_model, pairs, site)
    gated = any_model.cfg.gated_mlp
    for rule in RULES:
        (found,) = coefficients(any_model, pairs, site, method=rule)
        same = torch.allclose(found, plain, rtol=1e-3, atol=1e-6)
        assert same == (rule == "half" and not gated), rule


def test_the_half_rule_is_half_of_what_flows_through_a_gate(tiny_model):
    model = tiny_model("llama")
    hooks = {f"blocks.1.mlp.{end}" for end in ("hook_pre", "hook_pre_linear", "hook_post")}
    tokens = torch.stack(random_pairs(model, 2, LENGTH).base_tokens)
    found = {}
    for rules in ((), ("half",)):
        leaf = []

        def start(x, hook, leaf=leaf):
            leaf.append(x.detach().clone().requires_grad_())
            return leaf[0]

        with linearised(model, rules), model.hooks(fwd_hooks=[("blocks.1.mlp.hook_in", start)]):
            with recording(model, hooks) as seen:
                model(tokens)
        (found[rules],) = torch.autograd.grad(seen["blocks.1.mlp.hook_post"].sum(), leaf)
    assert torch.allclose(found["half",], found[()] / 2, rtol=1e-4, atol=1e-6)


def test_the_plain_gradient_is_that_of_the_engine(any_model):
    pairs = random_pairs(any_model, 3, LENGTH)
    sites = [Site(1, "mlp_out"), Site(1, "head_output", head=2), Site(0, "resid_post")]
    wanted = base_gradients(cache_sites(any_model, pairs, sites))
    for found, right in zip(coefficients(any_model, pairs, sites), wanted, strict=True):
        assert torch.allclose(found, right, rtol=1e-3, atol=1e-5)


def test_finite_differences(any_model):
    """A small step from the base towards the source does what the score says, per unit of step."""
    pairs = random_pairs(any_model, 3, LENGTH)
    found = attribution(any_model, pairs, KINDS)
    for site in (Site(1, "mlp_out"), Site(1, "attn_out"), Site(1, "head_output", head=1)):
        cached = cache_pairs(any_model, pairs, site)
        step = 3e-3 * (cached.source - cached.base)  # smaller ones drown in rounding
        both = [cached.logit_difference(cached.base + sign * step) for sign in (1, -1)]
        score = found[site.kind][:, 1, -1]
        score = score if site.head is None else score[:, site.head]
        assert torch.allclose((both[0] - both[1]) / 6e-3, score, rtol=1e-2, atol=5e-3), site


def test_scores_are_those_of_transformer_lens():
    """Its nodes are embeddings, heads and MLPs; it needs weights that are not frozen."""
    for architecture in ("gpt2", "llama"):
        model = build_tiny_model(architecture).requires_grad_(True)
        pairs = random_pairs(model, 1, LENGTH)
        answer, other = pairs.answer[0], pairs.counterfactual[0]
        theirs = attribution_patch(
            model, torch.stack(pairs.source_tokens), torch.stack(pairs.base_tokens),
            lambda logits, answer=answer, other=other: logits[0, -1, answer] - logits[0, -1, other],
        ).node_scores  # fmt: skip
        ours = attribution(model, pairs, ["head_output", "mlp_out"])
        kinds = {"attn_head_out": "head_output", "mlp_out": "mlp_out"}
        compared = [node for node in theirs if node.kind in kinds]
        assert len(compared) == LENGTH * model.cfg.n_layers * (model.cfg.n_heads + 1)
        for node in compared:
            at = (0, node.layer, node.position, *(() if node.head is None else (node.head,)))
            assert ours[kinds[node.kind]][at].item() == pytest.approx(theirs[node], abs=2e-4)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_integrated_gradients_add_up_to_the_whole_way(architecture, tiny_model):
    """All embeddings together make up the difference between the two runs (completeness)."""
    model = tiny_model(architecture)
    pairs = random_pairs(model, 2, LENGTH)
    scores = attribution(model, pairs, ["resid_pre"], method="ig", steps=200)["resid_pre"]
    with torch.no_grad():
        clean, other = (
            logit_difference(model(torch.stack(x))[:, -1], pairs.answer, pairs.counterfactual)
            for x in (pairs.base_tokens, pairs.source_tokens)
        )
    error = scores[:, 0].sum(-1) - (other - clean)
    assert error.abs().max() < 0.05 * (other - clean).abs().max()


def test_batches_and_lengths_do_not_matter(tiny_model):
    model = tiny_model("llama")
    short, long = random_pairs(model, 3, 6), random_pairs(model, 4, LENGTH, seed=1)
    mixed = join(short, long)[[3, 0, 4, 1, 5, 2, 6]]
    found = attribution(model, mixed, KINDS, method="relp", batch_size=2)
    one = attribution(model, short, KINDS, method="relp")
    for kind in KINDS:
        assert torch.allclose(found[kind][[1, 3, 5], :, :6], one[kind], rtol=1e-3, atol=1e-4)
        assert not found[kind][[1, 3, 5], :, 6:].any()
    (all_,) = coefficients(model, mixed, [Site(1, "mlp_out")], batch_size=2)
    (some,) = coefficients(model, short, [Site(1, "mlp_out")])
    assert torch.allclose(all_[[1, 3, 5]], some, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "gemma3"])
def test_the_norm_rule_splits_the_logit_difference_over_heads_and_mlps(architecture):
    """TransformerLens's parts of the last stream, times what is read of it (not gemma3, whose
    norms stand behind the heads)."""
    model = without_biases(architecture)
    pairs, last = random_pairs(model, 3, LENGTH), model.cfg.n_layers - 1
    (reads,) = coefficients(model, pairs, [Site(last, "resid_post", position=-1)], method="norm")
    with torch.no_grad():
        logits, cache = model.run_with_cache(torch.stack(pairs.base_tokens))
    clean = logit_difference(logits[:, -1], pairs.answer, pairs.counterfactual)
    parts = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1)
    assert len(parts) > model.cfg.n_layers * (model.cfg.n_heads + 1)
    split = (parts * reads).sum(-1)
    assert torch.allclose(split.sum(0), clean, rtol=1e-5, atol=2e-5)


def test_agreement_is_what_it_says():
    exact = torch.tensor([[-10.0, 1.0, 2.0], [0.0, 3.0, -1.0]])
    noise = torch.tensor([[0.5, 0.2, -0.1], [0.3, -0.4, 0.0]])
    estimate = 0.4 * exact + noise
    x, y = estimate.flatten().numpy(), exact.flatten().numpy()
    found = agreement(estimate, exact)
    right = (np.corrcoef(x, y)[0, 1], np.corrcoef(x[1:], y[1:])[0, 1], (x @ y) / (y @ y))
    assert found == pytest.approx(right, rel=1e-5)


def hooks_of(model):
    return {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}


def test_nothing_stays_after_an_exception(tiny_model, monkeypatch):
    model = tiny_model("llama")
    tokens, before = torch.stack(random_pairs(model).base_tokens), hooks_of(model)
    plain = model(tokens)
    with pytest.raises(KeyError), linearised(model, RULES):
        assert hooks_of(model) != before
        raise KeyError
    monkeypatch.setattr(module, "logit_difference", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attribution(model, random_pairs(model), ["mlp_out"], method="relp")
    assert hooks_of(model) == before and torch.equal(model(tokens), plain)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_every_method_gives_scores_of_its_own(tiny_model):
    model = tiny_model("llama")
    pairs = random_pairs(model, 2, LENGTH)
    each = [attribution(model, pairs, ["resid_pre"], method=m)["resid_pre"] for m in METHODS]
    for one, other in itertools.combinations(each, 2):
        assert not torch.allclose(one, other, rtol=1e-3)
