"""The order of lessons: none before what it reads, as many at a time as told, longest first."""

import threading
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes

from tools import machine, schedule
from tools.schedule import find_lessons, find_needs, in_order, next_lesson, run_all

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
WAIT = 20  # seconds at most, on a busy machine


@pytest.fixture
def lessons(tmp_path):
    """`lessons({"02": code})` writes notebooks and returns their paths by number."""

    def write(sources):
        for number, source in sources.items():
            cells = [new_markdown_cell("save_site(x) load_site(x)"), new_code_cell(source)]
            (tmp_path / f"{number}_x.ipynb").write_text(writes(new_notebook(cells=cells)))
        return find_lessons(tmp_path)

    return write


def test_who_loads_the_site_waits_for_who_saves_it(lessons):
    sources = {"01": "1", "02": 'report.save_site("ioi", s, e)', "05": "notebook.load_site()"}
    assert find_needs(lessons(sources)) == {"01": set(), "02": set(), "05": {"02"}}


@pytest.mark.parametrize("call", ["reference.check()", "page.figure()"])
def test_who_reads_all_results_waits_for_all_before_it(lessons, call):
    needs = find_needs(lessons({"00": "1", "03": call, "07": call, "12": "1"}))
    assert needs == {"00": set(), "03": {"00"}, "07": {"00"}, "12": set()}


def test_lessons_that_load_and_save_do_not_wait_for_each_other(lessons):
    both = "load_site(); save_site()"
    assert find_needs(lessons({"02": both, "03": both})) == {"02": set(), "03": {"02"}}


def test_the_lessons_of_the_series():
    needs = find_needs(find_lessons(NOTEBOOKS))
    assert {"03", "04", "09"} <= {number for number in needs if needs[number] == {"02"}}
    assert needs["05"] == {"01", "02", "03", "04"}  # it shows what these have recorded
    assert all(not needs[number] for number in ("00", "01", "02"))
    assert needs["10"] == {number for number in needs if number < "10"}  # the report of part I
    assert needs["11"] == {"02"}


def test_first_what_opens_the_series_then_the_longest(monkeypatch):
    monkeypatch.setattr(
        schedule, "SECONDS", {"02": 999, "03": 10, "04": 30, "05": schedule.UNKNOWN}
    )
    assert in_order({"04", "03", "02", "01", "00"}) == ["00", "01", "02", "04", "03"]
    assert in_order({"03", "12", "05", "04"}) == ["05", "12", "04", "03"]


def test_next_is_who_waits_for_nobody_that_is_to_run():
    needs = {"03": {"02"}, "09": {"02", "03"}}
    assert next_lesson({"03", "09"}, {"02", "03", "09"}, needs) is None
    assert next_lesson({"03", "09"}, {"03", "09"}, needs) == "03"
    assert next_lesson(set(), {"03"}, needs) is None


class Work:
    """Lessons that take a moment, and remember when each began and ended."""

    def __init__(self, bad=(), broken=()):
        self.events, self.running, self.most = [], 0, 0
        self.bad, self.broken, self.lock = bad, broken, threading.Lock()

    def __call__(self, number):
        with self.lock:
            self.events.append(("begins", number))
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)
        with self.lock:
            self.events.append(("ends", number))
            self.running -= 1
        if number in self.broken:
            raise OSError("full")
        return number not in self.bad

    def stop(self):
        self.events.append(("stop", ""))


NEEDS = {"03": {"02"}, "04": {"02"}, "09": {f"{n:02}" for n in range(9)}}
ALL = {f"{n:02}": f"{n:02}" for n in range(10)}


@pytest.mark.parametrize("jobs", [1, 2, 4, 20])
@pytest.mark.parametrize("bad", [(), ("02", "05")])
def test_every_lesson_runs_once_and_after_what_it_reads(monkeypatch, jobs, bad):
    monkeypatch.setattr(schedule, "is_room", lambda running: True)
    work = Work(bad=bad)
    assert run_all(ALL, NEEDS, jobs, work, work.stop) == {n: n not in bad for n in ALL}
    assert work.most <= jobs and ("stop", "") not in work.events
    assert sorted(work.events) == sorted((e, n) for e in ("begins", "ends") for n in ALL)
    for number, others in NEEDS.items():
        began = work.events.index(("begins", number))
        assert all(work.events.index(("ends", other)) < began for other in others)
    if jobs == 1:
        assert [n for e, n in work.events if e == "begins"] == [
            *in_order(ALL.keys() - {"09"}),
            "09",
        ]


def test_lessons_do_run_at_the_same_time(monkeypatch):
    monkeypatch.setattr(schedule, "is_room", lambda running: True)
    meeting = threading.Barrier(3)

    def work(number):
        meeting.wait(WAIT)  # fails if the two others do not come
        return True

    assert all(run_all(dict.fromkeys("abc"), {}, 3, work, lambda: None).values())


def test_without_room_they_run_one_after_the_other(monkeypatch):
    monkeypatch.setattr(schedule, "is_room", lambda running: running == 0)
    work = Work()
    assert all(run_all(ALL, NEEDS, 4, work, work.stop).values())
    assert work.most == 1


def test_what_is_not_run_keeps_nobody_waiting():
    work = Work()
    assert run_all({"03": "03", "09": "09"}, NEEDS, 2, work, work.stop) == {"03": True, "09": True}


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_stops_everything(jobs):
    work = Work(broken=("02",))
    with pytest.raises(OSError, match="full"):
        run_all(ALL, NEEDS, jobs, work, work.stop)
    assert ("stop", "") in work.events and ("begins", "03") not in work.events


def test_room_counts_what_the_running_ones_have_yet_to_take(monkeypatch):
    """Two that have taken 1 of 3 GB each leave room for a third only if 7 GB are free."""
    taken = type("Info", (), {"rss": machine.PEAK // 3})
    kernel = type("Kernel", (), {"memory_info": lambda self: taken})
    own = type("Own", (), {"children": lambda self, recursive: [kernel(), kernel()]})
    monkeypatch.setattr(schedule.psutil, "Process", own)
    for gigabytes, room in ((6.9, False), (7.1, True)):
        free = int(gigabytes * machine.PEAK / 3)
        monkeypatch.setattr(machine, "available_memory", lambda free=free: free)
        assert schedule.is_room(2) == room
    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    assert schedule.is_room(0), "one lesson is always tried"
