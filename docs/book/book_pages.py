"""What the book changes in its pages while Sphinx reads them; the files stay as they are.

Pages without a file, the front page and those of the helpers, are written into the build folder.
"""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import api
import frames
import landing
import legible
import sliders
from sphinx.project import Project

from tools.figures import alternative_texts

MATHJAX = ("tex-chtml.js", "output/chtml", "input/tex/extensions", "a11y", "sre")
REMOTE_IMAGE = re.compile(r"!\[([^]]*)\]\(https?://[^)]*\)")

PART_ONE = "Part I: the paper"
PART_TWO = "Part II: the same question elsewhere"
OTHER_PART = "The project"
PARTS = (PART_ONE, PART_TWO, "Guides", "Reference", OTHER_PART)  # of the sidebar, in this order
FIRST_OF_PART_TWO = "11"


def part_of(document):
    """The part of the sidebar in which a page stands."""
    folder, _, name = document.rpartition("/")
    if folder == "notebooks":
        return PART_ONE if name[:2] < FIRST_OF_PART_TWO else PART_TWO
    return {"docs": "Guides", "api": "Reference"}.get(folder, OTHER_PART)


def table_of_contents(documents):
    """The sidebar's parts as hidden Markdown toctrees, without the front page."""
    parts = {caption: [] for caption in PARTS}
    for name in sorted(documents - {"index"}):
        entry = f"About this project </{name}>" if name == "README" else f"/{name}"
        parts[part_of(name)].append(f"{entry}\n")
    return "\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{''.join(pages)}```\n"
        for caption, pages in parts.items()
        if pages
    )


def _fold(metadata, what):
    """Hide a cell's source behind a line that names it."""
    metadata.setdefault("tags", []).append("hide-input")
    metadata["mystnb"] |= {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}


def _mark(cell, cells):
    """Fold the set-up, hidden sources and what draws; give a figure its words and its class.

    MyST-NB takes them from the cell only, so a cell has one figure.
    """
    metadata, shown = cell["metadata"], cell["metadata"].setdefault("mystnb", {})
    words = alternative_texts(cell)
    if words or metadata.get("jupyter", {}).get("source_hidden"):
        solution = "### BEGIN SOLUTION" in "".join(cell["source"])
        _fold(metadata, "the solution" if solution else "the code")
    if cell["id"] == "setup":
        _fold(metadata, "the set-up, the same in every lesson")
    for alt in words:
        shown["image"] = {"alt": alt, "classes": legible.as_class(legible.smallest(cell, cells))}


def book_markdown(text):
    """Markdown with words for images that would come from outside."""
    return REMOTE_IMAGE.sub(r"\1", text)


def _title(cells, number):
    """The text of the title cell: with the lesson's number, and with the badges of the top line."""
    top, title = ("".join(cells[name]["source"]) for name in ("nav", "title"))
    badges = top.partition("\n\n")[2]
    return title.replace("# ", f"# {number} ", 1) + f"\n\n{badges}"


def as_page(notebook, number):
    """A lesson's JSON as the book shows it.

    The cell at the top is left out, because the book has links to the lessons of its own. What
    else it holds, badges that open the lesson elsewhere, follows the title.
    """
    by_id = {cell["id"]: cell for cell in notebook["cells"]}
    by_id["title"]["source"] = _title(by_id, number)
    cells = [cell for cell in notebook["cells"] if cell["id"] != "nav"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = book_markdown("".join(cell["source"]))
        else:
            _mark(cell, cells)
    return notebook | {"cells": cells}


def add_sliders(cells, number, folder):
    """Put the lesson's sliders after their cells; their pictures go into `folder`."""
    for (lesson, name), (draw, caption) in sliders.SLIDERS.items():
        if lesson != number:
            continue
        drawn = draw(cells)
        for n, frame in enumerate(drawn):
            (folder / frames.file_name(name, n)).write_bytes(frame.png)
        place = [cell["id"] for cell in cells].index(name) + 1
        points = legible.smallest(cells[place - 1], cells)
        html = frames.as_html(name, drawn, points, caption)
        slider = {"cell_type": "markdown", "id": f"{name}-slider", "metadata": {}, "source": html}
        cells.insert(place, slider)


def change_source(app, docname, content):
    """Sphinx's hook for the text of a page just read, which it changes in `content[0]`."""
    if docname.startswith("notebooks/"):
        number = Path(docname).name[:2]
        page = as_page(json.loads(content[0]), number)
        add_sliders(page["cells"], number, work_folder(app, "frames"))
        content[0] = json.dumps(page)
    else:
        content[0] = book_markdown(content[0])
    if docname == app.config.root_doc:
        content[0] += "\n" + table_of_contents(app.env.found_docs)


def work_folder(app, name):
    """A folder beside the other work of the build."""
    folder = Path(app.doctreedir) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Repository(Project):
    """The files that Sphinx finds, and pages that lie elsewhere."""

    def __init__(self, project, pages):
        super().__init__(project.srcdir, project.source_suffix)
        self.pages = pages

    def discover(self, *arguments, **options):
        super().discover(*arguments, **options)
        self.docnames.update(self.pages)
        self._docname_to_path.update(self.pages)
        return self.docnames


def add_pages(app):
    """Sphinx's hook before it looks for pages: it shall find those that have no file, too."""
    folder = work_folder(app, "pages")
    texts = {"index": landing.page(), **api.pages()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    for name, picture in landing.pictures().items():
        (folder / name).write_bytes(picture)
    files = {name: folder / f"{name}.md" for name in texts}
    app.project = app.env.project = Repository(app.project, files)


def mend_lesson(app, pagename, templatename, context, doctree):
    """Sphinx's hook for a page's HTML: figures in boxes of their own, linked to their full size.

    What folds is named by its words: a label in their place would say something else.
    """
    if pagename.startswith("notebooks/"):
        html = context["body"].replace('<summary aria-label="Toggle hidden content">', "<summary>")
        context["body"] = legible.in_boxes(html, Path(app.doctreedir) / "outputs")


def copy_mathjax(static):
    """Copy the part of the installed MathJax that the pages use, 24 MB less the rest."""
    package = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    for name in MATHJAX:
        source, target = package / name, static / "mathjax" / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def finish(app, error):
    """Sphinx's hook for a finished book: add MathJax and the pictures of the sliders."""
    if error is None and app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        copy_mathjax(static)
        shutil.copytree(work_folder(app, "frames"), static / "frames", dirs_exist_ok=True)


def keep_outputs_in_build(app):
    """Let myst-nb put the stored figures beside its other work, not beside the book."""
    folder = str(work_folder(app, "outputs"))
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=folder)


def setup(app):
    app.connect("builder-inited", keep_outputs_in_build, priority=900)  # after myst-nb
    app.connect("builder-inited", add_pages)
    app.connect("html-page-context", mend_lesson)
    app.connect("source-read", change_source)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
