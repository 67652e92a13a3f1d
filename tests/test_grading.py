"""Grading: one batch of honest, unlucky and hostile notebooks, each of which gets its own due."""

import copy
import csv
import html
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from test_reference import assert_in_order

from tools.classroom import (
    assignment,
    box,
    grade,
    gradebook,
    submission,
)
from tools.classroom.submission import Cell, Restored, Submission, names, needed, pieces, plain

WORKS = not box.fails([*box._bubblewrap(box.Limits()), "-c", ""])
boxed = pytest.mark.skipif(not WORKS, reason="bubblewrap is not installed, or may not work here")

NUMBERS = [lesson.number for lesson in assignment.lessons_with_exercises()]
SECONDS = 10  # for each answer
POINTS = {"patch": 1, "angle": 2, "split": 2, "build": 3}  # of lesson 01
FILE = "01_build_the_illusion_by_hand.ipynb"
LOOP = "def predicted_output(a):\n    while True:\n        pass"
MINE = "def predicted_output(a):\n    return 4 * (2 * a).sin() + 1"
RIGHT_ANGLE = "def predicted_output(a):\n    return 1 + 4 * torch.sin(2 * a)"
WRONG_SPLIT = "def split(direction, w_out):\n    return direction, 0 * direction"


@dataclass
class Master:
    """A lesson and what students get of it."""

    lesson: assignment.Lesson
    release: nbformat.NotebookNode


@pytest.fixture(scope="module")
def master():
    lesson = assignment.read_lesson("01")
    return Master(lesson, assignment.student_notebook(lesson))


def cell_of(notebook, exercise, part="solution"):
    return next(c for c in notebook.cells if c.id == f"exercise-{exercise}-{part}")


def answered(master, **answers):
    """The student's notebook with the lesson's solutions, or other answers."""
    notebook = copy.deepcopy(master.release)
    for name in POINTS:
        target = cell_of(notebook, name)
        source = answers.get(name, cell_of(master.lesson.notebook, name).source)
        target.source = f"# exercise: lesson 01, {name}\n{source}"
    return notebook


def stripped(notebook):
    """What an editor leaves that knows neither metadata nor ids."""
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = nbformat.from_dict({}), f"other-{number}"
    return notebook


def with_helper(master):
    """An answer that uses a cell which the student added, in a cell that was split in two."""
    notebook = answered(master, split="def split(v, w):\n    return both(v, w)")
    place = notebook.cells.index(cell_of(notebook, "split"))
    source = "%matplotlib inline\ndef both(v, w):\n    r = project(v, w)\n    return r, v - r"
    below = "project = lambda v, w: (v @ w) / (w @ w) * w"
    for text in (source, below, "raise RuntimeError('not needed')"):
        notebook.cells.insert(place, nbformat.v4.new_code_cell(text))
    return notebook


def overwriting(master):
    """Wrong answers, and the checks replaced in every way one can think of."""
    lies = (
        "from helpers.lessons import checks\nimport torch, sys\n"
        "for name in checks.__all__:\n    setattr(checks, name, lambda *a, **k: None)\n"
        "sys.modules['helpers.lessons.checks'] = checks\n"
        "torch.allclose = lambda *a, **k: True\n"
    )
    notebook = answered(master, split=lies + WRONG_SPLIT)
    notebook.cells.insert(1, nbformat.v4.new_code_cell(lies))
    test = cell_of(notebook, "split", "check")
    test.source, test.metadata.nbgrader.points = "print('fine')", 100
    return notebook


def copied_twice(master):
    """The cell of an exercise copied, first with a wrong answer and then with the right one."""
    notebook = answered(master)
    right = cell_of(notebook, "split")
    wrong = nbformat.v4.new_code_cell(WRONG_SPLIT, metadata=copy.deepcopy(right.metadata))
    empty = copy.deepcopy(cell_of(master.release, "split"))
    place = notebook.cells.index(right)
    notebook.cells[place : place + 1] = [wrong, right, empty]
    return notebook


def deleting(master):
    notebook = answered(master)
    gone = {"exercise-split-solution", "exercise-build-check", "exercise-patch-solution"}
    notebook.cells = [cell for cell in notebook.cells if cell.id not in gone]
    return notebook


def notebooks(master):
    """Every student's notebook, and the points that are due."""
    crash = "def split(direction, w_out):\n    return 1 / 0"
    end = "import os\nos.kill(os.getppid(), 9)\nwhile True: pass"
    return {
        "good": (answered(master, angle=MINE), 8),
        "partly": (answered(master, split=WRONG_SPLIT), 6),
        "unlucky": (answered(master, split=crash, angle="def predicted_output(a:"), 4),
        "loop": (answered(master, angle=LOOP, split=end), 4),
        "deleting": (deleting(master), 5),
        "overwriting": (overwriting(master), 6),
        "stripped": (stripped(answered(master, split=WRONG_SPLIT)), 6),
        "helper": (with_helper(master), 8),
        "copied": (copied_twice(master), 8),
        "untouched": (copy.deepcopy(master.release), 0),
        "public": (copy.deepcopy(master.lesson.notebook), 8),
    }


@pytest.fixture(scope="module")
def batch(master, tmp_path_factory):
    """All of them graded in one run of the command."""
    if not WORKS:
        pytest.skip("bubblewrap is not installed, or may not work here")
    folder, out = tmp_path_factory.mktemp("submissions"), tmp_path_factory.mktemp("out")
    due = {}
    (out / "grades.csv").write_text("an earlier result")
    for student, (notebook, points) in notebooks(master).items():
        place = folder / f"{student}.ipynb"
        if student in ("good", "partly"):
            place = folder / student / "renamed (2).ipynb"
            place.parent.mkdir()
        nbformat.write(notebook, place)
        due[student] = points
    nbformat.write(master.release, folder / "smithbob_LATE_17_100_01_build.ipynb")
    nbformat.write(answered(master, split=WRONG_SPLIT), folder / "smithbob_17_200_01_build-1.ipynb")
    (folder / "broken.ipynb").write_text('{"cells": [')
    (folder / "link.ipynb").symlink_to(folder / "helper.ipynb")
    (folder / "folder.ipynb").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), folder / "empty.ipynb")
    before = {path: path.read_bytes() for path in folder.rglob("*.ipynb") if path.is_file()}
    arguments = ["--submissions", str(folder), "--out", str(out), "--seconds", str(SECONDS)]
    status = grade.main(arguments)
    assert {path: path.read_bytes() for path in before} == before
    return status, out, due


def table(out, name="grades.csv"):
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row(out, student):
    return next(row for row in table(out) if row["student"] == student)


def exercise_row(out, student, exercise):
    rows = table(out, "grades_by_exercise.csv")
    return next(r for r in rows if (r["student"], r["exercise"]) == (student, exercise))


def page(out, student):
    text = (out / "feedback" / f"{student}_lesson_01.html").read_text(encoding="utf-8")
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text)))


def test_every_student_gets_what_is_due(batch):
    status, out, due = batch
    found = {student: float(row(out, student)["points"]) for student in due}
    assert found == due
    assert all(row(out, student)["max_points"] == "8" for student in due)
    assert all(row(out, student)["lesson"] == "01" for student in due)
    assert status == 1  # some could not be read


def test_points_by_exercise_add_up(batch):
    _, out, due = batch
    rows = table(out, "grades_by_exercise.csv")
    for student in due:
        mine = [r for r in rows if r["file"] == row(out, student)["file"]]
        assert {r["exercise"]: int(r["max_points"]) for r in mine} == POINTS
        assert sum(float(r["points"]) for r in mine) == due[student]


@pytest.mark.parametrize(
    "student, reason",
    [
        ("broken", "not JSON"),
        ("link", "a link"),
        ("folder", "no file"),
        ("empty", "lesson cannot be told"),
    ],
)
def test_what_cannot_be_read_says_why(batch, student, reason):
    _, out, _ = batch
    assert float(row(out, student)["points"]) == 0
    assert reason in row(out, student)["notes"]


@pytest.mark.parametrize(
    "student, exercise, message",
    [
        ("partly", "split", "row part"),
        ("unlucky", "split", "ZeroDivisionError: division by zero (line 3 of your cell)"),
        ("loop", "angle", f"no answer in {SECONDS} seconds"),
        ("loop", "split", "ended the box that it ran in"),
        ("unlucky", "angle", "SyntaxError"),
        ("deleting", "split", "not been answered"),
        ("overwriting", "split", "row part"),
        ("untouched", "build", "not been answered"),
    ],
)
def test_the_reason_stands_in_table_and_feedback(batch, student, exercise, message):
    _, out, _ = batch
    assert message in exercise_row(out, student, exercise)["message"]
    assert message in page(out, student)


@pytest.mark.parametrize(
    "student, note",
    [
        ("stripped", "had lost its cell metadata (Colab does that); its exercises were found"),
        ("deleting", "The cell of exercise 'split' is not there"),
        ("overwriting", "The check of exercise 'split' was changed"),
        ("copied", "There are 2 answers to exercise 'split'"),
    ],
)
def test_what_was_mended_is_noted(batch, student, note):
    _, out, _ = batch
    assert note in row(out, student)["notes"]
    assert note in page(out, student)


def test_good_submissions_get_no_notes(batch):
    _, out, _ = batch
    for student in ("good", "partly", "helper", "untouched"):
        assert row(out, student)["notes"] == ""


@pytest.mark.parametrize(
    "student, flag",
    [
        ("public", "This is the published lesson."),
        ("partly", "'patch' is the published solution. 'angle' is the published solution (one"),
        ("untouched", ""),
        ("good", "'patch' is"),
    ],
)
def test_what_equals_the_published_answers_is_flagged(batch, student, flag):
    _, out, _ = batch
    found = row(out, student)["same_as_published"]
    assert found.startswith(flag) and bool(found) == bool(flag)
    assert student != "good" or "'angle'" not in found
    assert "published" not in page(out, student)  # a teacher's business


def test_the_later_of_two_counts_and_canvas_can_import_it(batch):
    _, out, _ = batch
    assert [r["file"] for r in table(out) if r["student"] == "smithbob"] == [
        "smithbob_17_200_01_build-1.ipynb"
    ]
    assert (out / "canvas.csv").read_text().splitlines() == [
        "Student,ID,SIS User ID,SIS Login ID,Section,Lesson 01",
        "Points Possible,,,,,8",
        "smithbob,17,,,,6",
    ]


def test_the_box_stands_in_the_table(batch):
    _, out, due = batch
    assert {row(out, student)["isolation"] for student in due} == {"bubblewrap"}


def test_the_feedback_shows_points_messages_and_the_students_own_lines(batch):
    _, out, _ = batch
    text = page(out, "partly")
    assert "partly: 6 of 8 points" in text and "Checks show completion" in text
    assert "2 def split(direction, w_out): 3 return direction, 0 * direction" in text
    assert "seed" not in text
    assert all(p.stat().st_size < 60_000 for p in (out / "feedback").iterdir())


def test_a_page_has_at_most_60_kilobytes():
    long = "é<&'" * 50_000
    lesson = lesson_01(*(exercise("x", f"Exercise {n}") for n in range(6)))
    rows = [gradebook.Row(e, 0, long, long) for e in lesson.exercises]
    restored = Restored(notes=["a note"] * 8)
    text = gradebook.feedback(gradebook.Result(whose(long), lesson, restored, rows))
    assert 20_000 < len(text.encode()) < 60_000 and "device-width" in text


def test_the_feedback_needs_no_network_and_names_no_machine(batch):
    _, out, _ = batch
    for path in (out / "feedback").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"(https?:)?//", text)
        assert str(assignment.ROOT) not in text and "site-packages" not in text


def test_the_feedback_names_its_language_and_its_headings_are_in_order(batch):
    _, out, _ = batch
    text = (out / "feedback" / "good_lesson_01.html").read_text(encoding="utf-8")
    assert text.lstrip().startswith("<!DOCTYPE html>") and '<html lang="en">' in text
    assert_in_order([int(level) for level in re.findall(r"<h([1-6])\b", text)])


def test_nothing_is_left_behind(batch):
    _, out, _ = batch
    assert {path.name for path in out.iterdir()} == {
        "grades.csv",
        "grades_by_exercise.csv",
        "canvas.csv",
        "feedback",
    }
    assert not psutil.Process().children(recursive=True)


def test_without_a_box_grading_is_refused_unless_there_is_trust(
    master, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(box.shutil, "which", lambda _: None)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    nbformat.write(answered(master, split=WRONG_SPLIT), folder / "anna.ipynb")
    arguments = ["--submissions", str(folder), "--out", str(out)]
    assert grade.main(arguments) == 2
    assert "apt-get install bubblewrap" in capsys.readouterr().err
    assert not (out / "feedback").exists()
    assert grade.main([*arguments, "--trust"]) == 0
    assert row(out, "anna")["points"] == "6" and row(out, "anna")["isolation"] == "none"


# The parts, one by one


def submitted(notebook):
    """The cells of a notebook as they are read from a file."""
    return [submission._cell(json.loads(json.dumps(cell))) for cell in notebook.cells]


def restored(master, notebook):
    return submission.restore(submitted(notebook), master.lesson)


def test_a_stripped_notebook_is_restored_to_what_it_was(master):
    notebook = answered(master)
    whole = restored(master, notebook)
    found = restored(master, stripped(copy.deepcopy(notebook)))
    assert (found.answers, found.before, found.flags) == (whole.answers, whole.before, whole.flags)
    assert set(found.answers) == set(POINTS) and whole.notes == []
    assert found.found == ["the comments in their first lines"]


def test_an_answer_without_any_mark_is_found_by_its_name(master):
    notebook = stripped(answered(master))
    for cell in notebook.cells:
        cell.source = re.sub(r"^# (exercise|check): .*\n", "", cell.source, flags=re.M)
    found = restored(master, notebook)
    assert set(found.answers) == set(POINTS)
    assert found.found == ["the names that their checks call"]


def test_added_cells_are_kept_if_the_answer_needs_them(master):
    before = restored(master, with_helper(master)).before
    assert [part.split("\n")[-1] for part in before["split"]] == [
        "project = lambda v, w: (v @ w) / (w @ w) * w",
        "    return r, v - r",
    ]
    assert before["angle"] == ["import torch"]


def test_an_answer_in_a_new_cell_is_found(master):
    notebook = copy.deepcopy(master.release)
    place = notebook.cells.index(cell_of(notebook, "angle")) + 1
    notebook.cells.insert(place, nbformat.v4.new_code_cell(RIGHT_ANGLE))
    assert restored(master, notebook).answers == {"angle": RIGHT_ANGLE}


def test_comments_and_spaces_do_not_hide_a_copy(master):
    copied = "def split(direction,   w_out):\n    # mine\n    row = (direction @ w_out) * w_out"
    copied += " / (\n        w_out @ w_out)\n    return (row, direction - row)"
    other = copied.replace("row", "part")
    assert (
        "'split' is the published solution."
        in restored(master, answered(master, split=copied)).flags
    )
    assert not any("split" in f for f in restored(master, answered(master, split=other)).flags)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_lesson_is_found_from_what_is_in_the_notebook(number):
    lessons = assignment.lessons_with_exercises()
    lesson = assignment.read_lesson(number)
    cells = [Cell(c.cell_type, c.source) for c in lesson.notebook.cells]
    assert submission.which_lesson(cells, lessons).number == number
    checks = [Cell("code", lesson.exercises[-1].call)]
    assert submission.which_lesson(checks, lessons).number == number


def test_a_notebook_of_no_lesson_is_told_so():
    with pytest.raises(submission.Unreadable, match="--lesson"):
        submission.which_lesson([Cell("code", "x = 1")], assignment.lessons_with_exercises())


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "no nbformat"),
        (b'{"nbformat": 4}', "no cells"),
        (b'{"nbformat": 4, "cells": [1]}', "damaged"),
        (b'{"nbformat": 99, "cells": []}', "format 99"),
        (json.dumps({"nbformat": 4, "cells": [{}] * 1001}).encode(), "1000 cells"),
        (json.dumps({"nbformat": 4, "cells": [{"source": "x" * 2**21}]}).encode(), "characters"),
        (b" " * (20 * 2**20 + 1), "larger than 20 MB"),
    ],
)
def test_damaged_files_are_refused_with_a_reason(content, reason, tmp_path):
    (tmp_path / "x.ipynb").write_bytes(content)
    with pytest.raises(submission.Unreadable, match=reason):
        submission.read_cells(tmp_path / "x.ipynb")


def test_old_formats_and_odd_values_are_read(tmp_path):
    old = nbformat.v3.new_notebook(
        worksheets=[nbformat.v3.new_worksheet(cells=[nbformat.v3.new_code_cell(input="x = 1")])]
    )
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps(old))
    assert [cell.source for cell in submission.read_cells(path)] == ["x = 1"]
    odd = {"cell_type": "code", "source": ["a\r\n", "b", 3], "metadata": {"nbgrader": []}, "id": 5}
    path.write_text(json.dumps({"nbformat": 4, "cells": [odd, {"source": None}]}))
    assert submission.read_cells(path) == [Cell("code", "a\nb")]


def test_hidden_folders_are_left_out_and_links_not_followed(tmp_path):
    for name in ("a.ipynb", "b/x.ipynb", "b/deep/y.ipynb", ".ipynb_checkpoints/a.ipynb", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.symlink(tmp_path / "b", tmp_path / "z")
    found = submission.find_submissions(tmp_path)
    assert [(s.student, s.path.name) for s in found] == [
        ("a", "a.ipynb"),
        ("b", "y.ipynb"),
        ("b", "x.ipynb"),
    ]


@pytest.mark.parametrize("arguments", [["--submissions", "nowhere"], ["--seconds", "0"], []])
def test_wrong_use_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        grade.main(arguments)
    assert ended.value.code == 2


def test_an_empty_folder_ends_with_status_2(tmp_path, capsys):
    assert grade.main(["--submissions", str(tmp_path)]) == 2
    assert "no notebooks" in capsys.readouterr().err


def test_one_failure_of_ours_does_not_stop_the_others(master, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("=of ours")

    monkeypatch.setattr(submission, "restore", fail)
    nbformat.write(answered(master), tmp_path / "anna.ipynb")
    out = tmp_path / "out"
    assert grade.main(["--submissions", str(tmp_path), "--out", str(out), "--trust"]) == 1
    assert "of ours" in row(out, "anna")["notes"]


def whose(name):
    return Submission(name, Path("a.ipynb"), "a.ipynb")


def exercise(name, title=""):
    return assignment.Exercise("01", name, title, 1, f"checks.check({name})", name)


def lesson_01(*its_exercises):
    return assignment.Lesson("01", Path(), None, its_exercises)


def test_no_table_holds_a_formula():
    results = [gradebook.Result(whose("=1+1"), lesson_01(), Restored(notes=["-2"]))]
    assert gradebook.grades_table(results).splitlines()[1] == "'=1+1,,01,0,0,,'-2,,a.ipynb,"
    hidden = gradebook.Result(whose("x\r=1+1"), lesson_01())
    assert gradebook.grades_table([hidden]).splitlines()[1].startswith("x =1+1,")


def test_students_whose_names_look_alike_get_different_pages(tmp_path):
    names = ("a b", "a_b", "A_B", "../up")
    results = [gradebook.Result(whose(name), lesson_01(), page=name) for name in names]
    gradebook.write_results(results, tmp_path / "out")
    pages = {path.name: path.read_text() for path in (tmp_path / "out" / "feedback").iterdir()}
    assert pages == {
        "a_b_lesson_01.html": "a b",
        "a_b_lesson_01_2.html": "a_b",
        "A_B_lesson_01_3.html": "A_B",
        ".._up_lesson_01.html": "../up",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Which cells an answer needs


def test_names_are_those_of_the_module():
    assert names("import a.b as c\ndef f(x):\n    return g(x) + c.d\ny = [z for z in w]") == (
        {"c", "f", "y"},
        {"g", "c", "w"},
    )
    assert names("s = {a for a in b}, {k: v for k, v in {c: d[0] for c in e}}") == (
        {"s"},
        {"b", "d", "e"},
    )
    assert names("def broken(") == (set(), set())


def test_only_what_an_answer_needs_is_kept():
    parts = ["import a", "import b", "x = a.y", "plot(x)", "def f():\n    return x", "z = f()"]
    assert needed(parts, "answer = f()") == ["import a", "x = a.y", "def f():\n    return x"]
    assert needed(parts, "def answer(b):\n    return b") == []
    assert needed(["from q import *", "y = 1"], "w = 2") == ["from q import *"]


def test_the_students_own_parts_may_change_a_value():
    parts = ["w = {}", "w['a'] = 1", "print(v)"]
    assert needed(parts, "answer = w") == ["w = {}"]
    assert needed(parts, "answer = w", own=set(parts)) == ["w = {}", "w['a'] = 1"]


# What cannot be written, or takes too long


def test_names_and_texts_that_cannot_be_written(tmp_path, master):
    notebook = copy.deepcopy(master.release)  # nothing answered, so that nothing need run
    notebook.cells.append(nbformat.v4.new_markdown_cell("half a character: HALF"))
    folder = tmp_path / "in"
    folder.mkdir()
    text = nbformat.writes(notebook).replace("HALF", "\\ud83d")
    for name in (b"Ren\xe9.ipynb", ("\U0001d400" * 60 + ".ipynb").encode(), b"anna.ipynb"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    given = ["--submissions", str(folder), "--out", str(out), "--lesson", "01", "--trust"]
    assert grade.main(given) == 0
    assert all(row(out, student)["points"] == "0" for student in ("anna", "Ren\ufffd"))
    assert len(list((out / "feedback").iterdir())) == 3


def test_what_was_graded_is_kept_when_something_breaks(master, tmp_path, monkeypatch):
    def breaks_later(*_):
        lesson = lesson_01(exercise("patch"))
        rows = [gradebook.Row(lesson.exercises[0], 1, "fine")]
        yield gradebook.Result(whose("anna"), lesson, rows=rows, page="fine")
        raise KeyboardInterrupt

    monkeypatch.setattr(grade, "grade_all", breaks_later)
    nbformat.write(master.release, tmp_path / "anna.ipynb")
    out = tmp_path / "out"
    assert grade.main(["--submissions", str(tmp_path), "--out", str(out), "--trust"]) == 130
    assert row(out, "anna")["page"] == "anna_lesson_01.html"
    assert (out / "feedback" / "anna_lesson_01.html").read_text() == "fine"


@pytest.mark.parametrize(
    "name, student, number",
    [
        ("anna.ipynb", "anna", ""),
        ("anna/03_catch_the_illusion.ipynb", "anna", ""),
        ("smithanna_12_345_03_catch_the_illusion.ipynb", "smithanna", "12"),
        ("smithanna_LATE_12_345_03_catch_the_illusion-2.ipynb", "smithanna", "12"),
        ("Anna Smith_12_assignsubmission_file_/03.ipynb", "Anna Smith", "12"),
        ("03_catch_the_illusion.ipynb", "03_catch_the_illusion", ""),
    ],
)
def test_names_of_canvas_and_moodle_are_understood(name, student, number, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    (found,) = submission.find_submissions(tmp_path)
    assert (found.student, found.id) == (student, number)


def test_pieces_leave_out_what_loads_a_model():
    assert pieces("import torch\nfrom h import load_model\nmodel = load_model()\nx = 1") == [
        "import torch",
        "from h import load_model",
    ]


def test_commands_of_ipython_are_left_out_and_lines_stay():
    assert plain("%time\n!ls\nx = 1") == "# %time\n# !ls\nx = 1"
    assert plain("x = (7\n  % 2)") == "x = (7\n  % 2)"
