"""Indirect object identification (IOI): pairs of prompts that differ in the order of two names.

"Then, Mary and John had fun. John gave a book to" is continued by the indirect object (IO), Mary.
John, the name that comes twice, is the subject (S). The pattern tells where the subject first
stands: it is the second of the two names in ABB, as here, and the first in BAB.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import torch

from helpers.models import require
from helpers.output import files
from helpers.tasks.pairs import Pairs, words_of_split
from helpers.tasks.tokens import Tokenizes

Split: TypeAlias = Literal["train", "test", "fresh"]
Words: TypeAlias = Mapping[str, list[str]]  # by kind: {"names": ["Aaron", ...], ...}

FOLDER = files.ROOT / "data" / "ioi"
FEWEST = {"names": 4, "objects": 2, "places": 2}  # so that each split has two names to order
SLOTS = ("object", "place")  # that a template may have besides the names
OTHER = {"ABB": "BAB", "BAB": "ABB"}  # the pattern of the source, by that of the base


def make_pairs(
    model: Tokenizes,
    n: int,
    *,
    split: Split = "train",
    seed: int = 0,
    templates: str | Sequence[str] | None = None,
    prefix: str = "Then, ",
) -> Pairs:
    """Pairs that differ in where the subject stands, and in nothing else (section 4 of the paper).

    The model should say the IO on both. If the patch carries the position of the subject, it takes
    the name at the other position: in the base prompt, that is the subject.

        base    Then, Mary and John had fun. John gave a book to    answer Mary
        source  Then, John and Mary had fun. John gave a book to    counterfactual John

    The patterns of the bases alternate, ABB first; the templates are used equally often, in random
    order. No prompt comes twice, not even as a source; no name, object, place or template is in
    both splits. The patched position is the last token.

    `model` may be only its tokenizer: words that it splits into tokens are not used. `templates`
    are one of this split, or several, by name; None for all. Every prompt begins with `prefix`,
    which includes the space before the first name.

    Returns pairs whose table has the columns base, source, template, io, subject, object and place
    (empty if the template has none), pattern (of the base) and the positions of the names in the
    base: io_position, subject_position, subject2_position (the repetition). Raises ValueError: more
    pairs than there are, an unknown template or split, a prefix that hides a name, or too few words
    that are single tokens for this model.
    """
    require.whole("n", n)
    if not isinstance(prefix, str) or not prefix.endswith(" "):
        raise ValueError(f"the prefix must end with a space, for the first name, not {prefix!r}")
    texts = _choose_templates(split, templates)
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    table = _draw(n, texts, vocabulary(model, split), rng)
    rows = table.to_dict("records")
    base = [prefix + fill(texts[row["template"]], row["pattern"], row) for row in rows]
    source = [prefix + fill(texts[row["template"]], OTHER[row["pattern"]], row) for row in rows]
    pairs = Pairs.from_prompts(model, base, source, table["io"], table["subject"], table=table)
    return replace(pairs, table=pairs.table.assign(**_find_names(pairs)))


def with_other_repeated(pairs: Pairs) -> Pairs:
    """The same bases, with sources that repeat the other name: the answer changes with one token.

        base    Then, Mary and John had fun. John gave a book to    answer Mary
        source  Then, Mary and John had fun. Mary gave a book to    counterfactual John

    `pairs` are those of `make_pairs`. The position is that of the repeated name. What the table
    says of the bases stays.
    """
    places = torch.tensor(pairs.table["subject2_position"].to_numpy())
    sources = tuple(tokens.clone() for tokens in pairs.base_tokens)
    for source, place, io in zip(sources, places, pairs.answer, strict=True):
        source[place] = io
    texts = []
    for base, subject, io in pairs.table[["base", "subject", "io"]].to_numpy():
        first, between, after = re.split(rf"\b{re.escape(subject)}\b", base)
        texts.append(subject.join([first, between]) + io + after)
    changed = {"source_tokens": sources, "position": places, "source_position": places}
    return replace(pairs, **changed, table=pairs.table.assign(source=texts))


def templates(split: Split) -> dict[str, str]:
    """The templates of a split by name: prompts with slots, from after the prefix to the answer.

    `argument`, `fun` (train) and `work` (test) have the plots of the paper's three templates.
    """
    known = files.shipped(FOLDER / "templates.json")
    if split not in known:
        raise ValueError(f"the split must be 'train', 'test' or 'fresh', not {split!r}")
    return dict(known[split])


def vocabulary(model: Tokenizes, split: Split) -> dict[str, list[str]]:
    """The names, objects and places of a split, as by `words_of_split`; errors, too. `fresh` has
    words of its own, for rules that were written before anything was measured on them.
    """
    folder, half = ("fresh", None) if split == "fresh" else ("", split)
    words = {kind: _words(kind, folder) for kind in FEWEST}
    return {k: words_of_split(model, words[k], k, half, fewest) for k, fewest in FEWEST.items()}


def fill(template: str, pattern: str, words: Mapping[str, str]) -> str:
    """A template with its slots filled: `words` has io, subject, object and place."""
    names = (words["io"], words["subject"])
    first, second = names if pattern == "ABB" else names[::-1]
    return template.format(first=first, second=second, **words)


@functools.cache
def _words(kind: str, folder: str = "") -> tuple[str, ...]:
    return tuple((FOLDER / folder / f"{kind}.txt").read_text(encoding="utf-8").split())


def _choose_templates(split: Split, names: str | Sequence[str] | None) -> dict[str, str]:
    known = templates(split)
    names = [names] if isinstance(names, str) else known if names is None else names
    if not names or (unknown := [name for name in names if name not in known]):
        there = f"those of the {split} split are {list(known)}"
        raise ValueError(f"{unknown if names else 'no'} templates: {there}")
    return {name: known[name] for name in names}


def _draw(n: int, texts: Mapping[str, str], words: Words, rng: np.random.Generator) -> pd.DataFrame:
    """Contents of `n` pairs, all different: template, io, subject, object, place and pattern."""
    shapes = {}  # how many choices there are for IO, subject, object and place
    for name, text in texts.items():
        things = [len(words[kind + "s"]) if f"{{{kind}}}" in text else 1 for kind in SLOTS]
        shapes[name] = (len(words["names"]), len(words["names"]) - 1, *things)
    most = len(texts) * min(math.prod(shape) for shape in shapes.values())
    if not 1 <= n <= most:
        raise ValueError(f"n must be from 1 to {most}, the pairs there are here, but it is {n}")
    # Equally often; which template takes the remainder, and the order of all, are random.
    turns = rng.permutation(np.resize(rng.permutation(len(texts)), n))
    parts = []
    for turn, (name, shape) in enumerate(shapes.items()):
        rows = np.flatnonzero(turns == turn)
        # One number stands for one content, so that drawing without replacement repeats none.
        numbers = rng.choice(math.prod(shape), len(rows), replace=False)
        io, subject, *things = np.unravel_index(numbers, shape)
        subject = subject + (subject >= io)  # skips the IO: nobody gives to themselves
        names = np.array(words["names"])
        contents = {"template": name, "io": names[io], "subject": names[subject]}
        for kind, thing in zip(SLOTS, things, strict=True):
            used = f"{{{kind}}}" in texts[name]
            contents[kind] = np.array(words[kind + "s"])[thing] if used else ""
        parts.append(pd.DataFrame(contents, index=rows))
    return pd.concat(parts).sort_index().assign(pattern=np.resize(list(OTHER), n))


def _find_names(pairs: Pairs) -> dict[str, list[int]]:
    """Positions of the three names in the base prompts, from the tokens themselves."""
    found = []
    for row, tokens in enumerate(pairs.base_tokens):
        io = (tokens == pairs.answer[row]).nonzero()[:, 0].tolist()
        subject = (tokens == pairs.counterfactual[row]).nonzero()[:, 0].tolist()
        if (len(io), len(subject)) != (1, 2):
            counts = f"{len(io)} IO and {len(subject)} S tokens instead of 1 and 2"
            where = f"(is a name in the prefix?): {pairs.table['base'][row]!r}"
            raise ValueError(f"{counts} {where}")
        found.append(io + subject)
    columns = ("io_position", "subject_position", "subject2_position")
    return dict(zip(columns, map(list, zip(*found, strict=True)), strict=True))
