"""`python -m tools.jobs`: sweeps and audits as jobs equal those of one process, and go on."""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import build_hf_model, build_tokenizer
from distributed import LocalCluster
from test_audit_command import write_pairs
from test_jobs import times
from test_patching import random_pairs

from helpers.directions.layers import shared_model
from tools.audit import command as audit_cli
from tools.jobs import running, work
from tools.jobs.command import main


@pytest.fixture
def one_process():
    """A worker in this process with two threads, which is quick to start and knows our patches."""
    settings = {"processes": False, "n_workers": 1, "threads_per_worker": 2}
    with mock.patch.dict(os.environ):
        with LocalCluster(**settings, dashboard_address=None) as cluster:
            yield cluster.scheduler_address


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a tiny model, a pair file and directions."""
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    build_hf_model("llama", len(tokenizer), seed=1).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    np.save("v.npy", np.random.default_rng(0).normal(size=(5, 96)))
    return tmp_path


@pytest.fixture
def sweep(folder, monkeypatch):
    """The options of a sweep of facts, on pairs that such a model can be asked."""
    model = shared_model(str(folder / "tiny"))
    known = random_pairs(model, 5)
    known = type(known)(**{**vars(known), "table": known.table.assign(relation="any")})
    monkeypatch.setattr(work, "fact_pairs", lambda model, n, seed: known[: n + seed])
    return ["facts", "--model", "tiny", "--n", "4", "--steps", "2", "--out"]


def test_a_sweep_is_the_same_on_a_cluster_and_goes_on(sweep, one_process, monkeypatch, capsys):
    out = Path("here")
    assert main([*sweep, "here", "--layers", "0,2"]) == 0
    assert main([*sweep, "there", "--layers", "0,2", "--scheduler", one_process]) == 0
    assert Path("here/facts.csv").read_bytes() == Path("there/facts.csv").read_bytes()
    pairs = work.fact_pairs(None, 4, 0)
    each = [work.facts_job("tiny", pairs, layer, steps=2) for layer in (0, 2)]
    expected = pd.concat(each, ignore_index=True)
    pd.testing.assert_frame_equal(
        pd.read_csv("here/facts.csv", keep_default_na=False), expected, check_dtype=False
    )
    before, shown = times(out), capsys.readouterr().out
    assert "facts-layer-02" in shown and "2 of 2 jobs are done: here holds facts.csv" in shown
    monkeypatch.setattr(work, "facts_with", lambda *a: pytest.fail("it was done before"))
    assert main([*sweep, "here", "--layers", "0,2"]) == 0
    assert times(out) == before
    monkeypatch.undo()


def test_what_changes_a_sweep_is_done_anew(sweep, folder):
    def count(*more):
        assert main([*sweep, "out", "--layers", "1", *more]) == 0
        return len(times(folder / "out"))

    assert count() == 1
    assert [count("--seed", "1"), count("--steps", "3"), count("--n", "3")] == [2, 3, 4]
    model = build_hf_model("llama", len(build_tokenizer()), seed=2)
    model.save_pretrained("tiny")  # other weights in the same folder
    assert count() == 5


def test_a_layer_that_fails_is_named_and_the_others_are_kept(sweep, monkeypatch, capsys):
    facts_with = work.facts_with

    def at_two(model, pairs, layer, steps):
        if layer == 1:
            raise ValueError("no facts here")
        return facts_with(model, pairs, layer, steps)

    monkeypatch.setattr(work, "facts_with", at_two)
    assert main([*sweep, "out"]) == 1
    shown = capsys.readouterr()
    assert "facts-layer-01 failed: ValueError: no facts here" in shown.out
    assert shown.err == "failed: facts-layer-01\n"
    assert pd.read_csv("out/facts.csv")["layer"].unique().tolist() == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--layers", "7"], 2, "--layers 7 is out of range: there are 3"),
        (["--layers", "x"], 2, "must be like 5, 3:9"),
        (["--scheduler", "tcp://127.0.0.1:9"], 1, "no scheduler answers at tcp://127.0.0.1:9"),
        (["--scheduler", "nonsense://x"], 1, "no scheduler answers at nonsense://x"),
        (["--model", "./none"], 1, "is not a folder with a model"),
    ],
)
def test_what_a_user_can_cause_is_said_in_a_line(sweep, monkeypatch, capsys, arguments, status,
                                                 message):  # fmt: skip
    monkeypatch.setattr(running, "PATIENCE", 0.5)
    assert main([*sweep, "out", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_without_dask_it_says_how_to_install_it(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main([*sweep, "out", "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert 'pip install -e ".[cluster]"' in capsys.readouterr().err


def test_audits_of_many_directions_are_those_of_the_audit_command(folder, one_process, monkeypatch):
    monkeypatch.setattr(audit_cli, "load_model", lambda name, device: shared_model(name))
    write_pairs(shared_model("tiny"))
    options = ["--model", "tiny", "--site", "mlp_hidden.1", "--direction", "v.npy", "--row", "all"]
    options += ["--pairs", "pairs.csv"]
    assert audit_cli.main([*options, "--out", "one"]) == 0
    by_jobs = ["audit", *options, "--each", "2", "--out", "jobs", "--scheduler", one_process]
    assert main(by_jobs) == 0
    assert len(times(folder / "jobs")) == 3
    for name in ("audits.csv", "audits.html"):
        assert (folder / "one" / name).read_bytes() == (folder / "jobs" / name).read_bytes()
    one, other = (json.loads(Path(x, "audits.json").read_text()) for x in ("one", "jobs"))
    assert "tools.jobs audit" in other["provenance"].pop("command")
    del one["provenance"]["command"]
    assert one == other
    before = times(folder / "jobs")
    assert main(by_jobs) == 0
    assert times(folder / "jobs") == before
    Path("pairs.csv").write_text("\n".join(Path("pairs.csv").read_text().splitlines()[:-1]) + "\n")
    assert main(by_jobs) == 0
    assert len(times(folder / "jobs")) == 6, "other pairs"
