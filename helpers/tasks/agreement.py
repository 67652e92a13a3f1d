"""Two features of a single word that a later word must agree with: number and gender.

    pairs = make_pairs(model, "number", 100)

"Last year, the keys from the north" goes on with *were*, "the key" with *was*; after "Last
week Anna told us that" the model expects *she*, after Paul *he* (what it has learned of names, not
a fact about people). The word itself is patched, so the feature is there from the embedding on,
and heads near the end of the model carry it to the last token.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from helpers.models import require
from helpers.output import files
from helpers.tasks.pairs import Pairs, Tokenizes, encode, is_single_token

Feature: TypeAlias = Literal["number", "gender"]
Split: TypeAlias = Literal["train", "test"]

FOLDER = files.ROOT / "data" / "agreement"
SLOT = "{}"


def make_pairs(
    model: Tokenizes, feature: Feature, n: int, *, split: Split = "train", seed: int = 0
) -> Pairs:
    """Pairs that differ in one word, and that word in the feature alone.

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

    Raises ValueError: an unknown feature or split, more pairs than there are, or too few words that
    are single tokens for this model.
    """
    task = _task(feature)
    if split not in ("train", "test"):
        raise ValueError(f"the split must be 'train' or 'test', not {split!r}")
    values = list(task["answers"])
    contents = list(itertools.product(task[split], _words(model, feature, split)))
    if not 2 <= require.whole("n", n) <= 2 * len(contents):
        raise ValueError(f"n must be from 2 to {2 * len(contents)} pairs of {feature}, not {n}")
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    rows, positions = [], []
    drawn = [rng.choice(len(contents), -(-n // 2), replace=False) for _ in values]
    for number in range(n):
        turn = number % 2
        template, words = contents[drawn[turn][number // 2]]
        prompts = [template.replace(SLOT, words[side]) for side in (turn, 1 - turn)]
        rows.append((*prompts, template, values[turn], words[turn], words[1 - turn]))
        base, source = (encode(model, prompt) for prompt in prompts)
        positions.append(int((base != source).nonzero()[0, 0]))
    table = pd.DataFrame(rows, columns="base source template value word other".split())
    answers = [task["answers"][value] for value in values]
    return Pairs.from_prompts(
        model,
        base=table["base"],
        source=table["source"],
        answer=[answers[number % 2] for number in range(n)],
        counterfactual=[answers[1 - number % 2] for number in range(n)],
        position=positions,
        table=table,
    )


def _task(feature: str) -> Mapping[str, Any]:
    tasks = json.loads((FOLDER / "templates.json").read_text(encoding="utf-8"))
    if feature not in list(tasks):
        raise ValueError(f"no feature {feature!r}: choose from {list(tasks)}")
    return tasks[feature]


def _words(model: Tokenizes, feature: Feature, split: Split) -> list[tuple[str, str]]:
    """Two words each, one of every value: every second of the usable ones belongs to the test."""
    table = pd.read_csv(FOLDER / f"{_task(feature)['words']}.csv")
    rows = table.itertuples(index=False, name=None)
    usable = [row for row in rows if all(is_single_token(model, word) for word in row)]
    if len(usable) < 4:
        raise ValueError(
            f"only {len(usable)} of our {len(table)} {_task(feature)['words']} are single tokens "
            "for this model, and 4 are needed: its tokenizer does not suit this feature"
        )
    return usable[("train", "test").index(split) :: 2]
