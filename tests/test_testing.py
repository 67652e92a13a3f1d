"""How the tests are run: in which processes, in which order, with which settings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output, writes

from tools import machine, testing

CONFTEST = Path(__file__).parent / "conftest.py"


def test_cores_are_shared_out_and_threads_sleep_while_they_wait(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", "gpt2")
    monkeypatch.setattr(machine, "cores", lambda: 8)
    found = testing.environment(3, "there")
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    assert found["SUBSPACE_ILLUSION_RESULTS"] == "there" and "SUBSPACE_ILLUSION_MODEL" not in found
    assert testing.environment(9, "")["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert testing.environment(3, "")["OMP_NUM_THREADS"] == "5"


def test_lessons_are_small_as_soon_as_small_ones_have_references(monkeypatch, tmp_path):
    monkeypatch.setattr(testing, "expected_path", lambda model, sizes: tmp_path / sizes)
    assert "SUBSPACE_ILLUSION_SIZES" not in testing.environment(1, "")
    (tmp_path / "small").touch()
    assert testing.environment(1, "")["SUBSPACE_ILLUSION_SIZES"] == "small"
    monkeypatch.setenv("SUBSPACE_ILLUSION_SIZES", "quick")
    assert testing.environment(1, "")["SUBSPACE_ILLUSION_SIZES"] == "quick"


def test_the_report_comes_last_and_alone():
    first, last = testing.stages([], 2)
    assert first[:4] == ["-n", "2", "--dist", "loadfile"]
    (report,) = (part for part in last if part.endswith(".ipynb"))
    assert f"--ignore={report}" in first and "-n" not in last


def test_one_process_needs_no_others():
    assert not any("-n" in stage for stage in testing.stages([], 1))


def test_long_tests_run_alone_or_not_at_all():
    ((*_, expression, profile, name, path),) = testing.stages([], 1, long=True)
    assert (expression, profile, name) == ("long or fuzz", "--hypothesis-profile", "long")
    assert path == "tests"
    for stage in (*testing.stages([], 2)[:1], *testing.stages(["tests/test_run.py"], 2)):
        assert stage[stage.index("-m") + 1] == "not long"


def write_lesson(path):
    """Six cells, each needing those before it; the last one's stored output is compared.

    Not compared is the value of a headline number, which depends on the sizes.
    """
    show = "print(f'PASS  n: {x} ± 1\\nPASS  m: 3 ± 1', x)"
    cells = [new_code_cell(source) for source in ("x = 1", *["x += 1"] * 4, show)]
    cells[-1].outputs = [new_output("stream", text="PASS  n: 4.5 ± 1\nPASS  m: 4 ± 1 4\n")]
    cells[-1].execution_count = 6
    cells[-1].metadata.tags = ["nbval-check-output"]
    path.write_text(writes(new_notebook(cells=cells)))


@pytest.mark.long
def test_a_file_stays_in_one_process_from_top_to_bottom_and_long_ones_begin(tmp_path):
    """With two workers: three lessons of six cells, and a file of tests that counts up."""
    (tmp_path / "tests").mkdir()
    shutil.copy(CONFTEST, tmp_path / "tests")
    for number in ("05", "08", "10"):
        write_lesson(tmp_path / f"{number}_x.ipynb")
    counting = "n = 0\n" + "".join(
        f"def test_{i}():\n    global n\n    assert n == {i}\n    n += 1\n" for i in range(5)
    )
    (tmp_path / "tests" / "test_count.py").write_text(counting)
    stage = [part for part in testing.stages(["tests", "."], 2)[0] if part != "."]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *stage, "."]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    variables = {name: text for name, text in variables.items() if "PYTEST" not in name}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if " PASSED " in line]
    assert len(lines) == 3 * 6 + 5
    worker = {}
    for line in lines:
        name, file = line.split("]")[0], line.split("PASSED ")[1].split("::")[0]
        assert worker.setdefault(file, name) == name, "a file was split"
    assert len(set(worker.values())) == 2
    order = list(worker)
    assert order.index("08_x") < order.index("tests/test_count.py"), order


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_a_wrong_number_of_processes_is_refused(jobs, capsys):
    with pytest.raises(SystemExit) as stop:
        testing.main(["--jobs", jobs])
    assert stop.value.code == 2 and "pass how many processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((1, 0), 1), ((0, 1), 1), ((2, 1), 2)],
)
def test_every_stage_runs_and_the_first_failure_counts(monkeypatch, statuses, status):
    left = list(statuses)
    monkeypatch.setattr(testing, "PREPARE", "")
    monkeypatch.setattr(testing, "_run", lambda command, variables: left.pop(0))
    assert testing.main(["--jobs", "2"]) == status
    assert not left


@pytest.mark.parametrize(("code", "status"), [(0, 0), (1, 1), (testing.NO_TESTS, 0)])
def test_a_stage_without_tests_is_no_failure(code, status):
    command = [sys.executable, "-c", f"raise SystemExit({code})"]
    assert testing._run(command, dict(os.environ)) == status


def test_a_model_that_cannot_be_had_ends_it(monkeypatch):
    monkeypatch.setattr(testing, "PREPARE", "raise SystemExit('no model')")
    monkeypatch.setattr(testing, "_run", lambda *_: pytest.fail("nothing can be tested"))
    assert testing.main([]) == 1
