"""Reference values: what is shipped, when a claim has drifted, and how the file is made anew."""

import json
import math
import re

import pytest

from helpers.claims import reference as expected
from helpers.claims import report
from helpers.claims.reference import check, drifts, expected_path
from helpers.claims.report import claims, judge_choices, record, record_untestable
from tools.reference import KEPT, default_tolerance, update

CLAIM_IDS = list(claims())
SHIPPED = expected.expected("smollm2-135m", "quick")
NOT = {"verdict": "not"}
C9 = NOT | {"value": 50.0, "tolerance": 2.0}
C21 = {"verdict": report.UNTESTABLE, "note": "few facts"}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A results folder of our own for the packaged model with the default sizes."""
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    for variable in ("SUBSPACE_ILLUSION_MODEL", "SUBSPACE_ILLUSION_SIZES"):
        monkeypatch.delenv(variable, raising=False)
    return report.results_folder()


@pytest.fixture
def refer(tmp_path, monkeypatch):
    """`refer(C9=...)` makes these the only reference values; the shipped ones are out of reach."""
    monkeypatch.setattr(expected, "ROOT", tmp_path)

    def write(model=None, **entries):
        path = expected_path(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({claim: NOT | entry for claim, entry in entries.items()}))

    return write


def found(model=None, **entries):
    """Store these entries as if lessons had recorded them; `record` would refuse some of them."""
    folder = report.results_folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {claim: NOT | entry for claim, entry in entries.items()}
    (folder / "claims.json").write_text(json.dumps(entries))


# -------------------------------------------------------------------------- the shipped file


def test_every_claim_has_a_reference_in_order():
    assert list(SHIPPED) == CLAIM_IDS and len(CLAIM_IDS) == 44


@pytest.mark.parametrize("claim", CLAIM_IDS)
def test_a_reference_is_complete(claim):
    entry = SHIPPED[claim]
    assert entry["verdict"] in report.VERDICTS and entry["verdict"] != report.UNMEASURED
    assert entry.keys() <= {*KEPT, "detail", "tolerance"}
    assert list((report.ROOT / "notebooks").glob(f"{entry['lesson']}_*.ipynb"))
    assert ("value" in entry) == ("tolerance" in entry) == (entry["verdict"] != report.UNTESTABLE)
    if "value" in entry:
        assert math.isfinite(entry["value"]) and 0 < entry["tolerance"] < math.inf
        low, high = entry.get("interval", [entry["value"]] * 2)
        assert low <= entry["value"] <= high


@pytest.mark.parametrize("claim", CLAIM_IDS)
def test_the_rule_gives_the_stored_verdict(claim):
    """Also where a rule needs more than the value: the numbers it names are in the detail."""
    entry = SHIPPED[claim]
    if entry["verdict"] == report.UNTESTABLE:
        pytest.skip("a claim that could not be tested has no numbers")
    low, high = entry.get("interval", (None, None))
    numbers = {**entry["detail"], "value": entry["value"], "low": low, "high": high}
    assert judge_choices(claims()[claim], numbers) == entry["verdict"]


def test_the_reference_itself_has_not_drifted():
    found(**SHIPPED)
    assert drifts() == []


@pytest.mark.parametrize("sign", [-1, 1])
def test_every_claim_can_drift(sign):
    for claim, entry in SHIPPED.items():
        moved = entry["value"] + sign * 1.01 * entry["tolerance"]
        found(**SHIPPED | {claim: entry | {"value": moved}})
        (sentence,) = drifts()
        assert sentence.startswith(f"{claim} (")


# -------------------------------------------------------------------------- drifts


@pytest.mark.parametrize("value", [48.0, 50.0, 52.0])
def test_within_the_tolerance_is_no_drift(refer, capsys, value):
    refer(C9=C9, C21=C21)
    found(C9={"value": value}, C21=C21)
    check()
    assert capsys.readouterr().out == "2 of 2 recorded claims are as in our reference run\n"


@pytest.mark.parametrize("value", [47.9, 52.1, -50.0, math.nan, math.inf])
def test_outside_fails_and_names_the_claim(refer, value):
    refer(C9=C9, C21=C21)
    found(C9={"value": value}, C21=C21)
    with pytest.raises(AssertionError) as error:
        check()
    sentence = f"C9 (full residual patch moves it): {value:.4g}, not 50 ± 2"
    assert str(error.value).splitlines()[1:] == [sentence]


def test_all_that_moved_are_named(refer):
    refer(C2=C9, C9=C9, C10=C9)
    found(C2={"value": 40.0}, C9={"value": 50.0}, C10={"value": 60.0})
    assert [sentence.split()[0] for sentence in drifts()] == ["C2", "C10"]


@pytest.mark.parametrize(
    ("reference", "entry"), [(C9, C21), (C21, {"value": 50.0}), (C9, {"value": None})]
)
def test_untestable_against_measured_is_a_drift(refer, reference, entry):
    refer(C9=reference)
    found(C9=entry)
    (sentence,) = drifts()
    assert sentence.startswith("C9") and "None" in sentence and "50.0" in sentence


def test_what_was_not_recorded_or_has_no_reference_is_no_drift(refer, capsys):
    refer(C9=C9, C21=C21)
    found(C10={"value": 1e9})
    assert drifts() == []
    check()
    assert "0 of 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SUBSPACE_ILLUSION_MODEL", "gpt2"), ("SUBSPACE_ILLUSION_SIZES", "paper")],
)
def test_elsewhere_a_drift_is_only_printed(refer, monkeypatch, capsys, variable, value):
    monkeypatch.setenv(variable, value)
    refer(C9=C9, C10=C9)
    found(C9={"value": 50.0}, C10={"value": 80.0})
    check()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1 of 2 recorded claims are as in our reference run"
    assert second.startswith("C10 (") and second.endswith("80, not 50 ± 2")


def test_a_named_model_has_its_own_reference(refer, capsys):
    refer(C9=C9)
    found("gpt2", C9={"value": 80.0})
    check("gpt2")
    assert "0 of 0" in capsys.readouterr().out
    found(C9={"value": 80.0})
    with pytest.raises(AssertionError, match="C9"):
        check("smollm2-135m")


# -------------------------------------------------------------------------- the file made anew


@pytest.mark.parametrize(
    ("value", "interval", "unit", "tolerance"),
    [
        (100.0, None, "%", 5.0),
        (-200.0, None, "%", 10.0),
        (10.0, None, "%", 2.0),
        (10.0, (0.0, 12.0), "%", 6.0),
        (0.0, None, "", 0.03),
        (0.0, None, "nats", 0.05),
        (2.0, None, "of 2", 0.1),
    ],
)
def test_the_default_tolerance_is_the_largest_of_three(value, interval, unit, tolerance):
    entry = {"value": value, "interval": interval}
    assert default_tolerance(entry, unit) == pytest.approx(tolerance)
    if interval is None:
        assert default_tolerance({"value": value}, unit) == pytest.approx(tolerance)


def test_update_writes_what_was_recorded_in_the_order_of_the_claims(refer):
    detail = {"full_residual": 97.7302456, "full_residual_iia": 50.0, "iia": 90.0}
    more = detail | {"not_judged": [1, 2], "also_not": 3.0}
    record("C10", 140.4581234, (135.0, 145.0), detail=more, note="layer 20")
    record("C9", 97.7302456, (93.8079123, 102.2342))
    record_untestable("C21", "knows only 3 facts")
    record("C3", 0.0)
    path = update()
    assert path == expected_path()
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["C3", "C9", "C10", "C21"]
    assert content["C3"] == {
        "verdict": "replicated",
        "value": 0,
        "lesson": "03",
        "detail": {},
        "tolerance": 2,
    }
    assert content["C9"]["value"] == 97.7302 and content["C9"]["tolerance"] == 4.9
    assert content["C9"]["interval"] == [93.8079, 102.234]
    assert content["C10"]["note"] == "layer 20"
    assert content["C10"]["detail"] == detail | {"full_residual": 97.7302}
    assert content["C21"] == {
        "verdict": report.UNTESTABLE,
        "lesson": "06",
        "note": "knows only 3 facts",
    }
    assert drifts() == []


def test_a_tolerance_set_by_hand_stays(refer):
    refer(C9={"value": 50.0, "tolerance": 0.123456789}, C3={"value": 5.0, "tolerance": 9})
    record("C9", 97.73, (93.8, 102.2))
    record_untestable("C3", "no MLP")
    content = json.loads(update().read_text())
    assert content["C9"]["tolerance"] == 0.123456789 and content["C9"]["value"] == 97.73
    assert "tolerance" not in content["C3"]


def test_updating_again_changes_nothing(refer):
    record("C9", 97.7302456, (93.8079123, 102.2342), note="größer ≥ 1")
    record("C3", 1 / 3)
    once = update().read_bytes()
    assert update().read_bytes() == once and "größer".encode() in once


def test_updating_after_one_lesson_keeps_the_others(refer):
    refer(C3={"value": 5.0, "tolerance": 9}, C21=C21)
    record("C9", 97.73)
    content = json.loads(update().read_text())
    assert list(content) == ["C3", "C9", "C21"]
    assert content["C3"] == NOT | {"value": 5.0, "tolerance": 9} and content["C21"] == C21


# -------------------------------------------------------------------------- the sizes of tests


@pytest.fixture
def small(monkeypatch, refer):
    """The sizes "small", with no reference but what the test writes."""
    monkeypatch.setenv("SUBSPACE_ILLUSION_SIZES", "small")


def test_small_sizes_have_a_file_of_their_own(small, monkeypatch):
    path = expected_path()
    monkeypatch.delenv("SUBSPACE_ILLUSION_SIZES")
    assert path == expected_path().parent / "small" / expected_path().name


def test_a_drift_fails_with_small_sizes_too(small, refer):
    refer(C9=C9)
    found(C9={"value": 80.0})
    with pytest.raises(AssertionError, match="C9"):
        check()


def test_each_size_is_compared_with_its_own_reference(small, refer, monkeypatch, capsys):
    refer(C9=C9 | {"value": 80.0})
    found(C9={"value": 80.0})
    check()
    monkeypatch.delenv("SUBSPACE_ILLUSION_SIZES")
    refer(C9=C9)
    with pytest.raises(AssertionError, match="80, not 50"):
        check()


def test_headlines_become_references_and_stay_when_others_are_measured(small, refer):
    record("C9", 97.7)
    expected.record_headline("accuracy of é", 0.123456789)
    expected.record_headline("old", 1.0)
    update()
    expected.record_headline("old", 2.0)
    update()
    assert expected.headlines() == {"accuracy of é": 0.123457, "old": 2.0}
    assert list(expected.expected()) == ["C9"] and drifts() == []


def test_usual_sizes_have_no_headlines(refer):
    record("C9", 97.7)
    expected.record_headline("accuracy", 0.5)
    assert expected.headlines() == {} and expected.HEADLINES not in update().read_text()


@pytest.mark.skipif(
    not expected_path("smollm2-135m", "small").exists(), reason="no references for small sizes yet"
)
def test_headlines_of_the_lessons_have_names_of_their_own():
    """They are references by name, so that no lesson may use another one's."""
    lessons = sorted((report.ROOT / "notebooks").glob("*.ipynb"))
    texts = [path.read_text(encoding="utf-8").replace('\\"', '"') for path in lessons]
    used = [set(re.findall(r'\bexpect\((?:\\n|[\s",])*"([^"{]+)"', text)) for text in texts]
    names = [name for of_one in used for name in of_one]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
