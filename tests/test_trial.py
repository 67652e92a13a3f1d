"""The large run of the trial: its numbers follow from its rows, its words from no other split."""

import json
from pathlib import Path

import pytest
import torch

from helpers.models import load_model
from helpers.patching import metrics
from helpers.tasks import ioi
from tools.evidence import store

ROOT = Path(__file__).resolve().parent.parent
RUN = json.loads(store.evidence_file("trial").read_text(encoding="utf-8"))


@pytest.mark.parametrize("site", RUN["effects"])
def test_every_effect_is_that_of_its_pairs(site):
    at = RUN["effects"][site]
    clean = torch.tensor(at["clean"], dtype=torch.float64)
    assert len(clean) == 300
    for row in at["rows"].values():
        patched = torch.tensor(row["patched"], dtype=torch.float64)
        assert row["fldd"][0] == pytest.approx((1 - patched.mean() / clean.mean()).item(), abs=1e-4)
        assert row["prefers"][0] == pytest.approx((patched < 0).double().mean().item(), abs=1e-4)
        assert row["fldd"][1] < row["fldd"][0] < row["fldd"][2]


def test_the_direction_that_stands_for_a_site_is_one_of_its_seeds():
    for at in RUN["effects"].values():
        rows = at["rows"]
        seeds = [rows[name] for name in rows if name.startswith("trained, seed")]
        assert len(seeds) == 3 and rows["trained"] in seeds


def test_the_parts_of_the_mean_difference_are_itself():
    """Its part along the mean difference is all of it: a suspect with a known answer."""
    for name, suspects in RUN["trial"].items():
        tests = suspects["mean difference"]
        if abs(RUN["effects"][name]["rows"]["mean difference"]["fldd"][0]) > 0.02:
            assert tests["mean part alone"][0] == pytest.approx(100, abs=0.1)
        assert tests["rest alone"][0] == pytest.approx(0, abs=0.1)
        same = tests["unseen of its own length"], tests["unseen of the mean difference"]
        assert same[0] == pytest.approx(same[1], abs=0.1)


def test_fresh_shares_no_word_and_no_template_with_the_other_splits():
    model = load_model(device="cpu")
    words = {split: ioi.vocabulary(model, split) for split in ("train", "test", "fresh")}
    for kind, fresh in words["fresh"].items():
        assert len(fresh) == len(set(fresh)) >= 20
        assert not set(fresh) & {*words["train"][kind], *words["test"][kind]}
    others = {*ioi.templates("train").values(), *ioi.templates("test").values()}
    assert not others & set(ioi.templates("fresh").values())


def test_what_another_patch_keeps_is_a_ratio_of_mean_falls():
    clean, patched, part = (torch.tensor(x) for x in ([4.0, 2], [0.0, 1], [3.0, 1]))
    kept = metrics.percent_kept(clean, patched, part)
    assert kept.value == pytest.approx(100 * 2 / 5)
    lost = metrics.percent_lost(clean, patched, part)
    assert kept.value == pytest.approx(100 - lost.value)


def test_evidence_goes_on_where_it_was(tmp_path):
    file = tmp_path / "run.json"
    first = store.Evidence(file)
    assert first.missing("rows", "a")
    first.put({"x": [1 / 3, 2]}, "rows", "a")
    again = store.Evidence(file)
    assert not again.missing("rows", "a") and again.missing("rows", "b")
    assert again["rows"]["a"] == {"x": [0.3333, 2]}
