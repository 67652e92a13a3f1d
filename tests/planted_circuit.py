"""A model of two layers whose circuit we wrote ourselves, weight by weight.

A prompt is a flag, two objects and a query. `copier`, in layer 0, reads the flag from the query's
token and writes it into the stream there. `fetcher`, in layer 1, is asked by that: for one flag it
attends to the first object, for the other to the second, and says what it finds. It attends
softly enough for a gradient to get through. All other heads
and all MLPs write nothing. So the copier carries a position, the fetcher an object.
"""

from itertools import permutations

import pandas as pd
import torch
from conftest import build_hf_model, build_tokenizer
from transformer_lens import TransformerBridge

from helpers.tasks.pairs import Pairs

COPIER, FETCHER = (0, 1), (1, 2)
FIRST, SECOND, ASK = 3, 4, 5  # tokens: two flags and the query
OBJECTS = range(6, 12)
QUERY = 3  # where it stands
FLAG, PLACES = 9, 10  # features: what the copier writes, and the four places


def feature(number: int) -> torch.Tensor:
    """Directions without mean, at right angles, of one length: no norm tells them apart."""
    vector = torch.zeros(48)
    vector[2 * number], vector[2 * number + 1] = 1.0, -1.0
    return vector


def planted_model(without=None):
    """The model; or one whose head `without` has nothing to say."""
    tokenizer = build_tokenizer()
    hf_model = build_hf_model("gpt2", len(tokenizer), num_hidden_layers=2).requires_grad_(False)
    transformer = hf_model.transformer
    for parameter in hf_model.parameters():
        parameter.zero_()
    for norm in (transformer.ln_f, *(n for b in transformer.h for n in (b.ln_1, b.ln_2))):
        norm.weight.fill_(1.0)
    for token in (FIRST, SECOND, ASK, *OBJECTS):
        transformer.wte.weight[token] = feature(token - FIRST)
    for place in range(4):
        transformer.wpe.weight[place] = feature(PLACES + place)
    flag, place = feature(FLAG), [feature(PLACES + at) for at in range(4)]
    tokens = {token: feature(token - FIRST) for token in (FIRST, SECOND, *OBJECTS)}
    # From the query it looks at the flag; from an object at that itself, and copies nothing.
    write(transformer, COPIER, query=[(place[at], 9.0) for at in (QUERY, 1, 2)],
          key=[(place[at], 9.0) for at in (0, 1, 2)],
          value=[(tokens[FIRST] - tokens[SECOND], 1.0)], output=[(flag, 0.05)])  # fmt: skip
    write(transformer, FETCHER, query=[(flag, 0.7)], key=[(place[1] - place[2], 0.5)],
          value=[(tokens[token], 1.0) for token in OBJECTS],
          output=[(tokens[token], 1.0) for token in OBJECTS])  # fmt: skip
    if without:
        write(transformer, without, value=[(flag, 0.0)] * 12)
    options = {"hf_model": hf_model, "tokenizer": tokenizer, "device": "cpu"}
    return TransformerBridge.boot_transformers("planted", **options).eval()


def write(transformer, head, **rows):
    """Dimension i of the head's query, key, value or output is its i-th row: a feature, times."""
    layer, number = head
    attention = transformer.h[layer].attn
    for name, features in rows.items():
        for i, (vector, size) in enumerate(features):
            if name == "output":
                attention.c_proj.weight[12 * number + i] = size * vector
            else:
                column = 48 * ("query", "key", "value").index(name) + 12 * number + i
                attention.c_attn.weight[:, column] = size * vector


def pairs_of(rows) -> Pairs:
    """From rows (base, source, answer, counterfactual)."""
    base, source, answer, counterfactual = zip(*rows, strict=True)
    at = torch.full((len(rows),), QUERY)
    return Pairs(
        tuple(map(torch.tensor, base)), tuple(map(torch.tensor, source)),
        torch.tensor(answer), torch.tensor(counterfactual), at, at,
        pd.DataFrame(index=range(len(rows))),
    )  # fmt: skip


def position_pairs() -> Pairs:
    """Only the flag differs: the source's place holds the other object of the base."""
    flags = ((FIRST, SECOND), (SECOND, FIRST))
    return pairs_of([
        ((f, a, b, ASK), (g, a, b, ASK), a if f == FIRST else b, b if f == FIRST else a)
        for a, b in permutations(list(OBJECTS)[:3], 2) for f, g in flags
    ])  # fmt: skip


def four_way_pairs(target: str) -> Pairs:
    """Flag and objects differ: the target is the base's object at the source's place ("position")
    or what the source says ("object").
    """
    rows = []
    for a, b in permutations(list(OBJECTS)[:3], 2):
        for c, d in permutations(list(OBJECTS)[3:], 2):
            first, second = (b, a) if target == "position" else (d, c)
            rows.append(((FIRST, a, b, ASK), (SECOND, c, d, ASK), a, first))
            rows.append(((SECOND, a, b, ASK), (FIRST, c, d, ASK), b, second))
    return pairs_of(rows)
