"""Which item of a list is missing: a small task that asks for the n-th of three.

"When Mary, John and Tom went to the store, John and Mary gave the money to" is continued by "Tom".
A model that is good at multiple choice picks a label; here it picks a place in a list.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.models import require
from helpers.output import files
from helpers.tasks import ioi
from helpers.tasks.pairs import Pairs
from helpers.tasks.tokens import Tokenizes, single_token

PLACES = ("first", "second", "third")  # in the list, and the choices of the pairs
SLOTS = ("a", "b", "c")


def missing_one(
    model: Tokenizes, n: int, *, split: ioi.Split = "train", wording: str = "store", seed: int = 0
) -> Pairs:
    """Pairs about one list each, in which another item is missing in base and source.

        base    When Mary, John and Tom went to the store, Tom and John gave the money to   Mary
        source  When Mary, John and Tom went to the store, Mary and Tom gave the money to   John

    Place of the missing name, that of the source, and the order of the repeated ones occur equally
    often. The patched position is the last token. `model` may be only its tokenizer.

    Returns pairs whose counterfactual is the name that is missing in the source, with the three
    names as `choices`. The table has base, source, the names by place, the places that are missing
    (place and source_place, from 0) and the positions of the three in the list. Raises ValueError:
    an unknown split or wording, or no pairs.
    """
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    text, names = _text(wording), ioi.vocabulary(model, split)["names"]
    turns = list(
        itertools.product(itertools.permutations(range(3), 2), (False, True), (False, True))
    )
    rows = []
    for turn in rng.permutation(np.resize(np.arange(len(turns)), require.whole("n", n, least=1))):
        (place, other), *flips = turns[turn]
        listed = rng.choice(names, 3, replace=False).tolist()
        prompts = [_prompt(text, listed, p, f) for p, f in zip((place, other), flips, strict=True)]
        rows.append((*prompts, *listed, place, other))
    table = pd.DataFrame(rows, columns=["base", "source", *PLACES, "place", "source_place"])
    answers = (
        [row[PLACES[row[of]]] for row in table.to_dict("records")]
        for of in ("place", "source_place")
    )
    pairs = Pairs.from_prompts(model, table["base"], table["source"], *answers, table=table)
    choices = {p: torch.tensor([single_token(model, name) for name in table[p]]) for p in PLACES}
    for place, ids in choices.items():
        both = zip(pairs.base_tokens, ids, strict=True)
        first = [(tokens == name).nonzero()[0, 0].item() for tokens, name in both]
        pairs.table[f"{place}_position"] = first
    return replace(pairs, choices=choices)


def margin(pairs: Pairs, logits: Float[Tensor, "pairs d_vocab"]) -> Float[Tensor, "pairs"]:
    """The right choice's logit less the mean of the others', in nats; the answer is a choice."""
    offered = logits.gather(1, torch.stack(list(pairs.choices.values()), 1).to(logits.device))
    mine = logits.gather(1, pairs.answer[:, None].to(logits.device))[:, 0]
    return mine - (offered.sum(1) - mine) / (offered.shape[1] - 1)


def wordings() -> dict[str, str]:
    """All prompts with slots, by name."""
    known = files.shipped(files.ROOT / "data" / "lists" / "wordings.json")
    return {name: text for group in known.values() for name, text in group.items()}


def _text(wording: str) -> str:
    if wording not in wordings():
        raise ValueError(f"no wording {wording!r}: choose from {list(wordings())}")
    return wordings()[wording]


def _prompt(text: str, listed: list[str], missing: int, flipped: bool) -> str:
    repeated = [name for place, name in enumerate(listed) if place != missing]
    first, second = repeated[::-1] if flipped else repeated
    return text.format(**dict(zip(SLOTS, listed, strict=True)), first=first, second=second)
