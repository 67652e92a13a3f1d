"""Two features of a single word that a later word must agree with: number and gender.

"Last year, the keys from the north" goes on with *were*, "the key" with *was*; after "Last
week Anna told us that" the model expects *she*, after Paul *he* (what it has learned of names, not
a fact about people). The word itself is patched, so the feature is there from the embedding on,
and heads near the end of the model carry it to the last token.
"""

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from helpers.models import require
from helpers.output import files
from helpers.tasks.pairs import Pairs, Tokenizes, encode, single_token

Feature: TypeAlias = Literal["number", "gender"]
Split: TypeAlias = Literal["train", "test"]

FOLDER = files.ROOT / "data" / "agreement"
SLOT = "{}"


def make_pairs(
    model: Tokenizes, feature: Feature, n: int, *, split: Split = "train", seed: int = 0
) -> Pairs:
    """Pairs that differ in one word, which has one value of the feature in the base, one in the
    source.

        base    Last year, the keys from the north    answer were
        source  Last year, the key from the north     counterfactual was

    The values of the bases alternate. Position and source position are those of the word. Contents
    are drawn without replacement; no word and no template is in both splits.

    Args:
        model: The model, or only its tokenizer: words that it splits into tokens are not used.
        feature: "number" (singular and plural of one noun) or "gender" (two names).
        n: How many pairs.
        seed: Which pairs, and their order.

    Returns:
        Pairs whose table has the columns base, source, template, value (of the base), word and
        other (of the source).

    Raises:
        ValueError: An unknown feature or split, more pairs than there are, or too few words that
            are single tokens for this model.
    """
    task = _task(feature)
    if split not in ("train", "test"):
        raise ValueError(f"the split must be 'train' or 'test', not {split!r}")
    values, templates = list(task["answers"]), task[split]
    contents = list(itertools.product(range(len(templates)), _words(model, feature, split)))
    if not 2 <= require.whole("n", n) <= 2 * len(contents):
        raise ValueError(f"n must be from 2 to {2 * len(contents)} pairs of {feature}, not {n}")
    rng, rows = np.random.default_rng(require.whole("seed", seed, least=0)), []
    drawn = [rng.choice(len(contents), -(-n // 2), replace=False) for _ in values]
    for number in range(n):
        turn = number % 2
        template, words = contents[drawn[turn][number // 2]]
        rows.append((templates[template], values[turn], words[turn], words[1 - turn]))
    table = pd.DataFrame(rows, columns=["template", "value", "word", "other"])
    return _pairs(model, table, task["answers"])


def _pairs(model: Tokenizes, table: pd.DataFrame, answers: Mapping[str, str]) -> Pairs:
    first, second = answers
    other = {first: second, second: first}
    base = [t.replace(SLOT, w) for t, w in zip(table["template"], table["word"], strict=True)]
    source = [t.replace(SLOT, w) for t, w in zip(table["template"], table["other"], strict=True)]
    places = [
        int((encode(model, b) != encode(model, s)).nonzero()[0, 0])
        for b, s in zip(base, source, strict=True)
    ]
    return Pairs.from_prompts(
        model, base, source,
        answer=[answers[value] for value in table["value"]],
        counterfactual=[answers[other[value]] for value in table["value"]],
        position=places, table=table,
    )  # fmt: skip


@functools.cache
def _tasks() -> dict[str, Any]:
    return json.loads((FOLDER / "templates.json").read_text(encoding="utf-8"))


def _task(feature: str) -> Mapping[str, Any]:
    if feature not in list(_tasks()):
        raise ValueError(f"no feature {feature!r}: choose from {list(_tasks())}")
    return _tasks()[feature]


def _words(model: Tokenizes, feature: Feature, split: Split) -> list[tuple[str, str]]:
    """Two words each, one of every value: every second of the usable ones belongs to the test."""
    table = pd.read_csv(FOLDER / f"{_task(feature)['words']}.csv")
    usable = [row for row in table.itertuples(index=False, name=None) if _usable(model, row)]
    if len(usable) < 4:
        raise ValueError(
            f"only {len(usable)} of our {len(table)} {_task(feature)['words']} are single tokens "
            "for this model, and 4 are needed: its tokenizer does not suit this feature"
        )
    return usable[("train", "test").index(split) :: 2]


def _usable(model: Tokenizes, words: tuple[str, str]) -> bool:
    try:
        return all(single_token(model, word) is not None for word in words)
    except ValueError:
        return False
