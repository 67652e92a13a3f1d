"""Claims, their rules, and how verdicts are recorded."""

import json
import math
import re
import threading

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.claims import reference, report
from helpers.claims.report import (
    claims,
    every_claim,
    judge,
    record,
    record_untestable,
    rule_names,
)
from helpers.output import files

CLAIM_IDS = [f"C{n}" for n in range(1, 39)] + [f"E{n}" for n in range(1, 7)]
EVERY_ID = CLAIM_IDS + [f"R{n}" for n in range(1, 8)]  # with those of part II
EVERY_ID += [f"F{n}" for n in range(1, 8)] + [f"M{n}" for n in range(1, 6)]
EVERY_ID += [f"K{n}" for n in range(1, 7)] + [f"D{n}" for n in range(1, 9)]
EVERY_ID += [f"T{n}" for n in range(1, 5)]
C4_CONTROLS = {"full_mlp_high": 5.0, "random_high": 2.0}
numbers = st.floats(-300, 300)


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A results folder of our own; the tests name no model, so it is the default one's."""
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path))
    monkeypatch.delenv("SUBSPACE_ILLUSION_MODEL", raising=False)
    return report.results_folder()


def stored(results, claim):
    return json.loads((results / "claims.json").read_text())[claim]


# -------------------------------------------------------------------------- data/claims.json


def test_all_claims_are_there_in_order():
    assert list(claims()) == CLAIM_IDS and list(every_claim()) == EVERY_ID
    assert all((spec["lesson"] > "10") == (c not in claims()) for c, spec in every_claim().items())
    text = (report.ROOT / "data" / "claims.json").read_text()
    assert len(re.findall(r'"id":', text)) == len(EVERY_ID)  # a repeated id would hide a claim


@pytest.mark.parametrize("claim", EVERY_ID)
def test_claim_is_complete(claim):
    spec = every_claim()[claim]
    for key in ("title", "statement", "where", "quantity"):
        assert spec[key].strip()
    assert re.fullmatch(r"0[1-9]|1[1-6]", spec["lesson"])
    assert {"source", "model", "value", "unit", "note"} <= spec["paper"].keys()
    assert spec["paper"]["value"] is None or math.isfinite(spec["paper"]["value"])
    assert len({len(column) for column in spec["paper"].get("by_layer", {}).values()}) <= 1


@pytest.mark.parametrize("claim", EVERY_ID)
def test_rule_is_well_formed(claim):
    rule, detail = every_claim()[claim]["rule"], every_claim()[claim]["detail"]
    assert rule["text"].startswith(("Replicated", "As for", "An identity", "A count", "The paper"))
    assert rule["replicated"], "an empty list would never hold"
    for left, compare, right in rule["replicated"] + rule["partly"]:
        assert isinstance(left, str) and compare in report.COMPARE
        assert isinstance(right, (int, float, str)) or len(right) == 2
    assert rule_names(rule) <= {"value", "low", "high"} | detail.keys()
    unjudged = detail.keys() - rule_names(rule) - set(every_claim()[claim].get("choice", ()))
    assert all("not judged" in detail[name] for name in unjudged)


@pytest.mark.parametrize("claim", EVERY_ID)
def test_a_rule_that_could_fail_says_how(claim):
    spec = every_claim()[claim]
    informative, rule = spec["informative"], spec["rule"]
    assert informative["why"].endswith(".") and 40 < len(informative["why"]) < 160
    assert ("failing" in informative) == informative["could_fail"]
    assert spec["dated"].startswith(("The rule ", "Rule and result "))
    if informative["could_fail"]:
        failing = informative["failing"]
        assert failing.keys() == rule_names(rule)
        assert judge(rule, failing) == "not"
        assert all(-100 <= number <= 150 for number in failing.values())  # could be recorded


def test_nothing_that_failed_is_called_sure_to_pass():
    for claim, entry in reference.expected().items():
        could_fail = claims()[claim]["informative"]["could_fail"]
        assert could_fail or entry["verdict"] == "replicated", claim


@given(data=st.data())
@pytest.mark.parametrize("claim", EVERY_ID)
def test_replicated_implies_partly(claim, data):
    """Whatever is good enough for "replicated" is good enough for "partly"."""
    rule = every_claim()[claim]["rule"]
    bounds = [x for *_, x in rule["replicated"] + rule["partly"] if isinstance(x, (int, float))]
    number = numbers | st.sampled_from([0, *bounds])
    measured = {name: data.draw(number, label=name) for name in sorted(rule_names(rule))}
    assume(min(measured.get(name, 0) for name in ("chance", "honest")) >= 0)  # percentages
    if rule["partly"] and judge(rule, measured) == "replicated":
        assert judge({**rule, "replicated": []}, measured) == "partly"


def test_paper_values_pass_their_own_rules():
    """The paper's numbers for GPT-2, in the claims that need nothing else."""
    for claim in CLAIM_IDS:
        rule, value = claims()[claim]["rule"], claims()[claim]["paper"]["value"]
        if rule_names(rule) == {"value"} and value is not None:
            assert judge(rule, {"value": value}) == "replicated", claim


def test_a_choice_that_changes_the_verdict_is_the_verdict():
    """C29: what is not fixed by its source, and would be judged otherwise, is not judged."""
    assert record("C29", 0.9, detail={"falling_beta": 1.0}).verdict == "replicated"
    assert record("C29", 0.1, detail={"falling_beta": -1.0}).verdict == "not"
    assert record("C29", 0.1, detail={"falling_beta": 1.0}).verdict == report.DEPENDS
    with pytest.raises(ValueError, match="falling_beta"):
        record("C29", 0.1)


# -------------------------------------------------------------------------- rules


@given(low=numbers, rise=st.floats(0, 300), threshold=numbers, weaker=st.floats(0, 300))
def test_raising_a_value_never_worsens_a_lower_bound(low, rise, threshold, weaker):
    rule = {
        "replicated": [["value", ">=", threshold]],
        "partly": [["value", ">=", threshold - weaker]],
    }
    ranks = ["not", "partly", "replicated"]
    before, after = (ranks.index(judge(rule, {"value": v})) for v in (low, low + rise))
    assert after >= before


@given(value=numbers, factor=st.floats(0, 2), other=numbers)
def test_terms_mean_what_they_say(value, factor, other):
    def holds(*condition):
        rule = {"replicated": [condition], "partly": []}
        return judge(rule, {"value": value, "other": other}) == "replicated"

    assert holds("|value|", "<=", 10) == (abs(value) <= 10)
    assert holds("value", "<", "other") == (value < other)
    assert holds("value", ">=", [factor, "other"]) == (value >= factor * other)
    assert holds("value", ">", [factor, "|other|"]) == (value > factor * abs(other))
    assert holds("value", "==", "value")


def test_all_conditions_must_hold_and_an_empty_list_never_does():
    rule = {"replicated": [["value", ">", 0], ["low", ">", 0]], "partly": []}
    assert judge(rule, {"value": 1, "low": 1}) == "replicated"
    assert judge(rule, {"value": 1, "low": -1}) == "not"
    assert judge({"replicated": [], "partly": []}, {}) == "not"


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [
        (46.7, (44.0, 49.0), "replicated"),
        (12.0, (9.0, 15.0), "partly"),  # above both controls, below 20 %
        (46.7, (4.0, 90.0), "not"),  # its interval reaches the full MLP patch
    ],
)
def test_verdicts_of_c4(value, interval, verdict):
    assert record("C4", value, interval, detail=C4_CONTROLS).verdict == verdict


def test_c18_needs_both_directions():
    natural = {"natural_low": -2.0, "natural_high": 1.0}
    both = record("C18", 2, detail=natural | {"patched_low": -6.5, "patched_high": 5.0})
    miscounted = record("C18", 2, detail=natural | {"patched_low": -1.0, "patched_high": 5.0})
    one = record("C18", 1, detail=natural | {"patched_low": -1.0, "patched_high": 5.0})
    assert [r.verdict for r in (both, miscounted, one)] == ["replicated", "partly", "partly"]


# -------------------------------------------------------------------------- recording


def test_record_prints_stores_and_returns(results, capsys):
    result = record("C9", np.float32(95.12), (93.8, np.float64(96.3)), note="layer 20")
    assert result == report.Verdict("C9", "partly", pytest.approx(95.12), (93.8, 96.3))
    line = "C9 · full residual patch moves it: 95.1 % [93.8, 96.3] (paper 123.6 %) -> partly\n"
    assert capsys.readouterr().out == line
    entry = stored(results, "C9")
    assert entry["verdict"] == "partly" and entry["interval"] == [93.8, 96.3]
    assert entry["lesson"] == claims()["C9"]["lesson"] and entry["note"] == "layer 20"


def test_record_says_whose_number_it_compares_with(capsys):
    record("C8", 90.0, (80.0, 95.0))
    assert "(independent re-run 84.0 %)" in capsys.readouterr().out
    record("C20", 30.0, (20.0, 40.0))
    assert capsys.readouterr().out.endswith("30.0 % [20.0, 40.0] -> replicated\n")


def test_detail_may_hold_arrays(results):
    record("C3", 1.0, detail={"by_layer": np.arange(3)}, lesson="08")
    assert stored(results, "C3")["detail"] == {"by_layer": [0, 1, 2]}
    assert stored(results, "C3")["lesson"] == "08"


def test_recording_again_replaces_and_keeps_the_others(results):
    record("C3", 50.0)
    record("C22", 0.0)
    record("C3", 1.0)
    assert stored(results, "C3")["verdict"] == "replicated"
    assert stored(results, "C22")["value"] == 0


def test_untestable(results, capsys):
    result = record_untestable("C21", "knows only 3 facts")
    assert result.verdict == report.UNTESTABLE and result.value is None
    assert "knows only 3 facts" in capsys.readouterr().out
    assert stored(results, "C21") == {
        "verdict": report.UNTESTABLE,
        "lesson": "06",
        "note": "knows only 3 facts",
    }


def test_models_do_not_mix(results):
    record("C3", 1.0, model="gpt2")
    assert not results.exists()
    assert stored(report.results_folder("gpt2"), "C3")["value"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"claim": "C44", "value": 1.0}, "C4"),
        ({"claim": "c9", "value": 1.0}, "C9"),
        ({"claim": "C3", "value": math.nan}, "finite"),
        ({"claim": "C3", "value": math.inf}, "finite"),
        ({"claim": "C3", "value": 1.0, "interval": (0.0, math.nan)}, "finite"),
        ({"claim": "C3", "value": 1.0, "interval": (2.0, 0.5)}, r"interval=\(0.5, 2\)"),
        ({"claim": "C8", "value": 1.0}, r"interval=\(low, high\)"),
        ({"claim": "C5", "value": 1.0}, "'full_direction': FLDD of the whole direction"),
        ({"claim": "C5", "value": 1.0, "detail": {"full_direction": math.nan}}, "full_direction"),
        ({"claim": "C3", "value": 1.0, "detail": {"other": math.nan}}, "nan"),
    ],
)
def test_errors_say_what_to_pass_and_store_nothing(results, arguments, message):
    with pytest.raises(ValueError, match=message):
        record(**arguments)
    assert not (results / "claims.json").exists()


def test_unknown_claim_cannot_be_untestable():
    with pytest.raises(ValueError, match="There is no claim 'C0'"):
        record_untestable("C0", "no reason")


def test_an_interrupted_write_leaves_the_old_file(results, monkeypatch):
    record("C3", 1.0)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        record("C3", 2.0)
    assert stored(results, "C3")["value"] == 1.0
    assert {path.name for path in results.iterdir()} == {"claims.json", "claims.lock"}


def test_lessons_may_record_at_the_same_time(results):
    ids = [c for c in CLAIM_IDS if rule_names(claims()[c]["rule"]) == {"value"} and c != "C29"]
    threads = [threading.Thread(target=record, args=(claim, 1.0)) for claim in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads((results / "claims.json").read_text()).keys() == set(ids)


# -------------------------------------------------------------------------- summary and sites


def test_summary_lists_every_claim(capsys):
    record("C9", 95.1, (93.8, 96.3))
    record_untestable("C21", "knows only 3 facts")
    table = report.summary_table().set_index("claim")
    assert list(table.index) == CLAIM_IDS
    assert tuple(table.loc["C9"]) == (
        "full residual patch moves it",
        "123.6 %",
        "95.1 % [93.8, 96.3]",
        "partly",
        "02",
    )
    assert table.loc["C21", "ours"] == "knows only 3 facts"
    assert (table["verdict"] == report.UNMEASURED).sum() == 42
    assert report.recorded().keys() == {"C9", "C21"} and report.recorded("gpt2") == {}


def test_a_number_without_an_interval_is_shown_alone():
    spec = claims()["C9"]
    for entry in ({"value": 95.12}, {"value": 95.12, "interval": None}):
        assert report.show_ours(spec, entry) == "95.1 %"
    assert report.show_ours(spec, {"value": 95.12, "interval": [93.8, 96]}) == "95.1 % [93.8, 96.0]"
    assert report.show_ours(spec, {"note": "no MLP"}) == "no MLP"
    assert report.show_ours(spec, {}) == ""


def test_sites_are_found_again(results):
    report.save_site("ioi", {"layer": np.int64(20), "heads": [(21, 3)]}, {"fldd": np.ones(2)})
    report.save_site("facts", {"layer": 3}, {})
    assert report.load_site("ioi") == {"layer": 20, "heads": [[21, 3]]}
    assert report.load_site("facts") == {"layer": 3}
    assert json.loads((results / "sites.json").read_text())["ioi"]["evidence"] == {"fldd": [1, 1]}


def test_shipped_sites_come_second(tmp_path, monkeypatch):
    shipped = tmp_path / "data" / "sites" / "gpt2.json"
    shipped.parent.mkdir(parents=True)
    shipped.write_text('{"ioi": {"site": {"layer": 8}, "evidence": {}}}')
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.load_site("ioi", "gpt2") == {"layer": 8}
    report.save_site("ioi", {"layer": 7}, {}, "gpt2")
    assert report.load_site("ioi", "gpt2") == {"layer": 7}


def test_a_published_site_comes_first():
    paper = {"layer": 8, "kind": "resid_post", "readers": [[9, 6], [9, 9], [10, 0]]}
    report.save_site("ioi", {"layer": 7}, {}, "gpt2")
    assert report.load_site("ioi", "gpt2") == paper


def test_missing_site_says_what_to_run():
    with pytest.raises(FileNotFoundError, match="make run LESSON=02 MODEL=some/model"):
        report.load_site("ioi", "some/model")


def test_results_folder_without_the_variable(monkeypatch):
    monkeypatch.delenv("SUBSPACE_ILLUSION_RESULTS")
    assert report.results_folder("gpt2") == report.ROOT / "results" / "gpt2"
