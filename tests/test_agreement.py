"""Agreement pairs: one word differs, and with it what the prompt goes on with."""

import csv
import json
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tasks.agreement import FOLDER, make_pairs
from helpers.tasks.tokens import single_token

ANSWERS = {
    "number": {"singular": "was", "plural": "were"},
    "gender": {"female": "she", "male": "he"},
}
SPLITS = ("train", "test")
TEMPLATES = json.loads((FOLDER / "templates.json").read_text(encoding="utf-8"))


def words(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


NOUNS, NAMES = words("nouns"), words("names")
LISTS = {"number": NOUNS, "gender": NAMES}


def word_tokenizer(bos: bool = True, *without: str):
    """A tokenizer for which all our words are single tokens, as are those of the templates."""
    texts = [text for task in TEMPLATES.values() for split in SPLITS for text in task[split]]
    plain = " ".join(texts).replace(",", " ,").replace("{}", " ").split()
    answers = chain(*(task.values() for task in ANSWERS.values()))
    listed = chain(*(row.values() for row in NOUNS + NAMES))
    known = dict.fromkeys([*plain, *answers, *listed])
    return build_tokenizer(tuple(word for word in known if word not in without), bos)


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request):
    return word_tokenizer(request.param)


@settings(max_examples=20, deadline=None)
@given(
    feature=st.sampled_from(list(ANSWERS)),
    n=st.integers(2, 60),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 2**32 - 1),
    bos=st.booleans(),
)
def test_pairs_differ_in_one_word_only(feature, n, split, seed, bos):
    tokenizer, answers = word_tokenizer(bos), ANSWERS[feature]
    pairs = make_pairs(tokenizer, feature, n, split=split, seed=seed)
    assert len(pairs) == len(pairs.table) == n
    listed = {frozenset(row.values()): row for row in LISTS[feature]}
    for row, (base, source) in enumerate(zip(pairs.base_tokens, pairs.source_tokens, strict=True)):
        about = pairs.table.loc[row]
        place = (base != source).nonzero()[:, 0].tolist()
        assert [pairs.position[row]] == [pairs.source_position[row]] == place
        assert base[place[0]] == single_token(tokenizer, about["word"])
        assert source[place[0]] == single_token(tokenizer, about["other"])
        # a listed word of the value that the table says, and the same word with the other value
        forms = listed[frozenset([about["word"], about["other"]])]
        assert forms[about["value"]] == about["word"]
        (other,) = forms.keys() - {about["value"]}
        assert pairs.answer[row] == single_token(tokenizer, answers[about["value"]])
        assert pairs.counterfactual[row] == single_token(tokenizer, answers[other])
        assert about["base"] == about["template"].replace("{}", about["word"])
        assert about["source"] == about["template"].replace("{}", about["other"])
        assert base.tolist() == tokenizer(about["base"])["input_ids"]
        assert tokenizer.unk_token_id not in base
    assert pairs.table["value"].tolist() == (list(answers) * n)[:n]
    assert set(pairs.table["template"]) <= set(TEMPLATES[feature][split])
    assert not pairs.table.duplicated(["base", "source"]).any()


def test_all_pairs_of_a_small_vocabulary():
    """Of river, box, knife and key, in the order of our list, every second is a test word."""
    known = "river rivers box boxes knife knives key keys was were"
    tokenizer = build_tokenizer(tuple(known.split()))
    table = make_pairs(tokenizer, "number", 8, split="test").table
    found = set(zip(table["base"], table["source"], table["value"], strict=True))
    forms = [("box", "boxes"), ("key", "keys")]
    assert found == {
        (template.replace("{}", base), template.replace("{}", source), value)
        for template in ("Last year, the {} from the north", "The {} that I met yesterday")
        for one, many in forms
        for base, source, value in ((one, many, "singular"), (many, one, "plural"))
    }
    with pytest.raises(ValueError, match="from 2 to 8 pairs of number, not 9"):
        make_pairs(tokenizer, "number", 9, split="test")
    with pytest.raises(ValueError, match="only 3 of our .* nouns .* and 4 are needed"):
        make_pairs(build_tokenizer(tuple(known.split()[2:])), "number", 2)


@pytest.mark.parametrize("feature", ANSWERS)
def test_splits_share_no_word_and_no_template(tokenizer, feature):
    used = []
    for split in SPLITS:
        with pytest.raises(ValueError, match=r"from 2 to \d+") as error:
            make_pairs(tokenizer, feature, 10**9, split=split)
        most = int(str(error.value).split("from 2 to ")[1].split()[0])
        pairs = make_pairs(tokenizer, feature, most, split=split)
        assert not pairs.table.duplicated(["base", "source"]).any()
        used.append({*pairs.table["word"], *pairs.table["other"]})
        assert set(pairs.table["template"]) == set(TEMPLATES[feature][split])
        assert set(pairs.table["word"]) == set(pairs.table["other"])
        # all pairs there are: each word once in each template
        assert most == len(used[-1]) * len(TEMPLATES[feature][split])
    listed = {word for row in LISTS[feature] for word in row.values()}
    assert not used[0] & used[1] and used[0] | used[1] == listed
    assert abs(len(used[0]) - len(used[1])) <= 2
    assert not set(TEMPLATES[feature]["train"]) & set(TEMPLATES[feature]["test"])


def test_words_that_are_no_single_tokens_are_left_out():
    tokenizer = word_tokenizer(True, "keys", "tooth")
    found = [make_pairs(tokenizer, "number", 90, split=split).table for split in SPLITS]
    seen = {word for table in found for word in [*table["word"], *table["other"]]}
    assert not seen & {"key", "keys", "tooth", "teeth"} and "box" in seen


def test_seed_alone_decides(tokenizer):
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = make_pairs(tokenizer, "number", 20, seed=3)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again, other = (make_pairs(tokenizer, "number", 20, seed=seed) for seed in (3, 4))
    pd.testing.assert_frame_equal(first.table, again.table)
    assert all(map(torch.equal, first.base_tokens, again.base_tokens))
    assert first.table["base"].tolist() != other.table["base"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature": "tense"}, "no feature 'tense'.*number.*gender"),
        ({"split": "validation"}, "'train' or 'test', not 'validation'"),
        ({"n": 10**9}, r"n must be from 2 to \d+ pairs of number"),
        ({"n": 1}, "n must be from 2 to"),
        ({"n": 0}, "n must be from 2 to"),
    ],
)
def test_errors_say_what_to_change(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(tokenizer, **{"feature": "number", "n": 4, **arguments})


def test_a_tokenizer_without_the_words_is_an_error(tiny_model):
    characters = build_tokenizer(tuple("abcdefghijklmnopqrstuvwxyz"))
    with pytest.raises(ValueError, match="only 0 of our .* nouns are single tokens"):
        make_pairs(characters, "number", 4)
    with pytest.raises(ValueError, match="only 0 of our .* names are single tokens"):
        make_pairs(characters, "gender", 4)
    with pytest.raises(ValueError, match="' she' must be a single token"):
        make_pairs(word_tokenizer(True, "she"), "gender", 4)


@pytest.mark.parametrize("rows, columns", [(NOUNS, "number"), (NAMES, "gender")])
def test_word_lists_are_clean(rows, columns):
    everything = [word for row in rows for word in row.values()]
    assert all(list(row) == list(ANSWERS[columns]) for row in rows)
    assert len(everything) == len(set(everything)) and len(rows) >= 40
    assert all(word.isascii() and word.isalpha() for word in everything)
    assert all(word.istitle() == (columns == "gender") for word in everything)


def test_templates_have_one_slot_in_mid_sentence():
    assert list(TEMPLATES) == list(ANSWERS)
    for feature, task in TEMPLATES.items():
        assert task["answers"] == ANSWERS[feature]
        for text in task["train"] + task["test"]:
            assert text.count("{}") == text.count(" {} ") == 1
            assert text == text.strip()
