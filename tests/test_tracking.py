"""Entity tracking: prompts that are read back, pairs that decide four ways."""

import collections
import json
import re

import pytest
import torch
from conftest import SPECIAL, build_tiny_model, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tasks import Pairs, single_token, tracking
from helpers.tasks.tracking import four_way, questions, said
from tools.evidence.tracking import at_label

WORDINGS = json.loads((tracking.FOLDER / "wordings.json").read_text(encoding="utf-8"))
TRAINING = json.loads((tracking.FOLDER / "training_words.json").read_text(encoding="utf-8"))
NOUNS, NAMES = (
    (tracking.FOLDER / f"{kind}.txt").read_text(encoding="utf-8").split()
    for kind in ("nouns", "names")
)
SPLITS = ("train", "test")


def in_wordings(part: str) -> set[str]:
    texts = (text[slot] for text in WORDINGS[part].values() for slot in ("fact", "query"))
    return set(re.findall(r"\w+", re.sub(r"\{\w+\}", " ", " ".join(texts))))


def word_tokenizer(bos: bool = True, without: str = ""):
    """A tokenizer for which all our words are single tokens, and those of the texts."""
    texts = [word for part in WORDINGS for word in sorted(in_wordings(part))]
    trained = [word for listed in TRAINING.values() for word in listed.split()]
    known = [*texts, *NOUNS, *NAMES, *tracking.LETTERS, *trained, *". , : The For On".split()]
    return build_tokenizer(tuple(dict.fromkeys(word for word in known if word != without)), bos)


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request):
    return word_tokenizer(request.param)


@pytest.fixture(scope="module")
def model():
    words = [w for w in word_tokenizer().get_vocab() if w not in SPECIAL and w[0] != "Ġ"]
    return build_tiny_model("llama", words=tuple(words))


# ------------------------------------------------------------------------------ words


def test_fine_tuning_shares_no_word_with_what_is_asked_later():
    lists = {kind: set(listed.split()) for kind, listed in TRAINING.items()}
    trained = set().union(*lists.values()) | in_wordings("training")
    for words in (NOUNS, NAMES, tracking.LETTERS, ["Box", "contains", "box"]):
        assert not trained & set(words)
    assert len(WORDINGS["training"]) == 5 and len(set(NOUNS)) == len(NOUNS) >= 85
    assert not set(NOUNS) & (in_wordings("evaluation") | set(NAMES))


def test_all_words_are_single_tokens_of_the_packaged_model(smollm):
    listed = [*NOUNS, *NAMES, *tracking.LETTERS, *" ".join(TRAINING.values()).split()]
    assert len({single_token(smollm, word) for word in listed}) == len(set(listed))


# ------------------------------------------------------------------------------ prompts


def published(prompt: str) -> tuple[dict[str, str], str]:
    """The object in each box, and the box that is asked for."""
    context, query = prompt.split(". ")
    facts = [re.fullmatch(r"[Tt]he (\w+) is in Box ([A-Z])", fact) for fact in context.split(", ")]
    asked = re.fullmatch(r"Box ([A-Z]) contains the", query)
    assert context.startswith("The ") and len({fact[2] for fact in facts}) == len(facts)
    return {fact[2]: fact[1] for fact in facts}, asked[1]


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 30), boxes=st.integers(1, 9), seed=st.integers(0, 2**32), bos=st.booleans(),
    split=st.sampled_from(SPLITS),
)  # fmt: skip
def test_the_answer_is_what_is_in_the_box(n, boxes, seed, bos, split):
    asked = questions(word_tokenizer(bos), n, boxes=boxes, seed=seed, split=split)
    for prompt, answer, place, objects in asked.itertuples(index=False):
        contents, label = published(prompt)
        assert contents[label] == answer == objects[place] and list(contents.values()) == objects
        assert len(set(objects)) == boxes and set(objects) <= set(NOUNS[SPLITS.index(split) :: 2])
    counts = collections.Counter(asked["place"])
    assert sum(counts.values()) == n and max(counts.values()) - min(counts.values()) <= 1


def test_each_wording_lists_objects_and_asks_for_one(tokenizer):
    for wording, text in WORDINGS["evaluation"].items():
        asked = questions(tokenizer, 6, wording=wording)
        for prompt, answer, _, objects in asked.itertuples(index=False):
            (label,) = re.findall(text["query"].format(label=r"(\w+)") + "$", prompt)
            told = text["fact"].format(label=label, object=answer)
            assert told.lower() in prompt.lower() and all(prompt.count(o) for o in objects)
            assert tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"]


def test_the_format_is_the_published_one(tokenizer):
    pattern = r"The \w+ is in Box \w, the \w+ is in Box \w\. Box \w contains the"
    (prompt,) = questions(tokenizer, 1, boxes=2)["prompt"]
    assert re.fullmatch(pattern, prompt)


# ------------------------------------------------------------------------------ four ways


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 40), boxes=st.integers(3, 6), seed=st.integers(0, 2**32), bos=st.booleans(),
    split=st.sampled_from(SPLITS),
)  # fmt: skip
def test_four_ways_are_told_apart(n, boxes, seed, bos, split):
    tokenizer = word_tokenizer(bos)
    pairs = four_way(tokenizer, n, boxes=boxes, seed=seed, split=split)
    orders = collections.Counter()
    for number, row in enumerate(pairs.table.to_dict("records")):
        base, asked = published(row["base"])
        source, asked_there = published(row["source"])
        own, there = list(base).index(asked), list(source).index(asked_there)
        ways = {
            "own": base[asked],
            "position": list(base.values())[there],
            "label": base[asked_there],
            "object": source[asked_there],
        }
        assert base.keys() & source.keys() == {asked_there}
        assert not {*base.values()} & {*source.values()}
        assert len({*ways.values()}) == 4 and {way: row[way] for way in ways} == ways
        for way, word in ways.items():
            assert pairs.choices[way][number] == single_token(tokenizer, word)
        places = own, there, list(base).index(asked_there)
        assert (row["i"], row["j"], row["k"]) == places and len({*places}) == 3
        orders[places] += 1
        for side, prompt in ((0, pairs.base_tokens), (1, pairs.source_tokens)):
            label, before = (asked, asked_there)[side], ("", "source_")[side]
            found = (prompt[number] == single_token(tokenizer, label)).nonzero()[:, 0].tolist()
            assert found == [row[f"{before}mention"], row[f"{before}query"]]
            assert found[1] == len(prompt[number]) - 3
    every = boxes * (boxes - 1) * (boxes - 2)
    assert max(orders.values()) - (min(orders.values()) if len(orders) == every else 0) <= 1
    assert torch.equal(pairs.answer, pairs.choices["own"])
    assert torch.equal(pairs.counterfactual, pairs.choices["position"])


def test_four_ways_in_another_wording(tokenizer):
    pairs = four_way(tokenizer, 6, wording="box first", seed=1)
    for row in pairs.table.to_dict("records"):
        base, source = (
            dict(re.findall(r"Box (\w): (\w+)", row[side]))
            for side in row
            if side in ("base", "source")
        )
        asked = re.search(r"Box (\w):$", row["source"])[1]
        assert row["label"] == base[asked] and row["object"] == source[asked]
        assert row["position"] == list(base.values())[list(source).index(asked)]
    with pytest.raises(ValueError, match="'names' does not fit this tokenizer"):
        four_way(tokenizer, 6, wording="names")


def test_the_token_can_be_the_label(tokenizer):
    pairs = four_way(tokenizer, 6)
    assert pairs.position.tolist() == [len(row) - 1 for row in pairs.base_tokens]
    for token in ("query", "mention"):
        moved = at_label(pairs, token)
        assert moved.position.tolist() == pairs.table[token].tolist()
        assert moved.source_position.tolist() == pairs.table[f"source_{token}"].tolist()
        assert torch.equal(moved.choices["label"], pairs.choices["label"])
    with pytest.raises(ValueError, match="must be 'query' or 'mention', not 'last'"):
        at_label(pairs, "last")


WRONG = [
    (lambda t: questions(t, 0), "n must be"),
    (lambda t: questions(t, 3, boxes=0), "boxes must be from 1 to 26"),
    (lambda t: questions(t, 3, boxes=17, wording="names"), "boxes must be from 1 to 16"),
    (lambda t: questions(t, 3, wording="bags"), "no wording 'bags': choose from .*'boxes'"),
    (lambda t: questions(t, 3, split="fresh"), "split must be 'train' or 'test'"),
    (lambda t: questions(t, 3, seed=-1), "seed must be"),
    (lambda t: four_way(t, 6, boxes=2), "boxes must be from 3 to 13"),
    (lambda t: four_way(t, 0), "n must be"),
]


@pytest.mark.parametrize("call, message", WRONG, ids=[message for _, message in WRONG])
def test_bad_arguments_are_explained(call, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        call(tokenizer)


def test_the_top_tokens_are_those_of_the_model(model):
    asked = questions(model, 5)["prompt"].tolist() + questions(model, 3, boxes=2)["prompt"].tolist()
    one_by_one = [model(prompt)[0, -1].argmax().item() for prompt in asked]
    assert said(model, asked, batch_size=2).tolist() == one_by_one
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


# ------------------------------------------------------------------------------ choices of pairs


@pytest.fixture(scope="module")
def pairs():
    return four_way(word_tokenizer(), 12)


def test_choices_follow_their_pairs(pairs):
    rows = [3, 0, 7]
    for name, ids in pairs[rows].choices.items():
        assert ids.tolist() == pairs.choices[name][rows].tolist()
    aimed = pairs[rows].aiming_at("label")
    assert torch.equal(aimed.counterfactual, pairs.choices["label"][rows])
    assert torch.equal(aimed.answer, pairs.answer[rows]) and aimed.choices.keys() == {
        *tracking.WAYS
    }
    with pytest.raises(ValueError, match="no choice 'letter': these pairs have .'own', 'position'"):
        pairs.aiming_at("letter")
    with pytest.raises(ValueError, match="the same answer and counterfactual"):
        pairs.aiming_at("own")


def test_hits_are_where_a_choice_is_the_top_token(pairs):
    logits = torch.zeros(len(pairs), 2000)
    names = [*tracking.WAYS, "none"] * 3
    for row, name in enumerate(names[: len(pairs)]):
        logits[row, 1999 if name == "none" else pairs.choices[name][row]] = 1.0
    for way, hits in pairs.hits(logits).items():
        assert hits.tolist() == [name == way for name in names[: len(pairs)]]
    with pytest.raises(ValueError, match="logits of 12 pairs are needed, not \\(11, 2000\\)"):
        pairs.hits(logits[1:])
    with pytest.raises(ValueError, match="NaN"):
        pairs.hits(logits / 0)


def test_choices_are_checked(pairs):
    parts = {name: getattr(pairs, name) for name in Pairs.__dataclass_fields__}
    for choices, message in (
        ({"own": pairs.answer[1:]}, "one entry per pair .* \"choice 'own'\": 11"),
        ({"own": pairs.answer.float()}, "choice 'own' must be a tensor .n. of whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            Pairs(**parts | {"choices": choices})
    assert Pairs(**parts | {"choices": {}}).hits(torch.zeros(12, 5)) == {}
