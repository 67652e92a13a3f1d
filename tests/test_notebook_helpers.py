"""What lessons share: the opening line, expectations and figures."""

import matplotlib

matplotlib.use("Agg")

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch

from helpers.claims import reference, report, sizes
from helpers.lessons import notebook
from helpers.output import plots
from helpers.patching.metrics import Estimate
from tools.reference import update


@pytest.fixture(autouse=True)
def default_model(monkeypatch):
    monkeypatch.delenv("SUBSPACE_ILLUSION_MODEL", raising=False)
    yield
    plt.close("all")


def test_start_prints_versions_and_seeds(capsys):
    notebook.start(seed=3)
    first = torch.rand(1)
    notebook.start(seed=3)
    assert torch.equal(torch.rand(1), first)
    assert "model smollm2-135m" in capsys.readouterr().out


def test_expect_passes_within_the_tolerance(capsys):
    notebook.expect("a number", 0.97, 0.98, tolerance=0.02)
    assert capsys.readouterr().out == "PASS  a number: 0.98 ± 0.02\n"


def test_expect_fails_outside_the_tolerance():
    with pytest.raises(AssertionError, match="a number: 0.9, but the text says 0.98"):
        notebook.expect("a number", 0.9, 0.98, tolerance=0.02)
    with pytest.raises(AssertionError, match="nan"):
        notebook.expect("a number", float("nan"), 0.98, tolerance=0.02)


def test_expect_only_reports_on_another_model(monkeypatch, capsys):
    monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", "gpt2")
    notebook.expect("a number", 0.1, 0.98, tolerance=0.02)
    assert "0.1 (the text says 0.98, for smollm2-135m)" in capsys.readouterr().out


def test_sizes_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("SUBSPACE_ILLUSION_SIZES", raising=False)
    assert notebook.sizes() == sizes.SIZES["quick"]
    monkeypatch.setenv("SUBSPACE_ILLUSION_SIZES", " Paper ")
    assert notebook.sizes().test == 2000
    assert notebook.sizes("quick").test == 400
    monkeypatch.setenv("SUBSPACE_ILLUSION_SIZES", "huge")
    with pytest.raises(ValueError, match="SUBSPACE_ILLUSION_SIZES must be one of"):
        notebook.sizes()


@pytest.mark.parametrize("name", sizes.SIZES)
def test_a_share_of_a_number_is_whole_and_not_below_what_is_needed(name):
    chosen = notebook.sizes(name)
    for number in (1, 2, 7, 400):
        for least in (1, 12, 1000):
            found = chosen.some(number, least)
            assert type(found) is int and min(least, number) <= found <= number
    wanted = [1, 3, 160] if name == "small" else [1, 7, 400]
    assert [chosen.some(number) for number in (1, 7, 400)] == wanted


def test_small_sizes_are_smaller_in_everything():
    small, quick = (vars(notebook.sizes(name)) for name in ("small", "quick"))
    assert all(small[name] <= quick[name] for name in quick) and small["test"] < quick["test"] / 2


def test_with_small_sizes_a_headline_has_a_reference_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SUBSPACE_ILLUSION_SIZES", "small")
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path))
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    notebook.expect("a number", 0.5, 0.98, tolerance=0.02)
    assert capsys.readouterr().out == "NEW   a number: 0.5 has no reference for small sizes yet\n"
    report.record("C9", 97.7)
    update()
    capsys.readouterr()
    notebook.expect("a number", 0.51, 0.98, tolerance=0.02)
    assert capsys.readouterr().out == "PASS  a number: 0.98 ± 0.02\n"
    with pytest.raises(AssertionError, match="a number: nan"):
        notebook.expect("a number", float("nan"), 0.5, tolerance=0.02)
    with pytest.raises(AssertionError, match="0.53, but the reference for small sizes is 0.5 ±"):
        notebook.expect("a number", 0.53, 0.53, tolerance=0.02)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path))


def test_a_margin_that_may_be_zero_ends_the_lesson(results):
    sure, unsure = torch.tensor([1.0, 2.0, 1.5]), torch.tensor([1.0, -1.0, 0.5])
    notebook.needs_margin(sure, claims=["C9"])
    assert report.recorded() == {}
    with pytest.raises(notebook.NotTestable, match=r"its mean margin is 0.17 \[-1.00, 1.00\] nats"):
        notebook.needs_margin(unsure, claims=["C9"])
    assert report.recorded()["C9"]["verdict"] == report.UNTESTABLE


def test_lessons_inherit_why_there_is_no_site(results):
    report.save_site("ioi", {"layer": 2}, {})
    assert notebook.load_site(claims=["C3"]) == {"layer": 2}
    report.record_untestable("C9", "no layer holds it")
    with pytest.raises(notebook.NotTestable, match="no layer holds it"):
        notebook.load_site(claims=["C3", "C4"])
    notes = {claim: entry["note"] for claim, entry in report.recorded().items()}
    assert notes == dict.fromkeys(["C9", "C3", "C4"], "no layer holds it")


def test_output_levels_are_labelled_where_they_meet_the_edge():
    _, ax = plots.new()
    plots.output_levels(ax, lambda x, y: 2 * y + 1, (0, 4), (-1, 3), levels=[1, 5])
    heights = {label.get_text().strip(): label.get_position()[1] for label in ax.texts}
    assert heights == {"output 1": pytest.approx(0), "output 5": pytest.approx(2)}


def test_over_layers_draws_percent_with_a_band():
    _, ax = plots.new()
    estimates = [Estimate(0.1, 0.0, 0.2), Estimate(0.5, 0.4, 0.6)]
    plots.over_layers(ax, estimates, label="x", color="k", marker="o")
    assert ax.lines[0].get_ydata().tolist() == [10, 50]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0, 60)


def test_over_layers_draws_where_the_layers_are():
    _, ax = plots.new()
    estimates = [Estimate(0.5, 0.4, 0.6)] * 2
    plots.over_layers(ax, estimates, label="", color="k", marker="o", layers=[4, 8])
    assert ax.lines[0].get_xdata().tolist() == [4, 8]


def test_estimate_draws_percent_with_its_interval():
    _, ax = plots.new()
    plots.estimate(ax, "full", Estimate(0.5, 0.25, 1.0), color="k", marker="o")
    interval, point = ax.lines
    assert list(point.get_xdata()) == [50]
    assert list(interval.get_xdata()) == [25, 100]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["full"]


def test_heads_names_the_layers():
    _, ax = plots.new()
    plots.heads(ax, torch.tensor([[0.0, 10.25], [0.1, -9.0]]), first_layer=22)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["22", "23"]
    assert [label.get_text() for label in ax.texts] == ["", "10.25", "", "-9.00"]


def test_explore_is_silent_when_lessons_are_run_by_a_program(monkeypatch):
    shown = []
    # Before version 8 a slider draws only where a notebook displays it.
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, **ranges: shown.append((draw, ranges)))
    monkeypatch.setenv("SUBSPACE_ILLUSION_STATIC", "1")
    plots.explore(print, angle=(0, 9, 1))
    assert shown == []
    monkeypatch.delenv("SUBSPACE_ILLUSION_STATIC")
    plots.explore(print, angle=(0, 9, 1))
    assert shown == [(print, {"angle": (0, 9, 1)})]
