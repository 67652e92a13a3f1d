"""Which cells an answer needs: those before it that define a name it uses.

An answer runs apart from its notebook. Cells that only explore, plot or load a model are left out,
so that they cost no time and cannot fail.
"""

import ast
import functools
import symtable
from collections.abc import Iterator, Sequence, Set

LOADERS = {"load_model", "load_untrained", "shared_model"}  # there is no model where answers run


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


@functools.lru_cache(4096)  # a cell is looked at once for every exercise
def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a source defines, and those it uses; none if it is no valid Python."""
    try:
        top = symtable.symtable(source, "cell", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(), set()
    defined, used = set(), set()
    for table in _tables(top):
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                if symbol.is_assigned() or symbol.is_imported():
                    defined.add(symbol.get_name())
                if symbol.is_referenced():
                    used.add(symbol.get_name())
    return defined, used


@functools.lru_cache(4096)
def plain(source: str) -> str:
    """A cell without IPython's commands (`%time`, `!ls`), its lines where they were."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        lines = source.split("\n")
        return "\n".join(f"# {s}" if s.lstrip()[:1] in ("%", "!") else s for s in lines)
    return source


def pieces(source: str) -> list[str]:
    """A cell of the lesson as parts that can run alone: each import, then the rest.

    The rest is left out if it loads a model.
    """
    body = ast.parse(source).body
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = ast.Module([node for node in body if node not in imports], type_ignores=[])
    parts = [*map(ast.unparse, imports), ast.unparse(rest)]
    return [part for part in parts if part and not names(part)[1] & LOADERS]


def needed(parts: Sequence[str], answer: str, own: Set[str] = frozenset()) -> list[str]:
    """Those parts, in order, that define what the answer uses, or what another such part uses.

    Of the student's `own` parts also those that only use such a name: they may change its value.
    """
    wanted, kept = names(answer)[1], []
    for part in reversed(parts):
        defined, used = names(part)
        touched = defined | used if part in own else defined
        if touched & wanted or " import *" in part:
            kept.append(part)
            wanted = wanted | used
    return kept[::-1]
