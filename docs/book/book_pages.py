"""What the book changes in its pages while Sphinx reads them; the files stay as they are."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from tools.figures import alternative_texts

MATHJAX = ("tex-chtml.js", "output/chtml", "input/tex/extensions", "a11y", "sre")
REMOTE_IMAGE = re.compile(r"!\[([^]]*)\]\(https?://[^)]*\)")

PARTS = {"notebooks": "Lessons", "docs": "Guides"}  # a folder's part of the book
OTHER_PART = "The project"


def table_of_contents(documents):
    """The sidebar's parts as hidden Markdown toctrees, without the front page."""
    parts = {caption: [] for caption in (*PARTS.values(), OTHER_PART)}
    for name in sorted(documents - {"README"}):
        parts[PARTS.get(name.split("/")[0], OTHER_PART)].append(f"/{name}\n")
    return "\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{''.join(pages)}```\n"
        for caption, pages in parts.items()
        if pages
    )


def _fold(metadata, what):
    """Hide a cell's source behind a line that names it."""
    metadata.setdefault("tags", []).append("hide-input")
    metadata["mystnb"] |= {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}


def _mark(cell):
    """Fold the set-up and hidden sources, and give a figure its alternative text.

    MyST-NB takes that text from the cell only, so a cell has one figure.
    """
    metadata, shown = cell["metadata"], cell["metadata"].setdefault("mystnb", {})
    if metadata.get("jupyter", {}).get("source_hidden"):
        solution = "### BEGIN SOLUTION" in "".join(cell["source"])
        _fold(metadata, "the solution" if solution else "the code")
    if cell["id"] == "setup":
        _fold(metadata, "the set-up, the same in every lesson")
    for alt in alternative_texts(cell):
        shown["image"] = {"alt": alt}


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
            _mark(cell)
    return notebook | {"cells": cells}


def change_source(app, docname, content):
    """Sphinx's hook for the text of a page just read, which it changes in `content[0]`."""
    if docname.startswith("notebooks/"):
        number = Path(docname).name[:2]
        content[0] = json.dumps(as_page(json.loads(content[0]), number))
    else:
        content[0] = book_markdown(content[0])
    if docname == app.config.root_doc:
        content[0] += "\n" + table_of_contents(app.env.found_docs)


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
    """Sphinx's hook for a finished book: add MathJax, and the front page as `index.html`."""
    if error is None and app.builder.format == "html":
        out = Path(app.outdir)
        copy_mathjax(out / "_static")
        shutil.copyfile(out / f"{app.config.root_doc}.html", out / "index.html")


def keep_outputs_in_build(app):
    """Let myst-nb put the stored figures beside its other work, not beside the book."""
    folder = str(Path(app.doctreedir) / "outputs")
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=folder)


def setup(app):
    app.connect("builder-inited", keep_outputs_in_build, priority=900)  # after myst-nb
    app.connect("source-read", change_source)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
