"""The shipped autoencoder and the run on its features: parts add up, verdicts follow."""

import json

import pytest
import torch

from helpers.claims.report import every_claim, judge
from helpers.patching import cache_pairs
from tools.audit.features import read_features
from tools.evidence import dictionary, sparse, store

RUN = json.loads(store.evidence_file("sparse").read_text(encoding="utf-8"))
FRESH = RUN["fresh"]


@pytest.fixture(scope="module")
def weights():
    return dictionary.load()


def test_the_audit_reads_the_same_features(weights):
    (feature,) = read_features(dictionary.shipped_file(), "657").values()
    stream = 20 * torch.randn(50, 576, generator=torch.Generator().manual_seed(0))
    before = stream @ feature.encoder + feature.bias
    expected = before * (before > feature.threshold)
    assert feature.centre is None and (expected > 0).any() and (expected == 0).any()
    assert torch.allclose(dictionary.values(weights, stream)[:, 657], expected, atol=1e-4)
    assert torch.allclose(feature.decoder, weights["W_dec"][657])


def test_features_and_error_are_the_whole_change(smollm, weights):
    """So their scores add up to the score of the whole vector, and all of them to the source."""
    pairs = sparse.fresh_pairs(smollm, 1)
    cached = cache_pairs(smollm, pairs, sparse.SITE)
    split = features, error = sparse.change(weights, cached)
    whole = cached.source - cached.base
    assert torch.allclose(features @ weights["W_dec"] + error, whole, atol=1e-3)
    slope = sparse.slopes(smollm, cached, "atp")
    found = sparse.scores(weights, split, slope)
    assert torch.allclose(found.sum(1), (slope * whole).sum(1), rtol=1e-3, atol=1e-3)
    row, node = features.nonzero()[0].tolist()
    new = cached.base.clone()
    new[row] += features[row, node] * weights["W_dec"][node]
    effect = cached.logit_difference(new)[row] - cached.clean_logit_difference[row]
    exact = sparse.exact(weights, cached, split)
    assert exact[row, node].item() == pytest.approx(effect.item(), abs=1e-3)
    assert not exact[:, :-1][features == 0].any()


def test_gradients_on_the_way_make_up_the_whole_patch(smollm, weights):
    """Completeness of integrated gradients at the site."""
    cached = cache_pairs(smollm, sparse.fresh_pairs(smollm, 1), sparse.SITE)
    slope = sparse.slopes(smollm, cached, "ig")
    with torch.no_grad():
        effect = cached.logit_difference(cached.source) - cached.clean_logit_difference
    estimate = (slope * (cached.source - cached.base)).sum(1)
    assert torch.allclose(estimate, effect, rtol=0.1, atol=0.1)


def test_no_word_of_the_judgement_was_trained_on(smollm):
    trained = " ".join(dictionary.sentences(smollm, 400)).lower().split()
    pairs = sparse.fresh_pairs(smollm)
    words = {
        smollm.to_single_str_token(int(side[row][place])).strip()
        for side in (pairs.base_tokens, pairs.source_tokens)
        for row, place in enumerate(pairs.position)
    }
    assert len(words) > 20 and not words & {word.strip(".") for word in trained}


def test_the_verdict():
    chance = max(FRESH["faithful"][f"random {draw}"][-1][0] for draw in range(sparse.DRAWS))
    numbers = {"value": FRESH["differences"]["relp - ig"][-1][0]}
    numbers["over_random"] = FRESH["faithful"]["relp"][-1][0] - chance
    assert judge(every_claim()["R7"]["rule"], numbers) == "replicated"
    assert RUN["dictionary"]["loss recovered"] > 0.9
