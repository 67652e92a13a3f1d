"""Multiple choice: the label that stands before the right option, with the answer in the text.

The broom is red.
What colour is the broom?
A. blue
B. red
Answer: B
"""

import functools
import itertools
import json
import re
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers.models import require
from helpers.output import files
from helpers.tasks.pairs import Pairs, Split, words_of_split
from helpers.tasks.tokens import Tokenizes, answer_token, encode

NOUNS = files.ROOT / "data" / "tracking" / "nouns.txt"


class Question(NamedTuple):
    """A thing, the colours that are offered in order, and the place of its own."""

    thing: str
    colours: list[str]
    place: int


def multiple_choice(
    model: Tokenizes, n: int, *, labels: str = "ABCD", shots: int = 0, split: Split = "train",
    seed: int = 0,
) -> Pairs:  # fmt: skip
    """Pairs that ask the same question, with the right option at another label in the source.

    `labels` are single characters in the order in which they are shown, so "CADB" and "7294" ask
    the same with mutated labels. `shots` answered questions about other things come first, and are
    the same in base and source. Right and wrong labels occur equally often at every place. The
    patched position is the last token.

    Returns pairs with the labels as `choices`, by place ("1", "2", ...). The table has place and
    source_place (from 0), and the position of each label in the last question, as label_1 and so
    on. Raises ValueError: fewer than two labels, labels that repeat or are not single characters,
    an unknown split, or words or labels that are no single tokens for this model.
    """
    if not isinstance(labels, str) or len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels must be different characters, such as 'ABCD', not {labels!r}")
    require.whole("shots", shots, least=0)
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    things, colours = _words(model, split)
    if len(labels) > len(colours) or shots >= len(things):
        raise ValueError(f"there are {len(colours)} colours and {len(things)} things, no more")
    orders = list(itertools.permutations(range(len(labels)), 2))
    rows, starts = [], []
    for turn in rng.permutation(np.resize(np.arange(len(orders)), require.whole("n", n, least=1))):
        place, other = orders[turn]
        named = rng.choice(things, shots + 1, replace=False).tolist()
        examples = [_ask(thing, rng, colours, labels) for thing in named[:-1]]
        ours = _ask(named[-1], rng, colours, labels)._replace(place=0)
        shown = "\n\n".join(f"{_text(q, labels)[0]} {labels[q.place]}" for q in examples)
        shown += "\n\n" * bool(shots)
        both = [_text(_moved(ours, to), labels) for to in (place, other)]
        rows.append((*(shown + text for text, _ in both), place, other))
        starts.append([shown + text[:at] for text, ats in both[:1] for at in ats])
    table = pd.DataFrame(rows, columns=["base", "source", "place", "source_place"])
    table = table.assign(**_positions(model, table["base"], starts))
    answers = ([labels[place] for place in table[of]] for of in ("place", "source_place"))
    pairs = Pairs.from_prompts(model, table["base"], table["source"], *answers, table=table)
    ids = torch.tensor([answer_token(model, label, table["base"][0]) for label in labels])
    return replace(
        pairs, choices={f"{n + 1}": each.expand(len(pairs)) for n, each in enumerate(ids)}
    )


def vocabulary() -> list[str]:
    """Every word, label and mark that a prompt can hold."""
    nouns = NOUNS.read_text("utf-8").split()
    written = " ".join(_read()[part] for part in ("fact", "question", "end"))
    text = re.sub(r"\{\w+\}", " ", written)
    marks = re.findall(r"\w+|[^\w\s]", text)
    offered = [*_read()["colours"].split(), *nouns]
    return list(dict.fromkeys([*marks, "Ċ", *offered, *string.ascii_uppercase, *string.digits]))


def _ask(thing: str, rng: np.random.Generator, colours: Sequence[str], labels: str) -> Question:
    offered = rng.choice(colours, len(labels), replace=False).tolist()
    return Question(thing, offered, int(rng.integers(len(labels))))


def _moved(question: Question, to: int) -> Question:
    """The same options, with the right one changing places with another."""
    colours = list(question.colours)
    colours[question.place], colours[to] = colours[to], colours[question.place]
    return Question(question.thing, colours, to)


def _text(question: Question, labels: str) -> tuple[str, list[int]]:
    """The question up to the answer, and where in it each label begins."""
    words = _read()
    text = words["fact"].format(thing=question.thing, colour=question.colours[question.place])
    text += "\n" + words["question"].format(thing=question.thing) + "\n"
    starts = []
    for label, colour in zip(labels, question.colours, strict=True):
        starts.append(len(text))
        text += words["option"].format(label=label, colour=colour) + "\n"
    return text + words["end"], starts


def _positions(
    model: Tokenizes, prompts: Sequence[str], starts: Sequence[Sequence[str]]
) -> dict[str, list[int]]:
    """The token of each label: as many tokens come before as its beginning has by itself."""
    found: dict[str, list[int]] = {}
    for prompt, before in zip(prompts, starts, strict=True):
        tokens = encode(model, prompt).tolist()
        for place, text in enumerate(before):
            begun = encode(model, text).tolist()
            if tokens[: len(begun)] != begun:
                raise ValueError("this tokenizer joins line breaks and labels: no label is found")
            found.setdefault(f"label_{place + 1}", []).append(len(begun))
    return found


@functools.cache
def _read() -> dict[str, str]:
    return json.loads((files.ROOT / "data" / "lists" / "choices.json").read_text("utf-8"))


def _words(model: Tokenizes, split: Split) -> tuple[list[str], list[str]]:
    nouns = NOUNS.read_text("utf-8").split()
    colours = _read()["colours"].split()
    return (
        words_of_split(model, nouns, "nouns", split),
        words_of_split(model, colours, "colours", None),
    )
