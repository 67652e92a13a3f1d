"""The law of the house: few doors, arrows that run one way, small files, nothing unused."""

import ast
import json
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("helpers", "tools")
LATER = ("TYPE_CHECKING", "__name__ == '__main__'")  # conditions that are false in an import

# A room may use those before it, never those after it.
ROOMS = "output models tasks patching directions attribution circuits".split()
ROOMS += "editing audit claims pictures lessons".split()
MOST_DOORS, MOST_LINES, LONGEST_FILE, LONGEST_FUNCTION = 12, 10010, 350, 40


def modules(root: Path, package: str = "helpers") -> dict[str, Path]:
    """The modules of a package by their dotted name."""
    paths = sorted((root / package).rglob("*.py"))
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


def imported(source: str) -> set[str]:
    """The dotted names that some code imports."""
    imports = Imports()
    imports.visit(ast.parse(source))
    return imports.names


def graph(root: Path) -> dict[str, set[str]]:
    """Which of these modules each of them imports; a package's own modules may import from it."""
    known, found = modules(root), {}
    for name, path in known.items():
        packages = {name.rsplit(".", n)[0] for n in range(name.count(".") + 1)}
        names = imported(path.read_text(encoding="utf-8"))
        found[name] = names & known.keys() - packages
    return found


def code(path: Path) -> str:
    """The Python of a file: of a notebook its cells, of a Markdown file its blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        return "\n".join("".join(cell["source"]) for cell in cells)
    if path.suffix == ".md":
        return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
    return text


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def upward(root: Path) -> list[str]:
    """The imports that run from a room to a later one."""
    order = {name: place for place, name in enumerate(ROOMS)}
    return [
        f"{module} -> {other}"
        for module, others in graph(root).items()
        for other in others
        if room(module) in order and order[room(other)] > order[room(module)]
    ]


def is_face(root: Path, name: str) -> bool:
    return modules(root)[name].name == "__init__.py" and name.count(".") < 2


def handed_on(root: Path) -> dict[str, str]:
    """The names that the faces of rooms hand on, with the module each comes from."""
    faces = [path for path in modules(root).values() if path.name == "__init__.py"]
    return {
        f"helpers.{path.parent.name}.{alias.name}": node.module
        for path in faces
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def used(root: Path, sources: list[str]) -> set[str]:
    """The modules that some code uses, by way of others too; a face alone uses nothing."""
    faces, imports = handed_on(root), graph(root)
    imports = {name: others for name, others in imports.items() if not is_face(root, name)}
    names = set().union(*map(imported, sources))
    new = {faces.get(name, name) for name in names} & imports.keys()
    found = set()
    while new:
        found.add(name := new.pop())
        new |= {faces.get(other, other) for other in imports[name]} & imports.keys() - found
    return found


def test_the_house_has_few_doors():
    doors = {room(name) for name in modules(ROOT)} - {""}
    assert doors == set(ROOMS) and len(doors) <= MOST_DOORS
    lines = sum(len(p.read_text("utf-8").splitlines()) for p in modules(ROOT).values())
    assert lines <= MOST_LINES


def test_every_room_says_what_it_is_for():
    for name in ROOMS:
        face = ROOT / "helpers" / name / "__init__.py"
        tree = ast.parse(face.read_text(encoding="utf-8"))
        docstring, *rest = tree.body
        assert ast.get_docstring(tree) and all(isinstance(n, ast.ImportFrom) for n in rest), name
        assert all(n.module.startswith(f"helpers.{name}.") for n in rest), "of this room only"


def test_imports_form_no_cycle():
    imports = graph(ROOT)
    assert len(imports) > 50
    assert "helpers.directions.geometry" in imports["helpers.directions.search"]
    TopologicalSorter(imports).prepare()


def test_arrows_between_rooms_run_one_way():
    assert upward(ROOT) == []


def test_helpers_never_import_tools():
    for name, path in modules(ROOT).items():
        names = imported(path.read_text(encoding="utf-8"))
        assert not [n for n in names if n.split(".")[0] in ("tools", "tests", "benchmarks")], name


def test_every_module_is_used_by_a_lesson_or_a_documented_example():
    pages = [*ROOT.glob("notebooks/*.ipynb"), ROOT / "README.md", *ROOT.glob("docs/*.md")]
    unused = modules(ROOT).keys() - used(ROOT, list(map(code, pages)))
    assert [name for name in unused if not is_face(ROOT, name)] == []


def test_a_module_that_nobody_uses_would_be_noticed(tmp_path):
    folder = tmp_path / "helpers" / "models"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from helpers.models.load import a, b")
    (folder / "load.py").write_text("def late():\n    from helpers.models import deep")
    for name in ("deep", "spare"):
        (folder / f"{name}.py").write_text("")
    found = used(tmp_path, ["from helpers.models import a"])
    assert found == {"helpers.models.load", "helpers.models.deep"}


def test_files_and_functions_are_small():
    for path in modules(ROOT).values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                documented = ast.get_docstring(node) is not None
                words = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
                length = node.end_lineno - node.lineno + 1 - words
                assert length <= LONGEST_FUNCTION, f"{path}: {node.name}"


def rooms_used(path: Path) -> list[str]:
    """The rooms whose names a lesson imports, in their order; all lessons need `lessons`."""
    names = {room(name) for name in imported(code(path)) if name.startswith("helpers.")}
    order = [*ROOMS[1:-1], ROOMS[0]]  # figures last
    return [name for name in order if name in names]


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.name[:2])
def test_a_lesson_says_which_rooms_it_uses(path):
    cells = {c["id"]: "".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"]}
    (line,) = re.findall(r"^\*\*Rooms used:\*\* (.*) \(", cells["plan"], flags=re.M)
    assert re.findall(r"`(\w+)`", line) == rooms_used(path)
    lines = [line for line in cells["setup"].splitlines() if line.strip()]
    assert len(lines) <= 4, "a beginner's first code is no bootstrap"


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


def test_an_arrow_upwards_would_be_noticed(tmp_path):
    for name, text in (("models", "from helpers.audit.measure import audit"), ("audit", "")):
        (tmp_path / "helpers" / name).mkdir(parents=True)
        (tmp_path / "helpers" / name / "measure.py").write_text(text)
    assert upward(tmp_path) == ["helpers.models.measure -> helpers.audit.measure"]
