"""Jobs come to the same wherever they run, whoever is killed; what is done is not done again."""

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import dask
import pytest
from distributed import LocalCluster
from light_jobs import NUMBERS, broken, deadly, jobs, square, square_unless_killed

from helpers.output.files import ROOT
from tools.jobs.running import ClusterError, Job, attempt, run

SQUARES = [n * n for n in NUMBERS]
GIVEN_UP = {
    "distributed.scheduler.allowed-failures": 1,
    # Workers have their jobs from the start and keep them: others wait where one ends its worker.
    "distributed.scheduler.worker-saturation": float("inf"),
    "distributed.scheduler.work-stealing": False,
}


@pytest.fixture(scope="module")
def cluster():
    """Two processes as workers; a job that has ended two of them is given up."""
    # Starting workers sets OMP_NUM_THREADS=1 for good.
    with mock.patch.dict(os.environ), dask.config.set(GIVEN_UP):
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            yield cluster.scheduler_address


def results(given, out):
    return [job.result(out) for job in given]


def times(out):
    """When each result was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "jobs").iterdir()}


def begun(out):
    """How often each job was begun, by number."""
    names = [path.name.split(" by ")[0] for path in (out / "begun").iterdir()]
    return {n: names.count(f"{n}") for n in NUMBERS}


def test_a_killed_worker_costs_no_result(cluster, tmp_path):
    serial = jobs(square, tmp_path / "one")
    assert run(serial, tmp_path / "serial") == []
    given = jobs(square_unless_killed, tmp_path / "begun")
    assert run(given, tmp_path, scheduler=cluster) == []
    assert (tmp_path / "begun" / "killed").exists()
    assert results(given, tmp_path) == results(serial, tmp_path / "serial") == SQUARES


def test_a_job_that_ends_its_workers_is_named_and_the_others_go_on(cluster, tmp_path, capsys):
    given = jobs(deadly, tmp_path / "begun")
    assert [job.name for job in run(given, tmp_path, scheduler=cluster)] == ["number-3"]
    assert results(given, tmp_path) == [*SQUARES[:3], None, *SQUARES[4:]]
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "failed" in x]
    assert line.startswith("number-3 failed: it ended several workers")


class KilledWorker(Exception):
    """Named like Dask's own."""


def test_a_job_that_waited_where_another_ended_its_workers_is_tried_alone(tmp_path, monkeypatch):
    asked, at_once = [], []

    class Future:
        status = "finished"

        def __init__(self, job):
            self.job = job

        def exception(self):  # 3 ends its workers, and 4 and 6 wait there
            number, alone = self.job.about["number"], len(at_once[-1]) == 1
            return KilledWorker() if number == 3 or (number in (4, 6) and not alone) else None

        def result(self):
            return attempt(self.job)

    class Client(contextlib.nullcontext):
        loop = None

        def scheduler_info(self):
            return {"workers": [1]}

        def submit(self, work, job, pure):
            asked.append(job.about["number"])
            return Future(job)

    def as_completed(futures, loop):
        at_once.append(futures)
        return list(futures)

    monkeypatch.setattr("distributed.Client", lambda *_, **__: Client(Client()))
    monkeypatch.setattr("distributed.as_completed", as_completed)
    given = jobs(square, tmp_path / "begun")
    assert [job.name for job in run(given, tmp_path, scheduler="tcp://stub")] == ["number-3"]
    assert results(given, tmp_path) == [*SQUARES[:3], None, *SQUARES[4:]]
    assert asked == [*NUMBERS, 3, 4, 6] and list(map(len, at_once)) == [8, 1, 1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_job_is_named_in_one_line(tmp_path, capsys, workers):
    given = jobs(broken, tmp_path / "begun")
    assert [job.name for job in run(given, tmp_path, workers=workers)] == ["number-3"]
    assert results(given, tmp_path) == [*SQUARES[:3], None, *SQUARES[4:]]
    out = capsys.readouterr().out.splitlines()
    assert "number-3 failed: ValueError: 3 is odd, and a prime" in out


def test_a_killed_process_of_this_machine_ends_the_run_and_what_was_done_is_kept(tmp_path):
    given = jobs(deadly, tmp_path / "begun")
    with pytest.raises(ClusterError, match="a worker process was killed"):
        run(given, tmp_path, workers=2)
    kept = [x for x in results(given, tmp_path) if x is not None]
    assert set(kept) <= set(SQUARES)


def test_a_killed_client_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "light_jobs", str(tmp_path)]
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL) as client:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("jobs/number-*"))) < 3:
            assert time.monotonic() < deadline and client.poll() is None
            time.sleep(0.01)
        client.send_signal(signal.SIGKILL)
    given = jobs(square, tmp_path / "begun")
    before = times(tmp_path)
    finished = [n for n, job in enumerate(given) if job.result(tmp_path) is not None]
    assert 3 <= len(finished) < len(NUMBERS)
    assert run(given, tmp_path) == []
    assert results(given, tmp_path) == SQUARES
    assert {name: when for name, when in times(tmp_path).items() if name in before} == before
    assert all(begun(tmp_path)[n] == 1 for n in finished), "none of these was begun again"


def test_another_job_is_not_taken_for_a_finished_one(tmp_path):
    assert run(jobs(square, tmp_path / "begun"), tmp_path) == []
    for other in ({"seed": 1}, {"model": "another"}):
        assert results(jobs(square, tmp_path / "begun", **other), tmp_path) == [None] * len(NUMBERS)
    (one,) = (tmp_path / "jobs").glob("number-3-*")
    kept = json.loads(one.read_text())
    for damaged in ("{", json.dumps(kept | {"job": {"number": 4}})):
        one.write_text(damaged)
        assert jobs(square, tmp_path / "begun")[3].result(tmp_path) is None


def test_a_worker_with_other_packages_is_refused():
    job = Job("one", {"versions": {"torch": "0.1"}}, square)
    ours = importlib.metadata.version("torch").split("+")[0]
    assert attempt(job).problem.startswith(f"the worker has torch {ours}, not 0.1")
