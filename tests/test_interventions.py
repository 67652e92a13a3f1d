"""What an audit is about, against closed forms: subspaces, SAE features, steering vectors."""

import pytest
import torch
from conftest import build_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from test_audit import by_name, make_task, mean_change

from helpers.audit import Subspace, audit, audit_each
from helpers.audit.criteria import AGAINST, DOES_NOT_APPLY, FOR, OPEN, Finding
from helpers.audit.diagnostics import falls, patches, scores, writing_matrix
from helpers.audit.verdicts import NO_EFFECT, OPPOSITE, UNDECIDED, summarise
from helpers.patching import Estimate, Site, cache_pairs
from tools.audit.changes import (
    BEYOND,
    CHANGE,
    DISRUPTS,
    WITHIN,
    Feature,
    Steering,
    conclude_change,
)

HIDDEN, STREAM = Site(1, "mlp_hidden"), Site(1, "resid_post")
seeds = st.integers(0, 10**6)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return build_tiny_model("llama", seed=1)


@pytest.fixture(scope="module")
def pairs(model):
    return make_task(model)


@pytest.fixture(scope="module")
def hidden(model, pairs):
    return cache_pairs(model, pairs, HIDDEN)


@given(seed=seeds)
def test_a_subspace_takes_the_sources_coordinates_and_leaves_the_rest(seed):
    base, source, basis = (
        normal(*s, seed=seed + i) for i, s in enumerate([(5, 7), (5, 7), (7, 3)])
    )
    new = Subspace(basis)(base, source)
    projector = basis @ torch.linalg.inv(basis.T @ basis) @ basis.T
    assert torch.allclose(new @ projector, source @ projector, atol=1e-3)
    rest = torch.eye(7) - projector
    assert torch.allclose(new @ rest, base @ rest, atol=1e-3)


def test_the_basis_does_not_matter_only_what_it_spans(model, hidden):
    W = writing_matrix(model, HIDDEN)
    basis, mix = normal(96, 3, seed=0), normal(3, 3, seed=1)
    one, other = (scores(hidden, b, W) for b in (basis, basis @ mix))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, rel=2e-2, abs=2e-3), name


def test_a_column_is_a_direction(model, hidden):
    W, v = writing_matrix(model, HIDDEN), normal(96, seed=2)
    one, other = (scores(hidden, b, W) for b in (v, v[:, None]))
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-3, abs=1e-4), name


def test_the_whole_space_is_the_whole_component(model, pairs):
    cached = cache_pairs(model, pairs, STREAM)
    found = scores(cached, torch.eye(48), None)
    assert found["whole does less"].value == pytest.approx(0, abs=1e-4)


def test_the_parts_of_a_subspace_by_hand(model, hidden):
    """Every patch written out with projectors, in float64."""
    W, basis = writing_matrix(model, HIDDEN).double(), normal(96, 2, seed=3).double()
    P = basis @ torch.linalg.inv(basis.T @ basis) @ basis.T
    R = W @ torch.linalg.pinv(W)  # on the row space of W
    base, change = hidden.base.double(), (hidden.source - hidden.base).double()
    _, s, axes = torch.linalg.svd(change, full_matrices=False)
    held = s.square().cumsum(0) / s.square().sum()
    A = axes[: int((held < 0.95).sum()) + 1].T
    A = A @ A.T
    found = patches(hidden, basis.float(), W.float())
    sign = torch.where(change @ axes[0] < 0, -1.0, 1.0).double()
    usual = torch.nn.functional.normalize((sign[:, None] * change).mean(0) @ A, dim=0)
    U = usual[:, None] @ usual[None]
    row = R @ P @ R
    values, vectors = torch.linalg.eigh(row)
    vectors = vectors[:, values > 1e-6]
    expected = {
        "direction": base + change @ P,
        "natural changes": base + change @ P @ A,
        "read null": base + change @ (torch.eye(96) - R) @ P,
        "row": base + change @ vectors @ vectors.T,
        "mean part": base + change @ U @ A @ P @ A @ U,
        "rest": base + change @ (A - U) @ P @ (A - U),
        "whole without": base + change - change @ P,
    }
    for name, activation in expected.items():
        assert torch.allclose(found[name].double(), activation, atol=2e-3), name


@given(seed=seeds)
def test_a_feature_that_reads_what_it_writes_is_a_direction(seed):
    v = torch.nn.functional.normalize(normal(6, seed=seed), dim=0)
    base, source = normal(4, 6, seed=seed + 1), normal(4, 6, seed=seed + 2)
    feature = Feature(v, v, bias=100.0)  # always active, so linear
    assert torch.allclose(feature(base, source), Subspace(v)(base, source), atol=1e-4)


def test_a_feature_by_hand():
    feature = Feature(
        torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), bias=-1.0,
        centre=torch.tensor([1.0, 5.0]), threshold=0.5,
    )  # fmt: skip
    x = torch.tensor([[5.0, 0.0], [2.3, 0.0], [2.6, 0.0], [0.0, 9.0]])
    assert feature.value(x).tolist() == pytest.approx([3, 0, 0.6, 0])
    moved = feature(x[[3, 0]], x[[0, 1]])
    assert torch.allclose(moved, torch.tensor([[0.0, 9.0 + 6.0], [5.0, -6.0]]))
    clamped = Feature(feature.encoder, feature.decoder, bias=2.0, clamp=7.0)
    assert torch.allclose(clamped(x[:1], x[1:2]), torch.tensor([[5.0, 0.0]]))
    assert not clamped.exchanges and str(clamped) == "an SAE feature, clamped to 7"


def test_steering_adds_and_its_opposite_takes_away(hidden, model):
    v = normal(96, seed=4)
    found = patches(hidden, Steering(v, -2.5), writing_matrix(model, HIDDEN))
    assert torch.allclose(found["direction"] - hidden.base, -2.5 * v.expand(12, -1), atol=1e-4)
    assert torch.allclose(found["opposite"] - hidden.base, 2.5 * v.expand(12, -1), atol=1e-4)
    assert not {"whole without", "mean part", "row", "read null"} & found.keys()


@pytest.mark.parametrize(
    "what",
    [Steering(normal(48, seed=5), 3.0), Feature(normal(48, seed=6), normal(48, seed=7)),
     Feature(normal(48, seed=6), normal(48, seed=7), clamp=2.0), Subspace(normal(48, 4, seed=8))],
    ids=str,
)  # fmt: skip
def test_controls_write_as_much_elsewhere(what):
    base, source = normal(5, 48, seed=9), normal(5, 48, seed=10)
    one, other, again = what.random(0), what.random(1), what.random(0)
    assert torch.equal(one(base, source), again(base, source))
    assert not torch.allclose(one(base, source), other(base, source))
    assert one.writes.shape == what.writes.shape
    if not isinstance(what, Subspace):  # whose projection depends on where it lies
        size, own = ((x(base, source) - base).norm(dim=1) for x in (one, what))
        assert torch.allclose(size, own, rtol=1e-4)


def test_not_reversed_is_what_the_opposite_lacks(model, pairs):
    cached = cache_pairs(model, pairs, STREAM)
    steering = Steering(normal(48, seed=11), 5.0)
    fall = falls(cached, patches(cached, steering, None))
    found = scores(cached, steering, None)["not reversed"].value
    expected = 1 + (fall["opposite"].mean() / fall["direction"].mean()).item()
    assert found == pytest.approx(expected, abs=1e-4)
    tiny = scores(cached, Steering(normal(48, seed=11), 1e-2), None)["not reversed"].value
    assert abs(tiny) < 0.1, "a change so small is linear"


def test_the_audit_says_which_tests_apply(model, pairs):
    v = mean_change(model, pairs, STREAM)
    for what, silent in (
        (Steering(v, 1.0), {"whole does less", "not necessary", "cross term"}),
        (Feature(v, v / v.square().sum(), bias=1e4), {"cross term"}),
        (torch.stack([v, normal(48, seed=12)], 1), set()),
    ):
        found = audit(model, STREAM, what, pairs, progress=False)
        assert found.effect.fldd.value > 0.05, str(what)
        told = by_name(found)
        assert ("not reversed" in told) == isinstance(what, Steering)
        assert ("whole does less" in silent) == (not found.exchanges)
        kernel = {"null norm", "read by the null part", "lost by the row part", "lost unit by unit"}
        none = {name for name, f in told.items() if f.verdict == DOES_NOT_APPLY}
        assert silent | kernel == none - {n for n in none if "nats" in told[n].reason}
        assert f"the {found.what.split(' ', 1)[1]}" in found.summary


def test_the_audit_says_what_was_done(model, pairs):
    cached = cache_pairs(model, pairs, STREAM)
    v = mean_change(model, pairs, STREAM)
    steering = Steering(v, -2.0)
    found = audit(model, STREAM, steering, pairs, progress=False)
    length = 2 * v.norm()
    share = length / cached.base.norm(dim=1).mean()
    assert f"is {length:.2f} long: {share:.0%} of the activation's" in found.notes[0]
    turned = cached.measure(cached.base + 2 * v).fldd
    assert found.opposite.value == pytest.approx(turned.value, abs=1e-4)
    assert found.margin == pytest.approx(cached.clean_logit_difference.mean().item(), abs=1e-5)
    assert "steers" not in found.verdict or "not been measured" in found.summary
    feature = Feature(v, v, bias=-1e4)  # never active
    silent = audit(model, STREAM, feature, pairs, progress=False)
    assert "active in 0% of the bases and 0% of the sources, up to 0.00" in silent.notes[0]
    assert silent.verdict == NO_EFFECT
    whole = audit(model, STREAM, v, pairs, progress=False)
    limit = 4 * whole.whole.fldd.value
    assert f"could speak against it only if it removed {limit:.0%} or more." in whole.notes[0]


def test_audits_together_equal_audits_one_by_one(model, pairs):
    v = mean_change(model, pairs, HIDDEN)
    each = [v, torch.stack([v, normal(96, seed=13)], 1), Steering(v, 2.0), normal(96, seed=14)]
    together = audit_each(model, HIDDEN, each, pairs, progress=False)
    for what, found in zip(each, together, strict=True):
        assert found == audit(model, HIDDEN, what, pairs, progress=False)
    with pytest.raises(ValueError, match="nothing to audit"):
        audit_each(model, HIDDEN, [], pairs)


def a_finding(test, verdict):
    return Finding(test, "", Estimate(0.9, 0.8, 1.0), verdict, "", "")


@pytest.mark.parametrize(
    ("verdicts", "conclusion"),
    [
        ({"far downstream": FOR}, WITHIN),
        ({"far downstream": FOR, "not reversed": AGAINST}, DISRUPTS),
        ({"beyond range": AGAINST, "not reversed": AGAINST}, DISRUPTS),
        ({"beyond range": AGAINST}, BEYOND),
        ({"far downstream": OPEN, "not reversed": FOR}, UNDECIDED),
        ({}, UNDECIDED),
    ],
)
def test_verdicts_on_a_change_that_is_not_the_sources(verdicts, conclusion):
    effect, chance = Estimate(0.5, 0.4, 0.6), [Estimate(0.0, -0.1, 0.1)]
    found = [a_finding(*item) for item in verdicts.items()]
    assert conclude_change(effect, chance, found) == conclusion
    text = summarise(effect, chance, found, subject="the vector", rules=CHANGE)
    assert text.lower().startswith(f"{conclusion}: the vector removes 50.0%")
    assert all(f"'{test}' (0.90" in text for test, said in verdicts.items() if said == AGAINST) or (
        conclusion == DISRUPTS
    )
    assert conclude_change(Estimate(-0.5, -0.6, -0.4), chance, found) == OPPOSITE
    assert conclude_change(effect, [effect], found) == NO_EFFECT


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subspace(torch.ones(4, 2)), "linearly dependent"),
        (lambda: Subspace(torch.ones(2, 2, 2)), r"a subspace \[d, k\], not \[2, 2, 2\]"),
        (lambda: Subspace(torch.tensor([1.0, torch.nan])), "NaN"),
        (lambda: Steering(torch.ones(4), 0.0), "amount of a steering vector"),
        (lambda: Steering(torch.ones(4), torch.inf), "amount of a steering vector"),
        (lambda: Steering(torch.ones(4, 1)), "of 1 dimension"),
        (lambda: Steering(torch.zeros(4)), "zero vector"),
        (lambda: Feature(torch.ones(4), torch.ones(3)), "encoder has 4 dimensions, but its dec"),
        (lambda: Feature(torch.ones(3), torch.zeros(3)), "zero vector"),
        (lambda: Feature(torch.ones(3), torch.ones(3), centre=torch.ones(2)), "centre has 2"),
    ],
)
def test_what_is_no_intervention_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
