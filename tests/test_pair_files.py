"""Pairs from a CSV file: what comes back, and that a bad file is explained row by row."""

import pandas as pd
import pytest
import torch

from helpers.tasks.pairs import Pairs
from tools.pair_files import PairFileError, read_pairs, read_table

HEADER = "base,source,answer,counterfactual"
ROW = "Mary and John,John and Mary,Mary,John"
BASE = ["Then, Mary and John had fun. John gave it to", 'After that, Tom said "one" to']
SOURCE = ["Then, John and Mary had fun. John gave it to", "Then Anna said one to Tom,\nand to"]
TABLE = pd.DataFrame(
    {"base": BASE, "source": SOURCE, "answer": ["Mary", "Tom"], "counterfactual": ["John", "Anna"]}
)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def write(tmp_path):
    """Writes a file, from text or bytes, and returns its path."""

    def write(content):
        path = tmp_path / "pairs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def assert_same(found: Pairs, expected: Pairs) -> None:
    for name in ("base_tokens", "source_tokens"):
        assert all(map(torch.equal, getattr(found, name), getattr(expected, name)))
    for name in ("answer", "counterfactual", "position", "source_position"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_written_by_pandas_comes_back(model, tmp_path, encoding):
    table = TABLE.assign(position=[3, -2], source_position=[1, -4], note=["NA", ""])
    table.to_csv(tmp_path / "pairs.csv", index=False, encoding=encoding)
    found = read_pairs(model, tmp_path / "pairs.csv")
    columns = {name: table[name].tolist() for name in table.columns.drop("note")}
    assert_same(found, Pairs.from_prompts(model, **columns))
    assert found.table.to_dict("list") == table.to_dict("list")


def test_without_positions_the_last_tokens_are_meant(model, write):
    found = read_pairs(model, write(TABLE.to_csv(index=False)))
    assert found.position.tolist() == [len(tokens) - 1 for tokens in found.base_tokens]
    assert found.source_position.tolist() == [len(tokens) - 1 for tokens in found.source_tokens]
    assert len(found.base_tokens[1]) != len(found.source_tokens[1])


def test_a_tokenizer_is_enough(model, write):
    path = write(TABLE.to_csv(index=False))
    assert_same(read_pairs(model.tokenizer, path), read_pairs(model, path))


@pytest.mark.parametrize(
    "header",
    [
        " Base ,SOURCE,Answer, Counterfactual Answer",
        "base,source,answer,counterfactual_answer",
        "base,source,answer,counterfactual",
    ],
)
def test_headers_are_read_as_people_write_them(model, write, header):
    found = read_pairs(model, write(f"{header}\n{ROW}\n"))
    assert found.table.columns[:4].tolist() == HEADER.split(",")
    assert model.tokenizer.decode(found.counterfactual) == " John"


def test_positions_count_from_both_ends(model, write):
    rows = "".join(f"{ROW},{position}\n" for position in ("0", "-4", "3", " -1 ", "+2"))
    found = read_pairs(model, write(f"{HEADER},Position\n{rows}"))
    assert found.position.tolist() == [0, 0, 3, 3, 2]
    assert found.source_position.tolist() == [3] * 5


def test_blank_rows_are_left_out_but_counted(write):
    path = write(f"{HEADER}\r\n\r\n{ROW}\r\n,,,\r\n{ROW}\r\n\r\n")
    assert read_table(path).index.tolist() == [3, 5]


def test_unnamed_columns_are_numbered(write):
    assert read_table(write(f"{HEADER},,\n{ROW},,x\n"))["column 6"].tolist() == ["x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it needs the columns base, source, answer, counterfactual"),
        ("\n ,\n\n", "is empty"),
        (HEADER + "\n\n", "has no pairs: write one per row"),
        ("base,source\na,b\n", r"lacks the columns \['answer', 'counterfactual'\]: row 1 has"),
        (HEADER.replace(",", ";") + "\n", "separate cells by commas"),
        (f"{HEADER},Base\n{ROW},x\n", r"has the columns \['base'\] more than once"),
        (f"{HEADER},counterfactual answer\n{ROW},x\n", r"\['counterfactual'\] more than once"),
        ((HEADER + "\n").encode("utf-16"), "is not UTF-8 text"),
        (f"{HEADER}\nJosé,b,c,d\n".encode("latin-1"), "is not UTF-8 text"),
        (f'{HEADER}\n"Mary,John,Mary,John\n', "is a quote left open"),
        (f"{HEADER}\n{ROW}\n{ROW},x\n", "row 3: 5 cells, but 4 columns: put cells .* in double"),
        (f"{HEADER}\n\n{ROW}\na,b,c\n", "row 4: 3 cells, but 4 columns"),
        (f"{HEADER}\n{ROW}\n ,b,Mary,\n", "row 3: nothing in base and counterfactual: fill every"),
        (f"{HEADER}\na,b,New York,John\n", "row 2: the answer ' New York' must be a single token"),
        (f"{HEADER}\na,b,John,zebra\n", "row 2: the counterfactual ' zebra' .* does not know it"),
        (f"{HEADER}\n{ROW}\na,b,John, John\n", "row 3: answer and counterfactual are both 'John'"),
        (f'{HEADER}\n"a\n\nb",b,Mary,John\na,b,Mary,Mary\n', "row 3: answer and counterfactual"),
        (f"{HEADER},position\n{ROW},3.0\n", "row 2: position must be a whole number.* not '3.0'"),
        (f"{HEADER},position\n{ROW},\n", "row 2: position must be a whole number.* not ''"),
        (f"{HEADER},position\n{ROW},4\n", "row 2: position 4 is outside .* choose from -4 to 3"),
        (f"{HEADER},source_position\n{ROW},-5\n", "row 2: source_position -5 is outside"),
    ],
)
def test_bad_files_are_explained(model, write, content, message):
    with pytest.raises(PairFileError, match=rf"(?s)pairs\.csv .*{message}"):
        read_pairs(model, write(content))


def test_files_that_are_not_there_are_explained(model, tmp_path):
    with pytest.raises(PairFileError, match="none.csv does not exist: name a CSV file"):
        read_pairs(model, tmp_path / "none.csv")
    with pytest.raises(PairFileError, match="is a folder: name a CSV file"):
        read_pairs(model, str(tmp_path))


@pytest.mark.parametrize(("bad", "rest"), [(5, None), (7, "and 2 more")])
def test_all_rows_are_checked_and_the_first_problems_shown(model, write, bad, rest):
    content = "\n".join([HEADER, ROW, *["a,b,zebra,Mary"] * bad])
    with pytest.raises(PairFileError) as caught:
        read_pairs(model, write(content))
    _, *lines = str(caught.value).split("\n  ")
    assert [line.split(":")[0] for line in lines[:5]] == [f"row {n}" for n in range(3, 8)]
    assert lines[5:] == ([rest] if rest else [])


def test_one_row_may_have_several_problems(model, write):
    with pytest.raises(PairFileError) as caught:
        read_pairs(model, write(f"{HEADER},position\na,b,zebra,New York,x\n"))
    problems = str(caught.value).split("\n  ")[1:]
    assert len(problems) == 3 and all(problem.startswith("row 2:") for problem in problems)
