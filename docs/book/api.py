"""The helpers' reference: a page for each room, made from the docstrings by autodoc.

Our docstrings are plain text with code in backticks. Before autodoc reads them, what is Python in
them becomes a block of code, and `Raises X: ...` a field.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FACE = "__init__"
PARAMETERS = re.compile(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>")  # Sphinx's lines of a signature
RAISES = re.compile(r"(Raises) ([A-Z]\w+): ")
# what has a meaning: code, bold words, an emphasised word, the star of a list
KEPT = re.compile(r"(`[^`]*`|\*\*\w[^*]*\w\*\*|(?<!\S)\*\w+\*|^ *\* )")


def rooms() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "helpers").glob(f"*/{FACE}.py"))


def modules(room: str) -> list[str]:
    """The modules of a room by their dotted names, its face first."""
    paths = sorted((ROOT / "helpers" / room).rglob("*.py"), key=lambda p: (p.stem != FACE, p))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(f".{FACE}") for name in names]


def handed_on(room: str) -> list[str]:
    """The names that a room's face imports from its own modules."""
    tree = ast.parse((ROOT / "helpers" / room / f"{FACE}.py").read_text(encoding="utf-8"))
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return sorted({alias.asname or alias.name for node in froms for alias in node.names})


def room_page(room: str) -> str:
    """The Markdown of a room's page."""
    face, *others = modules(room)
    parts = [f"# {room}", f"```{{eval-rst}}\n.. automodule:: {face}\n```"]
    names = ", ".join(f"`{name}`" for name in handed_on(room))
    if names:
        parts.append(f"**Import from the room:** `from helpers.{room} import` {names}.")
    for name in others:
        body = f".. automodule:: {name}\n   :members:"
        parts.append(f"## {name.removeprefix(f'{face}.')}\n\n```{{eval-rst}}\n{body}\n```")
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Every room's page by its name in the book."""
    return {f"api/{room}": room_page(room) for room in rooms()}


def is_code(paragraph: list[str]) -> bool:
    """Prose of more than one word is no Python; one word alone, and a list, are taken for prose."""
    text = "\n".join(paragraph)
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    prose = (ast.Name, ast.Constant, ast.Starred)
    return not all(isinstance(getattr(node, "value", node), prose) for node in tree.body)


def escaped(line: str) -> str:
    """Stars without a meaning as plain stars."""
    parts = KEPT.split(line)
    return "".join(p if KEPT.fullmatch(p) else p.replace("*", r"\*") for p in parts)


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Blocks of lines without an empty one."""
    text = "\n".join(lines).strip("\n")
    yield from (part.split("\n") for part in re.split(r"\n\s*\n", text))


def as_prose(paragraph: list[str]) -> list[str]:
    """A paragraph, with what it raises as a field of its own."""
    result, field = [], False
    for line in map(escaped, paragraph):
        before, *found = RAISES.split(line, maxsplit=1) if line[:1] != " " else [line]
        if found:
            result += [before.rstrip()] if before.strip() else []
            result += ["", f":raises {found[1]}: {found[2]}"]
            field = True
        else:
            result.append(f"    {line}" if field else line)
    return result


def as_rst(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    result = []
    for part in paragraphs(lines):
        is_formula = all(line.startswith("    ") for line in part)
        if is_code(part) or (is_formula and "=" in part[0]):
            result += ["::", "", *(line if is_formula else f"    {line}" for line in part), ""]
        else:
            result += [*as_prose(part), ""]
    return result


def process_docstring(app, what, name, obj, options, lines):
    """autodoc's hook, before napoleon's."""
    if lines:
        lines[:] = as_rst(list(lines))


def skip_member(app, what, name, obj, skip, options):
    """Leave out what only Python documents: a bound `str.format`, the fields of a named tuple."""
    is_field = str(getattr(obj, "__doc__", "")).startswith("Alias for field number")
    return True if inspect.isbuiltin(obj) or is_field else None


def list_parameters(html: str) -> str:
    """A signature's lines as a list: descriptions without terms confuse screen readers."""

    def as_list(match: re.Match) -> str:
        items = match[1].replace("<dd>", "<li>").replace("</dd>", "</li>")
        return f'<ul class="sig-parameters">\n{items}</ul>'

    return PARAMETERS.sub(as_list, html)


def mend_signatures(app, pagename, templatename, context, doctree):
    """Sphinx's hook for a page's HTML."""
    if pagename.startswith("api/"):
        context["body"] = list_parameters(context["body"])


def setup(app):
    app.connect("html-page-context", mend_signatures)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True}
