"""How prompts begin and what answer follows them, on the packaged model and on tiny tokenizers."""

import copy

import pytest
import torch
from conftest import build_tokenizer
from transformers import AutoTokenizer

from helpers.models.smollm import packaged_folder
from helpers.tasks.pairs import Pairs
from helpers.tasks.tokens import answer_token, encode, follows_space, start_token
from tools.pair_files import PairFileError, in_chat, read_pairs

CHOICE = "Is ice cold? (A) yes (B) no. Answer: ("
NAMES = "Then, Mary and John met in the yard. John spoke to"


def text(model, token):
    return model.tokenizer.decode([int(token)])


def probabilities(model, prompt):
    return model(encode(model, prompt)[None])[0, -1].softmax(-1)


def test_a_chat_template_gets_no_second_start_token(smollm):
    chat = in_chat(smollm, "Who spoke?")
    tokens, start = encode(smollm, chat).tolist(), start_token(smollm)
    assert tokens[0] == start and tokens[1] != start
    assert smollm.tokenizer.decode(tokens) == chat
    assert torch.equal(encode(smollm.tokenizer, chat), encode(smollm, chat))


def test_the_folders_own_tokenizer_begins_as_the_model_does(smollm):
    alone = AutoTokenizer.from_pretrained(packaged_folder())
    for prompt in (NAMES, in_chat(smollm, NAMES), "", "Mary"):
        assert torch.equal(encode(alone, prompt), encode(smollm, prompt)), prompt


@pytest.mark.parametrize(
    ("prompt", "word", "token"),
    [
        (CHOICE, "A", "A"),
        (NAMES, "Mary", " Mary"),
        ("The answer is:\n", "yes", "yes"),
        ('He said "', "yes", "yes"),
        ('He said "no" and', "yes", " yes"),
        ("Seven is written ", "7", "7"),
        ("Two and two is", "four", " four"),
        ("It cost $", "5", "5"),
    ],
)
def test_answers_begin_with_a_space_where_the_prompt_asks_for_one(smollm, prompt, word, token):
    found = answer_token(smollm, word, prompt)
    assert text(smollm, found) == token
    whole = encode(smollm, prompt + token)
    assert whole.tolist() == [*encode(smollm, prompt).tolist(), found], "as it reads running text"


def test_the_token_that_is_measured_is_the_one_that_the_model_says(smollm):
    chat = in_chat(smollm, "Who spoke first, and to whom?")
    for prompt, word in ((CHOICE, "A"), (chat, "The")):
        p = probabilities(smollm, prompt)
        measured = answer_token(smollm, word, prompt)
        other = answer_token(smollm, word, prompt, space=True)
        assert p[measured] > 100 * p[other], "the other one has a space before it"
    pairs = Pairs.from_prompts(smollm, [CHOICE], [CHOICE], ["A"], ["B"])
    assert [text(smollm, t) for t in (*pairs.answer, *pairs.counterfactual)] == ["A", "B"]
    forced = Pairs.from_prompts(smollm, [CHOICE], [CHOICE], ["A"], ["B"], space=True)
    assert text(smollm, forced.answer[0]) == " A"


def test_a_space_that_belongs_to_the_answer_is_refused(smollm, tmp_path):
    row = '"Then, Mary and John met. John spoke to ","Then, John and Mary met. Mary spoke to ",'
    (tmp_path / "p.csv").write_text(f"base,source,answer,counterfactual\n{row}Mary,John\n")
    with pytest.raises(PairFileError, match="row 2: the answer 'Mary' cannot follow a prompt that "
                       "ends in a space.*delete that space"):  # fmt: skip
        read_pairs(smollm, tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"splits into \[' ', '7'\]: end the prompt with a space"):
        answer_token(smollm, "7", "Seven is written")


def test_a_chat_is_read_from_a_file(smollm, tmp_path):
    (tmp_path / "p.csv").write_text("base,source,answer,counterfactual\nHi,Bye,Hello,Good\n")
    pairs = read_pairs(smollm, tmp_path / "p.csv", chat=True)
    assert smollm.tokenizer.decode(pairs.base_tokens[0]) == in_chat(smollm, "Hi")
    assert text(smollm, pairs.answer[0]) == "Hello", "after a line break there is no space"
    with pytest.raises(PairFileError, match="has no chat template: give prompts as plain text"):
        read_pairs(build_tokenizer(), tmp_path / "p.csv", chat=True)


def test_special_tokens_are_followed_by_no_space():
    tokenizer = copy.deepcopy(build_tokenizer())
    assert not follows_space(tokenizer, "Mary<|endoftext|>")
    assert follows_space(tokenizer, "Mary") and not follows_space(tokenizer, "")


def test_models_without_a_tokenizer_or_start_token_have_none(tiny_model):
    class Bare:
        tokenizer = None

    assert start_token(Bare()) is None
    model = tiny_model("llama")
    assert start_token(model) == model.tokenizer.bos_token_id
