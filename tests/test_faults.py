"""Accidents: programs killed in mid-work, folders that take no files, full disks, files of others.

More of them stand where they belong: downloads and models in `test_models`, lessons in `test_run`,
what students try in `test_sandbox`.
"""

import ast
import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
from functools import partial

import pandas as pd
import psutil
import pytest
import torch
from conftest import build_tiny_model
from safetensors import SafetensorError
from safetensors.torch import load_file

from helpers.claims import reference, report
from helpers.editing import moments
from helpers.output import files
from tools import compare, counterfact, run
from tools.classroom import assignment, box, grade, gradebook
from tools.classroom.assignment import Lesson
from tools.classroom.submission import Submission
from tools.report import write_report

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
HANG = """
    import os, time
    from pathlib import Path
    os.replace = lambda *_: (print("here", flush=True), time.sleep(600))
"""


def kill_in_mid_work(*program: str, **variables: str) -> None:
    """Run a program in a process of its own until it prints a line, then kill it."""
    source = "\n".join(map(textwrap.dedent, program))
    environment = {**os.environ, "PYTHONPATH": str(report.ROOT), **variables}
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"here\n"
        process.kill()


@pytest.fixture
def no_folder(tmp_path):
    """A path where there can be no folder, for any user."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "folder"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results folder."""
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", "gpt2")
    return report.results_folder()


@pytest.fixture
def fill_disk(monkeypatch):
    """From its call on no file can be put into its place."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "replace", fail)


# -------------------------------------------------------------------------- killed


@posix_only
def test_a_killed_writer_leaves_the_old_file_and_what_it_left_goes(tmp_path):
    path = tmp_path / "file.txt"
    files.write(path, "old")
    kill_in_mid_work(
        HANG, f"from helpers.output import files; files.write(Path({str(path)!r}), 'new')"
    )
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    files.write(path, "newer")
    assert left.exists()  # for all we know somebody is about to rename it
    theirs = tmp_path / ".file.txt.backup"
    theirs.touch()
    for old in (left, theirs):
        os.utime(old, (0, time.time() - files.ABANDONED - 1))
    files.write(path, "newest")
    assert path.read_text() == "newest" and set(tmp_path.iterdir()) == {path, theirs}


@posix_only
def test_who_is_killed_while_recording_leaves_no_lock_and_no_half_entry(results):
    report.record("C3", -2.5)
    before = (results / "claims.json").read_bytes()
    path = str(results / "claims.json")
    kill_in_mid_work(
        HANG, f"from helpers.claims import report; report.update_json(Path({path!r}), 'C4', {{}})"
    )
    assert (results / "claims.json").read_bytes() == before
    report.record("C3", -3)
    assert report.recorded()["C3"]["value"] == -3 and "C4" not in report.recorded()


@posix_only
def test_killed_grading_leaves_no_process(tmp_path):
    if box.fails([*box._bubblewrap(box.Limits()), "-c", ""]):
        pytest.skip("bubblewrap is not installed, or may not work here")
    program = """
        import threading, time
        from pathlib import Path
        import psutil
        from tools.classroom import box

        def tell():
            while len(psutil.Process().children(recursive=True)) < 3:
                time.sleep(0.02)
            pids = [str(p.pid) for p in psutil.Process().children(recursive=True)]
            Path(PIDS).write_text(" ".join(pids))
            print("here", flush=True)

        threading.Thread(target=tell, daemon=True).start()
        answer = {"exercise": "x", "name": "x", "answer": "while True: pass"}
        job = answer | {"before": [], "checks": []}
        box.run_answers("bubblewrap", [job], box.Limits(), threading.Event())
    """
    pids, place = tmp_path / "pids", tmp_path / "temporary"
    place.mkdir()
    kill_in_mid_work(program.replace("PIDS", repr(str(pids))), TMPDIR=str(place))
    started = pids.read_text().split()
    assert len(started) >= 3 and list(place.iterdir()) == []
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(int(pid)) for pid in started):
        assert time.monotonic() < deadline, "a box outlives who started it"
        time.sleep(0.1)


# -------------------------------------------------------------------------- no place for files


def test_results_that_cannot_be_kept_say_what_to_do(no_folder, monkeypatch, capsys):
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(no_folder))
    monkeypatch.setattr(run, "PREPARE", "")
    monkeypatch.setattr(run, "run_all", lambda *_, **__: pytest.fail("hours of work"))
    for main, arguments in ((run.main, ["--lesson", "01"]), (compare.main, ["smollm2-135m"])):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"Results cannot be kept in {no_folder}")
        assert "SUBSPACE_ILLUSION_RESULTS" in error and "Traceback" not in error
    table = pd.DataFrame({"layer": [0], "patch": "row", "flipped": True})
    for keep in (
        lambda: report.record("C3", -2.5),
        lambda: report.save_site("name", {}, {}),
        lambda: write_report(),
        lambda: reference.save_sweep("facts", table),
    ):
        with pytest.raises(report.ResultsError, match="SUBSPACE_ILLUSION_RESULTS"):
            keep()


def test_lessons_that_cannot_be_saved_in_place_say_so_before_the_work(
    results, no_folder, monkeypatch, capsys
):
    monkeypatch.setattr(run, "PREPARE", "")
    monkeypatch.setattr(run, "find_lessons", lambda _: {"01": no_folder / "01_first.ipynb"})
    monkeypatch.setattr(run, "NOTEBOOKS", no_folder)
    monkeypatch.setattr(run, "run_all", lambda *_, **__: pytest.fail("hours of work"))
    assert run.main(["--inplace"]) == 1
    assert "not be saved: [Errno" in capsys.readouterr().err


@posix_only
def test_lessons_without_a_home_say_what_to_do(monkeypatch, capsys):
    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)  # as for a container's user without an entry
    monkeypatch.setattr(run, "run", lambda *_, **__: pytest.fail("started"))
    assert run.main(["--lesson", "01"]) == 1
    assert "set the environment variable HOME" in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(results, fill_disk):
    table = pd.DataFrame({"layer": [0], "patch": "row", "flipped": True})
    report.record("C3", -2.5)
    reference.save_sweep("facts", table)
    before = {path: path.read_bytes() for path in results.iterdir()}
    fill_disk()
    for keep in (
        lambda: report.record("C3", -3),
        lambda: reference.save_sweep("facts", table.assign(flipped=False)),
        write_report,
    ):
        with pytest.raises(report.ResultsError, match="Make room there"):
            keep()
    assert {path: path.read_bytes() for path in results.iterdir()} == before


def test_a_damaged_results_file_is_named(results, capsys):
    report.record("C3", -2.5)
    (results / "claims.json").write_text('{"C3": {"val')
    for read in (report.recorded, lambda: report.record("C3", -3), write_report):
        with pytest.raises(report.ResultsError, match=r"claims.json is damaged: .* Delete it"):
            read()
    assert compare.main(["gpt2"]) == 1
    assert "claims.json is damaged" in capsys.readouterr().err


def test_a_data_set_that_cannot_be_kept_is_used_all_the_same(no_folder, monkeypatch):
    record = {
        "requested_rewrite": {
            "relation_id": "P103",
            "subject": "A",
            "prompt": "{} speaks",
            "target_true": {"str": "French"},
            "target_new": {"str": "English"},
        },
        "paraphrase_prompts": [],
        "neighborhood_prompts": [],
    }
    monkeypatch.setenv("SUBSPACE_ILLUSION_CACHE", str(no_folder))
    monkeypatch.setattr(counterfact, "_download", lambda url: json.dumps([record]).encode())
    with pytest.warns(UserWarning, match="is not kept"):
        assert counterfact.load_counterfact()["answer"].tolist() == ["French"]


def a_submission(folder):
    (folder / "in").mkdir()
    (folder / "in" / "anna.ipynb").write_text("{}")
    return str(folder / "in")


def test_grades_that_cannot_be_kept_say_what_to_do_before_the_work(
    no_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(grade, "grade_all", lambda *_, **__: pytest.fail("hours of work"))
    assert grade.main(["--submissions", a_submission(tmp_path), "--out", str(no_folder)]) == 2
    assert "Choose a folder for the results with --out" in capsys.readouterr().err
    monkeypatch.setattr(assignment, "find_spec", lambda _: None)
    assert assignment.main(["--lesson", "01", "--out", str(no_folder)]) == 2
    assert "Choose another with --out" in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_grades(tmp_path, monkeypatch, capsys, fill_disk):
    whose = Submission("anna", tmp_path / "anna.ipynb")
    result = gradebook.Result(whose, Lesson("01", tmp_path, None, ()), page="feedback")
    out = tmp_path / "out"
    gradebook.write_results([result], out)
    if os.name == "posix":
        files = [path for path in out.rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    before = (out / "grades.csv").read_bytes()
    monkeypatch.setattr(grade, "find_box", lambda _: "none")
    monkeypatch.setattr(grade, "grade_all", lambda *_: iter([result]))
    fill_disk()
    assert grade.main(["--submissions", a_submission(tmp_path), "--out", str(out)]) == 2
    assert "there is room" in capsys.readouterr().err
    assert (out / "grades.csv").read_bytes() == before


# -------------------------------------------------------------------------- files of others


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_second_moment_that_would_run_code_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACE_ILLUSION_CACHE", str(tmp_path))
    again = partial(moments.cached_second_moment, build_tiny_model("llama"), [1])
    clean = again(tokens := torch.arange(24).reshape(4, 6))[1]
    (path,) = (tmp_path / moments.FOLDER_NAME).glob("*.safetensors")
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "owned"), 2))
    assert torch.equal(again(tokens)[1], clean)
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "owned"), 2))
    with pytest.raises(SafetensorError):  # nor do the benchmarks run it
        load_file(path)
    assert not (tmp_path / "owned").exists()


UNPICKLES = ("pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal")
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


@pytest.mark.parametrize("package", ["helpers", "tools", "benchmarks"])
def test_no_file_is_read_in_a_way_that_can_run_code(package):
    found = []
    for path in sorted((report.ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
                option, value = SAFE.get(name, ("", None))
                unsafe = option and getattr(given.get(option), "value", None) is not value
                owner, _, method = name.partition(".")
                unpickles = owner in UNPICKLES and method.startswith("load")
                if unsafe or unpickles or "read_pickle" in name:
                    found.append(path.relative_to(report.ROOT).as_posix())
    assert found == []
