"""The run on readings: rows again by whole passes with hooks, and verdicts by hand."""

import json

import pytest
import torch

from helpers.claims.report import every_claim, judge
from helpers.tasks import encode, facts
from tools.evidence import reading, reading_tables, store

RUN = json.loads(store.evidence_file("reading").read_text(encoding="utf-8"))
NAME, ROWS = "company_country", slice(0, 6)


@pytest.fixture(scope="module")
def asked(smollm):
    return reading.ask(smollm, NAME)


def written(new, position):
    def hook(activation, hook):
        activation = activation.clone()
        activation[:, position] = new
        return activation

    return hook


def ends(asked, table):
    """States at the subjects' last tokens, layer by layer, from whole prompts."""
    tokens, positions = facts.subject_ends(asked.model, table)
    found = []
    for row, at in zip(tokens, positions.tolist(), strict=True):
        cache = asked.model.run_with_cache(row[None])[1]
        found.append([cache[f"blocks.{n}.hook_resid_pre"][0, at] for n in range(30)])
    return found


def test_readings_are_those_of_whole_passes(asked):
    table = asked.table.iloc[ROWS]
    right = [facts.answer_token(asked.model, answer) for answer in table["answer"]]
    found = ends(asked, table)
    for layer in (0, 8, 18):
        state, counts = torch.stack([row[layer] for row in found]), torch.zeros(len(table))
        for examples in facts.reading(NAME)["examples"]:
            told = [f"The company {subject} is from {said}." for subject, said in examples]
            tokens = encode(asked.model, " ".join([*told, "The company x is from"]))
            assert asked.model.tokenizer.decode(tokens[-3]) == " x"
            hooks = [(f"blocks.{layer}.hook_resid_pre", written(state, len(tokens) - 3))]
            out = asked.model.run_with_hooks(tokens.expand(len(table), -1), fwd_hooks=hooks)
            says = asked.candidates[out[:, -1][:, asked.candidates].argmax(1)]
            counts += (says == torch.tensor(right)).float()
        assert RUN[NAME]["read"][str(layer)][ROWS] == "".join(f"{n:.0f}" for n in counts.tolist())


def test_swaps_are_those_of_whole_passes(asked):
    """In the prompt that asks: the donor's state instead of the subject's own."""
    table, layer = asked.table, 12
    tokens, positions = facts.subject_ends(asked.model, table.iloc[ROWS])
    for row in range(len(tokens)):
        donor = table[table["subject"] == table["source_subject"][row]]
        (state,) = ends(asked, donor)
        hook = (f"blocks.{layer}.hook_resid_pre", written(state[layer], int(positions[row])))
        out = asked.model.run_with_hooks(tokens[row][None], fwd_hooks=[hook])[0, -1]
        says = asked.candidates[out[asked.candidates].argmax()]
        flipped = says == facts.answer_token(asked.model, table["counterfactual"][row])
        assert RUN[NAME]["flip"][str(layer)][row] == str(int(flipped))


def test_false_claims_name_another_answer(asked):
    table = reading.claimed_in(asked, "object_first", "counterfactual")
    assert (table["said"] != table["answer"]).all()
    assert all(s in t for s, t in zip(table["said"], table["template"], strict=True))
    prompt = facts.fill(table["template"][0], table["subject"][0])
    assert prompt.index(table["said"][0]) < prompt.index(table["subject"][0])


def test_numbers_of_claims_by_hand():
    """K1 and K6 from the digits, with none of the functions that made the verdicts."""
    found, differences = reading_tables.measured(RUN), []
    leaked = foreign = wrong = 0
    for name in reading.FRESH:
        of, start = RUN[name], RUN[name]["n"]["train"]
        rows = {int(layer): [int(d) / 3 for d in row] for layer, row in of["held"].items()}
        top = max(range(4, 21, 2), key=lambda layer: (sum(rows[layer][:start]), -layer))
        both = zip(rows[top][start:], rows[0][start:], strict=True)
        differences += [best - first for best, first in both]
        for layer in (20, 22, 24, 26, 28):
            said = of["said"][str(layer)]
            leaked, foreign = leaked + said["leaked"], foreign + said["foreign"]
            wrong += said["leaked"] + said["foreign"] + said["wrong"]
    expected = 100 * sum(differences) / len(differences)
    assert found["K1"]["value"] == pytest.approx(expected, abs=1e-3)
    assert found["K6"]["value"] == pytest.approx(100 * leaked / wrong)
    assert found["K6"]["foreign"] == pytest.approx(100 * foreign / wrong / 2)


def test_every_claim_can_be_judged():
    found = reading_tables.measured(RUN)
    assert list(found) == [f"K{n}" for n in range(1, 7)]
    for claim, of in found.items():
        assert judge(every_claim()[claim]["rule"], of) in ("replicated", "partly", "not")
