"""Tiny models as folders that do the lessons' tasks a little, made without training.

    python tests/tiny_folders.py llama /tmp/tiny-llama
    make run MODEL=/tmp/tiny-llama

The weights are random, except the unembedding: ridge regression fits it to the answers of the IOI,
agreement and fact prompts. Such a model prefers the right name and knows many facts, so that the
lessons find something to work on in every architecture. What they then measure means nothing.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from conftest import ARCHITECTURES, build_hf_model, build_tokenizer
from jaxtyping import Float, Int
from tokenizers import pre_tokenizers
from torch import Tensor

from helpers import agreement, facts, ioi
from helpers.pairs import Pairs, Tokenizes, encode

# A small range: attention is then nearly even, so that the last token sees all words of the prompt.
SETTINGS = {"num_hidden_layers": 6, "hidden_size": 96, "initializer_range": 0.06}
SETTINGS |= {"tie_word_embeddings": False}
OWN = {
    "llama": {"intermediate_size": 160, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"intermediate_size": 160},
    "gemma3": {"intermediate_size": 160, "head_dim": 24, "sliding_window": 12},
}
RELATIONS = ["country_capital", "country_continent", "country_language"]
RELATIONS += ["city_state", "river_continent", "element_symbol"]
OPENINGS = "Then, Yesterday, After that, After a long day at work in the city, was were she he"
NAMES, THINGS = 70, 20  # of our names, and of our nouns, objects and places, that are tokens
SCALE = 12.0  # nats between a fitted answer and the rest


def make_folder(architecture: str, folder: Path, *, bos: bool = True) -> Path:
    """Write a tiny model with a fitted unembedding, and its tokenizer; returns the folder."""
    tokenizer = build_tokenizer(lesson_words(), bos)
    settings = SETTINGS | OWN.get(architecture, {})
    model = build_hf_model(architecture, len(tokenizer), **settings)
    fit_unembedding(model, list(questions(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lesson_words() -> tuple[str, ...]:
    """Every word of the lessons' prompts, of the lists of words only the first."""
    texts = [OPENINGS, *(t for split in ("train", "test") for t in ioi.templates(split).values())]
    for feature in ("number", "gender"):
        task = agreement._task(feature)
        texts += [*task["train"], *task["test"]]
    known = facts.load_facts(RELATIONS)
    texts += [*known["subject"], *known["answer"]]
    texts += [prompt for relation in RELATIONS for prompt in facts.prompts(relation)]
    names, nouns = (pd.read_csv(agreement.FOLDER / f"{kind}.csv") for kind in ("names", "nouns"))
    texts += [*names.to_numpy().ravel()[:NAMES], *nouns.to_numpy().ravel()[: 3 * THINGS]]
    texts += [*ioi._words("names")[:NAMES], *ioi._words("objects")[:THINGS]]
    texts += ioi._words("places")[:THINGS]
    split = pre_tokenizers.ByteLevel(add_prefix_space=True).pre_tokenize_str
    pieces = [piece for text in texts for piece, _ in split(re.sub(r"\{\w*\}", " ", text))]
    return tuple(dict.fromkeys(piece.removeprefix("Ġ") for piece in pieces if piece != "Ġ"))


def questions(tokenizer: Tokenizes) -> Iterator[tuple[Int[Tensor, "pos"], int, int | None]]:
    """Prompts with the token that shall win and, for pairs, the one that shall lose."""
    for split in ("train", "test"):
        names = ioi.make_pairs(tokenizer, 300, split=split, seed=7)
        yield from _both(names, names.answer, names.counterfactual)
        for feature in ("number", "gender"):
            words = agreement.make_pairs(tokenizer, feature, 48, split=split, seed=7)
            yield from _both(words, words.counterfactual, words.answer)
    known = facts.load_facts(RELATIONS)
    for prompt, answer in zip(facts._fill(known), known["answer"], strict=True):
        yield encode(tokenizer, prompt), facts.answer_token(tokenizer, answer), None


def _both(pairs: Pairs, of_source: Tensor, other: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """The base prompts with their answers, and the sources with theirs."""
    yield from zip(
        pairs.base_tokens, pairs.answer.tolist(), pairs.counterfactual.tolist(), strict=True
    )
    yield from zip(pairs.source_tokens, of_source.tolist(), other.tolist(), strict=True)


@torch.no_grad()
def fit_unembedding(
    model: torch.nn.Module, asked: Sequence[tuple[Tensor, int, int | None]]
) -> None:
    """Set the unembedding to the ridge regression from last hidden states to answers."""
    prompts, right, wrong = zip(*asked, strict=True)
    rows, last = range(len(asked)), torch.tensor([len(prompt) - 1 for prompt in prompts])
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # on the right: unseen
    states = model.base_model(padded).last_hidden_state[rows, last]
    wanted = torch.zeros(len(asked), model.config.vocab_size)
    for row in rows:
        wanted[row, right[row]] = SCALE
        if wrong[row] is not None:
            wanted[row, wrong[row]] = -SCALE
    model.get_output_embeddings().weight.copy_(ridge(states, wanted).T)


def ridge(x: Float[Tensor, "n d"], y: Float[Tensor, "n k"]) -> Float[Tensor, "d k"]:
    """The linear map from `x` to `y` with the smallest squared error, slightly shrunk."""
    x, y = x.double(), y.double()
    moment = x.T @ x
    ridge = 1e-4 * moment.diagonal().mean() * torch.eye(len(moment), dtype=x.dtype)
    return torch.linalg.solve(moment + ridge, x.T @ y)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ARCHITECTURES:
        sys.exit(f"usage: python tests/tiny_folders.py {{{','.join(ARCHITECTURES)}}} FOLDER")
    print(make_folder(sys.argv[1], Path(sys.argv[2])))
