"""Assignments: what students get has no solutions, what teachers get has everything."""

import ast
import functools
import inspect
import io
import json
import re
import shutil
import sys
from importlib.util import find_spec

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from tools.classroom import assignment, grade, replay, student
from tools.classroom.gradebook import Result
from tools.classroom.record import record
from tools.classroom.submission import read_cells, restore
from tools.schedule import find_lessons

needs_nbgrader = pytest.mark.skipif(not find_spec("nbgrader"), reason="needs nbgrader")

NUMBERS = [number for number in find_lessons(assignment.ROOT / "notebooks") if number != "00"]
LESSONS = assignment.ROOT / "notebooks"
SEEDS = (1, 2, 3)  # of hidden tests, by default


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make(number)`: a lesson and the folder of its assignment, made once."""

    @functools.cache
    def make(number):
        lesson = assignment.read_lesson(number)
        folder = tmp_path_factory.mktemp(lesson.assignment) / "made"
        with pytest.MonkeyPatch.context() as patch:
            if number != "01":  # nbgrader takes seconds: for one lesson is enough
                patch.setattr(assignment, "find_spec", lambda _: None)
            assignment.make_assignment(lesson, folder)
        return lesson, folder

    return make


@pytest.fixture(params=NUMBERS)
def made(request, make):
    """An assignment: its lesson, its folder, the student's and the instructor's notebooks."""
    lesson, folder = make(request.param)
    return lesson, folder, read(folder, lesson, "student"), read(folder, lesson, "instructor")


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
        assert not {"cellView", "jupyter"} & cells[exercise.solution_cell].metadata.keys()
    assert not re.search(r"BEGIN|END SOLUTION|HIDDEN", json.dumps(student))


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


def test_points_are_difficulties_and_all_are_there(made):
    lesson, _, _, instructor = made
    text = "\n".join(cell.source for cell in lesson.notebook.cells)
    difficulties = [int(n) for n in re.findall(r"^\*Difficulty (\d)/5", text, flags=re.M)]
    points = [
        c.metadata.nbgrader.get("points", 0) for c in instructor.cells if "nbgrader" in c.metadata
    ]
    assert sorted(filter(None, points)) == sorted(difficulties)
    assert lesson.points == sum(difficulties) and points.count(0) == len(difficulties)
    assert f"| | all | {sum(difficulties)} |" in instructor.cells[0].source


def test_grade_ids_are_unique_over_all_lessons():
    lessons = assignment.lessons_with_exercises()
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
    """Handed in as they are published, they are found, run and judged as everybody's."""
    lesson, folder, _, _ = made
    cells = read_cells(folder / "instructor" / lesson.path.name)
    given = Result(None, lesson, restore(cells, lesson))
    main = sys.modules["__main__"]
    for job in grade.jobs(given, seed=0):
        content = io.BytesIO()
        torch.save(record(job), content)
        assert replay.judge(content.getvalue(), job["name"], job["checks"]) == (True, replay.PASSED)
    sys.modules["__main__"] = main
    assert len(grade.jobs(given, seed=0)) == len(lesson.exercises)


@needs_nbgrader
def test_our_student_version_is_nbgraders(make):
    lesson, folder = make("01")
    release = folder / "autograder" / "release" / lesson.assignment / lesson.path.name
    theirs, ours = nbformat.read(release, as_version=4), read(folder, lesson, "student")
    for cell in theirs.cells:
        cell.metadata.get("nbgrader", {}).pop("checksum", None)
        cell.metadata.get("nbgrader", {}).pop("cell_type", None)
    same = ("id", "cell_type", "source", "metadata")
    for our, their in zip(ours.cells, theirs.cells, strict=True):
        assert all(our[key] == their[key] for key in same), our.id


@needs_nbgrader
def test_nbgrader_itself_grades_the_export(make, tmp_path):
    """Of lesson 01, its cells with exercises only: one answer is right and one is wrong."""
    lesson, folder = make("01")
    course = shutil.copytree(folder / "autograder", tmp_path / "course")
    wanted = {"exercise-patch-solution", "exercise-patch-check"}
    wanted |= {"exercise-split-solution", "exercise-split-check"}
    notebook = read(folder, lesson, "student")
    notebook.cells = [cell for cell in notebook.cells if cell.id in wanted]
    answer = by_id(lesson.notebook)["exercise-patch-solution"].source
    by_id(notebook)["exercise-patch-solution"].source = answer
    place = course / "submitted" / "anna" / lesson.assignment / lesson.path.name
    place.parent.mkdir(parents=True)
    nbformat.write(notebook, place)
    assignment.run_nbgrader(course, "autograde", lesson.assignment)
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        graded = gradebook.find_submission_notebook(place.stem, lesson.assignment, "anna")
        scores = {found.name: found.score for found in graded.grades}
    assert scores["lesson-01-patch-test"] == 1 and scores["lesson-01-split-test"] == 0
    assert sum(scores.values()) == 1


def test_no_badge_leads_from_the_students_copy_to_the_solutions():
    lesson = assignment.read_lesson("01")
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/b/01.ipynb)"
    nav = lesson.notebook.cells[0]
    links, nav.source = nav.source, f"{nav.source}\n\n{badge}\n{badge.replace('Colab', 'Binder')}"
    assert assignment.student_notebook(lesson).cells[0].source == links
    assert badge in assignment.instructor_notebook(lesson).cells[1].source


def test_a_second_run_is_byte_identical(make, tmp_path, monkeypatch):
    lesson, first = make("03")
    monkeypatch.setattr(assignment, "find_spec", lambda _: None)
    assignment.make_assignment(lesson, tmp_path / "out")
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert sum(file.suffix == ".ipynb" for file in files) == 2
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (first / file).read_bytes(), file
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_seed_chooses_the_hidden_tests():
    lesson = assignment.read_lesson("03")
    check = lesson.exercises[0].check_cell
    tests = {by_id(assignment.source_notebook(lesson, s))[check].source for s in (0, 1, 2)}
    assert len(tests) == 3
    for test in tests:
        ast.parse(test)
    assert not set(assignment.hidden_seeds(0)) & set(assignment.hidden_seeds(1))
    assert 0 not in assignment.hidden_seeds(0)


@pytest.fixture
def without_nbgrader(monkeypatch):
    monkeypatch.setattr(assignment, "find_spec", lambda _: None)


def test_without_nbgrader_its_course_is_left_out(without_nbgrader, tmp_path, capsys):
    assert assignment.main(["--lesson", "1", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "4 exercises, 8 points" in said and 'pip install -e ".[classroom]"' in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"student", "instructor"}


@pytest.mark.parametrize("number, message", [("00", "has no exercises"), ("77", "no lesson 77")])
def test_lessons_that_cannot_be_assignments(number, message, tmp_path, capsys):
    assert assignment.main(["--lesson", number, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_replaced(without_nbgrader, tmp_path, capsys):
    theirs = tmp_path / "out" / "anna.ipynb"
    theirs.parent.mkdir()
    theirs.write_text("precious")
    assert assignment.main(["--lesson", "01", "--out", str(theirs.parent)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.read_text() for path in theirs.parent.iterdir()] == ["precious"]


def test_a_failure_leaves_nothing_and_what_a_killed_run_left_goes(
    without_nbgrader, tmp_path, monkeypatch
):
    left = tmp_path / ".out.unfinished" / "instructor"
    left.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(assignment, "instructor_notebook", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            assignment.make_assignment(assignment.read_lesson("01"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assignment.make_assignment(assignment.read_lesson("01"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_copy_for_oneself_has_every_lesson_and_no_solution(tmp_path):
    new = student.make_copy(tmp_path / "mine")
    assert [path.name for path in new] == [p.name for p in find_lessons(LESSONS).values()]
    for path in new:
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"solution stands, folded, in \[[^]]+\]\(([^)]+)\)", text)
        assert "### BEGIN SOLUTION" not in text
        assert len(links) == text.count("### Exercise ") == text.count("raise NotImplementedError")
        for link in links:
            assert (path.parent / link).resolve() == LESSONS / path.name


def test_answers_in_the_copy_are_kept(tmp_path, capsys):
    assert student.main(["--out", str(tmp_path)]) == 0
    answered, gone = sorted(tmp_path.iterdir())[1:3]
    answered.write_text("my answers")
    gone.unlink()
    capsys.readouterr()
    assert student.main(["--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert answered.read_text() == "my answers" and gone.exists()
    assert "1 lessons with empty exercises" in shown and "16 were there already" in shown
    assert student.main(["--out", str(answered)]) == 2
    assert "Choose another with --out" in capsys.readouterr().err


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
