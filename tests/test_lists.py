"""The missing one of three: prompts read back, balanced, and a margin by hand."""

import collections
import re

import pytest
import torch
from conftest import build_tokenizer

from helpers.tasks import ioi, lists

NAMES = [*ioi._words("names"), *ioi._words("names", "fresh"), *ioi._words("objects")]
NAMES += [word for kind in ("objects", "places") for word in ioi._words(kind, "fresh")]


@pytest.fixture(scope="module")
def tokenizer():
    texts = re.findall(r"\w+|[,/]", re.sub(r"\{\w+\}", " ", " ".join(lists.wordings().values())))
    words = [*texts, *NAMES, *ioi._words("places"), "and"]
    return build_tokenizer(tuple(dict.fromkeys(words)), True)


@pytest.mark.parametrize("wording", lists.wordings())
def test_the_answer_is_the_one_that_nobody_repeats(tokenizer, wording):
    pairs = lists.missing_one(tokenizer, 24, wording=wording, seed=1)
    for row in pairs.table.to_dict("records"):
        listed = [row[place] for place in lists.PLACES]
        for prompt, missing in ((row["base"], row["place"]), (row["source"], row["source_place"])):
            said = re.findall(r"\w+", prompt)
            assert [said.count(name) for name in listed] == [2 - (n == missing) for n in range(3)]
            assert sorted(said.index(name) for name in listed) == [said.index(n) for n in listed]


def test_every_place_and_order_is_equally_frequent(tokenizer):
    pairs = lists.missing_one(tokenizer, 48, split="fresh", seed=2)
    both = zip(pairs.table["place"], pairs.table["source_place"], strict=True)
    counts = collections.Counter(both)
    assert len(counts) == 6 and set(counts.values()) == {8}
    again = lists.missing_one(tokenizer, 48, split="fresh", seed=2)
    assert again.table.equals(pairs.table)
    assert not set(pairs.table["first"]) & set(ioi.vocabulary(tokenizer, "train")["names"])


def test_positions_are_those_of_the_list(tokenizer):
    pairs = lists.missing_one(tokenizer, 12, wording="late")
    for row, tokens in enumerate(pairs.base_tokens):
        for place, ids in pairs.choices.items():
            where = pairs.table[f"{place}_position"][row]
            assert tokens[where] == ids[row] and not (tokens[:where] == ids[row]).any()
        assert pairs.answer[row] == pairs.choices[lists.PLACES[pairs.table["place"][row]]][row]


def test_the_margin_by_hand(tokenizer):
    pairs = lists.missing_one(tokenizer, 6, seed=3)
    logits = torch.randn(6, 2000, generator=torch.Generator().manual_seed(0))
    for row, found in enumerate(lists.margin(pairs, logits).tolist()):
        three = [logits[row, ids[row]].item() for ids in pairs.choices.values()]
        right = logits[row, pairs.answer[row]].item()
        assert found == pytest.approx(right - (sum(three) - right) / 2, abs=1e-4)


def test_bad_input_is_named(tokenizer):
    with pytest.raises(ValueError, match="no wording 'cellar': choose from"):
        lists.missing_one(tokenizer, 6, wording="cellar")
    with pytest.raises(ValueError, match="the split must be|split"):
        lists.missing_one(tokenizer, 6, split="validation")
    with pytest.raises(ValueError, match="n must"):
        lists.missing_one(tokenizer, 0)
