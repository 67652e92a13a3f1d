"""Two features of a single word that a later word must agree with: number and gender.

The gender of a name is what the model has learned of it, not a fact about people. The word itself
is patched, so the feature is there from the embedding on, and heads near the end of the model carry
it to the last token.
"""

import itertools
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from helpers.models import require
from helpers.output import files
from helpers.tasks.pairs import Pairs, Split, words_of_split
from helpers.tasks.tokens import Tokenizes, encode

Feature: TypeAlias = Literal["number", "gender"]

FOLDER = files.ROOT / "data" / "agreement"
SLOT = "{}"


def make_pairs(
    model: Tokenizes, feature: Feature, n: int, *, split: Split = "train", seed: int = 0
) -> Pairs:
    """Pairs that differ in one word, and that word in the feature alone.

        base    Last year, the keys from the north    answer were
        source  Last year, the key from the north     counterfactual was

    The feature is "number" (singular and plural of one noun) or "gender" (two names). The values of
    the bases alternate. Position and source position are those of the word. Contents are drawn
    without replacement; no word and no template is in both splits, and none that the tokenizer
    splits is used.

    Returns pairs whose table has the columns base, source, template, value (of the base), word and
    other (of the source). Raises ValueError: an unknown feature or split, more than there are, or
    too few usable words.
    """
    tasks = files.shipped(FOLDER / "templates.json")
    if feature not in list(tasks):
        raise ValueError(f"no feature {feature!r}: choose from {list(tasks)}")
    task, values = tasks[feature], list(tasks[feature]["answers"])
    words = pd.read_csv(FOLDER / f"{task['words']}.csv").itertuples(index=False, name=None)
    words = words_of_split(model, list(words), task["words"], split)
    contents = list(itertools.product(task[split], words))
    if not 2 <= require.whole("n", n) <= 2 * len(contents):
        raise ValueError(f"n must be from 2 to {2 * len(contents)} pairs of {feature}, not {n}")
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    rows, places = [], []
    drawn = [rng.choice(len(contents), -(-n // 2), replace=False) for _ in values]
    for number in range(n):
        turn = number % 2
        template, words = contents[drawn[turn][number // 2]]
        prompts = [template.replace(SLOT, words[side]) for side in (turn, 1 - turn)]
        rows.append((*prompts, template, values[turn], words[turn], words[1 - turn]))
        base, source = (encode(model, prompt) for prompt in prompts)
        places.append(int((base != source).nonzero()[0, 0]))
    table = pd.DataFrame(rows, columns="base source template value word other".split())
    answers = [task["answers"][value] for value in values]
    answer, other = ([answers[(number + k) % 2] for number in range(n)] for k in (0, 1))
    prompts = table["base"], table["source"]
    return Pairs.from_prompts(model, *prompts, answer, other, places, table=table)
