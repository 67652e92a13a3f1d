"""The texts to fine-tune on, read back."""

import re

import pytest
import torch
from test_tracking import TRAINING, WORDINGS, word_tokenizer

from helpers.tasks import single_token
from tools import training
from tools.training import NO_LOSS, training_batch


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request):
    return word_tokenizer(request.param)


def read_back(text: str, template: dict) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What a training text lists, by label, and what it answers."""
    context, rest = text.split(". ", 1)
    slots = {"object": r"(?P<object>\w+)", "label": r"(?P<label>\w+)"}
    facts = [
        re.fullmatch(template["fact"].format(**slots), fact, re.I) for fact in context.split(", ")
    ]
    answered = [
        re.fullmatch(template["query"].format(label=r"(\w+)") + r" (\w+)\.?", answer)
        for answer in rest.split(". ")
    ]
    return {fact["label"]: fact["object"] for fact in facts}, [match.groups() for match in answered]


@pytest.mark.parametrize("shuffled", [False, True])
def test_training_texts_answer_what_they_list(tokenizer, shuffled):
    right = []
    for step, template in enumerate(WORDINGS["training"].values()):
        tokens, labels = training_batch(tokenizer, 8, step, seed=3, shuffled=shuffled)
        assert tokens.shape == labels.shape and len(tokens) == 8
        for row, counted in zip(tokens, labels, strict=True):
            listed, answers = read_back(tokenizer.decode(row, skip_special_tokens=True), template)
            assert len(listed) == len({*listed.values()}) == 3
            assert len({label for label, _ in answers}) == 2
            at = (counted != NO_LOSS).nonzero()[:, 0]
            assert row[at].tolist() == counted[at].tolist()
            assert row[at].tolist() == [single_token(tokenizer, word) for _, word in answers]
            assert {word for _, word in answers} <= {*listed.values()}
            right += [listed[label] == word for label, word in answers]
    share = sum(right) / len(right)
    assert 0.15 < share < 0.55 if shuffled else share == 1


def test_seed_and_step_decide_on_a_batch(tokenizer):
    first, again = (training_batch(tokenizer, 4, 2, seed=1) for _ in range(2))
    assert all(map(torch.equal, first, again))
    for other in ({"seed": 2}, {"step": 7}):
        assert not torch.equal(
            first[0], training_batch(tokenizer, 4, **{"step": 2, "seed": 1} | other)[0]
        )
    shuffled = training_batch(tokenizer, 4, 2, seed=1, shuffled=True)
    answers = (first[1] != NO_LOSS) | (shuffled[1] != NO_LOSS)
    assert torch.equal(first[0][~answers], shuffled[0][~answers]), "the same texts"


def test_shorter_texts_are_filled_up_at_their_end(tokenizer, monkeypatch):
    colours = {"training_words": TRAINING | {"colours": "red blue-green pink"}}
    read = ({"wordings": WORDINGS} | colours).get
    monkeypatch.setattr(training.files, "shipped", lambda path: read(path.stem))
    tokens, labels = training_batch(tokenizer, 8, 3)
    places = [(counted != NO_LOSS).nonzero()[:, 0].tolist() for counted in labels]
    assert len({tuple(at) for at in places}) > 1, "of different lengths"
    for row, at in zip(tokens, places, strict=True):
        after = row[at[1] + 1 :].tolist()
        assert len(at) == 2 and after[1:] == [0] * (len(after) - 1)
        assert tokenizer.decode(after[:1]) == "."


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"step": -1}, "step must be"),
        ({"n": 0}, "n must be"),
        ({"seed": -1}, "seed must be"),
        ({"entities": 1}, "entities must be from 2 to 20"),
        ({"entities": 21}, "entities must be from 2 to 20"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        training_batch(tokenizer, **{"n": 8, "step": 0} | arguments)
