"""The large run on shortcuts: its summaries follow from its maps, its verdicts from its numbers."""

import json

import pytest
import torch

from helpers.attribution import agreement
from helpers.claims.report import every_claim, judge
from helpers.tasks import ioi
from tools.evidence import attribution as module
from tools.evidence import store

RUN = json.loads(store.evidence_file("attribution").read_text(encoding="utf-8"))
FRESH = list(ioi.templates("fresh"))


@pytest.mark.parametrize("template", RUN["templates"])
def test_agreement_follows_from_the_mean_maps(template):
    found = RUN["templates"][template]
    for kind, maps in found["maps"].items():
        maps = {name: torch.tensor(values) for name, values in maps.items()}
        for method in module.SHORTCUTS:
            value = agreement(maps[method], maps["exact"])
            kept = found["agreement"][kind][method]
            assert [x[0] for x in kept] == pytest.approx(list(value), abs=2e-3)
            assert all(low <= x <= high for x, low, high in kept)


def test_the_split_is_the_mean_of_its_templates():
    for kind in module.KINDS:
        for method in module.METHODS:
            each = [RUN["templates"][name]["agreement"][kind][method] for name in FRESH]
            means = torch.tensor(each)[..., 0].mean(0).tolist()
            assert [x[0] for x in RUN["splits"]["fresh"][kind][method]] == pytest.approx(
                means, abs=1e-3
            )


def test_there_are_enough_pairs_and_all_templates_of_the_verdicts():
    assert set(FRESH) <= RUN["templates"].keys()
    assert all(at["pairs"] >= 8 for at in RUN["templates"].values())


def test_exact_maps_are_those_of_the_engine(smollm):
    """One pair, one MLP: the patch by a hook on the whole prompt."""
    pairs = ioi.make_pairs(smollm, 1, split="fresh", seed=module.SEED, templates="quarrel")
    pairs = ioi.with_other_repeated(pairs)
    (base,), (source,), place = pairs.base_tokens, pairs.source_tokens, int(pairs.position[0])
    name = "blocks.2.hook_mlp_out"
    with torch.no_grad():
        _, cache = smollm.run_with_cache(source[None], names_filter=[name])

        def patch(x, hook):
            x = x.clone()
            x[:, place] = cache[name][:, place]
            return x

        runs = smollm(base[None]), smollm.run_with_hooks(base[None], fwd_hooks=[(name, patch)])
    clean, patched = (x[0, -1, pairs.answer[0]] - x[0, -1, pairs.counterfactual[0]] for x in runs)
    found = module.exact(smollm, pairs, kinds=("mlp_out",), first=place)
    assert found[0, 0, 2, 0].item() == pytest.approx((patched - clean).item(), abs=1e-3)


def test_the_verdicts():
    """What the rules say of the run: R4 fails, the others hold."""
    fresh, of = RUN["splits"]["fresh"], RUN["directions"]["MLP 21"]
    numbers = {}
    for claim, kind in {"R1": "mlp_out", "R2": "resid_pre", "R3": "attn_out"}.items():
        gap = fresh[kind]["relp - atp"][0]
        numbers[claim] = {
            "value": fresh[kind]["relp"][0][0], "difference": gap[0], "difference_low": gap[1]
        }  # fmt: skip
    each = [RUN["templates"][name]["agreement"]["mlp_out"] for name in FRESH]
    numbers["R4"] = {"value": sum(x["relp"][1][0] - x["atp"][1][0] >= 0.05 for x in each)}
    numbers["R6"] = {
        "value": 100 * of["trained"]["atp"][0], "relp": 100 * of["trained"]["relp"][0],
        "exact": 100 * of["trained"]["exact"][0], "whole": 100 * of["whole"]["exact"][0],
    }  # fmt: skip
    verdicts = {claim: judge(every_claim()[claim]["rule"], x) for claim, x in numbers.items()}
    assert verdicts.pop("R4") == "not" and set(verdicts.values()) == {"replicated"}
