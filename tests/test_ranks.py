"""Few directions of queries, keys and values, and a trial of them, against whole passes."""

import re
from functools import partial

import pytest
import torch
from conftest import build_tiny_model

from helpers.patching import Site, cache_sites
from helpers.tasks import ioi, lists
from tools import query_trial, ranks

LAYERS, HEADS = (1, 2), range(4)


@pytest.fixture(scope="module")
def model():
    texts = re.findall(r"\w+|[,/]", re.sub(r"\{\w+\}", " ", " ".join(lists.wordings().values())))
    words = [*texts, *ioi._words("names"), *ioi._words("objects"), *ioi._words("places"), "and"]
    return build_tiny_model("llama", words=tuple(dict.fromkeys(words)))


@pytest.fixture(scope="module")
def learn(model):
    return lists.missing_one(model, 40, split="train", seed=1)


@pytest.fixture(scope="module")
def judge(model):
    return lists.missing_one(model, 18, split="test", seed=2)


@pytest.fixture(scope="module")
def cached(model, judge):
    return cache_sites(model, judge, [Site(1, "resid_pre"), *query_sites()])


@pytest.fixture(scope="module")
def before(model, learn):
    return cache_sites(model, learn, query_sites())


def query_sites():
    return [Site(layer, "head_rotated_query", head=head) for layer in LAYERS for head in HEADS]


def whole(model, pairs, hooks):
    with torch.no_grad():
        return model.run_with_hooks(torch.stack(pairs.base_tokens), fwd_hooks=hooks)[:, -1]


def last_queries(change):
    """Hooks that change every query at the last token: `change(n, running)`."""

    def hook(value, hook, layer):
        value = value.clone()
        for head in HEADS:
            n = list(LAYERS).index(layer) * len(HEADS) + head
            value[:, -1, head] = change(n, value[:, -1, head])
        return value

    return [(f"blocks.{layer}.attn.hook_rot_q", partial(hook, layer=layer)) for layer in LAYERS]


def test_directions_are_ordered_by_variance():
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6) + 3
    basis = ranks.directions(x)
    assert torch.allclose(basis.T @ basis, torch.eye(5), atol=1e-5)
    variances = ((x - x.mean(0)) @ basis).var(0)
    assert torch.allclose(variances, torch.linalg.eigvalsh(x.T.cov()).flip(0), rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_of_queries_by_whole_passes(model, judge, cached, before, rank):
    means = [at.base.mean(0) for at in before]
    bases = [ranks.directions(at.base) for at in before]

    def keep(n, running):
        own, kept = running - means[n], bases[n][:, :rank]
        return means[n] + own @ kept @ kept.T

    theirs = whole(model, judge, last_queries(keep))
    found = ranks.sweep(cached, means, bases, (rank,))[str(rank)]
    assert found["margin"][0] == pytest.approx(lists.margin(judge, theirs).mean().item(), abs=1e-4)
    assert (len(found.get("random", [])) == ranks.BASES) == (rank > 0)
    everything = ranks.by_rank(cached, means, bases, len(means[0]))
    assert torch.allclose(everything, whole(model, judge, []), atol=1e-4)


@pytest.mark.parametrize("hook", ["hook_rot_k", "hook_v"])
def test_a_rank_of_keys_and_values_by_whole_passes(model, learn, judge, hook):
    columns = [f"{place}_position" for place in lists.PLACES]
    places = [int(judge.table[column][0]) for column in columns]
    names = [f"blocks.{layer}.attn.{hook}" for layer in LAYERS]
    with torch.no_grad():
        tokens = torch.stack(learn.base_tokens)
        seen = model.run_with_cache(tokens, names_filter=names)[1]

    def keep(value, hook, rank=1):
        new = value.clone()
        for head in range(value.shape[2]):
            x = seen[hook.name][:, places, head].flatten(0, 1)
            line = torch.linalg.svd(x - x.mean(0))[2][:rank].T
            new[:, places, head] = x.mean(0) + (value[:, places, head] - x.mean(0)) @ line @ line.T
        return new

    theirs = lists.margin(judge, whole(model, judge, [(name, keep) for name in names]))
    found = ranks.sweep_at_tokens(model, learn, judge, hook, LAYERS, columns, (1, 12))
    assert found["1"]["margin"][0] == pytest.approx(theirs.mean().item(), abs=1e-4)
    clean = lists.margin(judge, whole(model, judge, []))
    assert found["12"]["margin"][0] == pytest.approx(clean.mean().item(), abs=1e-4)


def test_heads_write_what_the_margin_loses_without_them(model, judge):
    shares = ranks.shares_of_heads(model, judge)
    ids = torch.stack(list(judge.choices.values()), 1)
    tokens = torch.stack(judge.base_tokens)
    with torch.no_grad():
        cache = model.run_with_cache(tokens)[1]
    scale = model.ln_final.weight / cache["ln_final.hook_scale"][:, -1]
    rows = torch.arange(len(judge))
    for (layer, head), found in list(shares.items())[::3]:
        z = cache[f"blocks.{layer}.attn.hook_z"][:, -1]
        z = z.view(len(judge), model.cfg.n_heads, -1)[:, head]
        at_end = (z @ model.blocks[layer].attn.W_O[head] * scale) @ model.W_U
        mine, offered = at_end[rows, judge.answer], at_end.gather(1, ids).sum(1)
        assert found == pytest.approx((mine - (offered - mine) / 2).mean().item(), abs=1e-4)


@pytest.fixture(scope="module")
def heads(model, learn, before):
    """As they are, but keys see four dimensions: in this small model they see all twelve."""
    found = query_trial.heads_of(model, learn, before)
    assert all(head.seen.shape == (12, 12) for head in found)
    return [head._replace(seen=head.seen[:, :4]) for head in found]


def test_keys_do_not_see_the_sensor_and_both_are_unit_vectors(heads):
    for head in heads:
        sensor, actuator = head.made()
        assert (sensor @ head.seen).abs().max() < 1e-5
        assert (sensor @ actuator).abs() < 1e-5
        assert sensor.norm() == pytest.approx(1, abs=1e-5)
        assert actuator.norm() == pytest.approx(1, abs=1e-5)
        still, straight = (v @ head.variance @ v for v in (actuator, head.axis / head.axis.norm()))
        assert still < straight  # queries vary less along it than along the keys' axis


def test_a_patch_that_reads_one_way_and_writes_another_by_whole_passes(model, judge, cached, heads):
    entry, *queries = cached
    reads, writes = zip(*(head.made() for head in heads), strict=True)

    def change(n, running):
        return running + ((queries[n].source - running) @ reads[n])[:, None] * writes[n]

    def margin(logits):
        rows = torch.arange(len(judge))
        return (logits[rows, judge.answer] - logits[rows, judge.counterfactual]).mean().item()

    clean, patched = (margin(whole(model, judge, h)) for h in ([], last_queries(change)))
    found = query_trial.removed(entry, queries, reads, writes)
    assert found[0] == pytest.approx(100 * (1 - patched / clean), rel=1e-3)
    nothing = query_trial.removed(entry, queries, reads, writes, torch.arange(len(judge)))
    assert nothing[0] == pytest.approx(0, abs=1e-3)  # its own query is no change at the lowest


def test_the_other_list_has_the_same_place(judge):
    other = query_trial.same_place(judge)
    place = torch.tensor(judge.table["place"].tolist())
    assert torch.equal(place[other], place) and not (other == torch.arange(len(judge))).any()
    assert torch.equal(other.sort().values, torch.arange(len(judge)))


def test_all_of_a_trial(cached, before, heads):
    found = query_trial.trial(cached, heads, [ranks.directions(at.base) for at in before])
    assert set(found) == {"first direction", "mean difference", "made", "random"}
    assert set(found["made"]) - set(found["random"]) == {"sensor", "actuator"}
    for tests in found.values():
        assert 0 <= tests["in range"] <= 100
        assert set(tests) >= {"effect", "seen alone", "read unseen", "natural alone"}
    alone, natural = (found["mean difference"][test] for test in ("effect", "natural alone"))
    assert alone == pytest.approx(natural, abs=1e-3)  # it has no other part
