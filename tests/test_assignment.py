"""Assignments: what students get has no solutions, what teachers get has everything."""

import ast
import functools
import inspect
import json
import re
import shutil
import sys

import nbformat
import pytest
from helpers.classroom import assignment, course, exercises
from helpers.classroom.marking import parts_before
from helpers.classroom.prelude import needed
from nbclient import NotebookClient

pytest.importorskip("nbgrader")

NUMBERS = [number for number in exercises.find_lessons() if number != "00"]
SEEDS = (1, 2, 3)  # of hidden tests, by default


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make(number)`: a lesson and the folder of its assignment, made once."""

    @functools.cache
    def make(number):
        lesson = exercises.read_lesson(number)
        folder = tmp_path_factory.mktemp(lesson.assignment) / "made"
        assignment.make_assignment(lesson, folder)
        return lesson, folder

    return make


@pytest.fixture(params=NUMBERS)
def made(request, make):
    """An assignment: its lesson, its folder, the student's and the instructor's notebooks."""
    lesson, folder = make(request.param)
    return lesson, folder, read(folder, lesson, "student"), read(folder, lesson, "instructor")


@pytest.fixture
def copied(make, tmp_path):
    """A copy of the assignment of lesson 01, to be replaced."""
    _, folder = make("01")
    return shutil.copytree(folder, tmp_path / "out")


def read(folder, lesson, version):
    return nbformat.read(folder / version / lesson.path.name, as_version=4)


def by_id(notebook):
    return {cell.id: cell for cell in notebook.cells}


def in_exercises(lesson):
    return {cell for e in lesson.exercises for cell in (e.solution_cell, e.check_cell)}


def solution_lines(cell):
    """What stands between the marks, read without nbgrader."""
    inside = re.search(r"### BEGIN SOLUTION\n(.*?)\s*### END", cell.source, flags=re.S)[1]
    return [line.strip() for line in inside.splitlines() if line.strip()]


def test_the_student_gets_no_solution(made):
    lesson, _, student, _ = made
    cells = by_id(student)
    for exercise in lesson.exercises:
        stub = cells[exercise.solution_cell].source
        assert "raise NotImplementedError()" in stub
        for line in solution_lines(by_id(lesson.notebook)[exercise.solution_cell]):
            assert line not in stub
    everything = json.dumps(student)
    assert not re.search(r"BEGIN|END SOLUTION|HIDDEN|source_hidden|cellView", everything)


def test_every_stub_raises(made):
    lesson, _, student, _ = made
    for exercise in lesson.exercises:
        namespace, cell = {}, by_id(student)[exercise.solution_cell]
        if "raises-exception" in cell.metadata.get("tags", ()):  # an answer that is no function
            with pytest.raises(NotImplementedError):
                exec(cell.source, namespace)
            continue
        exec(cell.source, namespace)
        function = namespace[exercise.answer]
        with pytest.raises(NotImplementedError):
            function(*[None] * len(inspect.signature(function).parameters))


def test_all_other_cells_are_the_lessons(made):
    lesson, _, student, _ = made
    assert [cell.id for cell in student.cells] == [cell.id for cell in lesson.notebook.cells]
    for cell, original in zip(student.cells, lesson.notebook.cells, strict=True):
        if cell.id not in in_exercises(lesson):
            same = ("cell_type", "source", "metadata")
            assert all(cell[key] == original[key] for key in same), cell.id
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_imports_above_a_solution_stay(made):
    lesson, _, student, _ = made
    for exercise in lesson.exercises:
        full = by_id(lesson.notebook)[exercise.solution_cell].source
        head = full.split("### BEGIN")[0].rstrip()
        assert by_id(student)[exercise.solution_cell].source.startswith(
            f"# exercise: lesson {lesson.number}, {exercise.name}\n{head}"
        )


def test_run_all_gets_past_the_checks(made):
    lesson, _, student, _ = made
    for exercise in lesson.exercises:
        assert "raises-exception" in by_id(student)[exercise.check_cell].metadata.tags


def test_points_are_difficulties_and_nbgrader_adds_them_up(made):
    lesson, folder, _, instructor = made
    text = "\n".join(cell.source for cell in lesson.notebook.cells)
    difficulties = [int(n) for n in re.findall(r"^\*Difficulty (\d)/5", text, flags=re.M)]
    with course._gradebook(folder / "autograder") as gradebook:
        (notebook,) = gradebook.find_assignment(lesson.assignment).notebooks
        assert sorted(cell.max_score for cell in notebook.grade_cells) == sorted(difficulties)
        assert notebook.max_score == sum(difficulties) == lesson.points
        assert len(notebook.solution_cells) == len(difficulties)
    assert f"| | all | {sum(difficulties)} |" in instructor.cells[0].source


def test_grade_ids_are_unique_over_all_lessons():
    lessons = exercises.lessons_with_exercises()
    assert [lesson.number for lesson in lessons] == NUMBERS
    ids = [name for lesson in lessons for e in lesson.exercises for name in (e.grade_id, e.test_id)]
    comments = [e.comment for lesson in lessons for e in lesson.exercises]
    assert len(set(ids)) == len(ids) and len(set(comments)) == len(comments)


def test_the_instructor_sees_everything(made):
    lesson, _, _, instructor = made
    cells, originals = by_id(instructor), by_id(lesson.notebook)
    for exercise in lesson.exercises:
        solution, test = cells[exercise.solution_cell], cells[exercise.check_cell]
        original = originals[exercise.solution_cell].source
        assert solution.source == f"{exercise.comment}\n{original}"
        assert "jupyter" not in solution.metadata and "cellView" not in solution.metadata
        assert f"for seed in {SEEDS}:" in test.source
        assert test.metadata.nbgrader.points == exercise.points
    for cell in instructor.cells[1:]:
        assert cell.get("outputs") == originals[cell.id].get("outputs")


def test_the_lessons_solutions_pass_their_hidden_tests(made):
    lesson, _, _, instructor = made
    for exercise in lesson.exercises:
        namespace, cells = {}, by_id(instructor)
        answer = cells[exercise.solution_cell].source
        for part in needed(parts_before(instructor, exercise)[0], answer):
            exec(part, namespace)
        exec(answer, namespace)
        exec(cells[exercise.check_cell].source, namespace)


def test_a_second_run_is_byte_identical(make, tmp_path):
    lesson, first = make("03")
    assignment.make_assignment(lesson, tmp_path / "out")
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert sum(file.suffix == ".ipynb" for file in files) == 4
    for file in files:
        if file.suffix != ".db":  # nbgrader's gradebook numbers things at random
            assert (tmp_path / "out" / file).read_bytes() == (first / file).read_bytes(), file
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_seed_chooses_the_hidden_tests():
    lesson = exercises.read_lesson("03")
    check = lesson.exercises[0].check_cell
    tests = {by_id(assignment.source_notebook(lesson, s))[check].source for s in (0, 1, 2)}
    assert len(tests) == 3
    for test in tests:
        ast.parse(test)
    assert not set(assignment.hidden_seeds(0)) & set(assignment.hidden_seeds(1))
    assert 0 not in assignment.hidden_seeds(0)


def test_the_command_line_replaces_what_it_made(copied, capsys):
    (copied / "student" / "01_build_the_illusion_by_hand.ipynb").write_text("old")
    assert assignment.main(["--lesson", "1", "--out", str(copied)]) == 0
    assert "4 exercises, 8 points" in capsys.readouterr().out
    assert read(copied, exercises.read_lesson("01"), "student").cells
    assert [path.name for path in copied.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("number, message", [("00", "has no exercises"), ("77", "no lesson 77")])
def test_lessons_that_cannot_be_assignments(number, message, tmp_path, capsys):
    assert assignment.main(["--lesson", number, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_never_replaced(copied, capsys):
    theirs = copied / "autograder" / "submitted" / "anna" / "01.ipynb"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    assert assignment.main(["--lesson", "01", "--out", str(copied)]) == 2
    assert "submitted/anna/01.ipynb" in capsys.readouterr().err
    assert theirs.read_text() == "precious"


def test_a_folder_without_a_manifest_is_never_replaced(copied):
    (copied / "manifest.json").unlink()
    assert assignment.main(["--lesson", "01", "--out", str(copied)]) == 2
    assert (copied / "student").exists()


def test_a_failure_leaves_the_earlier_assignment(copied, monkeypatch):
    monkeypatch.setattr(assignment, "write_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        assignment.make_assignment(exercises.read_lesson("01"), copied)
    assert (copied / "manifest.json").exists()
    assert [path.name for path in copied.parent.iterdir()] == ["out"]


def test_without_nbgrader_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    assert assignment.main(["--lesson", "01", "--out", str(tmp_path / "out")]) == 2
    assert 'pip install -e ".[classroom]"' in capsys.readouterr().err


def test_the_student_version_runs_to_its_end(make, tmp_path, monkeypatch):
    """Lesson 01 needs no model: run it with no exercise answered."""
    lesson, folder = make("01")
    student = read(folder, lesson, "student")
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    place = {"metadata": {"path": str(lesson.path.parent)}}  # it finds the helpers from there
    NotebookClient(student, timeout=120, resources=place).execute()
    failed = {
        cell.id: output.ename
        for cell in student.cells
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    }
    # `my_illusion` is no function: its stub raises at once, and its check then misses the name.
    assert failed.pop("exercise-build-check") == "NameError"
    assert set(failed) == {
        "exercise-patch-check",
        "exercise-angle-check",
        "exercise-split-check",
        "exercise-build-solution",
    }
    assert set(failed.values()) == {"NotImplementedError"}
