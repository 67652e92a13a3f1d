"""The run on transcoders of two MLPs: rows again by whole passes with hooks, verdicts by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.claims.report import every_claim, judge
from helpers.tasks import agreement
from tools.evidence import skipping, store

RUN = json.loads(store.evidence_file("skipping").read_text(encoding="utf-8"))
FOUND = RUN["0 2"]


@pytest.fixture(scope="module")
def pairs(smollm):
    return skipping.fresh_pairs(smollm, "train")


def passes(model, tokens, positions, names):
    """What hooks see at the noun in whole prompts, up to the later MLP."""
    found = {name: [] for name in names}
    for row, at in zip(tokens, positions.tolist(), strict=True):
        _, cache = model.run_with_cache(row[None], stop_at_layer=3, names_filter=names)
        for name in names:
            found[name].append(cache[name][0, at])
    return {name: torch.stack(rows) for name, rows in found.items()}


def shipped(name):
    return {key: x.float() for key, x in load_file(skipping.shipped_file(name)).items()}


def later(weights, first, second):
    """What the shipped features write for the later MLP, feature by feature."""
    enc, bias = weights["enc"], weights["bias"]
    out = (second @ enc[1] + bias[1]).clamp(min=0) @ weights["dec_1_1"]
    if "dec_0_1" in weights:
        out = out + (first @ enc[0] + bias[0]).clamp(min=0) @ weights["dec_0_1"]
    return out


def test_shares_are_those_of_whole_passes(smollm, pairs):
    names = ["blocks.0.mlp.hook_in", "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"]
    base = passes(smollm, pairs.base_tokens, pairs.position, names)
    source = passes(smollm, pairs.source_tokens, pairs.source_position, names)
    (one, two, wrote), (other, swapped, said) = base.values(), source.values()
    true = said - wrote
    for name in ("PLT", "CLT"):
        of = shipped(name)
        clean = later(of, one, two)
        for kind, read in {"whole": (other, swapped), "stream": (one, swapped)}.items():
            change = later(of, *read) - clean
            share = (change * true).sum() / true.square().sum()
            stored = FOUND[name]["train"][kind]["seeds"][0]
            assert share.item() == pytest.approx(stored, abs=0.003), (name, kind)


def test_a_hop_is_that_of_whole_passes(smollm):
    """MLP 0's change is added to what MLP 2 reads, and to nothing else."""
    pairs = agreement.make_pairs(smollm, "number", skipping.SEARCHED, split="train", seed=1)
    effects = []
    for row in range(len(pairs)):
        at, tokens = int(pairs.position[row]), (pairs.base_tokens[row], pairs.source_tokens[row])
        wrote = [
            smollm.run_with_cache(x[None], stop_at_layer=1)[1]["blocks.0.hook_mlp_out"][0, at]
            for x in tokens
        ]

        def add(stream, hook, at=at, change=wrote[1] - wrote[0]):
            stream = stream.clone()
            stream[:, at] += change
            return stream

        runs = [[], [("blocks.2.ln2.hook_in", add)]]
        logits = [smollm.run_with_hooks(tokens[0][None], fwd_hooks=h)[0, -1] for h in runs]
        gaps = [x[pairs.answer[row]] - x[pairs.counterfactual[row]] for x in logits]
        effects.append((gaps[1] - gaps[0]).item())
    assert sum(effects) / len(effects) == pytest.approx(RUN["hops"]["0 2"][0], abs=0.002)


def test_the_judged_prompts_and_nouns_were_never_seen(smollm, pairs):
    seen = set(skipping.dictionary.sentences(smollm, 300))
    prompts = [smollm.tokenizer.decode(tokens) for tokens in pairs.base_tokens]
    frames = [template.split("{}")[0].strip() for template in skipping.FRESH]
    assert all(any(frame in prompt for frame in frames) for prompt in prompts)
    assert not any(frame in text for frame in frames for text in seen)
    test = skipping.fresh_pairs(smollm, "test")
    nouns = [
        {int(t[p]) for t, p in zip(x.base_tokens, x.position.tolist(), strict=True)}
        for x in (pairs, test)
    ]
    assert not nouns[0] & nouns[1]


def test_the_claim_by_hand():
    found = skipping.measured(RUN)["T4"]
    whole, stream = (FOUND["CLT"]["train"][kind]["share"][0] for kind in ("whole", "stream"))
    assert found["value"] == pytest.approx(whole - stream, abs=1e-3)
    assert found["apart"] == pytest.approx(abs(whole - FOUND["PLT"]["train"]["whole"]["share"][0]))
    assert judge(every_claim()["T4"]["rule"], found) in ("replicated", "partly", "not")
    assert FOUND["PLT"]["train"]["skipped"] == [0, 0, 0]


def test_a_per_layer_transcoder_writes_for_its_own_layer_alone():
    assert "dec_0_1" not in shipped("PLT") and "dec_0_1" in shipped("CLT")
    sizes = [Path(skipping.shipped_file(name)).stat().st_size for name in ("PLT", "CLT")]
    assert sum(sizes) < 3e6
