"""Pairs of prompts for an interchange: the base is patched, the source gives the activation.

Pairs.from_prompts(model, ["Mary and John ..."], ["John and Mary ..."], ["Mary"], ["John"])
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.models import require
from helpers.tasks.tokens import Tokenizes, answer_token, encode, single_token

Tokens: TypeAlias = tuple[Int[Tensor, "pos"], ...]  # one tensor per prompt: lengths may differ
Split: TypeAlias = Literal["train", "test"]
SPLITS = ("train", "test")
COLUMNS = ("answer", "counterfactual", "position", "source_position")
Rows: TypeAlias = int | slice | Sequence[int] | Sequence[bool] | np.ndarray | pd.Series | Tensor


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Pairs:
    """Base and source prompts as tokens, with the two answers that a patch decides between.

    `pairs[rows]` gives `Pairs` again; rows are a number, a slice, a list of numbers or a mask.

    `choices` are further answers by which a task tells what a patch carried: `aiming_at` one makes
    it the counterfactual.

    Raises ValueError: no pairs or not one entry for each, a position outside its prompt, or an
    answer that is its counterfactual.
    """

    base_tokens: Tokens
    source_tokens: Tokens
    answer: Int[Tensor, "pairs"]  # what the model should say after the base prompt
    counterfactual: Int[Tensor, "pairs"]  # what it says if the patch carries the source's value
    position: Int[Tensor, "pairs"]  # of the patched token in the base prompt, counted from 0
    source_position: Int[Tensor, "pairs"]  # where the source's activation is read
    table: pd.DataFrame  # one row per pair: both prompts, and whatever else the task knows
    choices: Mapping[str, Int[Tensor, "pairs"]] = field(default_factory=dict)  # by name

    def __post_init__(self) -> None:
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        choices = {f"choice {name!r}": ids for name, ids in columns.pop("choices").items()}
        _check_lengths(columns | choices)
        for name, ids in choices.items():
            require.ids(name, ids)
        for tokens in (*self.base_tokens, *self.source_tokens):
            require.ids("the tokens of a prompt", tokens)
        for name in COLUMNS:
            require.ids(name, getattr(self, name))
        _check_positions(self.base_tokens, self.position, "base")
        _check_positions(self.source_tokens, self.source_position, "source")
        if (same := self.answer == self.counterfactual).any():
            pair = int(same.nonzero()[0])
            reason = "no patch can change what the model should say"
            both = f"the same answer and counterfactual (token {self.answer[pair]})"
            raise ValueError(f"pair {pair} has {both}: {reason}")

    def __len__(self) -> int:
        return len(self.base_tokens)

    def __getitem__(self, rows: Rows) -> "Pairs":
        numbers = np.arange(len(self))
        if isinstance(rows, slice):
            rows = numbers[rows].copy()  # torch cannot index by a reversed view
        else:
            rows = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
            rows = np.atleast_1d(numbers[rows]) if rows.size else numbers[:0]
        sides = self.base_tokens, self.source_tokens
        tokens = (tuple(side[row] for row in rows) for side in sides)
        at = torch.from_numpy(rows)
        columns = (getattr(self, name)[at] for name in COLUMNS)
        choices = {name: ids[at] for name, ids in self.choices.items()}
        return Pairs(*tokens, *columns, self.table.iloc[rows].reset_index(drop=True), choices)

    def aiming_at(self, choice: str) -> "Pairs":
        """The pairs with this choice as the counterfactual, or a ValueError if there is none."""
        if choice not in self.choices:
            raise ValueError(f"no choice {choice!r}: these pairs have {list(self.choices)}")
        return replace(self, counterfactual=self.choices[choice])

    def hits(self, logits: Float[Tensor, "pairs d_vocab"]) -> dict[str, Bool[Tensor, "pairs"]]:
        """By choice, the pairs whose top token it is; a ValueError if the logits do not fit."""
        require.finite("the logits", logits)
        if logits.ndim != 2 or len(logits) != len(self):
            raise ValueError(f"logits of {len(self)} pairs are needed, not {tuple(logits.shape)}")
        top = logits.argmax(-1).cpu()
        return {name: top == ids.cpu() for name, ids in self.choices.items()}

    @classmethod
    def from_prompts(
        cls,
        model: Tokenizes,
        base: Sequence[str],
        source: Sequence[str],
        answer: Sequence[str],
        counterfactual: Sequence[str],
        position: int | Sequence[int] = -1,
        source_position: int | Sequence[int] | None = None,
        table: pd.DataFrame | None = None,
        space: bool | None = None,
    ) -> "Pairs":
        """Pairs from text.

        Args:
            model: The model, or only a tokenizer. It decides whether a BOS token comes first.
            answer, counterfactual: A word for each pair, a single token where it follows the base.
            position: The token to patch, for all pairs or for each; negative counts from the end.
            source_position: The token of the source to read; None means `position`, and then base
                and source must be equally long.
            table: More columns, one row per pair.
            space: Whether answers begin with a space; by default each base prompt decides
                (`helpers.tasks.tokens.follows_space`).

        Raises ValueError: as for `Pairs`; a word is not a single token; or a prompt ends in a space
        that belongs to the answer.
        """
        texts = {"base": base, "source": source}
        words = {"answer": answer, "counterfactual": counterfactual}
        for name, column in (texts | words).items():
            if isinstance(column, str):
                raise ValueError(f"{name} must be a list with one text per pair, not one text")
        table = pd.DataFrame(index=range(len(base))) if table is None else table
        _check_lengths({**texts, **words, "table": table})
        base_tokens = tuple(encode(model, text) for text in base)
        source_tokens = tuple(encode(model, text) for text in source)
        if source_position is None:
            source_position = position
            for pair, (ours, theirs) in enumerate(zip(base_tokens, source_tokens, strict=True)):
                if len(ours) != len(theirs):
                    raise ValueError(
                        f"pass source_position: base and source of pair {pair} differ in length\n"
                        f"  {len(ours)} tokens: {base[pair]!r}\n"
                        f"  {len(theirs)} tokens: {source[pair]!r}"
                    )
        token = functools.partial(answer_token, model, space=space)
        labels = [torch.tensor(list(map(token, column, base))) for column in words.values()]
        other_columns = table.drop(columns=list(texts), errors="ignore").reset_index(drop=True)
        places = _from_start(position, base_tokens), _from_start(source_position, source_tokens)
        table = pd.DataFrame({name: list(texts[name]) for name in texts}).join(other_columns)
        return cls(base_tokens, source_tokens, *labels, *places, table)


def words_of_split(
    model: Tokenizes, words: Sequence[str | tuple[str, ...]], kind: str, split: str | None,
    fewest: int = 4,
) -> list:  # fmt: skip
    """Every second one of the words (or rows of words) that are single tokens for this model.

    All of them if `split` is None. So the splits are disjoint for each model; but a word may change
    sides from one to another. A ValueError if both together have fewer such words than `fewest`.
    """
    if split not in (*SPLITS, None):
        raise ValueError(f"the split must be 'train' or 'test', not {split!r}")
    usable = []
    for row in words:
        with contextlib.suppress(ValueError):
            [single_token(model, word) for word in ([row] if isinstance(row, str) else row)]
            usable.append(row)
    if len(usable) < fewest:
        found = f"{len(usable)} of our {len(words)} {kind} are single tokens for this model"
        reason = "its tokenizer does not suit this task"
        raise ValueError(f"only {found}, and {fewest} are needed: {reason}")
    return usable[SPLITS.index(split) :: 2] if split else usable


def _from_start(position: int | Sequence[int], prompts: Tokens) -> Int[Tensor, "pairs"]:
    """Positions counted from 0; those before the start stay negative."""
    given = np.asarray(position)
    if given.dtype.kind not in "iu" or given.shape not in ((), (len(prompts),)):
        wanted = f"a position must be a whole number, or one for each of {len(prompts)} pairs"
        raise ValueError(f"{wanted}, not {position!r}")
    positions = torch.as_tensor(given).expand(len(prompts))
    lengths = torch.tensor([len(tokens) for tokens in prompts], dtype=torch.long)
    return torch.where((positions < 0) & (positions >= -lengths), positions + lengths, positions)


def _check_lengths(columns: dict[str, Sequence]) -> None:
    """One entry per pair in each column, of which "table" must be a table."""
    if not isinstance(table := columns["table"], pd.DataFrame):
        raise ValueError(f"the table must be a pandas DataFrame, not {type(table).__name__}")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"one entry per pair is needed, but the lengths are {lengths}")
    if not any(lengths.values()):
        raise ValueError("there are no pairs: the data, or the selection from it, is empty")


def _check_positions(prompts: Tokens, positions: Int[Tensor, "pairs"], side: str) -> None:
    lengths = torch.tensor([len(tokens) for tokens in prompts])
    if (outside := ((positions < 0) | (positions >= lengths))).any():
        pair = int(outside.nonzero()[0])
        prompt = f"the {side} prompt of pair {pair}, which has {lengths[pair]} tokens"
        raise ValueError(f"position {positions[pair]} is outside {prompt}")
