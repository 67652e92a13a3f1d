"""IOI pairs and the container they come in: only the order of two names may differ."""

from collections import Counter
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tasks import ioi
from helpers.tasks.ioi import make_pairs, templates, vocabulary
from helpers.tasks.pairs import Pairs
from helpers.tasks.tokens import encode, single_token

SPLITS = ("train", "test")
POSITIONS = ["io_position", "subject_position", "subject2_position"]
PUNCTUATION = ".,"


def word_tokenizer(bos: bool = True):
    """A tokenizer for which all our words are single tokens, as are those of the templates."""
    texts = chain.from_iterable(templates(split).values() for split in SPLITS)
    words = chain(*(text.replace(",", " ,").replace(".", " .").split() for text in texts))
    words = [word for word in words if not word.startswith("{")]
    lists = chain(*(ioi._words(kind) for kind in ("names", "objects", "places")))
    return build_tokenizer(tuple(dict.fromkeys(["Then", *words, *lists, *PUNCTUATION])), bos)


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request):
    return word_tokenizer(request.param)


def check_pair(pairs: Pairs, row: int) -> None:
    """What has to hold of every pair, whatever the tokenizer."""
    base, source, about = pairs.base_tokens[row], pairs.source_tokens[row], pairs.table.loc[row]
    io, first_s, second_s = about[POSITIONS].tolist()
    answer, counterfactual = pairs.answer[row], pairs.counterfactual[row]
    assert answer != counterfactual
    assert len(base) == len(source)
    # the positions point at the names, and at all of them
    assert (base == answer).nonzero()[:, 0].tolist() == [io]
    assert (base == counterfactual).nonzero()[:, 0].tolist() == [first_s, second_s]
    # the source is the base with its first two names exchanged, and nothing else
    swapped = base.clone()
    swapped[[io, first_s]] = base[[first_s, io]]
    assert torch.equal(source, swapped)
    assert abs(io - first_s) == 2 and second_s > max(io, first_s)
    assert about["pattern"] == ("ABB" if io < first_s else "BAB")
    assert pairs.position[row] == pairs.source_position[row] == len(base) - 1
    # the text agrees with the tokens
    assert about["base"].count(about["subject"] + " ") >= 2 and about["io"] in about["base"]
    assert about["base"].endswith((" to", " for")) and "{" not in about["base"] + about["source"]


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 2**32 - 1),
    bos=st.booleans(),
)
def test_pairs_differ_in_the_order_of_the_names_only(n, split, seed, bos):
    tokenizer = word_tokenizer(bos)
    pairs = make_pairs(tokenizer, n, split=split, seed=seed)
    assert len(pairs) == n
    for row in range(n):
        check_pair(pairs, row)
        about = pairs.table.loc[row]
        assert pairs.answer[row] == single_token(tokenizer, about["io"])
        assert pairs.counterfactual[row] == single_token(tokenizer, about["subject"])
    assert pairs.table["pattern"].tolist() == (["ABB", "BAB"] * n)[:n]
    assert set(pairs.table["template"]) <= set(templates(split))
    counts = Counter(pairs.table["template"])
    assert max(counts.values()) - min(counts[name] for name in templates(split)) <= 1
    # independent pairs: no prompt is used twice, neither as a base nor as a source
    assert len({*pairs.table["base"], *pairs.table["source"]}) == 2 * n


def test_words_come_from_the_split_and_are_used_without_favour(tokenizer):
    pairs = make_pairs(tokenizer, 3000, split="test")
    words = vocabulary(tokenizer, "test")
    for column, kind in [
        ("io", "names"),
        ("subject", "names"),
        ("object", "objects"),
        ("place", "places"),
    ]:
        used = pairs.table.loc[pairs.table[column] != "", column]
        assert set(used) == set(words[kind])
        share = used.value_counts()
        assert share.max() < 4 * share.mean(), f"{column}: {share.idxmax()} comes too often"
    without_object = pairs.table["template"].isin(
        [name for name, text in templates("test").items() if "{object}" not in text]
    )
    assert ((pairs.table["object"] == "") == without_object).all()
    # roles, patterns and templates are not tied to each other
    assert pd.crosstab(pairs.table["template"], pairs.table["pattern"]).min().min() > 200


def test_a_known_example():
    words = {"io": "Mary", "subject": "John", "object": "book", "place": "park"}
    template = "{first} and {second} met at the {place}. {subject} gave a {object} to"
    assert ioi.fill(template, "ABB", words) == "Mary and John met at the park. John gave a book to"
    assert ioi.fill(template, "BAB", words) == "John and Mary met at the park. John gave a book to"


def test_splits_share_nothing(tokenizer):
    train, test = (vocabulary(tokenizer, split) for split in SPLITS)
    for kind in ("names", "objects", "places"):
        assert not set(train[kind]) & set(test[kind])
        assert sorted(train[kind] + test[kind]) == sorted(ioi._words(kind))
        assert abs(len(train[kind]) - len(test[kind])) <= 1
    assert not templates("train").keys() & templates("test").keys()
    assert not set(templates("train").values()) & set(templates("test").values())


def test_word_lists_are_clean():
    lists = {kind: ioi._words(kind) for kind in ("names", "objects", "places")}
    assert len(lists["names"]) >= 160 and len(lists["objects"]) >= 60 and len(lists["places"]) >= 50
    everything = list(chain(*lists.values()))
    assert len(everything) == len(set(everything))
    assert all(name.isascii() and name.istitle() for name in lists["names"])
    assert all(word.isascii() and word.islower() for word in lists["objects"] + lists["places"])
    assert not [word for word in lists["objects"] if word[0] in "aeiou"]  # "a" comes before them


def test_templates_have_the_right_slots():
    assert {"argument", "fun"} <= templates("train").keys() and "work" in templates("test")
    assert len(templates("train")) >= 4 and len(templates("test")) >= 3
    for text in chain.from_iterable(templates(split).values() for split in SPLITS):
        assert text.startswith("{first} and {second} ")
        assert text.count("{subject}") == 1 and text.count("{place}") == 1
        assert text.count("{object}") <= 1 and text.count("{") == text.count("}")
        assert text.split()[-1] == "to"


def test_templates_are_copied(tokenizer):
    templates("train").clear()
    assert templates("train")


def test_seed_alone_decides(tokenizer):
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = make_pairs(tokenizer, 20, seed=3)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again, other = make_pairs(tokenizer, 20, seed=3), make_pairs(tokenizer, 20, seed=4)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert all(map(torch.equal, first.base_tokens, again.base_tokens))
    assert first.table["base"].tolist() != other.table["base"].tolist()


def test_templates_come_in_random_order(tokenizer):
    firsts = {make_pairs(tokenizer, 1, seed=seed).table["template"][0] for seed in range(60)}
    assert firsts == set(templates("train"))
    order = make_pairs(tokenizer, 60).table["template"].tolist()
    period = len(templates("train"))
    assert order != order[:period] * (60 // period)  # no cycle
    assert len([row for row in range(59) if order[row] != order[row + 1]]) > 30  # and no blocks


def test_templates_can_be_chosen(tokenizer):
    pairs = make_pairs(tokenizer, 10, templates=["fun"])
    assert set(pairs.table["template"]) == {"fun"}
    assert len({len(tokens) for tokens in pairs.base_tokens}) == 1


def test_bos_shifts_the_positions_by_one():
    """The positions are found, not typed: 2 and 4 without BOS, 3 and 5 with it."""
    for bos, expected in ((False, [2, 4]), (True, [3, 5])):
        pairs = make_pairs(word_tokenizer(bos), 6)
        found = pairs.table[POSITIONS[:2]].to_numpy()
        assert (np.sort(found, axis=1) == expected).all()
    longer = make_pairs(word_tokenizer(False), 6, prefix="Then and then, ")
    assert (np.sort(longer.table[POSITIONS[:2]].to_numpy(), axis=1) == [4, 6]).all()


@pytest.mark.parametrize("split", SPLITS)
def test_the_other_name_repeated(tokenizer, split):
    """One token differs, the text is that of the tokens, and the answers have changed places."""
    first = make_pairs(tokenizer, 40, split=split, seed=3)
    pairs = ioi.with_other_repeated(first)
    for row in range(len(pairs)):
        base, source = pairs.base_tokens[row], pairs.source_tokens[row]
        place = pairs.table["subject2_position"][row]
        assert (base != source).nonzero()[:, 0].tolist() == [place]
        assert source[place] == pairs.answer[row] and base[place] == pairs.counterfactual[row]
        assert torch.equal(encode(tokenizer, pairs.table["source"][row]), source)
        assert torch.equal(base, first.base_tokens[row])
    assert pairs.position.tolist() == pairs.source_position.tolist()
    assert pairs.position.tolist() == pairs.table["subject2_position"].tolist()
    swapped = pairs.table["source"] != first.table["source"]
    assert swapped.all(), "the pairs that were given stay as they were"


def test_every_architecture(any_model):
    """The tiny models know few of our words, and those are the ones that get used."""
    pairs = make_pairs(any_model, 8)
    for row in range(len(pairs)):
        check_pair(pairs, row)
        assert torch.equal(pairs.base_tokens[row], any_model.to_tokens(pairs.table["base"][row])[0])
    logits = any_model(pairs.base_tokens[0][None])
    assert logits.shape[1] == len(pairs.base_tokens[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be from 1 to"),
        ({"n": -3}, "n must be from 1 to"),
        ({"n": 10**9}, r"n must be from 1 to \d+"),
        ({"split": "validation"}, "'train', 'test' or 'fresh', not 'validation'"),
        ({"templates": ["work"]}, "'work'.*of the train split are"),  # a test template
        ({"templates": []}, "no templates"),
        ({"prefix": "Then,"}, "must end with a space"),
        ({"prefix": ""}, "must end with a space"),
    ],
)
def test_errors_say_what_to_change(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(tokenizer, **{"n": 4, **arguments})


def test_a_name_in_the_prefix_is_an_error(tokenizer):
    io = make_pairs(tokenizer, 1).table["io"][0]
    with pytest.raises(ValueError, match="is a name in the prefix"):
        make_pairs(tokenizer, 1, prefix=f"Then {io} ,  and ".replace("  ", " "))


def test_all_pairs_of_a_small_vocabulary_can_be_had():
    words = ["Mary", "John", "Anna", "Paul", "book", "ring", "park", "school"]
    tokenizer = build_tokenizer(tuple(words))
    pairs = make_pairs(tokenizer, 2, templates=["fun"])  # 2 orders of the two train names
    assert sorted(zip(pairs.table["io"], pairs.table["subject"], strict=True)) == [
        ("Anna", "Mary"),
        ("Mary", "Anna"),
    ]
    with pytest.raises(ValueError, match="n must be from 1 to 2,"):
        make_pairs(tokenizer, 3, templates=["fun"])


def test_a_tokenizer_that_splits_names_is_an_error():
    characters = build_tokenizer(tuple("abcdefghijklmnopqrstuvwxyz"))
    with pytest.raises(ValueError, match="only 0 of our .* names are single tokens"):
        make_pairs(characters, 4)


# The container.

PROMPTS = {
    "base": ["Then Mary and John went to", "Then John and Mary gave a book to"],
    "source": ["Then John and Mary went to", "Then Mary and John gave a book to"],
    "answer": ["Mary", " John"],
    "counterfactual": ["John", "Mary"],
}


@pytest.fixture
def pairs(tokenizer) -> Pairs:
    return Pairs.from_prompts(tokenizer, **PROMPTS)


def test_from_prompts(tokenizer, pairs):
    for row, (base, source) in enumerate(zip(PROMPTS["base"], PROMPTS["source"], strict=True)):
        assert pairs.base_tokens[row].tolist() == tokenizer(base)["input_ids"]
        assert pairs.source_tokens[row].tolist() == tokenizer(source)["input_ids"]
    assert pairs.answer.tolist() == [single_token(tokenizer, name) for name in ("Mary", "John")]
    assert pairs.position.tolist() == [len(tokens) - 1 for tokens in pairs.base_tokens]
    assert pairs.table[["base", "source"]].to_dict("list") == {
        name: PROMPTS[name] for name in ("base", "source")
    }


def test_tokens_are_those_of_the_model(any_model):
    pairs = Pairs.from_prompts(any_model, **PROMPTS)
    for row, prompt in enumerate(PROMPTS["base"]):
        assert torch.equal(pairs.base_tokens[row], any_model.to_tokens(prompt)[0])
    bos = encode(any_model, "Then Mary") == any_model.tokenizer.bos_token_id
    assert bos.sum() == any_model.cfg.default_prepend_bos  # GPT-NeoX reads prompts without


def test_positions_may_be_given(tokenizer):
    pairs = Pairs.from_prompts(tokenizer, **PROMPTS, position=[1, -2], source_position=2)
    assert pairs.position.tolist() == [1, len(pairs.base_tokens[1]) - 2]
    assert pairs.source_position.tolist() == [2, 2]
    length = len(pairs.base_tokens[0])
    assert Pairs.from_prompts(tokenizer, **PROMPTS, position=-length).position[0] == 0
    for outside in (length, -length - 1):
        with pytest.raises(ValueError, match=f"position {outside} is outside .* of pair 0"):
            Pairs.from_prompts(tokenizer, **PROMPTS, position=[outside, 0])


def test_unequal_lengths_need_a_source_position(tokenizer):
    prompts = {**PROMPTS, "source": ["John gave a book to", PROMPTS["source"][1]]}
    with pytest.raises(ValueError, match="(?s)source_position.*pair 0.*went to.*John gave a book"):
        Pairs.from_prompts(tokenizer, **prompts)
    pairs = Pairs.from_prompts(tokenizer, **prompts, source_position=-1)
    assert pairs.source_position.tolist() == [len(tokens) - 1 for tokens in pairs.source_tokens]


def test_table_keeps_its_columns(tokenizer):
    table = pd.DataFrame({"relation": ["a", "b"], "base": ["x", "y"]}, index=[7, 8])
    pairs = Pairs.from_prompts(tokenizer, **PROMPTS, table=table)
    assert list(pairs.table.columns) == ["base", "source", "relation"]
    assert pairs.table["base"].tolist() == PROMPTS["base"]
    assert table["base"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({name: [] for name in PROMPTS}, "there are no pairs"),
        ({"answer": ["Mary"]}, "'answer': 1"),
        ({"table": pd.DataFrame({"a": [1]})}, "'table': 1"),
        ({"answer": ["Maryland", "John"]}, "' Maryland' must be a single token"),
        ({"answer": ["to to", "John"]}, r"' to to' must .* splits into \[' to', ' to'\]"),
        ({"answer": ["John", "John"]}, "pair 0 has the same answer and counterfactual"),
        ({"position": [-1, 50]}, "position 50 is outside the base prompt of pair 1"),
        ({"position": -50}, "position -50 is outside the base prompt of pair 0"),
        ({"source_position": [0, 50]}, "position 50 is outside the source prompt of pair 1"),
    ],
)
def test_bad_prompts_are_errors(tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        Pairs.from_prompts(tokenizer, **{**PROMPTS, **changes})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (2, [2]),
        (-1, [5]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -1), [5, 4, 3, 2, 1, 0]),
        ([4, 0, 4], [4, 0, 4]),
        ([True, False, False, True, False, False], [0, 3]),
        (np.array([1, 2]), [1, 2]),
        (torch.tensor([3, 1]), [3, 1]),
        (torch.tensor([False, True, False, False, False, False]), [1]),
        (pd.Series([False, False, True, False, False, True], index=range(10, 16)), [2, 5]),
    ],
)
def test_rows_can_be_chosen(tokenizer, rows, expected):
    pairs = make_pairs(tokenizer, 6)
    chosen = pairs[rows]
    assert chosen.table["base"].tolist() == pairs.table["base"].iloc[expected].tolist()
    assert chosen.table.index.tolist() == list(range(len(expected)))
    for new, old in enumerate(expected):
        assert torch.equal(chosen.base_tokens[new], pairs.base_tokens[old])
        assert torch.equal(chosen.source_tokens[new], pairs.source_tokens[old])
        for name in ("answer", "counterfactual", "position", "source_position"):
            assert getattr(chosen, name)[new] == getattr(pairs, name)[old]


def test_impossible_rows_are_errors(pairs):
    for rows in ([], slice(2, 2), torch.zeros(0, dtype=torch.long), [False, False]):
        with pytest.raises(ValueError, match="there are no pairs"):
            pairs[rows]
    for rows in (2, [0, 5], [True]):
        with pytest.raises(IndexError):
            pairs[rows]


def test_pairs_are_iterated_one_by_one(pairs):
    assert [pair.table["base"][0] for pair in pairs] == PROMPTS["base"]


def test_lessons_have_competent_prompts(smollm):
    """The task is worth patching on the packaged model: it prefers the IO with every template."""
    lengths = set()
    for split in SPLITS:
        for name in templates(split):
            pairs = make_pairs(smollm, 16, split=split, templates=[name])
            lengths |= {*map(len, pairs.base_tokens), *map(len, pairs.source_tokens)}
            logits = smollm(torch.stack(pairs.base_tokens))[:, -1]
            rows = torch.arange(len(pairs))
            difference = logits[rows, pairs.answer] - logits[rows, pairs.counterfactual]
            assert difference.mean() > 1, name
    assert len(lengths) == 1  # all templates can share a batch
