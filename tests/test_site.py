"""The static book: built once from the stored lessons, then read page by page."""

import ast
import base64
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from test_reference import assert_in_order

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
BOOK = ROOT / "docs" / "book"
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}  # without a click

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"The book needs packages that are not installed: {', '.join(MISSING)}."
)


class Page(HTMLParser):
    """What a page links to, loads and names, and its text."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.loaded, self.images = path, [], [], []
        self.ids, self.classes, self.text, self.inputs, self.frames = set(), [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.classes += (attributes.get("class") or "").split()
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        if attributes.get(LOADED.get(tag)):
            self.loaded.append(attributes[LOADED[tag]])
        if tag == "img":
            self.images.append(attributes)
        self.inputs += [attributes] if tag == "input" else []
        self.frames += [attributes["data-src"]] if "data-src" in attributes else []

    def handle_data(self, data):
        self.text += data


def build(out, work):
    """Run Sphinx as `make site` does."""
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", "docs/book"]
    command += ["-d", str(work), "-W", "--keep-going", ".", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    return folder / "site", build(folder / "site", folder / "doctrees")


@pytest.fixture(scope="module")
def book(built):
    assert (built[0] / "index.html").is_file(), built[1].stderr
    return built[0]


@pytest.fixture(scope="module")
def pages(book):
    """Every page by its name; `_static` holds files of the theme, `_modules` code."""
    paths = [path for path in book.rglob("*.html") if not {"_static", "_modules"} & {*path.parts}]
    return {path.relative_to(book).as_posix(): Page(path) for path in paths}


def module_of_the_book(name):
    """A module of docs/book, which is no package."""
    sys.path.insert(0, str(BOOK))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BOOK))


@pytest.fixture(scope="module")
def book_pages():
    return module_of_the_book("book_pages")


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request, pages):
    """A lesson's cells and its page."""
    cells = json.loads(request.param.read_text(encoding="utf-8"))["cells"]
    return cells, pages[f"notebooks/{request.param.stem}.html"]


def outputs(cells):
    return [output for cell in cells for output in cell.get("outputs", [])]


def local(link):
    return not urlsplit(link).scheme and not link.startswith("//")


def test_builds_without_a_warning(built):
    assert (built[1].returncode, built[1].stderr) == (0, "")


def test_leaves_nothing_beside_the_book(built):
    folder = built[0].parent
    assert {path.name for path in folder.iterdir()} == {"site", "doctrees"}


def test_a_page_for_every_lesson_and_text(pages):
    texts = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "data" / "README.md"]
    expected = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in LESSONS + texts}
    made = {f"api/{path.parent.name}.html" for path in ROOT.glob("helpers/*/__init__.py")}
    assert len(made) == 12
    assert set(pages) == expected | made | {"index.html", "search.html", "py-modindex.html"}


def test_the_front_page_lists_the_lessons_in_order(pages):
    links = [link for link in pages["index.html"].links if link.startswith("notebooks/")]
    names = list(dict.fromkeys(Path(link).stem for link in links))  # first mentions
    assert names == [path.stem for path in LESSONS]


def test_every_link_leads_somewhere(book, pages):
    for name, page in pages.items():
        for link in filter(local, page.links):
            parts = urlsplit(link)
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            assert target.is_file(), f"{name}: {link}"
            other = pages.get(target.relative_to(book.resolve()).as_posix())
            if parts.fragment and other:
                assert unquote(parts.fragment) in other.ids, f"{name}: {link}"


def test_no_link_leads_to_a_notebook_or_a_markdown_file(pages):
    for name, page in pages.items():
        wrong = [
            link
            for link in page.links
            if local(link) and urlsplit(link).path.endswith((".ipynb", ".md"))
        ]
        assert not wrong, name


def test_nothing_is_loaded_from_outside(book, pages):
    for name, page in pages.items():
        assert all(map(local, page.loaded)), name
    for path in (book / "_static").rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", style), path.name


def test_every_figure_is_there_and_has_words(lesson):
    cells, page = lesson
    stored = [o["data"]["image/png"] for o in outputs(cells) if "image/png" in o.get("data", {})]
    figures = [image for image in page.images if "/frames/" not in image["src"]]
    shown = [(page.path.parent / image["src"]).read_bytes() for image in figures]
    assert shown == [base64.b64decode(png) for png in stored]
    words = [o["metadata"]["image/png"]["alt"] for o in outputs(cells) if o.get("metadata")]
    assert [image["alt"] for image in figures] == words
    assert page.classes.count("figure") == 2 * len(page.images)  # in links to their full size


def test_pages_name_their_language_and_their_headings_are_in_order(pages):
    for name, page in pages.items():
        text = page.path.read_text(encoding="utf-8")
        assert re.search(r'<html[^>]* lang="en"', text), name
        if name != "search.html":
            article = text.split("<article")[1].split("</article>")[0]
            assert_in_order([int(level) for level in re.findall(r"<h([1-6])\b", article)])


def test_every_printed_line_is_there(lesson):
    cells, page = lesson
    printed = "".join("".join(o["text"]) for o in outputs(cells) if o["output_type"] == "stream")
    lines = printed.splitlines()
    assert lines
    assert all(line.strip() in page.text for line in lines)


def test_every_formula_waits_for_mathjax(lesson):
    cells, page = lesson
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(r"`[^`]*`", "", text)
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, flags=re.DOTALL)
    article = page.path.read_text(encoding="utf-8").split("<article")[1].split("</article>")[0]
    assert article.count('class="math ') == len(formulas)
    assert "$" not in re.sub(r"(?s)\$\$.+?\$\$|\$[^$]+\$", "", text)
    if formulas:
        assert any(link.endswith("mathjax/tex-chtml.js") for link in page.loaded)


def test_mathjax_has_its_fonts(book):
    mathjax = book / "_static" / "mathjax"
    assert (mathjax / "tex-chtml.js").stat().st_size > 500_000
    assert len(list(mathjax.rglob("*.woff"))) > 20


def test_set_up_solutions_and_figures_are_folded(lesson):
    cells, page = lesson
    hidden = [
        c
        for c in cells
        if c["metadata"].get("jupyter", {}).get("source_hidden")
        or any("image/png" in output.get("data", {}) for output in c.get("outputs", []))
    ]
    assert page.classes.count("tag_hide-input") == len(hidden) + 1
    solutions = [c for c in hidden if "### BEGIN SOLUTION" in "".join(c["source"])]
    assert page.text.count("Show the solution") == len(solutions)
    assert page.text.count("Show the code") == len(hidden) - len(solutions)


def test_hints_are_set_as_text(lesson):
    _, page = lesson
    hints = re.findall(r"<details><summary>.*?</details>", page.path.read_text("utf-8"), re.DOTALL)
    assert all("<p>" in hint and "`" not in hint for hint in hints)


def test_the_search_knows_lesson_03(book):
    text = (book / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    lesson = index["docnames"].index("notebooks/03_catch_the_illusion")
    for word in ("placebo", "kernel", "dormant"):
        found = index["terms"][word]
        assert lesson in (found if isinstance(found, list) else [found]), word


def test_sizes_are_sane(book, pages):
    for name, page in pages.items():
        assert 5_000 < page.path.stat().st_size < 1_000_000, name
    assert sum(path.stat().st_size for path in book.rglob("*")) < 40_000_000


def test_badges_become_links_of_words(book_pages):
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/open)"
    cells = [
        {"id": "nav", "cell_type": "markdown", "source": ["[next](01_b.ipynb)\n", "\n", badge]},
        {"id": "title", "cell_type": "markdown", "source": "# Start\n\n**Why?**"},
    ]
    (title,) = book_pages.as_page({"cells": cells}, "00")["cells"]
    words = "[Open in Colab](https://example.org/open)"
    assert title["source"] == f"# 00 Start\n\n**Why?**\n\n{words}"
    assert book_pages.book_markdown("![here](docs/here.png)") == "![here](docs/here.png)"


def test_the_contents_leave_out_parts_without_pages(book_pages):
    documents = {"index", "README", "notebooks/11_b", "notebooks/10_a", "data/README", "api/b"}
    text = book_pages.table_of_contents(documents)
    entries = re.findall(r"^(?:.* <)?(/[\w/]+)>?$", text, flags=re.M)
    assert entries == [
        "/notebooks/10_a", "/notebooks/11_b", "/api/b", "/README", "/data/README"
    ]  # fmt: skip
    captions = re.findall(r":caption: (.*)", text)
    assert captions[0].startswith("Part I:") and captions[1].startswith("Part II:")
    assert captions[2:] == ["Reference", "The project"]


def test_numbers_of_the_front_page_are_those_of_the_data(pages):
    text = " ".join(pages["index.html"].text.split())
    found = json.loads((ROOT / "data/expected/smollm2-135m.json").read_text(encoding="utf-8"))
    painter = json.loads((ROOT / "data/evidence/pictures.json").read_text(encoding="utf-8"))
    letters = painter["seed0"]["sweep"]["only 0"]["letters of source"][0]
    shares = [found["C3"]["value"], found["C4"]["value"], found["E3"]["value"], 100 * letters]
    for share in shares:
        assert f"{share:.0f} %".replace("-", "−") in text
    assert len([c for c in pages["index.html"].classes if c == "box"]) == 5 + 6


@pytest.mark.parametrize("lesson_name, positions", [("01", 19), ("05", 9), ("14", 30), ("15", 8)])
def test_sliders_have_a_picture_for_every_position(pages, lesson_name, positions):
    (name,) = (name for name in pages if name.startswith(f"notebooks/{lesson_name}"))
    page = pages[name]
    (slider,) = (field for field in page.inputs if field.get("type") == "range")
    assert (slider["min"], slider["max"]) == ("0", str(positions - 1))
    pictures = {(page.path.parent / source).read_bytes() for source in page.frames}
    assert len(pictures) == positions  # no two alike
    shown = [image["src"] for image in page.images if "frames" in image["src"]]
    assert shown == [page.frames[int(slider["value"])]]


def public_names():
    """The helpers that a room's face hands on or a lesson imports, as (module, name)."""
    code = [path.read_text(encoding="utf-8") for path in ROOT.glob("helpers/**/__init__.py")]
    for path in LESSONS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for source in code:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("helpers."):
                yield from ((node.module, alias.name) for alias in node.names)


def test_every_public_helper_is_in_the_reference(pages):
    ids = {found for name, page in pages.items() if name.startswith("api/") for found in page.ids}
    checked = 0
    for module, name in sorted(set(public_names())):
        thing = getattr(importlib.import_module(module), name, None)
        ours = str(getattr(thing, "__module__", "")).startswith("helpers.")
        if not (ours and callable(thing)):
            continue  # a constant, a module, or a type of another package
        assert thing.__doc__, f"{module}.{name} has no docstring"
        assert f"{thing.__module__}.{thing.__qualname__}" in ids, f"{module}.{name}"
        checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    "docstring, expected",
    [
        ("Twice. Raises ValueError: no number.", "Twice.\n\n:raises ValueError: no number.\n"),
        ("A shape `d *k`, of d *k.", "A shape `d *k`, of d \\*k.\n"),
        ("One.\n\nx = f(y)\nx.show()", "One.\n\n::\n\n    x = f(y)\n    x.show()\n"),
        ("So\n\n    s = u' M u\n\nis it.", "So\n\n::\n\n    s = u' M u\n\nis it.\n"),
        ("* one\n* two", "* one\n* two\n"),
        ("**In** short, *all* of **a, **b.", "**In** short, *all* of \\*\\*a, \\*\\*b.\n"),
    ],
)
def test_docstrings_become_restructured_text(docstring, expected):
    assert "\n".join(module_of_the_book("api").as_rst(docstring.split("\n"))) == expected


def test_signatures_are_lists(pages):
    (html,) = (
        page.path.read_text("utf-8") for name, page in pages.items() if "api/patching" in name
    )
    assert "<dl>\n<dd>" not in html and '<ul class="sig-parameters">\n<li>' in html


def test_no_text_of_a_figure_is_shown_below_nine_pixels():
    legible = module_of_the_book("legible")
    assert legible.least_width(1000, 72 / 110 * 18) == 500  # text of 18 pixels, halved
    assert legible.least_width(500, 5) == 500  # nothing is enlarged
    draw = {"source": "def draw():\n    ax.text(0, 0, 'a', fontsize=7)"}
    cell = {"source": "draw()\nax.set_title('b', fontsize=9)"}
    assert legible.smallest(cell, [draw, cell]) == 7
    assert legible.smallest({"source": "plots.heads(ax, x)"}, []) == 7  # in the helper
    assert legible.smallest({"source": "ax.plot(x)"}, []) == legible.USUAL
