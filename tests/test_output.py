"""Files written in one step, and tables that survive whatever stands in their cells."""

import html.parser
import os
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_plots import GRAPHICS, TEXT, contrast

from helpers.output import files
from tools import pages

TRICKY = "a | b \\| c \\\\\n| d |\r\n\t<script>"
VOID = ("meta", "img")


class Page(html.parser.HTMLParser):
    """A page's tags, its text and its tables; an error where a tag is not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text, self.tables = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data


def assert_needs_no_other_file(text: str) -> None:
    """The page runs no script and loads nothing: its only address is that of its own image."""
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "b"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "style"} & attributes.keys()
        assert attributes.get("src", "data:").startswith("data:")
    assert "@import" not in pages.STYLE and "url(" not in pages.STYLE


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as a parser of its own reads them: rows of cells."""
    tables, inside = [], False
    for token in MarkdownIt("js-default").parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            inside = True
        elif token.type in ("th_close", "td_close"):
            inside = False
        elif token.type == "inline" and inside:
            tables[-1][-1].append("".join(part.content for part in token.children))
    return tables


def headings(page: Page) -> list[str]:
    """Its headings' tags in order."""
    return [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]


def one_line(text: str) -> str:
    return " ".join(text.split())


# -------------------------------------------------------------------------- files


@pytest.mark.parametrize("content", ["größer ≥ 1\n", b"\x89PNG\r\n\x00", ""])
def test_a_file_holds_what_was_written_and_nothing_else_is_there(tmp_path, content):
    path = tmp_path / "file.txt"
    path.write_text("something longer that was there before")
    files.write(path, content)
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    files.write(tmp_path / "file.txt", "old")

    def fail(*_):
        raise error

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(type(error)):
        files.write(tmp_path / "file.txt", "new")
    assert os.listdir(tmp_path) == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "old"


def test_nothing_is_left_of_a_file_that_cannot_be_put_in_place(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OSError):
        files.write(tmp_path / "file.txt", "new")
    with pytest.raises(UnicodeEncodeError):
        files.write(tmp_path / "other.txt", "\ud800")
    assert os.listdir(tmp_path) == ["file.txt"]


def test_nobody_reads_half_a_file(tmp_path):
    path, wholes = tmp_path / "file.txt", [b"a" * 2_000_000, b"b" * 2_000_000]
    files.write(path, wholes[0])
    writer = threading.Thread(target=lambda: [files.write(path, wholes[i % 2]) for i in range(60)])
    writer.start()
    while writer.is_alive():
        assert path.read_bytes() in wholes
    writer.join()


# -------------------------------------------------------------------------- tables and pages


def test_a_markdown_table_reads_back():
    rows = [["C1", "1.5 % [1, 2]"], ["C2", ""]]
    assert pages.markdown_table(["claim", "ours"], rows) == (
        "| claim | ours |\n| --- | --- |\n| C1 | 1.5 % [1, 2] |\n| C2 |  |"
    )


@given(cells=st.lists(st.text("ab1 |\\\n\r\t\x0b\u2028-"), min_size=1, max_size=6))
def test_no_cell_breaks_a_markdown_table(cells):
    rows = [["first", cell, "last"] for cell in [TRICKY, *cells]]
    (table,) = markdown_tables(pages.markdown_table(["a", "b", "c"], rows))
    assert table == [["a", "b", "c"], *([x, one_line(cell), y] for x, cell, y in rows)]


@given(cells=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), max_size=4))
def test_no_cell_breaks_an_html_table(cells):
    rows = [["first", cell] for cell in ["</td><script>", *cells]]
    text = pages.html_table("<b>caption</b>", ["a", "<b>"], rows)
    page = Page(text)
    assert page.tables == [[["a", "<b>"], *rows]]
    assert "<b>caption</b>" in page.text
    scopes = [attributes["scope"] for tag, attributes in page.tags if tag == "th"]
    assert scopes == ["col", "col", *["row"] * len(rows)]
    assert page.tags[0][1]["aria-label"] == "<b>caption</b>"  # what the keyboard scrolls


def test_a_page_is_whole_and_its_title_is_text():
    text = pages.html_page("A <b>title</b> & more", "<p>body</p>")
    assert_needs_no_other_file(text)
    page = Page(text)
    assert page.text.count("A <b>title</b> & more") == 2 and "body" in page.text
    assert ("html", {"lang": "en"}) in page.tags and ("meta", {"charset": "utf-8"}) in page.tags
    assert text.startswith("<!DOCTYPE html>")
    assert headings(page) == ["h1"]


def test_the_colours_of_a_page_can_be_read():
    text, paper = re.search(r"body { color: (#\w+); background: (#\w+)", pages.STYLE).groups()
    border = re.search(r"border: 1px solid (#\w+)", pages.STYLE)[1]
    head = re.search(r"thead th { background: (#\w+)", pages.STYLE)[1]
    assert min(contrast(text, paper), contrast(text, head)) >= TEXT
    assert min(contrast(border, paper), contrast(border, head)) >= GRAPHICS
