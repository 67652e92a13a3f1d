"""Toys of lesson 16 against closed forms, truth tables and coders that are built by hand."""

import itertools
import json

import pytest
import torch

from helpers.circuits.transcoders import Transcoders, train_transcoders
from helpers.claims.report import every_claim, judge
from tools.evidence import store, toys

RUN = json.loads(store.evidence_file("toys").read_text(encoding="utf-8"))
CHAINS = [toys.Chain(2, 11), toys.Chain(3, 12)]
READERS = toys.Readers(13)


def built(chain, jumps):
    """Transcoders by hand: honest, or with C1 written by the features of layer 1."""
    bits, middle, ends, _ = chain.ways
    d, n = len(chain.basis), 2 * chain.pairs + 2
    enc, bias = torch.zeros(1, 2, d, n), torch.zeros(1, 2, n)
    dec = torch.zeros(1, 2, 2, n, d)
    for pair in range(chain.pairs):
        way = bits[2 * pair] - bits[2 * pair + 1]
        for feature, sign in ((2 * pair, 1), (2 * pair + 1, -1)):
            enc[0, 0, :, feature] = sign * way
            dec[0, 0, 0, feature] = middle[pair]
            dec[0, 0, 1, feature] = ends[0] * (jumps and pair == 0)
    enc[0, 1, :, 0], bias[0, 1, 0] = 2 * middle[0], -1
    dec[0, 1, 1, 0] = ends[0] * (not jumps)
    enc[0, 1, :, 1], bias[0, 1, 1] = middle[0] + middle[1], -1
    dec[0, 1, 1, 1] = ends[1]
    return Transcoders(enc, bias, dec, torch.zeros(1, 2, d))


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_a_chain_computes_its_truth_table(chain):
    _, outputs = chain.run(chain.start)
    _, middle, ends, _ = chain.ways
    for row, bits in enumerate(itertools.product([0, 1], repeat=2 * chain.pairs)):
        b = [bits[2 * i] ^ bits[2 * i + 1] for i in range(chain.pairs)]
        assert (outputs[0, row] @ middle.T).round(decimals=4).tolist() == b
        assert (outputs[1, row] @ ends.T).round(decimals=4).tolist() == [b[0], b[0] & b[1]]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_interventions_set_the_middle_and_nothing_else(chain):
    streams, outputs = chain.taught()
    _, middle, ends, _ = chain.ways
    states = (streams[1] - streams[0]) @ middle.T
    for row, state in enumerate(states.round().int().tolist()):
        right = [state[0], state[0] & state[1]]
        assert (outputs[1, row] @ ends.T).round(decimals=4).tolist() == right
    inputs = (streams[0] @ chain.ways[0].T).round()
    both = [tuple(row) for row in torch.cat([inputs, states.round()], 1).abs().tolist()]
    n = len(chain.start)
    assert len(both) == n + n * 2**chain.pairs // 2
    taught = {*both[n:]}  # half of all inputs with a state, and no input's flip that is judged
    assert len(taught) == len(both) - n
    for row, judged in zip(both[:n], chain.unseen.tolist(), strict=True):
        *bits, first = row[: 2 * chain.pairs + 1]
        assert ((*bits, 1 - first, *row[2 * chain.pairs + 1 :]) in taught) != judged
    rest = streams[1] - streams[0] - states @ middle
    assert rest.abs().max() < 1e-5


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_penalties_are_those_of_the_closed_forms(chain):
    found = toys.penalties(chain)
    honest = chain.pairs * 0.5 + 0.75
    assert found["honest"]["L1"] == pytest.approx(honest)
    assert found["C1 jumps"]["L1"] == pytest.approx(honest - 1 + 2**-0.5)
    table = 0.0
    for b in itertools.product([0, 1], repeat=chain.pairs):
        table += sum([*b, b[0], b[0] * b[1]]) ** 0.5 / 2**chain.pairs
    assert found["table"]["L1"] == pytest.approx(table)
    assert all(of["error"] < 1e-5 for of in found.values())
    assert found["honest"]["L0"] == pytest.approx(honest)
    assert found["by states"]["L1"] == pytest.approx(honest - 0.75 + 0.25 + 0.25 * 2**0.5)
    assert found["table"]["L0"] == pytest.approx(1 - 2.0**-chain.pairs)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("jumps", [False, True])
def test_coders_by_hand_cost_and_answer_as_they_must(chain, jumps):
    coders, (streams, outputs) = built(chain, jumps), chain.run(chain.start)
    assert torch.allclose(coders.outputs(streams)[0], outputs, atol=1e-5)
    name = "C1 jumps" if jumps else "honest"
    price = coders.cost(coders.values(streams)).item()
    assert price == pytest.approx(toys.penalties(chain)[name]["L1"], abs=1e-4)
    apart = coders.cost(coders.values(streams), joint=False).item()
    assert apart == pytest.approx(toys.penalties(chain)["honest"]["L1"], abs=1e-4)  # a tie
    found = toys.responses(chain, coders)
    assert found["C1"][0] == pytest.approx(0 if jumps else 1, abs=1e-4)
    assert found["C2"][0] == pytest.approx(1, abs=1e-4)
    assert found["unused"][0] == pytest.approx(0, abs=1e-4)


def test_features_write_only_where_they_may():
    streams, outputs = CHAINS[0].run(CHAINS[0].start)
    some = {"features": 6, "seeds": 2, "steps": 20}
    per_layer, across = (
        train_transcoders(streams, outputs, across=x, penalty=0.01, **some) for x in (False, True)
    )
    assert not per_layer.dec[:, 0, 1].any() and not per_layer.dec[:, 1, 0].any()
    assert across.dec[:, 0, 1].any() and not across.dec[:, 1, 0].any()


def test_a_seed_does_not_depend_on_those_beside_it():
    streams, outputs = CHAINS[0].run(CHAINS[0].start)
    some = {"features": 6, "across": True, "penalty": 0.01, "steps": 30}
    both = train_transcoders(streams, outputs, seeds=2, **some)
    second = train_transcoders(streams, outputs, first=1, **some)
    assert torch.allclose(both.enc[1], second.enc[0], atol=1e-4)
    assert not torch.allclose(both.enc[0], both.enc[1], atol=1e-2)


def test_training_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\[layers n d\] each"):
        train_transcoders(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), features=2, across=True,
                          penalty=0)  # fmt: skip


def test_interchanges_by_brute_force():
    """All pairs of inputs, one by one: the share of the effect that depends on the style."""
    h, (animals, styles) = READERS.h, toys.SIZES
    for name, read in READERS.all().items():
        effects = torch.zeros(animals, styles, animals, dtype=torch.float64)
        for old, style, new in itertools.product(*map(range, (animals, styles, animals))):
            effects[old, style, new] = read(h[new, style]) - read(h[old, style])
        share = effects.var(1, unbiased=False).sum() / effects.square().mean(1).sum()
        found = READERS.tests()[name]["interchange"]
        assert found == pytest.approx(share.item(), abs=1e-9)


def test_gradients_and_doses_by_differences():
    h, step = READERS.h, 1e-6
    for name, read in READERS.all().items():
        slopes = torch.zeros_like(h)
        for k in range(h.shape[-1]):
            by = step * torch.eye(h.shape[-1], dtype=h.dtype)[k]
            slopes[..., k] = (read(h + by) - read(h - by)) / (2 * step)
        flat = slopes.flatten(0, 1)
        share = flat.var(0, unbiased=False).sum() / flat.square().mean(0).sum()
        assert READERS.tests()[name]["gradient"] == pytest.approx(share.item(), abs=1e-6)
    doses = [READERS.tests()[name]["half dose"] for name in ("factors", "additive")]
    assert doses == pytest.approx([0.5, 1.0])


def test_the_lasso_pays_once():
    """One conjunction with coefficient sqrt 2 less the penalty: the conditions of optimality."""
    found = READERS.dictionary(alpha=0.05)
    assert found["mass"] == pytest.approx(1) and found["used"] == 1


def test_numbers_of_claims_by_hand():
    found = toys.measured(RUN)
    each = {kind: [] for kind in ("PLT", "CLT")}
    for (network, of), kind in itertools.product(RUN["chains"].items(), each):
        assert network in [f"{pairs} {seed}" for pairs, seed in toys.NETWORKS]
        each[kind] += of[kind]["C1"]
    assert {len(x) for x in each.values()} == {40}
    lower = sorted(each["CLT"])[19]
    assert found["T1"]["value"] == pytest.approx(lower)
    assert found["T1"]["plt"] == pytest.approx(sorted(each["PLT"])[19])
    assert found["T2"]["value"] == pytest.approx(1 - 2**-0.5, abs=1e-3)
    for claim, of in found.items():
        assert judge(every_claim()[claim]["rule"], of) in ("replicated", "partly", "not")


def test_one_row_of_the_run_again(monkeypatch):
    """Two of eight seeds: they do not depend on those beside them."""
    monkeypatch.setattr(toys, "SEEDS", 2)
    found, stored = toys.one_coder(toys.Chain(2, 101), **toys.CODERS["CLT"]), RUN["chains"]["2 101"]
    assert found["C1"] == pytest.approx(stored["CLT"]["C1"][:2], abs=0.1)
    assert found["L1"] == pytest.approx(stored["CLT"]["L1"][:2], abs=0.05)
