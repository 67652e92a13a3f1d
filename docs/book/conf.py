"""The lessons and pages as a static HTML book.

    python -m sphinx -b html -c docs/book -d build/doctrees -W --keep-going . site

The sources are the files of the repository where they stand, so their links need no rewriting.
Lessons are shown with their stored outputs. Only what sliders show is drawn anew (sliders.py), and
the helpers are imported for their reference (api.py). The pages ask for nothing from outside:
MathJax, styles and icons are copied into the book.
"""

import sys
from pathlib import Path

import yaml

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent.parent
sys.path[:0] = [str(BOOK), str(ROOT)]  # for book_pages.py and for the helpers

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
project = CITATION["title"].split(":")[0]
author = CITATION["authors"][0]["name"]
release = version = str(CITATION["version"])
copyright = f"{CITATION['date-released'].year}, {author}"
html_title = project

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["sphinx.ext.viewcode", "api", "book_pages"]
root_doc = "index"  # made by landing.py
include_patterns = ["*.md", "docs/*.md", "data/README.md", "notebooks/*.ipynb"]
# Folders without pages, named so that Sphinx does not walk through them.
exclude_patterns = [
    folder.name
    for folder in ROOT.iterdir()
    if folder.is_dir() and folder.name not in ("notebooks", "docs", "data")
]

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # no widgets are stored, and their script would come from outside
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings have code in single backticks
add_module_names = False  # the heading above names the module
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # a name of a shape may begin with a star
napoleon_custom_sections = [("Environment variables", "params_style")]

mathjax_path = "mathjax/tex-chtml.js"  # put there by book_pages.py

html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_favicon = "static/favicon.svg"
html_show_sourcelink = False
html_copy_source = False
html_use_index = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has the search field
    "show_toc_level": 2,
}
html_context = {"default_mode": "light"}
