"""Finding one's way: the glossary, the index of figures, and headings in order everywhere."""

import functools
import re
from pathlib import Path

import nbformat
import pytest

from tools import figures

ROOT = Path(__file__).resolve().parent.parent
LESSONS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^## (.+)\n\n(.+) \[Lesson (\d\d)\]\(\.\./notebooks/(.+)\)$", flags=re.M)
ENTRIES = ENTRY.findall(GLOSSARY)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"]


@functools.cache
def cells(path):
    return nbformat.read(path, as_version=4).cells


def said(path):
    """What a lesson says, in text and code, without emphasis and line breaks."""
    return " ".join("\n".join(cell.source for cell in cells(path)).replace("*", "").split())


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def levels(text):
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code(text), flags=re.M)]


def assert_in_order(found):
    assert found[0] == 1 and found.count(1) == 1, found
    assert all(later <= level + 1 for level, later in zip(found, found[1:], strict=False)), found


# -------------------------------------------------------------------------- the glossary


def test_the_glossary_is_understood_and_in_order():
    terms = [term for term, *_ in ENTRIES]
    assert len(terms) == GLOSSARY.count("\n## ") > 100
    assert terms == sorted(set(terms), key=str.casefold)


@pytest.mark.parametrize("number", LESSONS)
def test_every_term_occurs_in_its_lesson(number):
    text = said(LESSONS[number])
    own = [entry for entry in ENTRIES if entry[2] == number]
    assert own and {file for *_, file in own} == {LESSONS[number].name}
    for term in (word for entry in own for word in entry[0].split(", ")):
        whole = re.compile(rf"\b{re.escape(term)}(e?s)?\b", flags=re.I)
        assert whole.search(text), term


def test_the_terms_that_the_first_lesson_promises_are_defined():
    promise = re.search(r"what (.+) mean;", said(LESSONS["00"]))[1]
    terms = {term for term, *_ in ENTRIES}
    assert set(re.split(r", | and ", promise)) <= terms


# -------------------------------------------------------------------------- the index of figures


def test_the_index_of_figures_is_that_of_the_lessons():
    assert figures.INDEX.read_text(encoding="utf-8") == figures.to_markdown()


def test_the_index_has_every_stored_figure():
    index = figures.INDEX.read_text(encoding="utf-8")
    for number, path in LESSONS.items():
        part = index.split(f"\n## [{number} ")[1].split("\n## ")[0]
        drawn = [
            cell.id
            for cell in cells(path)
            if any("image/png" in out.get("data", {}) for out in cell.get("outputs", ()))
        ]
        assert re.findall(r"^- \*\*[^*]+\*\* \(`(.+?)`\)\. .{40}", part, flags=re.M) == drawn


# -------------------------------------------------------------------------- headings


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_headings_of_a_page_are_in_order(path):
    assert_in_order(levels(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("number", LESSONS)
def test_headings_of_a_lesson_are_in_order(number):
    texts = [cell.source for cell in cells(LESSONS[number]) if cell.cell_type == "markdown"]
    assert_in_order(levels("\n\n".join(texts)))
