"""The replication report: its table, its figure, and its three forms."""

import base64
import json
import re

import matplotlib.pyplot as plt
import pytest
from markdown_it import MarkdownIt
from test_output import Page, assert_needs_no_other_file, headings, markdown_tables, one_line

from helpers.claims import report
from helpers.claims.page import figure, figure_in_words, record_cells, report_table
from helpers.claims.reference import expected
from helpers.claims.report import UNMEASURED, UNTESTABLE, claims, record, record_untestable
from tools import report as command
from tools.report import to_html, to_json, to_markdown, write_report

CLAIM_IDS = list(claims())
SHIPPED = expected("smollm2-135m", "quick")
OTHER = "some/model"  # one we have no reference values for
COLUMNS = ["claim", "what", "paper", "ours", "verdict", "lesson", "cell", "from"]
NASTY = "<script>alert(1)</script> a | b \\| c\n\n| new row |\n\t& <b>"
PNG = b"\x89PNG\r\n"


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A results folder of our own; tests that name no model mean the packaged one."""
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("SUBSPACE_ILLUSION_MODEL", raising=False)
    yield report.results_folder()
    plt.close("all")


def stored_cells(lesson_file):
    """The cells of a stored notebook by id, read without nbformat: source, then printed text."""
    content = json.loads((report.ROOT / "notebooks" / lesson_file).read_text(encoding="utf-8"))
    return {
        cell["id"]: (
            cell["source"],
            [line for out in cell["outputs"] for line in out.get("text", ())],
        )
        for cell in content["cells"]
        if cell["cell_type"] == "code"
    }


# -------------------------------------------------------------------------- cells


def test_the_cell_of_every_claim_is_known():
    assert sorted(record_cells()) == sorted(CLAIM_IDS)


@pytest.mark.parametrize("claim", CLAIM_IDS)
def test_a_claim_is_recorded_in_the_cell_that_is_named(claim):
    lesson_file, cell = record_cells()[claim]
    assert lesson_file.startswith(SHIPPED[claim]["lesson"] + "_")
    source, printed = stored_cells(lesson_file)[cell]
    assert "record" in "".join(source)
    (line,) = (line for line in printed if line.startswith(f"{claim} · "))
    assert line.startswith(f"{claim} · {claims()[claim]['title']}: ")
    assert line.rstrip().endswith(f"-> {SHIPPED[claim]['verdict']}")


@pytest.mark.parametrize("claim", [c for c in CLAIM_IDS if "value" in SHIPPED[c]])
def test_the_stored_notebooks_show_the_reference_values(claim):
    lesson_file, cell = record_cells()[claim]
    printed = "".join(stored_cells(lesson_file)[cell][1])
    title = re.escape(claims()[claim]["title"])
    (value,) = re.findall(rf"^{claim} · {title}: ([-+.\de]+)", printed, flags=re.M)
    assert float(value) == pytest.approx(SHIPPED[claim]["value"], abs=SHIPPED[claim]["tolerance"])


# -------------------------------------------------------------------------- the table


def test_this_run_comes_before_the_reference():
    record("C9", 51.0, (50.0, 52.0))
    record_untestable("C22", "knows only 3 facts")
    table = report_table().set_index("claim")
    assert ["claim", *table.columns] == COLUMNS and list(table.index) == CLAIM_IDS
    assert list(table.loc["C9"])[1:4] == ["123.6 %", "51.0 % [50.0, 52.0]", "partly"]
    assert list(table.loc["C22", ["ours", "verdict"]]) == ["knows only 3 facts", UNTESTABLE]
    assert set(table.index[table["from"] == "this run"]) == {"C9", "C22"}
    others = table.drop(["C9", "C22"])
    assert set(others["from"]) == {"our reference run"}
    assert {c: SHIPPED[c]["verdict"] for c in others.index} == dict(others["verdict"])
    assert others.loc["C2", "ours"].startswith(f"{SHIPPED['C2']['value']:.1f} % [")
    assert list(table["lesson"]) == [SHIPPED[claim]["lesson"] for claim in CLAIM_IDS]
    assert list(table["cell"]) == [record_cells()[claim][1] for claim in CLAIM_IDS]


def test_a_reference_without_an_interval_is_shown():
    """C1 has none, neither in the reference nor, as a null, in what a lesson records."""
    reference = report_table().set_index("claim").loc["C1", "ours"]
    record("C1", SHIPPED["C1"]["value"])
    assert report_table().set_index("claim").loc["C1", "ours"] == reference == "1.07e-06"


def test_a_model_without_any_results():
    table = report_table(OTHER)
    assert list(table["claim"]) == CLAIM_IDS
    assert set(table["verdict"]) == {UNMEASURED} and set(table["ours"]) == set(table["from"]) == {
        ""
    }
    assert not report.results_folder(OTHER).exists()


def test_a_cell_belongs_to_the_lesson_beside_it():
    """Also for C20, whose planned lesson is not the one that measures it."""
    for claim, row in report_table(OTHER).set_index("claim").iterrows():
        lesson_file, cell = record_cells()[claim]
        assert (claim, row["lesson"], row["cell"]) == (claim, lesson_file[:2], cell)


# -------------------------------------------------------------------------- Markdown


def test_the_markdown_has_counts_a_row_per_claim_and_every_rule(results):
    record("C9", 97.73, (93.8, 102.2), model=OTHER)
    record_untestable("C22", NASTY, model=OTHER)
    record_untestable("C23", "", model=OTHER)
    text = to_markdown(OTHER)
    assert text.startswith("# Replication on model\n")
    assert "not: 0 · depends on a choice: 0 · not testable here: 2 · not measured: 41" in text
    (table,) = markdown_tables(text)
    assert table[0] == COLUMNS and [row[0] for row in table[1:]] == CLAIM_IDS
    assert {len(row) for row in table} == {len(COLUMNS)}
    ours = {row[0]: row[3] for row in table}
    assert ours["C9"] == "97.7 % [93.8, 102.2]" and ours["C23"] == ""
    assert ours["C22"] == one_line(NASTY)
    assert re.search(r"Python 3\.\d+\.\d+, torch 2\.\S+, transformer_lens 4\.\S+, transf", text)
    items = [t for t in MarkdownIt().parse(text) if t.type == "list_item_open"]
    assert len(items) == len(CLAIM_IDS)
    for claim, spec in claims().items():
        assert f"- **{claim}** {spec['rule']['text']} *" in text
        assert f": {spec['informative']['why']}*" in text
    # C9 could have failed, and so could C22 and C23; the other 29 were not measured.
    assert "32 claims that could have failed: replicated: 0 · partly: 1 · not: 0 · depends" in text
    assert "not testable here: 2 · not measured: 29" in text


# -------------------------------------------------------------------------- HTML


def test_the_page_needs_no_other_file_and_shows_notes_as_text():
    record_untestable("C22", NASTY, model=OTHER)
    text = to_html(OTHER)
    assert_needs_no_other_file(text)
    assert "<script" not in text
    page = Page(text)
    table, rules = page.tables
    assert table[0] == COLUMNS and [row[0] for row in table[1:]] == CLAIM_IDS
    assert {len(row) for row in table} == {len(COLUMNS)}
    assert {row[0]: row[3] for row in table}["C22"] == NASTY
    texts = [[c, spec["statement"], spec["rule"]["text"]] for c, spec in claims().items()]
    assert [rule[:3] for rule in rules] == [["claim", "says", "rule"], *texts]
    answers = {rule[0]: rule[3] for rule in rules}
    assert answers["C6"].startswith("Hardly: An identity")
    assert answers["C9"].startswith("Could fail: In a model that keeps")
    assert "not testable here: 1 · not measured: 43" in page.text


def test_the_page_holds_the_figure():
    record("C9", 97.73, model=OTHER)
    page = Page(to_html(OTHER))
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(PNG)
    assert image["alt"] == figure_in_words(OTHER)
    assert image["alt"].endswith("All claims: partly: 1 · not measured: 43.")
    assert headings(page) == ["h1"]
    assert plt.get_fignums() == [], "the figure is closed"


# -------------------------------------------------------------------------- JSON


def test_the_json_has_all_that_is_known():
    record("C3", 1.0, detail={"by_layer": [1, 2]}, note=NASTY)
    content = json.loads(to_json())
    assert content["model"] == "smollm2-135m" and "torch 2" in content["versions"]
    assert list(content["claims"]) == CLAIM_IDS
    for claim, entry in content["claims"].items():
        spec = claims()[claim]
        for key in ("title", "statement", "paper", "rule"):
            assert entry[key] == spec[key]
        assert tuple(entry["cell"]) == record_cells()[claim]
        if claim != "C3":
            assert SHIPPED[claim].items() <= entry["ours"].items()
            assert entry["ours"]["from"] == "our reference run"
    c3 = content["claims"]["C3"]["ours"]
    assert (c3["value"], c3["verdict"], c3["from"]) == (1.0, "replicated", "this run")
    assert c3["note"] == NASTY and c3["detail"] == {"by_layer": [1, 2]}


def test_the_json_of_a_model_without_results():
    entries = json.loads(to_json(OTHER))["claims"]
    assert list(entries) == CLAIM_IDS
    assert all(entry["ours"] == {"verdict": UNMEASURED} for entry in entries.values())


# -------------------------------------------------------------------------- the figure


def rows_of(drawn):
    """What each half shows, from the top: {claim: (published, ours)}."""
    halves = []
    for ax in drawn.axes:
        points = {"published": {}, "ours": {}}
        for line in ax.lines:
            kind = line.get_label().split(":")[0]
            if kind in points:
                points[kind][line.get_ydata()[0]] = line.get_xdata()[0]
        names = [label.get_text() for label in ax.get_yticklabels()] if points["ours"] else []
        assert names == list(points["ours"]) == list(points["published"])
        halves.append({n.split()[-1]: (points["published"][n], points["ours"][n]) for n in names})
    return halves


def test_the_figure_has_a_row_for_every_pair_of_numbers():
    record_untestable("C22", "knows only 3 facts")
    drawn = figure()
    for unit, rows in zip(("%", ""), rows_of(drawn), strict=True):
        both = {
            claim: (spec["paper"]["value"], SHIPPED[claim]["value"])
            for claim, spec in claims().items()
            if spec["paper"]["unit"] == unit and spec["paper"]["value"] is not None
        }
        both.pop("C22", None)
        assert list(rows.items()) == list(both.items()) and len(rows) > 5
    shown = {claim for rows in rows_of(drawn) for claim in rows}
    assert not {"C16", "C18", "C22", "C37"} & shown  # no number, other units, untestable


def legend_of(drawn):
    return {text.get_text() for legend in drawn.legends for text in legend.get_texts()}


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [("C3", "replicated"), ("C1", "replicated")],
    ids=["percent", "plain numbers"],
)
def test_the_legend_names_what_is_drawn_in_either_half(claim, verdict):
    record(claim, 0.0, model=OTHER)
    assert legend_of(figure(OTHER)) == {"published", f"ours: {verdict}"}


def test_a_figure_without_rows_is_drawn_and_leaves_the_style_alone(tmp_path):
    with plt.rc_context({"axes.titlesize": 3.0}):
        drawn = figure(OTHER)
        assert plt.rcParams["axes.titlesize"] == 3.0
    assert rows_of(drawn) == [{}, {}]
    drawn.savefig(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").read_bytes().startswith(PNG)


# -------------------------------------------------------------------------- files


def test_the_report_is_written_in_three_forms(results, capsys):
    """By the command, for the model that is named."""
    record("C9", 97.73, model=OTHER)
    assert command.main(["--model", OTHER]) == 0
    folder = report.results_folder(OTHER)
    paths = [folder / f"report.{kind}" for kind in ("md", "html", "json")]
    assert capsys.readouterr().out.splitlines()[1:] == [str(path) for path in paths]
    contents = [path.read_text(encoding="utf-8") for path in paths]
    assert contents == [to_markdown(OTHER), to_html(OTHER), to_json(OTHER)]
    names = {path.name for path in folder.iterdir()}
    assert names == {*(path.name for path in paths), "claims.json", "claims.lock"}
    assert not results.exists()


def test_an_empty_report_is_written(results):
    paths = write_report(OTHER)
    (table,) = markdown_tables(paths[0].read_text())
    assert [row[4] for row in table].count(UNMEASURED) == 44
    assert [row[4] for row in Page(paths[1].read_text()).tables[0]].count(UNMEASURED) == 44
    assert len(json.loads(paths[2].read_text())["claims"]) == 44
