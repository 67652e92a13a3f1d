"""How the helpers and the tools hang together."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("helpers", "tools")
LATER = ("TYPE_CHECKING", "__name__ == '__main__'")  # conditions that are false in an import


def modules(root: Path) -> dict[str, Path]:
    """The modules of the helpers and the tools by their dotted name."""
    paths = sorted(p for package in PACKAGES for p in (root / package).rglob("*.py"))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


class Imports(ast.NodeVisitor):
    """Collects what a module imports, inside functions too, for they may be called at once."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in LATER:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}


def graph(root: Path) -> dict[str, set[str]]:
    """Which of these modules each of them imports; a package's own modules may import from it."""
    known, found = modules(root), {}
    for name, path in known.items():
        imports = Imports()
        imports.visit(ast.parse(path.read_text(encoding="utf-8")))
        packages = {name.rsplit(".", n)[0] for n in range(name.count(".") + 1)}
        found[name] = imports.names & known.keys() - packages
    return found


def test_imports_form_no_cycle():
    imports = graph(ROOT)
    assert len(imports) > 60 and "helpers.geometry" in imports["helpers.das"]
    TopologicalSorter(imports).prepare()


def test_helpers_import_no_tools():
    imports = graph(ROOT)
    assert "helpers.output" in imports["tools.run"]
    for name, used in imports.items():
        tools = sorted(other for other in used if other.startswith("tools"))
        assert not (name.startswith("helpers") and tools), f"{name}: {tools}"


@pytest.mark.parametrize(
    "text, refused",
    [
        ("from helpers.second import x", True),
        ("from helpers import second", True),
        ("def late():\n    import helpers.second", True),
        ("if TYPE_CHECKING:\n    import helpers.second", False),
        ("if __name__ == '__main__':\n    import helpers.second", False),
    ],
)
def test_a_cycle_would_be_noticed(tmp_path, text, refused):
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "first.py").write_text(text)
    (tmp_path / "helpers" / "second.py").write_text("from helpers.first import y")
    try:
        TopologicalSorter(graph(tmp_path)).prepare()
    except CycleError:
        assert refused
    else:
        assert not refused
