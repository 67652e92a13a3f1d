"""The instrument: its numbers against brute force, its verdicts against their definition."""

import html.parser
import json
import math
import os
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from conftest import build_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from test_output import headings

from helpers.audit import criteria
from helpers.audit.criteria import (
    AGAINST,
    DOES_NOT_APPLY,
    FOR,
    OPEN,
    REPORTED,
    TESTS,
    Finding,
    judge,
)
from helpers.audit.diagnostics import Score, scores, writing_matrix
from helpers.audit.findings import why_not
from helpers.audit.measure import Spectrum, audit, distinct
from helpers.audit.verdicts import (
    CONSISTENT,
    ILLUSION,
    NO_EFFECT,
    NOT_SHOWN,
    OPPOSITE,
    SMALLEST_EFFECT,
    UNDECIDED,
    conclude,
    summarise,
)
from helpers.directions.geometry import unit
from helpers.output.files import ROOT
from helpers.patching.caching import cache_pairs
from helpers.patching.metrics import Estimate
from helpers.patching.sites import Site
from helpers.tasks.pairs import Pairs
from tools.audit import report

N, LENGTH = 12, 7
FILES = ["audit.json", "audit.md", "audit.html", "audit.png"]
SITE = Site(1, "mlp_hidden")
NAME = '<b>&"`a|b`"'  # of a model, by somebody who means ill


def make_task(model) -> Pairs:
    """Prompts that differ in the last token, each answered by what the model itself prefers."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(3, model.cfg.d_vocab, (N, LENGTH), generator=generator)
    base[:, 2:], base[:, -1] = base[0, 2:], 10  # alike, so that their answers are
    source = base.clone()
    source[:, -1] = 20
    answer = model(base)[:, -1].argmax(-1)
    logits = model(source)[:, -1].scatter(1, answer[:, None], -torch.inf)
    last, table = torch.full((N,), LENGTH - 1), pd.DataFrame(index=range(N))
    return Pairs(tuple(base), tuple(source), answer, logits.argmax(-1), last, last, table)


def mean_change(model, pairs: Pairs, site: Site) -> torch.Tensor:
    cached = cache_pairs(model, pairs, site)
    return (cached.source - cached.base).mean(0)


def illusion(model, pairs: Pairs, site: Site = SITE) -> tuple[torch.Tensor, torch.Tensor]:
    """A direction by hand, `n + r`: nobody reads `n`, which inputs move; `r` acts. Returns n, r."""
    cached, W = cache_pairs(model, pairs, site), model.blocks[site.layer].mlp.W_out
    moved = mean_change(model, pairs, site)
    null = moved - moved @ torch.linalg.pinv(W.T) @ W.T  # not by the code under test
    stream = cache_pairs(model, pairs, Site(site.layer, "resid_post"))
    activation = stream.base.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(stream.logit_difference(activation).sum(), activation)
    assert (null @ W).norm() < 1e-3 * cached.base.norm()
    return unit(null), -0.7 * unit(W @ gradient.mean(0))


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", seed=1)


@pytest.fixture(scope="module")
def pairs(model):
    return make_task(model)


@pytest.fixture(scope="module")
def result(model, pairs):
    return audit(model, SITE, sum(illusion(model, pairs)), pairs, name=NAME, progress=False)


def by_name(result) -> dict[str, Finding]:
    return {finding.test: finding for finding in result.findings}


# The measurements.


def hooked_fall(model, pairs: Pairs, activation: torch.Tensor) -> torch.Tensor:
    """How far the logit difference falls if a plain hook writes the activation at `SITE`."""

    def write(act, hook):
        act = act.clone()
        act[:, -1] = activation
        return act

    tokens, rows = torch.stack(pairs.base_tokens), torch.arange(len(pairs))
    clean = model(tokens)[:, -1]
    after = model.run_with_hooks(tokens, fwd_hooks=[(SITE.hook_name, write)])[:, -1]
    change = clean - after
    return change[rows, pairs.answer] - change[rows, pairs.counterfactual]


def test_the_numbers_are_those_of_full_forward_passes(model, pairs, result):
    seen = {}
    for side in ("base", "source"):
        tokens = torch.stack(getattr(pairs, f"{side}_tokens"))
        _, cache = model.run_with_cache(tokens, names_filter=SITE.hook_name)
        seen[side] = cache[SITE.hook_name][:, -1]
    base, change = seen["base"], seen["source"] - seen["base"]
    n, r = illusion(model, pairs)
    v, row = (n + r) / (n + r).norm(), r / r.norm()
    fall = lambda moved: hooked_fall(model, pairs, base + moved).mean().item()  # noqa: E731
    effect, whole = fall((change @ v)[:, None] * v), fall(change)
    without_null = fall((change @ row)[:, None] * row)
    kept = fall(change - (change @ v)[:, None] * v)
    triggered = fall((change @ (n / (n + r).norm()))[:, None] * v)
    tokens, rows = torch.stack(pairs.base_tokens), torch.arange(N)
    logits = model(tokens)[:, -1]
    margin = (logits[rows, pairs.answer] - logits[rows, pairs.counterfactual]).mean().item()
    expected = {
        "whole does less": (effect - whole) / effect,
        "lost by the row part": (effect - without_null) / effect,
        "not necessary": (effect - whole + kept) / effect,
        "read by the null part": triggered / effect,
        "null norm": 1 / math.hypot(1, 0.7),
    }
    found = by_name(result)
    assert {name: found[name].value.value for name in expected} == pytest.approx(expected, abs=1e-3)
    assert result.effect.fldd.value == pytest.approx(effect / margin, abs=1e-3)
    assert result.whole.fldd.value == pytest.approx(whole / margin, abs=1e-3)


def test_an_illusion_by_hand_is_called_one(result):
    assert result.verdict == ILLUSION
    assert by_name(result)["lost by the row part"].verdict == AGAINST


def test_the_natural_change_is_not_called_an_illusion(model, pairs):
    site = Site(2, "resid_post")
    natural = audit(model, site, mean_change(model, pairs, site), pairs, progress=False)
    assert natural.verdict == CONSISTENT


def test_the_length_and_sign_of_the_direction_do_not_matter(model, pairs, result):
    direction = -30 * sum(illusion(model, pairs)).double()
    again = audit(model, SITE, direction, pairs, name=NAME, progress=False)
    for one, other in zip(result.findings, again.findings, strict=True):
        assert one.verdict == other.verdict
        assert one.value is None or one.value == pytest.approx(other.value, abs=1e-3)


SITES = [
    lambda last: Site(1, "mlp_hidden"),
    lambda last: Site(0, "resid_post"),
    lambda last: Site(1, "head_output", head=1),
    lambda last: Site(last, "mlp_out"),
]
NEED_KERNEL = {"null norm", "read by the null part", "lost by the row part", "lost unit by unit"}
NEED_LATER_MLP = {"lost in range", "far downstream"}


@pytest.mark.parametrize("choose", SITES)
def test_every_test_says_something_at_every_site(any_model, choose):
    site, pairs = choose(any_model.cfg.n_layers - 1), make_task(any_model)
    direction = mean_change(any_model, pairs, site)
    found = audit(any_model, site, direction, pairs, progress=False)
    assert [finding.test for finding in found.findings] == [test.name for test in TESTS]
    assert (found.site, found.n_pairs, len(found.random)) == (site, N, 3)
    assert found.verdict != ILLUSION, "this is how real inputs move"
    silent = {f.test for f in found.findings if f.verdict == DOES_NOT_APPLY}
    shares = {f.test for f in found.findings if "nats" in f.reason}
    expected = set() if site.kind == "mlp_hidden" else NEED_KERNEL
    if site.layer == any_model.cfg.n_layers - 1:
        expected = expected | NEED_LATER_MLP
    if abs(found.effect.fldd.value) < SMALLEST_EFFECT:
        assert silent == {test.name for test in TESTS}, "there is nothing to explain"
    else:
        assert silent - shares == expected - shares
    for test, finding in zip(TESTS, found.findings, strict=True):
        if finding.value is not None:
            assert finding.verdict == judge(test, finding.value)
            assert f"{finding.value}" in finding.reason
            assert finding.value.low <= finding.value.value <= finding.value.high


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (Site(1, "resid_post"), "used as it stands"),
        (Site(1, "head_output", head=0), "The output matrix of a head loses nothing"),
        (Site(2, "mlp_out"), "there is no later MLP"),
    ],
)
def test_what_does_not_apply_says_why(model, pairs, site, reason):
    found = audit(model, site, mean_change(model, pairs, site), pairs, progress=False)
    assert any(reason in f.reason and f.value is None for f in found.findings)


def test_the_spectrum_is_that_of_the_matrix(model, pairs, result):
    cached = cache_pairs(model, pairs, SITE)
    g, change = cached.base_gradient.double(), (cached.source - cached.base).double()
    matrix = -(g.T @ change + change.T @ g) / (2 * N * cached.clean_logit_difference.mean())
    values, found = torch.linalg.eigvalsh(matrix), result.spectrum
    v = unit(sum(illusion(model, pairs))).double()
    expected = (values.max(), values.min(), values[values > 0].sum(), values[values < 0].sum())
    assert found == pytest.approx([*map(float, expected), float(v @ matrix @ v)], abs=1e-4)
    assert found.least <= found.direction <= found.most
    assert found.removing + found.adding == pytest.approx(float(values.sum()), abs=1e-4)
    assert f"{found}" in report.to_markdown(result) and f"{found.direction:.1%}" in f"{found}"
    assert report.to_dict(result)["spectrum"]["most"] == found.most


def test_a_spectrum_is_balanced_or_one_sided():
    assert "is balanced" in str(Spectrum(1.0, -0.9, 2.0, -1.7, 0.4))
    assert "is one-sided" in str(Spectrum(1.0, -0.1, 2.0, -0.5, 0.4))
    assert "is one-sided" in str(Spectrum(0.1, -1.0, 0.5, -2.0, 0.4))


def test_an_illusion_turned_round_works_the_other_way(model, pairs, result):
    """`n - r` senses as `n + r` does and acts against it: the effect changes its sign."""
    n, r = illusion(model, pairs)
    turned = audit(model, SITE, n - r, pairs, progress=False)
    assert turned.verdict == OPPOSITE
    assert turned.effect.fldd.value < -SMALLEST_EFFECT < SMALLEST_EFFECT < result.effect.fldd.value
    added = f"adds {-turned.effect.fldd.value:.1%}"
    assert turned.summary.startswith(f"Works the other way: the patch along the direction {added}")
    whole = by_name(turned)["whole does less"]
    assert whole.verdict == AGAINST, "by what pathway it works is asked all the same"
    assert f"'whole does less' ({whole.value:.2f})" in turned.summary
    assert report.figure_in_words(turned).endswith("Verdict: works the other way.")


def test_a_direction_that_does_nothing_has_no_effect(model, pairs):
    null, _ = illusion(model, pairs)
    found = audit(model, SITE, null, pairs, progress=False)
    assert found.verdict == NO_EFFECT and "no effect to explain" in found.summary
    assert by_name(found)["whole does less"].verdict == DOES_NOT_APPLY
    json.loads(report.to_json(found))


def test_repeated_pairs_count_once(model, pairs, result):
    twice = pairs[[*range(N), 3, 0, 3]]
    again = audit(model, SITE, sum(illusion(model, pairs)), twice, name=NAME, progress=False)
    said = "Repeated pairs were counted once: 3 left out."
    assert [note for note in again.notes if note not in result.notes] == [said]
    assert replace(again, notes=result.notes) == result, "intervals are those over distinct pairs"
    assert said in report.to_markdown(again) and said in report.to_html(again)


def test_pairs_that_are_the_same_up_to_the_patched_token_are_left_out(model, pairs):
    later = [torch.cat([tokens, tokens[:1]]) for tokens in pairs.base_tokens]
    for sources in (pairs.base_tokens, later):
        same = Pairs(**(vars(pairs) | {"source_tokens": tuple(sources)}))
        with pytest.raises(ValueError, match="base and source are the same up to the patched tok"):
            audit(model, SITE, torch.ones(96), same, progress=False)
    some = replace(pairs, source_tokens=(*pairs.base_tokens[:2], *pairs.source_tokens[2:]))
    left, notes = distinct(some)
    assert notes == ("Pairs with the same base and source were left out: 2.",)
    assert all(map(torch.equal, left.base_tokens, pairs.base_tokens[2:]))
    few = replace(pairs, source_tokens=(*pairs.base_tokens[:6], *pairs.source_tokens[6:]))
    with pytest.raises(ValueError, match="6 pairs are too few: .*same base and source .* out: 6"):
        audit(model, SITE, torch.ones(96), few, progress=False)


def test_pairs_that_are_there_both_ways_round_are_counted(pairs):
    turned = Pairs(
        pairs.source_tokens[:3], pairs.base_tokens[:3], pairs.counterfactual[:3], pairs.answer[:3],
        pairs.source_position[:3], pairs.position[:3], pairs.table[:3],
    )  # fmt: skip
    both = Pairs(*(a + b if isinstance(a, tuple) else pd.concat([a, b]) if isinstance(
        a, pd.DataFrame) else torch.cat([a, b]) for a, b in zip(*(
        [of for name, of in vars(side).items() if name != "choices"] for side in (pairs, turned)
        ), strict=True)))  # fmt: skip
    left, (note,) = distinct(both)
    assert len(left) == N + 3 and note.startswith("Pairs that are here the other way round, too: 6")
    assert distinct(pairs)[1] == ()


def test_the_same_seed_gives_the_same_audit(model, pairs, result):
    direction = sum(illusion(model, pairs))
    again = audit(model, SITE, direction, pairs, name=NAME, progress=False)
    other = audit(model, SITE, direction, pairs, name=NAME, seed=1, progress=False)
    assert again == result and report.to_json(again) == report.to_json(result)
    assert other.random[:2] == result.random[1:], "random directions have the seeds seed, seed + 1"
    assert (
        by_name(other)["whole does less"].value.low != by_name(result)["whole does less"].value.low
    )


def test_nothing_stays_behind():
    model = build_tiny_model("llama", seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs, figures = make_task(model), plt.get_fignums()
    direction = sum(illusion(model, pairs))
    copy = direction.clone()
    report.to_html(audit(model, SITE, direction, pairs, progress=False))
    points = {id(point): point for point in model.hook_dict.values()}.values()
    assert not any(point.fwd_hooks or point._forward_hooks for point in points)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(direction, copy) and plt.get_fignums() == figures


def test_progress_can_be_hidden(model, pairs, capsys, monkeypatch):
    direction = torch.ones(96)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    audit(model, SITE, direction, pairs)
    assert "audit: " in capsys.readouterr().err
    audit(model, SITE, direction, pairs, progress=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    audit(model, SITE, direction, pairs)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("site", "direction", "message"),
    [
        (SITE, torch.ones(48), "has 48 dimensions, but mlp_hidden.1 has 96: do you mean resid_pre"),
        (SITE, torch.ones(12), "do you mean head_output.1.0?"),
        (Site(0, "resid_post"), torch.ones(96), "do you mean mlp_hidden.0?"),
        (SITE, torch.ones(5), "was it found in another model?"),
        (SITE, torch.ones(1, 96, 1), r"a vector of real numbers .* of shape \(1, 96, 1\)"),
        (SITE, torch.zeros(96), "zero vector"),
        (SITE, torch.full((96,), torch.nan), "NaN"),
        (Site(7, "mlp_hidden"), torch.ones(96), "layer 7 is out of range"),
        (Site(1, "head_query", head=0), torch.ones(12), "choose another site"),
    ],
)
def test_bad_directions_and_sites_are_named(model, pairs, site, direction, message):
    with pytest.raises(ValueError, match=message):
        audit(model, site, direction, pairs, progress=False)


def test_bad_pairs_are_named(model, pairs):
    direction = torch.ones(96)
    with pytest.raises(ValueError, match="7 pairs are too few: .* at least 8, better 50"):
        audit(model, SITE, direction, pairs[:7], progress=False)
    answers = {"answer": pairs.counterfactual, "counterfactual": pairs.answer}
    with pytest.raises(ValueError, match="Are base and source swapped"):
        audit(model, SITE, direction, Pairs(**(vars(pairs) | answers)), progress=False)


def test_a_margin_that_may_be_zero_is_no_margin(model, pairs):
    half = torch.arange(N) < N // 2
    swapped = {
        "answer": torch.where(half, pairs.answer, pairs.counterfactual),
        "counterfactual": torch.where(half, pairs.counterfactual, pairs.answer),
    }
    with pytest.raises(ValueError, match="not clearly a margin.*whose answers the model knows"):
        audit(model, SITE, torch.ones(96), Pairs(**(vars(pairs) | swapped)), progress=False)


@pytest.mark.parametrize(("effect", "applies"), [((1.0, 1.2), True), ((-2.0, 3.0), False)])
def test_shares_are_taken_of_clear_effects_only(model, effect, applies):
    effect = torch.tensor(effect).repeat(10)
    reason = why_not(model, SITE, "whole does less", Score(torch.ones(20), effect))
    assert reason == ("" if applies else "The effect is 0.50 nats with a standard error of 0.57: "
        "too little to take a share of.")  # fmt: skip


def test_models_without_a_kernel_say_so(model, pairs, monkeypatch):
    small = torch.randn(40, 48)
    monkeypatch.setattr("helpers.audit.findings.writing_matrix", lambda model, site: small)
    assert why_not(model, SITE, "null norm", None) == "The output matrix of this MLP loses nothing."


# The verdicts.

numbers = st.floats(-3, 3)
estimates = (
    st.tuples(numbers, numbers, numbers).map(sorted).map(lambda x: Estimate(x[1], x[0], x[2]))
)
ORDER = {FOR: 0, OPEN: 1, AGAINST: 2}
judged = st.sampled_from([test for test in TESTS if test.against is not None])


@given(judged, estimates, st.floats(0, 3), st.floats(0, 3), st.floats(0, 3))
def test_a_larger_value_never_speaks_less_against(test, value, more, low, high):
    test = replace(test, two_sided=False)
    larger = Estimate(value.value + more, value.low + low, value.high + high)
    assert ORDER[judge(test, larger)] >= ORDER[judge(test, value)]


@given(st.sampled_from(TESTS), estimates)
def test_verdicts_follow_from_the_thresholds(test, value):
    verdict = judge(test, value)
    finding = criteria.measured(test, value)
    assert (finding.verdict, finding.value, finding.limits) == (verdict, value, test.limits)
    if test.against is None:
        assert verdict == REPORTED
        return
    if test.two_sided:
        mirrored = Estimate(-value.value, -value.high, -value.low)
        assert judge(test, mirrored) == verdict
        if value.low < 0:
            assert verdict != FOR or -test.against < value.low
            return
    floor = test.against / 2 if test.acquits is None else test.acquits
    assert (verdict == AGAINST) == (value.value >= test.against and value.low > floor)
    clear = test.acquits is not None and value.value <= test.acquits and value.high < test.against
    assert (verdict == FOR) == clear


@pytest.mark.parametrize(
    ("thresholds", "value", "verdict"),
    [
        ((0.75, 0.5), (0.75, 0.51, 1.0), AGAINST),
        ((0.75, 0.5), (0.74, 0.51, 1.0), OPEN),
        ((0.75, 0.5), (0.9, 0.5, 1.0), OPEN),
        ((0.75, 0.5), (0.5, 0.1, 0.74), FOR),
        ((0.75, 0.5), (0.5, 0.1, 0.75), OPEN),
        ((0.75, 0.5), (0.51, 0.1, 0.7), OPEN),
        ((0.1, None), (0.1, 0.06, 0.3), AGAINST),
        ((0.1, None), (0.1, 0.05, 0.3), OPEN),
        ((0.1, None), (0.0, 0.0, 0.0), OPEN),
        ((None, None), (9.0, 9.0, 9.0), REPORTED),
    ],
)
def test_verdicts_by_hand(thresholds, value, verdict):
    assert judge(criteria.Criterion("", "", "", *thresholds), Estimate(*value)) == verdict


def test_the_tests_are_those_of_the_engine(model, pairs):
    cached = cache_pairs(model, pairs, SITE)
    known = scores(cached, torch.ones(96), writing_matrix(model, SITE))
    assert sorted(test.name for test in TESTS) == sorted(known)


def a_finding(test: str, verdict: str) -> Finding:
    return Finding(test, "", Estimate(0.9, 0.8, 1.0), verdict, "", "")


WHOLE, OTHER, THIRD = "whole does less", "beyond range", "lost in range"
UNITS = "lost unit by unit"
CLEAR, RANDOM = Estimate(0.5, 0.4, 0.6), Estimate(0.0, -0.1, 0.1)


@pytest.mark.parametrize(
    ("verdicts", "conclusion"),
    [
        ({WHOLE: AGAINST}, ILLUSION),
        ({WHOLE: AGAINST, OTHER: OPEN, THIRD: FOR}, ILLUSION),
        ({WHOLE: FOR, OTHER: AGAINST, THIRD: AGAINST}, ILLUSION),
        ({WHOLE: OPEN, OTHER: AGAINST, THIRD: AGAINST}, ILLUSION),
        ({WHOLE: FOR, OTHER: OPEN, THIRD: DOES_NOT_APPLY}, CONSISTENT),
        ({WHOLE: FOR, OTHER: AGAINST}, UNDECIDED),
        ({WHOLE: OPEN, OTHER: AGAINST}, UNDECIDED),
        ({WHOLE: OPEN, OTHER: FOR, THIRD: FOR}, UNDECIDED),
        ({WHOLE: DOES_NOT_APPLY}, UNDECIDED),
        ({UNITS: AGAINST, WHOLE: FOR}, ILLUSION),
        ({UNITS: AGAINST, WHOLE: DOES_NOT_APPLY}, ILLUSION),
        ({UNITS: FOR, WHOLE: OPEN}, CONSISTENT),
        ({UNITS: FOR, WHOLE: AGAINST, OTHER: AGAINST, THIRD: AGAINST}, UNDECIDED),
        ({UNITS: OPEN, WHOLE: FOR}, CONSISTENT),
        ({UNITS: OPEN, WHOLE: OPEN}, UNDECIDED),
    ],
)
def test_what_the_findings_come_to(verdicts, conclusion):
    found = [a_finding(test, verdict) for test, verdict in verdicts.items()]
    assert conclude(CLEAR, [RANDOM, RANDOM], found) == conclusion
    assert conclude(CLEAR, [RANDOM, CLEAR], found) == NO_EFFECT
    assert conclude(Estimate(0.2, 0.1, 0.3), [RANDOM], found) == NO_EFFECT
    summary = summarise(CLEAR, [RANDOM], found)
    assert summary.lower().startswith(f"{conclusion}: the patch along the direction removes 50.0%")
    for test, verdict in verdicts.items():
        if verdict == AGAINST:
            assert f"'{test}' (0.90 [0.80, 1.00])" in summary
    if verdicts.get(UNITS) == FOR:
        assert f"'{UNITS}' (0.90 [0.80, 1.00])" in summary
    assert summary.endswith(NOT_SHOWN[conclusion])


@pytest.mark.parametrize("verdict", [AGAINST, FOR, OPEN])
def test_the_other_sign_is_judged_as_strictly(verdict):
    """Whatever has an effect has one of the other sign when it is turned round, and vice versa."""
    found = [a_finding(WHOLE, verdict)]
    other = Estimate(-0.5, -0.6, -0.4)
    assert conclude(other, [RANDOM, RANDOM], found) == OPPOSITE
    assert conclude(other, [RANDOM, other], found) == NO_EFFECT
    assert conclude(Estimate(-0.2, -0.3, -0.1), [RANDOM], found) == NO_EFFECT
    assert conclude(Estimate(-0.04, -0.05, -0.03), [Estimate(0, 0, 0)], found) == NO_EFFECT
    assert conclude(Estimate(-0.2, -0.3, -0.1), [Estimate(0, 0, 0.4)], found) == OPPOSITE
    summary = summarise(other, [RANDOM], found)
    assert "adds 50.0% [40.0%, 60.0%] of the model's margin" in summary
    assert ("'whole does less' (0.90" in summary) == (verdict == AGAINST)
    assert summary.endswith(NOT_SHOWN[OPPOSITE])


# The reports.


class Page(html.parser.HTMLParser):
    """Collects the text of a page and fails where a tag is not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_json_is_the_dictionary(result):
    assert json.loads(report.to_json(result)) == report.to_dict(result)
    assert report.to_dict(result)["verdict"] == result.verdict
    assert Site(**report.to_dict(result)["site"]) == SITE
    assert set(result.versions) >= {"python", "torch", "transformer_lens", "transformers"}


def test_the_page_is_one_well_formed_file_without_foreign_markup(result):
    text = report.to_html(result)
    page = Page(text)
    assert NAME not in text and f"of {NAME}" in page.text
    assert not {"b", "script", "link"} & {tag for tag, _ in page.tags}
    assert result.summary in page.text
    for finding in result.findings:
        assert finding.reason in page.text and finding.limits in page.text
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["src"].startswith("data:image/png;base64,iVBOR")
    assert image["alt"] == report.figure_in_words(result)
    assert ("html", {"lang": "en"}) in page.tags and headings(page) == ["h1"]


def test_the_figure_in_words_counts_what_is_drawn(result):
    words = report.figure_in_words(result)
    count = Counter(finding.verdict for finding in result.findings)
    assert f"{count[AGAINST]} against" in words and f"{count[FOR]} for it" in words
    assert f"{result.effect.fldd.value:.0%}" in words and words.endswith(f"{result.verdict}.")


def test_markup_in_a_cell_is_text(result):
    row = replace(result.findings[0], reason=NAME, limits=NAME)
    page = Page(report.to_html(replace(result, findings=(row,))))
    assert page.text.count(NAME) == 4 and "b" not in {tag for tag, _ in page.tags}


def test_the_markdown_has_a_row_for_each_test(result):
    text = report.to_markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(TESTS) and {row.count("|") for row in rows} == {6}
    assert result.summary in text and "interchange accuracy" in text
    assert str(ROOT) not in text and str(ROOT) not in report.to_json(result)


def test_a_folder_names_the_model_by_its_last_part(model, pairs):
    found = audit(model, SITE, torch.ones(96), pairs, name="/home/me/models/tiny/", progress=False)
    assert found.model == "tiny" and "/home" not in report.to_html(found) + report.to_json(found)
    assert audit(model, SITE, torch.ones(96), pairs, progress=False).model == "tiny-llama"


def test_the_figure_shows_every_judged_test(result):
    with plt.rc_context({"axes.titlesize": 3.0}):
        figure = report.figure(result)
        assert plt.rcParams["axes.titlesize"] == 3.0, "the caller's style stays"
    plt.close(figure)
    assert figure.get_suptitle() == "The direction at mlp_hidden.1: likely an illusion"
    rows = [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes]
    assert rows[0][:2] == ["this direction", "whole component"] and len(rows[0]) == 5
    shown = [f for f in result.findings if f.verdict in (AGAINST, FOR, OPEN)]
    assert sorted(row.split("\n")[0] for panel in rows[1:] for row in panel) == sorted(
        finding.test for finding in shown
    )
    value = by_name(result)["lost by the row part"].value.value
    assert f"lost by the row part\n{AGAINST}: {value:.0%}" in rows[1]


def test_a_panel_has_one_unit_and_the_thresholds(result):
    figure = report.figure(result)
    plt.close(figure)
    units = ["share of the effect (%)", "widths of the natural range", "usual distances"]
    for ax, name in zip(figure.axes[1:], units, strict=True):
        assert ax.get_xlabel().startswith(name)
    tests = {test.name: test for test in TESTS}
    for ax, scale in zip(figure.axes[1:], (100, 1, 1), strict=True):
        names = [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]
        drawn = {line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1}
        for name in names:
            assert scale * tests[name].against in drawn, name
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "speaks against from here",
        "for, up to here",
    ]


def test_saving_writes_whole_files_again_and_again(result, tmp_path):
    for _ in range(2):
        paths = report.save(result, tmp_path / "new" / "folder")
        assert [path.name for path in paths] == FILES
        assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(FILES)
    assert json.loads(paths[0].read_text(encoding="utf-8")) == report.to_dict(result)
    assert paths[1].read_text(encoding="utf-8") == report.to_markdown(result)
    assert paths[2].read_text(encoding="utf-8") == report.to_html(result)
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_nothing_is_left_of_a_file_that_could_not_be_written(result, tmp_path):
    (tmp_path / "audit.json").mkdir()
    with pytest.raises(OSError):
        report.save(result, tmp_path)
    assert os.listdir(tmp_path) == ["audit.json"]
