"""The benchmark for tests of a direction, and the run that calibrates the audit."""

import pytest
import torch
from conftest import build_tiny_model

from helpers.audit.criteria import TESTS
from helpers.audit.planted import FAMILIES, NATURAL, OPENED
from helpers.audit.verdicts import CONSISTENT, ILLUSION
from helpers.directions.geometry import patch_subspace
from helpers.patching.metrics import share
from tools.audit import benchmark
from tools.audit.benchmark import auroc, planted_models, score, share_opened
from tools.audit.report import CALIBRATION
from tools.evidence import audit as evidence
from tools.evidence.literature import LITERATURE, off_manifold
from tools.evidence.store import Evidence, evidence_file


@pytest.fixture(scope="module")
def model():
    return build_tiny_model("llama", seed=1)


@pytest.fixture(scope="module")
def made(model):
    return planted_models(model, 1, 1, 8)


def run(model, test, **changes):
    return score(test, **{"model": model, "layer": 1, "seeds": 1, "n_pairs": 8} | changes)


def truth(cached, direction):
    return share_opened(cached, patch_subspace(cached.base, cached.source, direction))


def test_whoever_knows_the_truth_is_never_wrong(model):
    table = run(model, truth)
    assert (table.loc["truth"] == 1).all().all()
    assert set(table.loc["truth"].index) <= {"all", *OPENED}
    names = {test.name for test in TESTS} | {"truth"}
    assert set(table.index.get_level_values("test")) == names


def test_whoever_knows_nothing_is_at_chance(model):
    assert (run(model, lambda cached, direction: 1.0).loc["<lambda>"] == 0.5).all().all()


def test_the_audits_own_rows_are_its_scores(model, made):
    found = run(model, truth).loc["null norm"].loc["all"]
    values = [(row[-1]["null norm"], row[3] > 0.5) for row in made]
    guilty, rest = ([v for v, opened in values if opened is which] for which in (True, False))
    wins = [(one > other) + (one == other) / 2 for one in guilty for other in rest]
    assert found["AUROC"] == pytest.approx(sum(wins) / len(wins))
    assert found["low"] <= found["AUROC"] <= found["high"]


def test_models_are_planted_once_and_not_changed_by_a_test(model, made, monkeypatch):
    def greedy(cached, direction):
        direction.zero_()
        return 0.0

    before = [v.clone() for _, _, v, *_ in made]
    monkeypatch.setattr(benchmark, "plant", lambda *_, **__: pytest.fail("planted again"))
    run(model, greedy)
    assert all(torch.equal(old, row[2]) for old, row in zip(before, made, strict=True))


def test_what_is_no_number_is_refused(model):
    with pytest.raises(ValueError, match="what the test returns .*NaN"):
        run(model, lambda cached, direction: float("nan"))
    with pytest.raises(ValueError, match="seeds must be"):
        run(model, truth, seeds=0)


def test_auroc_by_hand():
    assert auroc(torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 2])) == pytest.approx(4.5 / 6)


def test_tests_from_the_literature(made):
    for _, planted, v, *_ in made:
        same = torch.nn.functional.normalize((planted.source - planted.base)[0], dim=0)
        for test in LITERATURE.values():
            assert isinstance(test(planted, v), float)
        assert off_manifold(planted, same) >= 0
    names = [row[0] for row in made]
    silent, mediator = (made[names.index(name)] for name in ("silent", "mediator"))
    assert off_manifold(*silent[1:3]) > off_manifold(*mediator[1:3])


# The calibration, on rows made by hand.


def a_row(value: float, opened: bool) -> tuple:
    """Every test has one value; the whole component's and the units' decide alone."""
    row = {"opened": float(opened), "fldd": [0.5, 0.4, 0.6]}
    return "silent" if opened else "mediator", opened, row | {t.name: [value] * 3 for t in TESTS}


ROWS = [a_row(value, False) for value in (0.0, 0.02, 0.04)]
ROWS += [a_row(value, True) for value in (0.9, 1.2, 3.0)]


def test_a_threshold_is_put_in_the_middle_of_the_gap():
    tests = {test.name: test for test in evidence.fitted(ROWS)}
    for test in TESTS:
        new = tests[test.name]
        if test.against is None:
            assert new == test
        else:
            assert new.against == pytest.approx(0.5, abs=0.051)
            same = test.acquits is None or new.acquits / new.against == pytest.approx(
                test.acquits / test.against, rel=0.01
            )
            assert same


def test_an_innocent_weighs_as_much_as_five_guilty():
    four, six = ([*ROWS, a_row(2.0, False), *[a_row(1.9, True)] * n] for n in (0, 9))
    first = {test.name: test.against for test in evidence.fitted(four)}
    then = {test.name: test.against for test in evidence.fitted(six)}
    assert first["cross term"] > 2.0 and then["cross term"] < 0.9


def test_rates_are_those_of_the_verdict():
    wrong = [a_row(3.0, False), a_row(0.0, True)]
    found = evidence.rates(ROWS + wrong, TESTS)
    assert found["accused, natural"][:2] == found["missed, opened"][:2] == (1, 4)
    expected = share(torch.tensor([True, False, False, False]))
    assert found["missed, opened"][2] == expected
    assert [evidence.verdict(row[2], TESTS) for row in wrong] == [ILLUSION, CONSISTENT]
    assert found["undecided"][:2] == (0, 8)


def test_nothing_is_fitted_on_what_is_reported():
    fit = [s for s in evidence.SETTINGS if s.fit]
    held = [s for s in evidence.SETTINGS if not s.fit]
    seeds = [set().union(*(s.seeds for s in part)) for part in (fit, held)]
    assert fit and held and seeds[0].isdisjoint(seeds[1])
    assert {s.feature for s in held} - {s.feature for s in fit}
    assert {s.n for s in held} >= {32, 200, 400} and set(NATURAL) < set(FAMILIES)


def test_what_was_shipped_has_its_tables(capsys):
    shipped = Evidence(evidence_file("audit"))
    assert list(evidence.RULES) == shipped["rules"]
    evidence.show(shipped)
    text = capsys.readouterr().out
    assert "held out" in text and "HPC-L" in text and "units that favour the feature" in text


def test_reports_state_the_rates_that_were_measured():
    shipped = Evidence(evidence_file("audit"))
    held = evidence.rows_of(shipped, [s for s in evidence.SETTINGS if not s.fit])
    for name, (errors, models, rate) in evidence.rates(held, TESTS).items():
        if name != "undecided":
            stated = f"{errors} of {models} ({rate.low:.0%} to {rate.high:.0%})"
            assert stated in CALIBRATION, stated
