"""Models side by side, from results in a temporary folder."""

import pytest
from test_output import Page, assert_needs_no_other_file, markdown_tables, one_line

from helpers.claims import report
from helpers.claims.reference import expected
from helpers.claims.report import (
    DEPENDS,
    UNMEASURED,
    UNTESTABLE,
    claims,
    record,
    record_untestable,
)
from tools import compare

CLAIM_IDS = list(claims())
NOTE = "a | b <script>\nc"


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """The folder of all results; two models have some, which the tests name one and two."""
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("SUBSPACE_ILLUSION_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


@pytest.fixture
def two_models(base):
    record("C9", 97.73, (93.8, 102.2), model="some/One")
    record("C3", -2.5, model="some/One")
    record("C9", 130.0, model="two")
    record_untestable("C22", NOTE, model="two")


def pages(base):
    """The table as Markdown and as HTML."""
    page = (base / "comparison.html").read_text(encoding="utf-8")
    assert_needs_no_other_file(page)
    (markdown,) = markdown_tables((base / "comparison.md").read_text(encoding="utf-8"))
    (html,) = Page(page).tables
    return markdown, html


def test_two_models_side_by_side(two_models):
    table = compare.compare(["some/One", "two"]).set_index("claim")
    assert list(table.index) == CLAIM_IDS
    assert list(table) == ["what", "paper", "one", "one: verdict", "two", "two: verdict"]
    c9 = ["123.6 %", "97.7 % [93.8, 102.2]", "partly", "130.0 %", "replicated"]
    assert list(table.loc["C9"])[1:] == c9
    assert list(table.loc["C3"])[2:] == ["-2.5 %", "replicated", "", UNMEASURED]
    assert list(table.loc["C22"])[2:] == ["", UNMEASURED, NOTE, UNTESTABLE]


def test_the_command_writes_and_prints_the_table(two_models, base, capsys):
    capsys.readouterr()
    assert compare.main(["two", "some/One"]) == 0
    shown = capsys.readouterr().out
    for claim in CLAIM_IDS:
        assert f"\n{claim} " in shown
    counts = [
        f"two: replicated 1 · partly 0 · not 0 · {DEPENDS} 0 · {UNTESTABLE} 1 · {UNMEASURED} 42",
        f"one: replicated 1 · partly 1 · not 0 · {DEPENDS} 0 · {UNTESTABLE} 0 · {UNMEASURED} 42",
    ]
    assert f"\n{counts[0]}\n{counts[1]}\nAlso in {base}: comparison.md, comparison.html" in shown
    markdown, html = pages(base)
    assert html[0] == ["claim", "what", "paper", "two", "two: verdict", "one", "one: verdict"]
    assert [row[0] for row in html[1:]] == CLAIM_IDS and {len(row) for row in html} == {7}
    assert {row[0]: row[3] for row in html}["C22"] == NOTE
    assert markdown == [[one_line(cell) for cell in row] for row in html]
    for line in counts:
        assert f"\n{line}\n" in (base / "comparison.md").read_text(encoding="utf-8")
        assert line in Page((base / "comparison.html").read_text(encoding="utf-8")).text
    files = {path.name for path in base.iterdir()}
    assert files == {"comparison.md", "comparison.html", "one", "two"}


def test_a_model_without_results_ends_the_command(two_models, base, capsys):
    before = sorted(base.iterdir())
    assert compare.main(["two", "my/Other-7B"]) == 1
    error = capsys.readouterr().err
    assert error == "No results for other-7b: run it first: make run MODEL=my/Other-7B\n"
    assert sorted(base.iterdir()) == before


def test_without_any_results_not_even_the_folder_is_made(base):
    assert compare.main(["gpt2"]) == 1
    assert not base.exists()


def test_a_model_must_be_named(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main([])
    assert stop.value.code == 2 and "MODEL" in capsys.readouterr().err


def test_a_model_may_be_a_folder(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "My Model"
    folder.mkdir(parents=True)
    record("C9", 97.73, model=str(folder))
    for name in (str(folder), f"{folder}/", "models/My Model"):
        assert compare.compare([name]).set_index("claim").loc["C9", "my-model"] == "97.7 %"
    monkeypatch.chdir(folder)
    assert compare.main(["."]) == 0


def test_the_same_model_twice_is_one_column(two_models, base):
    assert compare.main(["two", "two"]) == 0
    markdown, html = pages(base)
    assert html[0] == ["claim", "what", "paper", "two", "two: verdict"]
    assert {len(row) for row in [*markdown, *html]} == {5}


def test_a_model_we_have_a_reference_for_needs_no_run(base, two_models):
    table = compare.compare(["smollm2-135m", "two"]).set_index("claim")
    reference = expected("smollm2-135m")
    assert dict(table["smollm2-135m: verdict"]) == {c: reference[c]["verdict"] for c in CLAIM_IDS}
    assert table.loc["C1", "smollm2-135m"] == "1.07e-06"
    assert not report.results_folder("smollm2-135m").exists()
