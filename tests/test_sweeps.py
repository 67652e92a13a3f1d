"""Jobs of a sweep give what the pieces give, wherever they run."""

import os
from unittest import mock

import joblib
import pandas as pd
import pytest
import torch
from conftest import build_hf_model, build_tokenizer
from distributed import Client, LocalCluster
from joblib import Parallel, delayed
from test_patching import random_pairs

from helpers.claims.reference import save_sweep, shipped_sweep
from helpers.directions.geometry import patch_each, row_null_split
from helpers.directions.layers import facts_at_layer, over_pairs, shared_model
from helpers.directions.search import find_pair_directions
from helpers.patching.caching import cache_pairs
from helpers.patching.sites import Site
from tools.jobs.work import facts_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that any process can load by name."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = build_tokenizer()
    build_hf_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs(folder):
    pairs = random_pairs(shared_model(folder), 5)
    return type(pairs)(**{**vars(pairs), "table": pairs.table.assign(relation="any")})


def test_a_job_is_the_sum_of_its_pieces(folder, pairs):
    table = facts_job(folder, pairs, 1, steps=3).set_index(["patch", "pair"])
    model = shared_model(folder)
    cached = cache_pairs(model, pairs, Site(1, "mlp_hidden"))
    v = find_pair_directions(cached, steps=3, progress=False)
    given = facts_at_layer(cached, directions=v).set_index(["patch", "pair"])
    pd.testing.assert_frame_equal(given, table, rtol=1e-4, atol=1e-4)
    row, null = row_null_split(v, model.blocks[1].mlp.W_out)
    patches = {
        "direction": patch_each(cached.base, cached.source, v),
        "row": patch_each(cached.base, cached.source, row),
        "null": cached.base,  # by algebra
        "whole MLP": cached.source,
    }
    for patch, activation in patches.items():
        expected = cached.logit_difference(activation)
        found = torch.tensor(table.loc[patch, "logit_difference"].to_numpy())
        assert torch.allclose(found, expected, atol=1e-4), patch
        top = cached.patched_logits(activation).argmax(-1) == pairs.counterfactual
        assert table.loc[patch, "flipped"].tolist() == top.tolist()
    assert torch.allclose(
        torch.tensor(table.loc["row", "null_norm"].to_numpy()), null.norm(dim=-1), atol=1e-5
    )
    assert (table["cos_null"] ** 2 + table["cos_row"] ** 2 <= 1 + 1e-5).all()
    assert table["cos_null"].between(0, 1).all()


def test_another_site_is_refused(folder, pairs):
    cached = cache_pairs(shared_model(folder), pairs, Site(1, "resid_post"))
    with pytest.raises(ValueError, match="cache the pairs at an mlp_hidden site"):
        facts_at_layer(cached)


@pytest.mark.long
def test_two_workers_of_a_cluster_give_the_same_table(folder, pairs):
    jobs = [delayed(facts_job)(folder, pairs, layer, steps=2) for layer in (0, 2)]
    before = dict(os.environ)
    here = pd.concat(Parallel(n_jobs=1)(jobs), ignore_index=True)
    # Starting workers sets OMP_NUM_THREADS=1 for good, and lessons tested later would inherit it.
    with mock.patch.dict(os.environ):
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        with cluster, Client(cluster), joblib.parallel_config(backend="dask"):
            there = pd.concat(Parallel()(jobs), ignore_index=True)
    assert os.environ == before
    pd.testing.assert_frame_equal(here, there, atol=1e-4, rtol=1e-4)


def test_a_saved_sweep_comes_back_as_its_means(monkeypatch, tmp_path):
    monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", "some/model")
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("helpers.claims.reference.ROOT", tmp_path)
    assert shipped_sweep("facts") is None
    sweep = pd.DataFrame(
        {
            "layer": [0, 0, 4, 4],
            "pair": [0, 1, 0, 1],
            "relation": "any",
            "patch": "row",
            "flipped": [True, False, True, True],
        }
    )
    saved = save_sweep("facts", over_pairs(sweep))
    folder = tmp_path / "data" / "sweeps" / saved.parent.name
    folder.mkdir(parents=True)
    saved.rename(folder / "facts.csv")
    back = shipped_sweep("facts")
    assert back["flipped"].to_dict() == {(0, "row"): 0.5, (4, "row"): 1.0}
