"""Passages of ordinary text."""

import pytest
import torch

from helpers.tasks.tokens import TEXTS, encode, passages


def test_passages_are_pieces_of_the_texts(smollm):
    tokens = passages(smollm, 7, length=32, seed=3)
    assert tokens.shape == (7, 32)
    assert (tokens[:, 0] == smollm.tokenizer.bos_token_id).all()
    wholes = [" ".join(path.read_text().split("\n")) for path in TEXTS.glob("*.txt")]
    found = [
        [" ".join(smollm.tokenizer.decode(row[2:-1]).split()) in whole for whole in wholes]
        for row in tokens
    ]
    assert all(any(row) for row in found)
    counts = torch.tensor(found).sum(0)
    assert sorted(counts.tolist()) == [3, 4]


@pytest.mark.parametrize("bos", [True, False])
def test_begins_as_a_prompt_does(tiny_model, bos):
    model = tiny_model("llama", bos=bos)
    first = model.tokenizer.bos_token_id  # TransformerLens gives every tokenizer one
    for reader in (model, model.tokenizer):
        *start, _ = encode(reader, "Mary").tolist()
        assert start == [first]
        tokens = passages(reader, 2, length=8)
        assert tokens.shape == (2, 8)
        assert tokens[:, : len(start)].tolist() == [start, start]


def test_no_passage_twice_and_the_seed_decides(smollm):
    first = passages(smollm, 400, length=16, seed=1)
    assert len(first.unique(dim=0)) == 400
    assert torch.equal(first, passages(smollm, 400, length=16, seed=1))
    assert not torch.equal(first, passages(smollm, 400, length=16, seed=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "not 0"),
        ({"n": 10**6}, "1 to"),
        ({"n": 2, "length": 1}, "no room"),
    ],
)
def test_bad_requests_say_what_to_do(smollm, arguments, message):
    with pytest.raises(ValueError, match=message):
        passages(smollm, **arguments)
