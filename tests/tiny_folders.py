"""Tiny models as folders that do the lessons' tasks a little, made without training.

    python tests/tiny_folders.py llama /tmp/tiny-llama
    make run MODEL=/tmp/tiny-llama

The weights are random, except the unembedding: a regression fits it to the answers of the IOI,
agreement and fact prompts. Such a model prefers the right name and knows many facts, so that the
lessons find something to work on in every architecture. What they then measure means nothing.
"""

import itertools
import math
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
from torch.nn.functional import cross_entropy, softplus

from helpers.output import files
from helpers.tasks import agreement, facts, ioi
from helpers.tasks.tokens import Tokenizes, encode

# A small range: attention is then nearly even, so that the last token sees all words of the prompt.
SETTINGS = {"num_hidden_layers": 6, "hidden_size": 96, "initializer_range": 0.06}
SETTINGS |= {"tie_word_embeddings": False}
OWN = {
    "llama": {"intermediate_size": 160, "attention_bias": True, "mlp_bias": True},
    "gemma3": {"intermediate_size": 160, "head_dim": 24, "sliding_window": 20},
}
RELATIONS = ["country_capital", "country_continent", "country_language"]
RELATIONS += ["city_state", "river_continent", "element_symbol"]
OPENINGS = "Then, Yesterday, After that, After a long day at work in the city, was were she he"
SPLITS = ("train", "test", "fresh")
NAMES, THINGS = 70, 20  # of our names, and of our nouns, objects and places, that are tokens
# Pairs, split and seed of the IOI pairs in the lessons: few words say which name is meant in a
# random state, so these prompts are learnt by heart.
ORDERS = [(60, "train", 0), (100, "train", 0), (40, "train", 0), (24, "train", 0), (80, "train", 0)]
ORDERS += [(100, "test", 0), (400, "test", 1), (60, "test", 1), (40, "test", 1), (120, "test", 1)]
ORDERS += [(24, "test", 5), (20, "test", 1), (120, "fresh", 0)]
STEPS = 100


def make_folder(architecture: str, folder: Path) -> Path:
    """Write a tiny model with a fitted unembedding, and its tokenizer; returns the folder."""
    tokenizer = build_tokenizer(lesson_words())
    settings = SETTINGS | OWN.get(architecture, {})
    model = build_hf_model(architecture, len(tokenizer), **settings)
    fit_unembedding(model, list(questions(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lesson_words() -> tuple[str, ...]:
    """Every word of the lessons' prompts, of the lists of words only the first."""
    texts = [OPENINGS, *(t for split in SPLITS for t in ioi.templates(split).values())]
    for feature in ("number", "gender"):
        task = files.shipped(agreement.FOLDER / "templates.json")[feature]
        texts += [*task["train"], *task["test"]]
    known = facts.load_facts(RELATIONS)
    texts += [*known["subject"], *known["answer"]]
    texts += [prompt for relation in RELATIONS for prompt in facts.prompts(relation)]
    texts += [*facts.load_facts("city_country")["answer"]]
    texts += [said for _, said in facts.reading("country_language")["examples"][0]]
    names, nouns = (pd.read_csv(agreement.FOLDER / f"{kind}.csv") for kind in ("names", "nouns"))
    texts += [*names.to_numpy().ravel()[:NAMES], *nouns.to_numpy().ravel()[: 3 * THINGS]]
    texts += [*ioi._words("names")[:NAMES], *ioi._words("objects")[:THINGS]]
    texts += ioi._words("places")[:THINGS]
    for kind, number in (("names", NAMES), ("objects", THINGS), ("places", THINGS)):
        texts += ioi._words(kind, "fresh")[:number]
    split = pre_tokenizers.ByteLevel(add_prefix_space=True).pre_tokenize_str
    pieces = [piece for text in texts for piece, _ in split(re.sub(r"\{\w*\}", " ", text))]
    return tuple(dict.fromkeys(piece.removeprefix("Ġ") for piece in pieces if piece != "Ġ"))


def questions(tokenizer: Tokenizes) -> Iterator[tuple[Int[Tensor, "pos"], int, int]]:
    """Prompts of the lessons' tasks, with the token that shall come next and one that shall not."""
    for n, split, seed in ORDERS:
        pairs = ioi.make_pairs(tokenizer, n, split=split, seed=seed)
        yield from zip(
            pairs.base_tokens, pairs.answer.tolist(), pairs.counterfactual.tolist(), strict=True
        )
    for split, feature in itertools.product(("train", "test"), ("number", "gender")):
        pairs = agreement.make_pairs(tokenizer, feature, 60, split=split, seed=7)
        right, wrong = pairs.answer.tolist(), pairs.counterfactual.tolist()
        yield from zip(pairs.base_tokens, right, wrong, strict=True)
        yield from zip(pairs.source_tokens, wrong, right, strict=True)
    known = facts.load_facts(RELATIONS)
    for template, subject, answer in known[["template", "subject", "answer"]].to_numpy():
        right = facts.answer_token(tokenizer, answer)
        wrong = right - 1  # any other
        yield encode(tokenizer, facts.fill(template, subject)), right, wrong


def fit_unembedding(model: torch.nn.Module, asked: Sequence[tuple[Tensor, int, int]]) -> None:
    """Fit the unembedding to what is asked, from the last hidden states of the prompts."""
    prompts, right, wrong = zip(*asked, strict=True)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # on the right: unseen
    with torch.no_grad():
        states = model.base_model(padded).last_hidden_state[range(len(asked)), last]
    tokens, places = torch.tensor([right, wrong]).unique(return_inverse=True)
    unembedding = model.get_output_embeddings().weight.requires_grad_(False)
    unembedding.zero_()
    unembedding[tokens] = regression(states, *places, len(unembedding) - len(tokens))


def regression(
    x: Float[Tensor, "n d"], right: Int[Tensor, "n"], wrong: Int[Tensor, "n"], others: int
) -> Float[Tensor, "classes d"]:
    """Weights that tell the right class from the wrong, and from so many others with logit zero."""
    moment = x.T @ x / len(x)
    ridge = 1e-3 * moment.diagonal().mean() * torch.eye(len(moment))
    whiten = torch.linalg.inv(torch.linalg.cholesky(moment + ridge))
    weight = torch.zeros(int(max(right.max(), wrong.max())) + 1, x.shape[1], requires_grad=True)
    rest, z = torch.full((len(x), 1), math.log(others)), x @ whiten.T
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(STEPS):
        logits = torch.cat([z @ weight.T, rest], dim=1)
        margin = logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None])
        loss = cross_entropy(logits, right) + softplus(-margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach() @ whiten


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ARCHITECTURES:
        sys.exit(f"usage: python tests/tiny_folders.py {{{','.join(ARCHITECTURES)}}} FOLDER")
    print(make_folder(sys.argv[1], Path(sys.argv[2])))
