"""Lessons as files: executed in order, clean, alike where they should be."""

import ast
import base64
import json
import re
import statistics
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FEWEST_EXERCISES = 3  # in all lessons but the first, which only opens the series
SHOWS = ("plots.show", "plots.effects")  # what shows a figure and takes its words
EASY = {f"{n:02}" for n in range(6, 17)}  # keep to the limits of `test_easy_to_read`
FEWEST_LETTERS = 40  # of a figure's alternative text


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    notebook = nbformat.read(request.param, as_version=4)
    notebook.path = request.param
    return notebook


def code(lesson):
    return [cell for cell in lesson.cells if cell.cell_type == "code"]


def outputs(lesson):
    return [output for cell in code(lesson) for output in cell.outputs]


def text(lesson):
    return "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")


def test_there_are_lessons_numbered_from_zero():
    assert [path.name[:2] for path in LESSONS] == [f"{n:02}" for n in range(len(LESSONS))] != []


def test_valid(lesson):
    nbformat.validate(json.loads(lesson.path.read_text(encoding="utf-8")))


def test_executed_from_top_to_bottom(lesson):
    counts = [cell.execution_count for cell in code(lesson)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_clean(lesson):
    for output in outputs(lesson):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    stored = json.dumps([output for output in outputs(lesson)])
    assert not re.search(r"/(home|root|work|tmp|Users|usr)/|[A-Z]:\\\\", stored)


def test_nothing_of_the_run_is_left_in_the_metadata(lesson):
    assert set(lesson.metadata) <= {"kernelspec", "language_info"}
    assert not any("execution" in cell.metadata for cell in lesson.cells)


def test_small_enough_to_read_in_a_browser(lesson):
    assert lesson.path.stat().st_size < 1_000_000


def test_the_setup_cell_is_the_same_everywhere(lesson):
    first = code(lesson)[0]
    assert first.id == "setup"
    assert first.source == code(nbformat.read(LESSONS[0], as_version=4))[0].source


def test_fixed_parts_are_there(lesson):
    headings = re.findall(r"^#+ (.*)", text(lesson), flags=re.M)
    assert "What to take away" in headings
    for phrase in ("**You will do:**", "**You will learn**", "**You need:**", "does not show"):
        assert phrase in text(lesson), phrase


def test_exercises_have_hints_solution_and_check(lesson):
    ids = [cell.id for cell in lesson.cells]
    exercises = re.findall(r"^### Exercise (\d+)", text(lesson), flags=re.M)
    assert exercises == [str(n) for n in range(1, len(exercises) + 1)]
    assert len(exercises) >= FEWEST_EXERCISES or lesson.path == LESSONS[0]
    for cell in lesson.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("### Exercise"):
            assert cell.source.count("<summary>Hint") == 2
            assert "Difficulty" in cell.source
            solution, check = (lesson.cells[ids.index(cell.id) + step] for step in (1, 2))
            assert "### BEGIN SOLUTION" in solution.source and "### END SOLUTION" in solution.source
            assert solution.metadata["jupyter"]["source_hidden"]
            assert "checks.check_" in check.source


def is_open(cell):
    """Whether a reader sees its source: not that of the set-up, nor what is folded."""
    return cell.id != "setup" and not cell.metadata.get("jupyter", {}).get("source_hidden")


def test_cells_fit_on_a_screen(lesson):
    lines = sorted(len(cell.source.splitlines()) for cell in code(lesson) if cell.id != "setup")
    assert lines[-1] <= 35
    assert lines[len(lines) // 2] <= 12


@pytest.mark.parametrize("number", sorted(EASY))
def test_easy_to_read(number):
    """Few cells, short ones, and what only draws or records is folded like a solution."""
    lesson = nbformat.read(LESSONS[int(number)], as_version=4)
    assert len(lesson.cells) <= 60
    long = {c.id: len(c.source.split()) for c in lesson.cells if c.cell_type == "markdown"}
    assert {name: words for name, words in long.items() if words > 120} == {}
    drawn = [cell for cell in code(lesson) if "plots.show(" in cell.source]
    assert not [cell.id for cell in drawn if is_open(cell)]
    open_ = [cell for cell in code(lesson) if is_open(cell)]
    lines = [len([line for line in c.source.splitlines() if line.strip()]) for c in open_]
    assert statistics.median(lines) <= 8


def test_cell_ids_are_words(lesson):
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id) for cell in lesson.cells)


def words_in(source):
    """The alternative texts that a cell gives its figures, as patterns: numbers are computed."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in SHOWS:
            (alt,) = [keyword.value for keyword in call.keywords if keyword.arg == "alt"]
            parts = alt.values if isinstance(alt, ast.JoinedStr) else [alt]
            fixed = (part.value if isinstance(part, ast.Constant) else None for part in parts)
            yield "".join(".+" if text is None else re.escape(text) for text in fixed)


def test_every_figure_has_words_of_its_own(lesson):
    for cell in code(lesson):
        images = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if not images:
            continue
        (image,), (pattern,) = images, words_in(cell.source)
        alt = image.metadata["image/png"]["alt"]
        assert len(alt) >= FEWEST_LETTERS and alt.endswith("."), cell.id
        assert re.fullmatch(pattern, alt), cell.id
        assert image.data["text/plain"] == alt, cell.id


def test_every_figure_is_followed_by_words(lesson):
    for cell, following in zip(lesson.cells, lesson.cells[1:], strict=False):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
            assert following.cell_type == "markdown", cell.id


@pytest.mark.parametrize(
    "page", [*LESSONS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name
)
def test_links_to_files_lead_somewhere(page):
    source = page.read_text(encoding="utf-8")
    source = text(nbformat.reads(source, as_version=4)) if page.suffix == ".ipynb" else source
    for link in re.findall(r"\]\(([^)#]+)\)", source):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize(
    ("number", "name", "picture"),
    [(1, "plane-figure", "illusion.png"), (3, "controls-figure", "catch.png")],
)
def test_the_readme_shows_the_figures_of_lessons(number, name, picture):
    lesson = nbformat.read(LESSONS[number], as_version=4)
    (cell,) = [cell for cell in lesson.cells if cell.id == name]
    (image,) = [output.data["image/png"] for output in cell.outputs if "data" in output]
    assert (ROOT / "docs" / picture).read_bytes() == base64.b64decode(image)


def test_the_readme_is_short_and_lists_every_lesson():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{path.name}" in readme for path in LESSONS)
    assert len(readme.splitlines()) <= 120


def test_later_cells_do_not_need_the_answers(lesson):
    """What an exercise defines is only used by its check, or as `checks.accepted` hands it on."""
    answers = set()
    for cell in code(lesson):
        tree = ast.parse(cell.source)
        if "### BEGIN SOLUTION" in cell.source:
            answers |= {node.name for node in tree.body if hasattr(node, "name")}
            continue
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        checked = [call for call in calls if ast.unparse(call.func).startswith("checks.")]
        allowed = {id(node) for call in checked for node in ast.walk(call)}
        answers -= {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and any(call in checked for call in ast.walk(node.value))
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        used = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load)
            and id(node) not in allowed
        }
        arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        stored = {
            node.id
            for node in ast.walk(tree)
            if isinstance(getattr(node, "ctx", None), ast.Store) and isinstance(node, ast.Name)
        }
        assert not (used & answers) - arguments - stored, cell.id
