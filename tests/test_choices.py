"""Multiple choice: prompts read back, balanced labels, labels found where they stand."""

import collections
import re

import pytest
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.output.files import ROOT
from tools.choices import _read, multiple_choice

NOUNS = (ROOT / "data" / "tracking" / "nouns.txt").read_text("utf-8").split()
COLOURS = _read()["colours"].split()
LABELS = [*"ABCDEFGH", *"0123456789"]
TEXT = "The is What colour the Answer . ? : Ċ".split()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(tuple(dict.fromkeys([*TEXT, *NOUNS, *COLOURS, *LABELS])), True)


def asked(prompt):
    """Of the last question the right label, as a reader finds it."""
    question = prompt.split("\n\n")[-1]
    thing, colour = re.match(r"The (\w+) is (\w+)\.\n", question).groups()
    assert f"What colour is the {thing}?" in question and question.endswith("\nAnswer:")
    (label,) = re.findall(rf"^(.)\. {colour}$", question, flags=re.M)
    return label


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(LABELS), min_size=2, max_size=6, unique=True), st.integers(0, 3))
def test_the_answer_is_the_label_of_the_right_option(tokenizer, labels, shots):
    pairs = multiple_choice(tokenizer, 7, labels="".join(labels), shots=shots, seed=shots)
    for row in pairs.table.to_dict("records"):
        assert asked(row["base"]) == labels[row["place"]]
        assert asked(row["source"]) == labels[row["source_place"]] != labels[row["place"]]
        assert row["base"].count("Answer:") == shots + 1
        assert re.findall(r"Answer: (.)", row["base"]) == re.findall(r"Answer: (.)", row["source"])
    ids = [pairs.choices[str(place + 1)][row] for row, place in enumerate(pairs.table["place"])]
    assert pairs.answer.tolist() == ids


def test_labels_are_found_where_they_stand(tokenizer):
    pairs = multiple_choice(tokenizer, 8, labels="CAD7", shots=2)
    for row, tokens in enumerate(pairs.base_tokens):
        found = [tokenizer.decode(tokens[pairs.table[f"label_{n}"][row]]) for n in (1, 2, 3, 4)]
        assert found == list("CAD7")
        assert pairs.table["label_1"][row] > len(tokens) / 2  # of the last question


def test_places_are_balanced_and_a_seed_decides(tokenizer):
    pairs = multiple_choice(tokenizer, 48, seed=1)
    both = collections.Counter(zip(pairs.table["place"], pairs.table["source_place"], strict=True))
    assert len(both) == 12 and set(both.values()) == {4}
    assert multiple_choice(tokenizer, 48, seed=1).table.equals(pairs.table)
    assert not multiple_choice(tokenizer, 48, seed=2).table.equals(pairs.table)


def test_examples_have_right_answers(tokenizer):
    for prompt in multiple_choice(tokenizer, 6, shots=3, seed=4).table["base"]:
        for example in prompt.split("\n\n")[:-1]:
            question, label = example.rsplit(" ", 1)
            assert asked(question) == label


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": "A"}, "labels must be different characters"),
        ({"labels": "AAB"}, "labels must be different characters"),
        ({"labels": "ABCDEFGHIJK"}, "there are 10 colours"),
        ({"labels": "AÄ"}, "must be a single token"),
        ({"shots": -1}, "shots must"),
        ({"shots": 500}, "and .* things, no more"),
        ({"n": 0}, "n must"),
        ({"split": "valid"}, "the split must be"),
    ],
)
def test_bad_input_is_named(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice(tokenizer, **{"n": 4, **options})
