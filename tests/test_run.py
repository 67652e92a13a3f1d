"""Running lessons, on a folder of tiny notebooks that need no model."""

import contextlib
import errno
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.claims import report
from helpers.output import files
from tools import run, stored

PNG = (  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
SHOW = f"from IPython.display import Image, display; import base64; p = base64.b64decode('{PNG}')"

GOOD = {
    "text": "print('model', __import__('os').environ['SUBSPACE_ILLUSION_MODEL'])",
    "value": "6 * 7",
    "one-figure": f"{SHOW}; display(Image(p, alt='One pixel.'))",
    "two-figures": "display(Image(p)); display(Image(p))",
    "not-run": "",
    "unsolved": "raise NotImplementedError",
    "python": "import sys, pathlib\n"
    f"print(sys.executable == {sys.executable!r}, pathlib.Path.cwd().name)",
}
BAD = {
    "fine": "print('before')",
    "broken": "# divide\nx = 1 / 0",
    "never": "print('after')",
}


def write_lesson(path, sources):
    cells = [new_code_cell(source, id=name) for name, source in sources.items()]
    for cell in cells:
        cell.metadata = {"execution": {"iopub.status.busy": "2026-01-01T00:00:00Z"}}
        cell.execution_count = 99
        if cell.id == "unsolved":
            cell.metadata["tags"] = ["raises-exception"]
    notebook = new_notebook(cells=[new_markdown_cell("# A lesson", id="title"), *cells])
    notebook.metadata = {"widgets": {"state": {}}, "language_info": {"name": "x", "version": "2"}}
    nbformat.write(notebook, path)


def code_cells(path):
    return {c.id: c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"}


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    """A notebooks folder with two good lessons around a bad one; no model is loaded."""
    folder = tmp_path / "Hefte einer Schülerin 学"
    folder.mkdir()
    write_lesson(folder / "01_first.ipynb", GOOD)
    write_lesson(folder / "02_bad.ipynb", BAD)
    write_lesson(folder / "03_last.ipynb", {"text": "print('still here')"})
    write_lesson(folder / "notes.ipynb", BAD)
    monkeypatch.setattr(run, "NOTEBOOKS", folder)
    monkeypatch.setattr(run, "PREPARE", "print('model ready')")
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", "gpt2")
    monkeypatch.setenv("PYTHONPATH", str(report.ROOT))
    return folder


@pytest.fixture
def results(lessons):
    return report.results_folder()


def test_happy_path(lessons, results, capfd):
    claim = {"claim": "from helpers.claims.report import record; _ = record('C3', -2.5)"}
    write_lesson(lessons / "03_last.ipynb", claim)
    before = (lessons / "01_first.ipynb").read_bytes()
    assert run.main(["--lesson", "1", "03"]) == 0
    shown = capfd.readouterr().out
    assert shown.index("model ready") < shown.index("01_first")
    assert "7/7 cells" in shown and "1/1 cells" in shown and "02_bad" not in shown
    assert "peak 0.0 GB" not in shown.splitlines()[1]
    assert f"Results are in {results}" in shown and "report.html, .md and .json" in shown
    assert re.search(r"^Part I +1 claims +replicated 1$", shown, flags=re.M)
    assert re.search(r"^Part I +1 could have failed +replicated 1$", shown, flags=re.M)
    assert "Part II" not in shown and "did not hold" not in shown
    cells = code_cells(results / "notebooks" / "01_first.ipynb")
    assert cells["text"].outputs[0].text == "model gpt2\n"
    assert cells["python"].outputs[0].text == f"True {lessons.name}\n"
    for kind in ("md", "html"):
        assert (
            "not: 0 · depends on a choice: 0 · not testable here: 0"
            in (results / f"report.{kind}").read_text()
        )
    entry = json.loads((results / "report.json").read_text())["claims"]["C3"]
    assert entry["ours"]["value"] == -2.5
    assert (lessons / "01_first.ipynb").read_bytes() == before


def test_model_is_passed_on(lessons):
    assert run.main(["--lesson", "01", "--model", "some/model-7b"]) == 0
    cells = code_cells(report.results_folder("some/model-7b") / "notebooks" / "01_first.ipynb")
    assert cells["text"].outputs[0].text == "model some/model-7b\n"


def test_a_model_folder_is_made_absolute(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", "gpt2")
    run.choose("SUBSPACE_ILLUSION_MODEL", "mine")
    assert os.environ["SUBSPACE_ILLUSION_MODEL"] == str(tmp_path / "mine")
    run.choose("SUBSPACE_ILLUSION_MODEL", None)
    assert os.environ["SUBSPACE_ILLUSION_MODEL"] == str(tmp_path / "mine")


def test_figures_of_this_run_only(lessons, results):
    figures = results / "figures"
    figures.mkdir(parents=True)
    (figures / "01_gone.png").touch()
    (figures / "04_other.png").touch()
    run.main(["--lesson", "01"])
    names = sorted(path.name for path in figures.iterdir())
    assert names == [
        "01_one-figure.png",
        "01_two-figures_1.png",
        "01_two-figures_2.png",
        "04_other.png",
    ]
    assert (figures / "01_one-figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_lesson_does_not_stop_the_others(lessons, results, capfd):
    before = (lessons / "02_bad.ipynb").read_bytes()
    assert run.main(["--inplace"]) == 1
    shown = capfd.readouterr().out
    assert "    # divide\n" in shown and "ZeroDivisionError: division by zero" in shown
    assert "\x1b" not in shown and len(shown.splitlines()) < 30
    assert "1/3 cells" in shown and "Failed: 02_bad" in shown
    cells = code_cells(results / "notebooks" / "02_bad.ipynb")
    assert cells["fine"].outputs[0].text == "before\n"
    assert cells["never"].execution_count is None
    assert (results / "notebooks" / "03_last.ipynb").exists()
    assert (lessons / "02_bad.ipynb").read_bytes() == before, "a broken run must not be saved"


def test_a_lesson_with_nothing_to_study_ends_early_and_well(lessons, results, capfd):
    stop = "class NotTestable(RuntimeError): pass\nraise NotTestable('it knows 3 facts')"
    write_lesson(lessons / "02_bad.ipynb", {"fine": "1", "stop": stop, "never": "print('after')"})
    assert run.main(["--lesson", "02", "03"]) == 0
    shown = capfd.readouterr().out
    assert "1/3 cells" in shown and "it knows 3 facts" in shown and "Failed" not in shown
    cells = code_cells(results / "notebooks" / "02_bad.ipynb")
    assert cells["never"].execution_count is None
    assert (results / "notebooks" / "03_last.ipynb").exists()


def test_a_dying_kernel_is_a_failure(lessons, capfd):
    write_lesson(lessons / "02_bad.ipynb", {"dies": "import os; os._exit(1)"})
    assert run.main(["--lesson", "02"]) == 1
    assert "Kernel died" in capfd.readouterr().out


SAYS = "import os; print(*(os.environ[f'OMP_{name}'] for name in ('WAIT_POLICY', 'NUM_THREADS')))"
MEET = """
import pathlib, time
pathlib.Path("../{me}").touch()
while not pathlib.Path("../{other}").exists():
    time.sleep(0.1)
"""


@pytest.mark.long
def test_lessons_run_side_by_side_as_well_as_one_by_one(lessons, results, capfd):
    """Two that wait for each other, one that dies, and one that reads what another writes."""
    save = "from helpers.claims import report\nreport.save_site('mine', {'layer': 7}, {})"
    load = "from helpers.claims import report\nprint(report.load_site('mine')['layer'])"
    record = "from helpers.claims.report import record; _ = record('{}', {})"
    write_lesson(lessons / "01_first.ipynb", {"meet": MEET.format(me="a", other="b")})
    write_lesson(lessons / "02_bad.ipynb", {"meet": MEET.format(me="b", other="a"), "save": save})
    write_lesson(lessons / "03_last.ipynb", {"load": load, "claim": record.format("C3", -2.5)})
    write_lesson(lessons / "04_dies.ipynb", {"dies": "import os; os._exit(1)"})
    write_lesson(lessons / "05_claim.ipynb", {"claim": record.format("C9", 97.7), "fails": "1 / 0"})
    assert run.main(["--jobs", "2"]) == 1
    shown = capfd.readouterr().out.splitlines()
    lines = [line for line in shown if " cells " in line]
    assert sorted(line[:2] for line in lines) == ["01", "02", "03", "04", "05"]
    assert [line[:2] for line in lines].index("02") < [line[:2] for line in lines].index("03")
    assert shown[shown.index("Failed: 04_dies, 05_claim") - 1] == ""
    after = shown.index(next(line for line in lines if line.startswith("05")))
    assert shown[after + 1].strip() == "stopped in the cell that starts with", "one piece"
    cells = code_cells(results / "notebooks" / "03_last.ipynb")
    assert cells["load"].outputs[0].text == "7\n"
    assert report.recorded().keys() == {"C3", "C9"}


@pytest.mark.parametrize(("jobs", "threads"), [("1", 4), ("2", 2), ("9", 2)])
def test_lessons_share_the_cores_and_their_threads_sleep_while_they_wait(
    lessons, results, monkeypatch, jobs, threads
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run.machine, "cores", lambda: 4)
    write_lesson(lessons / "01_first.ipynb", {"says": SAYS})
    assert run.main(["--lesson", "01", "03", "--jobs", jobs]) == 0
    says = code_cells(results / "notebooks" / "01_first.ipynb")["says"]
    assert says.outputs[0].text == f"PASSIVE {threads}\n"


def test_what_the_user_says_about_threads_counts(lessons, results, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    write_lesson(lessons / "01_first.ipynb", {"says": SAYS})
    assert run.main(["--lesson", "01"]) == 0
    says = code_cells(results / "notebooks" / "01_first.ipynb")["says"]
    assert says.outputs[0].text == "ACTIVE 3\n"


@pytest.mark.parametrize(("model", "jobs"), [("smollm2-135m", 2), ("gpt2", 1)])
def test_only_the_packaged_model_is_known_to_fit_side_by_side(lessons, monkeypatch, model, jobs):
    seen = []

    def note(lessons, needs, jobs, work, stop):
        seen.append(jobs)
        return {}

    monkeypatch.setattr(run, "run_all", note)
    monkeypatch.setattr(run.machine, "jobs", lambda: 2)
    monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", model)
    run.main([])
    assert seen == [jobs]


def test_a_wrong_number_of_jobs_is_refused(lessons, capsys):
    with pytest.raises(SystemExit):
        run.main(["--jobs", "0"])
    assert "pass how many lessons run at a time" in capsys.readouterr().err


def test_a_finding_is_printed_with_its_lesson(lessons, capfd):
    sources = {"other": "print('not this')", "found": "print('94 %\\nof it')"}
    write_lesson(lessons / "01_first.ipynb", sources)
    notebook = nbformat.read(lessons / "01_first.ipynb", as_version=4)
    notebook.cells[-1].metadata.tags = [stored.FINDING]
    nbformat.write(notebook, lessons / "01_first.ipynb")
    assert run.main(["--lesson", "01", "03"]) == 0
    shown = capfd.readouterr().out
    assert "GB\n    94 %\n    of it\n03_last" in shown and "not this" not in shown


def test_inplace_is_clean(lessons):
    path = lessons / "01_first.ipynb"
    assert run.main(["--lesson", "01", "--inplace"]) == 0
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == stored.METADATA
    cells = code_cells(path)
    counts = [cell.execution_count for cell in cells.values() if cell.source]
    assert counts == list(range(1, len(counts) + 1)) and cells["not-run"].execution_count is None
    assert cells["value"].outputs[0].execution_count == 2
    assert cells["value"].outputs[0].data["text/plain"] == "42"
    assert cells["one-figure"].outputs[0].metadata == {"image/png": {"alt": "One pixel."}}
    assert cells["unsolved"].outputs[0].ename == "NotImplementedError"
    assert not any("execution" in cell.metadata for cell in cells.values())
    once = path.read_bytes()
    run.main(["--lesson", "01", "--inplace"])
    assert path.read_bytes() == once


def test_widget_views_go_and_their_text_stays():
    data = {stored.WIDGET: {"model_id": "a3f"}, "text/plain": "IntSlider(value=3)"}
    shown = nbformat.v4.new_output("display_data", data=data)
    cell = new_code_cell("slider", outputs=[shown], execution_count=7)
    notebook = new_notebook(cells=[cell])
    stored.clean(notebook)
    assert notebook.cells[0].outputs[0].data == {"text/plain": "IntSlider(value=3)"}


def test_unknown_lesson(lessons, results, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(["--lesson", "17"])
    assert stop.value.code == 2
    assert "no lesson 17; there are: 01_first, 02_bad, 03_last" in capsys.readouterr().err
    assert not results.exists()


def test_a_model_that_cannot_be_had(lessons, results, monkeypatch):
    monkeypatch.setattr(run, "PREPARE", "raise SystemExit('no such model')")
    assert run.main([]) == 1
    assert not results.exists()


def test_the_user_may_have_another_python3_kernel(lessons, results, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    wrong = {"argv": ["/no/such/python", "{connection_file}"], "display_name": "x", "language": "x"}
    (spec / "kernel.json").write_text(json.dumps(wrong))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert run.main(["--lesson", "03"]) == 0


@contextlib.contextmanager
def stuck_in_lesson_02(lessons, *numbers):
    """Those lessons in a process of their own, as soon as the second cell of lesson 02 hangs."""
    asleep = lessons.parent / "asleep"
    sleep = "import pathlib, time; pathlib.Path('../asleep').touch(); time.sleep(600)"
    write_lesson(lessons / "02_bad.ipynb", {"pid": "import os; print(os.getpid())", "slow": sleep})
    program = f"""
        import pathlib, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
        from tools import run
        run.NOTEBOOKS, run.PREPARE = pathlib.Path({str(lessons)!r}), ""
        sys.exit(run.main(["--lesson", *{numbers}]))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not asleep.exists() and process.poll() is None:
            time.sleep(0.1)
        yield process


def test_interrupt_keeps_what_was_done(lessons, results):
    with stuck_in_lesson_02(lessons, "02", "03") as process:
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "1/2 cells" in shown and "Interrupted" in shown and "03_last" not in shown
    kernel = int(code_cells(results / "notebooks" / "02_bad.ipynb")["pid"].outputs[0].text)
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_run_leaves_whole_files_and_no_kernel_and_is_done_again(lessons, results):
    claim = {"claim": "from helpers.claims.report import record; _ = record('C3', -2.5)"}
    write_lesson(lessons / "01_first.ipynb", claim)
    with stuck_in_lesson_02(lessons, "01", "02") as process:
        (kernel,) = psutil.Process(process.pid).children()
        process.kill()
    kernel.wait(60)  # it notices by itself
    before = (results / "claims.json").read_bytes()
    assert [path.name for path in (results / "notebooks").iterdir()] == ["01_first.ipynb"]
    nbformat.validate(nbformat.read(results / "notebooks" / "01_first.ipynb", as_version=4))
    write_lesson(lessons / "02_bad.ipynb", {"fine": "print('again')"})
    assert run.main(["--lesson", "02"]) == 0
    assert code_cells(results / "notebooks" / "02_bad.ipynb")["fine"].outputs[0].text == "again\n"
    assert (results / "claims.json").read_bytes() == before
    assert not list(results.rglob(".*"))


def test_a_disk_that_fills_up_leaves_the_lesson_as_it_was(lessons, results, monkeypatch, capfd):
    before = (lessons / "03_last.ipynb").read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", fail)
    assert run.main(["--lesson", "03", "--inplace"]) == 1
    assert "Make room there" in capfd.readouterr().err
    assert (lessons / "03_last.ipynb").read_bytes() == before
    assert not [path for path in results.rglob("*") if path.is_file()]


def test_nothing_written_names_the_machine_or_holds_a_secret(lessons, results, monkeypatch):
    home, token = lessons.parent / f"home-{secrets.token_hex(8)}", secrets.token_hex(16)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", token)
    sources = {
        "warning": "import warnings; warnings.warn('careful')",
        "home": "import pathlib; print('at', pathlib.Path.home() / 'x', pathlib.Path('a/b'))",
        "claim": "from helpers.claims.report import record; _ = record('C3', -2.5)",
        "error": "from helpers.claims.report import record; record('C0', 1)",
    }
    write_lesson(lessons / "02_bad.ipynb", sources)
    assert run.main(["--lesson", "02"]) == 1
    cells = code_cells(results / "notebooks" / "02_bad.ipynb")
    assert cells["warning"].outputs[0].text.startswith("cell:1: UserWarning: careful")
    assert cells["home"].outputs[0].text == "at .../x a/b\n"
    assert "There is no claim 'C0'" in cells["error"].outputs[0].evalue
    written = [path for path in results.rglob("*") if path.is_file()]
    assert {path.name for path in written} > {"02_bad.ipynb", "claims.json", "report.html"}
    for path in written:
        text = path.read_text(encoding="utf-8")
        for secret in (home.name, token, str(report.ROOT), sys.prefix, "ipykernel_"):
            assert secret not in text, f"{secret} in {path.name}"


@pytest.mark.skipif(not (report.ROOT / "Makefile").exists(), reason="only in a checkout")
def test_make_runs_in_a_folder_with_any_name(tmp_path):
    folder = tmp_path / "mit Leerzeichen ü 学"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements-tested.txt", "pyproject.toml"):
        shutil.copy(report.ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\npwd; for part; do echo "[$part]"; done\n')
    python.chmod(0o755)
    (folder / ".venv" / ".ready-run").touch()
    command = ["make", "run", "MODEL=mein Modell é", "LESSON=03 04"]
    # Below `make test`, make would say which folder it enters.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKELEVEL", "MAKEFLAGS")}
    shown = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout
    parts = ["-m", "tools.run", "--model", "mein Modell é", "--lesson", "03", "04"]
    assert shown.splitlines() == [str(folder), *(f"[{part}]" for part in parts)]


@pytest.mark.skipif(not (report.ROOT / "Makefile").exists(), reason="only in a checkout")
def test_what_is_typed_without_make_is_what_make_runs():
    """The table of docs/running.md, row by row; and its set-up has all that any target installs."""
    page = (report.ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `make ([^`]+)` \| `python ([^`]+)` \|$", page, flags=re.M)
    assert len(rows) >= 9
    for target, typed in rows:
        command = ["make", "-n", *shlex.split(target)]
        shown = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, check=True)
        made = [shlex.split(line) for line in shown.stdout.splitlines() if " -m " in line]
        assert set(shlex.split(typed)) - set(made[-1]) <= {"."}, target
    makefile = (report.ROOT / "Makefile").read_text(encoding="utf-8")
    extras = set(re.search(r"^EXTRAS_test := (.+)$", makefile, flags=re.M)[1].split(","))
    assert set(re.search(r'-e "\.\[([^]]+)\]"', page)[1].split(",")) == extras


@pytest.mark.skipif(not (report.ROOT / "Makefile").exists(), reason="only in a checkout")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["MODEL=gpt2"], '-m tools.run --model "gpt2"'),
        (["LESSON=03 04", "DEVICE=cpu"], '-m tools.run --lesson 03 04 --device "cpu"'),
        ([], "-m tools.run\n"),
    ],
)
def test_make_passes_the_choice_on(arguments, expected):
    command = ["make", "-n", "run", *arguments]
    shown = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, check=True)
    assert expected in shown.stdout
