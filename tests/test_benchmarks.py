"""The benchmarks: contestants agree, the floor is what is computed, tables are of their data."""

import json
from pathlib import Path

import pytest
import torch
from conftest import build_tiny_model
from test_patching import random_pairs
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench, floor, precision, report, reproducibility
from benchmarks.problem import make_problem
from helpers.directions.closed_form import best_directions
from helpers.directions.geometry import patch_subspace, random_direction, row_null_split
from helpers.models.smollm import packaged_folder
from helpers.patching.caching import cache_pairs
from helpers.patching.sites import Site

FOLDER = Path(bench.__file__).parent


@pytest.fixture(scope="module")
def problem(smollm, tmp_path_factory):
    return make_problem(smollm, tmp_path_factory.mktemp("bench") / "problem", pairs=4, many=6)


@pytest.fixture(scope="module")
def contestants(problem):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        from peers import ours, plain_hooks, published, transformer_lens_hooks

        modules = (plain_hooks, ours, transformer_lens_hooks, published)
        folder = str(packaged_folder())
        found = {module.__name__: module.Peer(folder, problem).works() for module in modules}
    return {name.removeprefix("peers."): works for name, works in found.items()}


@pytest.mark.parametrize("work", ["evaluate mlp", "evaluate resid", "evaluate 1000", "closed form"])
def test_contestants_compute_the_same(contestants, work):
    results = {name: works[work]() for name, works in contestants.items() if work in works}
    assert bench.compare(work, results) < 1e-3


@pytest.mark.long
def test_contestants_train_alike(contestants):
    def losses(name, work="step mlp"):
        run = contestants[name][work]
        return torch.stack([run() for _ in range(3)])

    reference = losses("plain_hooks")
    assert reference[-1] < reference[0]
    others = [("transformer_lens_hooks", "step mlp, all logits"), ("published", "step mlp, vector")]
    for run in (("ours",), ("transformer_lens_hooks",), *others):
        torch.testing.assert_close(losses(*run), reference, rtol=0, atol=1e-3)


def test_a_rotation_starts_where_the_vector_does(contestants, problem):
    published = contestants["published"]
    by_matrix, by_vector = published["step resid"](), published["step resid, vector"]()
    torch.testing.assert_close(by_matrix, by_vector, rtol=0, atol=1e-3)


def test_another_result_is_noticed():
    results = {"ours": torch.zeros(3), "other": torch.tensor([0, 0, 2e-3])}
    with pytest.raises(AssertionError, match="other differs by 2.0e-03"):
        bench.compare("evaluate", results)


def test_what_was_timed_in_a_slow_moment_is_timed_again(monkeypatch):
    chosen = [bench.Work(name, {}, rounds=1) for name in ("early", "late")]
    times = {name: {"seconds": {"ours": [2.0]}, "rate": 100.0} for name in ("early", "late")}
    times["early"]["rate"] = 0.99 * bench.BUSY * 100
    measured = {"works": times, "repeated calls": 3, "matrix rate": 100.0}

    def time_works(problem, again):
        new = {work.name: {"seconds": {"ours": [1.0]}, "rate": 100.0} for work in again}
        return {"works": new, "repeated calls": 2, "matrix rate": 110.0}

    monkeypatch.setattr(bench, "time_works", time_works)
    bench.time_slow_works_again(FOLDER, chosen, measured)
    assert [measured["works"][work.name]["seconds"]["ours"] for work in chosen] == [[1.0], [2.0]]
    assert measured["repeated calls"] == 5
    monkeypatch.setattr(bench, "time_works", lambda *_: pytest.fail("timed again"))
    bench.time_slow_works_again(FOLDER, chosen, measured)


@pytest.mark.parametrize("alone", ["", ", products"])
@pytest.mark.parametrize("work", ["evaluate resid", "step resid", "evaluate mlp", "step mlp"])
def test_floor_is_what_is_computed(problem, contestants, work, alone):
    setting = report.describe(problem, rounds=1)
    run = contestants["ours"][work + alone]
    run()  # the prompts, or the matrices
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == pytest.approx(floor.needed(work, setting), rel=0.02)


def test_work_without_a_floor_is_refused(problem):
    with pytest.raises(ValueError, match="no floor is known for walk"):
        floor.needed("walk", report.describe(problem, rounds=1))


def test_tables_are_made_from_the_results():
    measured = json.loads((FOLDER / "results" / "bench.json").read_text(encoding="utf-8"))
    assert report.markdown(measured) == (FOLDER / "results" / "bench.md").read_text("utf-8")


def test_the_closed_form_has_a_table_of_its_own():
    measured = json.loads((FOLDER / "results" / "bench.json").read_text(encoding="utf-8"))
    seconds = {"plain_hooks": [6.0, 8.0], "ours": [0.5, 0.5], "ours, DAS": [4.0, 6.0]}
    measured["works"]["closed form"] = {"largest difference": 1e-6, "seconds": seconds}
    measured["works"]["closed forms"] = {"seconds": {"ours": [12.0, 13.0]}}
    text = report.markdown(measured)
    assert "| closed form, plain PyTorch hooks and the whole matrix | 7.000 | 14 |" in text
    assert "| training, this project, loss on the two answers | 5.000 | 10 |" in text
    assert "prompts included: 12.5 s" in text
    report.draw(measured)


def test_the_closed_form_everywhere_is_that_of_one_site(contestants):
    run = contestants["ours"]["closed forms"]
    peer, everywhere = run.__self__, run()
    site = Site(peer.layer, "mlp_hidden")
    one = best_directions(cache_pairs(peer.model, peer.pairs("many "), site)).spectrum
    assert everywhere.shape == (2 * peer.model.cfg.n_layers, 2)
    torch.testing.assert_close(everywhere[peer.layer], one[[0, -1]], rtol=1e-3, atol=1e-4)


def test_plain_passes_find_what_the_engine_finds(tiny_model):
    model, site = tiny_model("llama"), Site(1, "mlp_hidden")
    cached = cache_pairs(model, random_pairs(model), site)
    v, W_out = random_direction(cached.base.shape[1], seed=0), model.blocks[1].mlp.W_out
    row, null = row_null_split(v, W_out)
    expected = {"clean": cached.clean_logit_difference, "whole MLP": cached.source}
    for name, part in {"direction": v, "row part": row, "null part": null}.items():
        expected[name] = patch_subspace(cached.base, cached.source, part)
    found = precision.measure(model, cached.pairs, site, v, W_out)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = value if name == "clean" else cached.logit_difference(value)
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


def test_weights_are_rounded_and_nothing_else():
    exact, model = build_tiny_model("llama"), build_tiny_model("llama")
    precision.round_weights(model, torch.bfloat16)
    for before, after in zip(exact.parameters(), model.parameters(), strict=True):
        assert after.dtype == torch.float32
        assert torch.equal(after, before.bfloat16().float())


def test_differences_are_the_largest_ones():
    names = (*reproducibility.TRAINED, "first direction")
    first = {name: torch.tensor(1.0) for name in names} | {"versions": "here"}
    first |= {"logits": torch.zeros(2, 3), "v": torch.tensor([1.0, 0.0])}
    assert reproducibility.differences(first | {"versions": "there"}, first) == ["identical"] * 4
    other = {"v": torch.tensor([0.6, 0.8]), "logits": torch.eye(2, 3) * -3}
    other |= {"row part": torch.tensor(1.5), "first direction": torch.tensor(0.875)}
    expected = ["3e+00", "9e-01", "1e-01", "5e-01"]
    assert reproducibility.differences(first | other, first) == expected
