"""Entity tracking: which object is in which box, and pairs that tell how a model looks it up.

"The string is in Box G, the bill is in Box A, the hat is in Box Q. Box G contains the" is continued
by "string" (Prakash et al., 2024, arXiv 2402.14811; nothing is ever moved). The texts to fine-tune
on share no noun, name or label with these prompts, nor the words "Box" and "contains".
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from helpers.models import Model, require
from helpers.output import files
from helpers.tasks.pairs import Pairs, Split, words_of_split
from helpers.tasks.tokens import Tokenizes, encode, next_logits, single_token

Wording: TypeAlias = Mapping[str, str]

FOLDER = files.ROOT / "data" / "tracking"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WAYS = ("own", "position", "label", "object")  # what a patch can carry


def questions(
    model: Tokenizes, n: int, *, boxes: int = 3, wording: str = "boxes",
    split: Split = "test", seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """`n` prompts, each about other contents; every place is asked for equally often.

    The wording "boxes" is the published one; others are "box contains", "names", "belongs to",
    "box first" and "bare". Returns the columns prompt, answer, place (of the answer, from 0) and
    objects (all of the prompt, in order). Raises ValueError: an unknown wording or split, no
    prompts, no boxes, or more than there are words for.
    """
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    text, nouns, labels = _words(model, wording, split)
    _check_number("boxes", boxes, 1, min(len(labels), len(nouns)))
    rows = []
    places = np.resize(np.arange(boxes), require.whole("n", n, least=1))
    for place in rng.permutation(places).tolist():
        objects, names = (rng.choice(words, boxes, replace=False) for words in (nouns, labels))
        rows.append((_prompt(text, objects, names, place), objects[place], place, objects.tolist()))
    return pd.DataFrame(rows, columns=["prompt", "answer", "place", "objects"])


def four_way(
    model: Tokenizes, n: int, *, boxes: int = 3, wording: str = "boxes",
    split: Split = "train", seed: int = 0,
) -> Pairs:  # fmt: skip
    """Pairs whose patched answer tells what was carried: nothing, a place, a label or an object.

        base    The hat is in Box G, the lamp is in Box A, the fork is in Box Q. Box G contains the
        source  The belt is in Box K, the key is in Box Q, the nail is in Box T. Box Q contains the

    own       hat: what the base prompt asks for, and the answer of the pairs
    position  lamp: the base's object at the place that the source asks for; the counterfactual
    label     fork: the base's object in the box with the label that the source asks for
    object    key: the source's own answer

    The three places in the base differ, in every order equally often; base and source have no other
    label and no object in common. The position is the last token.

    Returns pairs with these four `choices`. The table has their words, the places in the base where
    the first three stand (i, j, k, from 0), and the positions of the label in the query and of its
    earlier mention: query, mention, source_query, source_mention. Raises ValueError as `questions`;
    at least three boxes are needed, and labels that are one token in both places.
    """
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    text, nouns, letters = _words(model, wording, split)
    _check_number("boxes", boxes, 3, min(len(nouns) // 2, (len(letters) + 1) // 2))
    orders = rng.permutation(list(itertools.permutations(range(boxes), 3)))
    rows, asked = [], []
    for i, j, k in rng.permutation(np.resize(orders, (require.whole("n", n, least=1), 3))).tolist():
        objects = rng.choice(nouns, 2 * boxes, replace=False).tolist()
        labels = rng.choice(letters, 2 * boxes - 1, replace=False).tolist()
        ours, theirs = labels[:boxes], labels[boxes:]
        theirs.insert(j, ours[k])
        base = _prompt(text, objects[:boxes], ours, i)
        source = _prompt(text, objects[boxes:], theirs, j)
        rows.append((base, source, *(objects[place] for place in (i, j, k, boxes + j)), i, j, k))
        asked.append((ours[i], theirs[j]))
    table = pd.DataFrame(rows, columns=["base", "source", *WAYS, "i", "j", "k"])
    token = functools.cache(functools.partial(single_token, model))
    prompts = (table[name] for name in ("base", "source", "own", "position"))
    pairs = Pairs.from_prompts(model, *prompts, table=table)
    sides = {"": pairs.base_tokens, "source_": pairs.source_tokens}
    for (side, prompts), labels in zip(sides.items(), zip(*asked, strict=True), strict=True):
        both = zip(prompts, map(token, labels), strict=True)
        places = [(prompt == label).nonzero()[:, 0] for prompt, label in both]
        if any(len(found) != 2 for found in places):
            reason = "the label is not the same token where it is mentioned and where it is asked"
            raise ValueError(f"the wording {wording!r} does not fit this tokenizer: {reason}")
        pairs.table[[f"{side}mention", f"{side}query"]] = torch.stack(places).numpy()
    choices = {way: torch.tensor([token(word) for word in table[way]]) for way in WAYS}
    return replace(pairs, choices=choices)


def said(model: Model, prompts: Sequence[str], *, batch_size: int = 32) -> Int[Tensor, "prompts"]:
    """The most probable next token of each prompt, of the whole vocabulary."""
    found = torch.zeros(len(prompts), dtype=torch.long)
    for rows, logits in next_logits(model, [encode(model, p) for p in prompts], batch_size):
        found[rows] = logits.argmax(-1)
    return found


def context(text: Wording, objects: Sequence[str], labels: Sequence[str]) -> str:
    """What a prompt or text tells before it asks: which object has which label."""
    both = zip(objects, labels, strict=True)
    facts = text["joint"].join(text["fact"].format(object=o, label=label) for o, label in both)
    return facts[0].upper() + facts[1:] + text["end"]


def _words(model: Tokenizes, wording: str, split: Split) -> tuple[Wording, list[str], list[str]]:
    """The text with slots, the nouns of the split and the labels: letters or names."""
    known = files.shipped(FOLDER / "wordings.json")["evaluation"]
    if wording not in known:
        raise ValueError(f"no wording {wording!r}: choose from {list(known)}")
    text = known[wording]
    nouns, names = ((FOLDER / f"{of}.txt").read_text("utf-8").split() for of in ("nouns", "names"))
    kind = text["labels"]
    labels = words_of_split(model, list(LETTERS) if kind == "letters" else names, kind, None)
    return text, words_of_split(model, nouns, "nouns", split), labels


def _check_number(name: str, number: int, least: int, most: int) -> None:
    if not least <= require.whole(name, number) <= most:
        raise ValueError(f"{name} must be from {least} to {most}, for which there are words")


def _prompt(text: Wording, objects: Sequence[str], labels: Sequence[str], asked: int) -> str:
    return context(text, objects, labels) + text["query"].format(label=labels[asked])
