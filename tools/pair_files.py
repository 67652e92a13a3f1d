"""Pairs of prompts from a CSV file of your own.

One row per pair, below a row of column names: base, source, answer, counterfactual (or
"counterfactual answer"). The optional columns position and source_position say which token to patch
and which to read, counted from 0 (with BOS, if the model wants one) or, if negative, from the end.

    base,source,answer,counterfactual
    "Then, Mary and John left. John thanked","Then, John and Mary left. John thanked",Mary,John
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from helpers.tasks.pairs import Pairs
from helpers.tasks.tokens import Tokenizes, answer_token, encode

NEEDED = ("base", "source", "answer", "counterfactual")
POSITIONS = {"position": "base", "source_position": "source"}  # with the prompt each is about
PROBLEMS_SHOWN = 5


class PairFileError(ValueError):
    """A file holds no usable pairs; the message says where, why and what to do."""


def read_pairs(
    model: Tokenizes, path: str | Path, *, chat: bool = False, space: bool | None = None
) -> Pairs:
    """The pairs of a CSV file; the model, or only its tokenizer, reads them.

    Answers are words that are a single token where they follow the base prompt: after a space or
    not, as `space` says or, by default, as each prompt asks for. With `chat` prompts are a user's
    messages and are put into the model's chat template. Without the columns position and
    source_position the last token of each prompt is meant, so base and source may differ in length.
    The table has all columns of the file, their names in lower case, and the positions as given.
    Raises PairFileError: the file cannot be read, columns are missing, rows are wrong, or there is
    no chat template. The message names the first rows as a spreadsheet numbers them: the column
    names are row 1.
    """
    table = read_table(path)
    if chat:
        try:
            prompts = {n: [in_chat(model, text) for text in table[n]] for n in ("base", "source")}
        except ValueError as error:
            raise PairFileError(f"{path} cannot be read as a chat: {error}") from error
        table = table.assign(**prompts)
    rows = table.to_dict("index").items()
    found = [f"row {row}: {what}" for row, cells in rows for what in _problems(model, cells, space)]
    _raise_if(path, found)
    table = table.assign(**{name: table[name].str.strip().astype(int) for name in POSITIONS})
    columns = {name: table[name].tolist() for name in (*NEEDED, *POSITIONS)}
    return Pairs.from_prompts(model, **columns, table=table, space=space)


def read_table(path: str | Path) -> pd.DataFrame:
    """The cells of a pair file as text, without a look at what they say; needs no model.

    The index is the row's number in the file. Blank rows are left out; positions that the file does
    not give are "-1". Raises PairFileError: the file cannot be read, columns are missing or there
    are no rows.
    """
    header, *rows = _read_rows(Path(path)) or [[]]
    if not any(map(any, (header, *rows))):
        raise PairFileError(f"{path} is empty: it needs the columns {', '.join(NEEDED)}")
    columns = _columns(path, header)
    numbered = {number: cells for number, cells in enumerate(rows, start=2) if any(cells)}
    if not numbered:
        raise PairFileError(f"{path} has no pairs: write one per row below the column names")
    advice = f"but {len(columns)} columns: put cells that hold a comma in double quotes"
    cells = {number: len(row) for number, row in numbered.items() if len(row) != len(columns)}
    _raise_if(path, [f"row {number}: {n} cells, {advice}" for number, n in cells.items()])
    table = pd.DataFrame(list(numbered.values()), index=list(numbered), columns=columns, dtype=str)
    return table.assign(**{name: "-1" for name in POSITIONS if name not in columns})


def in_chat(model: Tokenizes, text: str) -> str:
    """The text as a user's message in the model's chat template, up to where it is to answer.

    A ValueError if the tokenizer has no such template.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the model's tokenizer has no chat template: give prompts as plain text")
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def _read_rows(path: Path) -> list[list[str]]:
    """All rows of the file as cells; pandas would fill short rows and cut long ones in silence."""
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise PairFileError(f"{path} {reason}: name a CSV file with one pair per row")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise PairFileError(f'{path} is not UTF-8 text: save it as "CSV UTF-8"') from error
    except csv.Error as error:
        raise PairFileError(f"{path} is not a CSV file: {error}: is a quote left open?") from error
    except OSError as error:
        raise PairFileError(f"{path} cannot be read: {error.strerror}") from error
    return [row if any(cell.strip() for cell in row) else [] for row in rows]


def _columns(path: str | Path, header: Sequence[str]) -> list[str]:
    """The names of the columns, in lower case and as we call them."""
    names = [name.strip().lower() or f"column {number}" for number, name in enumerate(header, 1)]
    names = [re.sub("^counterfactual[ _]answer$", "counterfactual", name) for name in names]
    if missing := [name for name in NEEDED if name not in names]:
        advice = "Name the columns in row 1 and separate cells by commas"
        raise PairFileError(f"{path} lacks the columns {missing}: row 1 has {names}. {advice}")
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise PairFileError(f"{path} has the columns {double} more than once: keep one of each")
    return names


def _problems(model: Tokenizes, cells: dict[str, str], space: bool | None) -> Iterator[str]:
    """What is wrong with one pair."""
    if empty := [name for name in NEEDED if not cells[name].strip()]:
        yield f"nothing in {' and '.join(empty)}: fill every cell"
        return
    tokens = {}
    for name in ("answer", "counterfactual"):
        try:
            tokens[name] = answer_token(model, cells[name], cells["base"], space)
        except ValueError as error:
            yield f"the {name} {error}" + ("" if ": " in str(error) else ": choose another word")
    if len(tokens) == 2 and tokens["answer"] == tokens["counterfactual"]:
        reason = "they must differ, or no patch can change what the model should say"
        yield f"answer and counterfactual are both {cells['answer'].strip()!r}: {reason}"
    for name, prompt in POSITIONS.items():
        text, length = cells[name].strip(), len(encode(model, cells[prompt]))
        if not re.fullmatch("[+-]?[0-9]{1,9}", text):
            yield f"{name} must be a whole number, such as -1 for the last token, not {text!r}"
        elif not -length <= int(text) < length:
            yield f"{name} {text} is outside its prompt: choose from {-length} to {length - 1}"


def _raise_if(path: str | Path, problems: Sequence[str]) -> None:
    """An error that lists the first problems, if there are any."""
    if problems:
        shown, rest = problems[:PROBLEMS_SHOWN], len(problems) - PROBLEMS_SHOWN
        shown = [f"{path} cannot be used:", *shown, *([f"and {rest} more"] if rest > 0 else [])]
        raise PairFileError("\n  ".join(shown))
