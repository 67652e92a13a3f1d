"""Students' answers, honest and hostile, in the box and judged outside."""

import io
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
import zipfile

import psutil
import pytest
import torch

from tools.classroom import box, record, replay
from tools.classroom.assignment import ClassroomError

CHECKS = ["checks.check_split(split)", "checks.check_split(split, seed=1)"]
RIGHT = """
def split(direction, w_out):
    row = (direction @ w_out) * w_out / (w_out @ w_out)
    return row, direction - row
"""
LIMITS = box.Limits(seconds=6, memory_bytes=2 * 2**30)
WORKS = not box.fails([*box._bubblewrap(LIMITS), "-c", ""])
boxed = pytest.mark.skipif(not WORKS, reason="bubblewrap is not installed, or may not work here")
SECRET = "what another student handed in"


def tries(body):
    """An answer that tries something first, and tells what it got."""
    head = "def split(direction, w_out):\n    import os, socket, sys, time\n"
    return head + textwrap.indent(textwrap.dedent(body), "    ")


def told(body):
    """An answer that raises whatever an expression gives, so that its message can be read."""
    return tries(f"raise RuntimeError('got ' + str({body}))")


LIES = """
import sys, torch
from helpers.lessons import checks
for name in checks.__all__:
    setattr(checks, name, lambda *a, **k: None)
torch.allclose = torch.equal = lambda *a, **k: True
def split(direction, w_out):
    return direction, w_out
"""
EQUAL = """
class Equal:
    def __eq__(self, other): return True
def split(direction, w_out):
    return Equal(), Equal()
"""
# What is tried, and what its author is told. None of these ends the box: all run in one.
ANSWERS = {
    "right": (RIGHT, replay.PASSED),
    "wrong": (RIGHT.replace("row, direction - row", "direction - row, row"), "row and null are"),
    "half": ("def split(direction, w_out):\n    return direction", "returns a pair"),
    "empty": ("x = 1", "name 'split' is not defined: did you rename it?"),
    "stub": ("def split(a, b):\n    raise NotImplementedError()", "not answered yet"),
    "crash": ("def split(a, b):\n    x = 1\n    return x / 0", "(line 3 of your cell)"),
    "syntax": ("x = 1\ndef split(", "SyntaxError: '(' was never closed (line 2 of your cell)"),
    "in place": ("def split(v, w):\n    v *= 2\n    return v, v", "changes one of its inputs"),
    "typed in": (
        "import torch\nfrom helpers.lessons.checks.compare import Draw\n"
        "v, w = Draw(0).normal(2, 5)\nrow = (v @ w) * w / (w @ w)\n"
        "def split(direction, w_out):\n    return row, v - row",
        "On other data: row part",
    ),
    "endless": (tries("while True: pass"), "no answer in 6 seconds"),
    "leaves": (tries("os._exit(0)"), "ended its own process (exit status 0)"),
    "exits": (tries("sys.exit()"), "your code ends the program"),
    "crashes": (tries("import ctypes; ctypes.string_at(0)"), "SIGSEGV"),
    "gigabyte printed": (
        RIGHT.replace("    row", "    for _ in range(500): print('x' * 10**6)\n    row", 1),
        "Passed",
    ),
    "forges the check": (LIES, "row part: expected"),
    "returns an object": (EQUAL, "cannot be checked"),
    "returns a gigabyte": (
        tries("import torch\nreturn torch.ones(1).expand(2**28)"),
        "too large to be checked",
    ),
    "20 GB": (tries("import torch\ntorch.ones(5 * 2**30)"), "(line 4 of your cell)"),
    "network": (told("socket.create_connection(('10.0.0.1', 80), timeout=2)"), "unreachable"),
    "writes outside": (tries("open('VICTIM', 'w')"), "FileNotFoundError"),
    "reads outside": (told("open('VICTIM').read()"), "FileNotFoundError"),
    "reads solutions": (told(f"os.listdir('{box.ROOT}/notebooks')"), "FileNotFoundError"),
    "writes helpers": (tries(f"open('{box.ROOT}/helpers/x', 'w')"), "Read-only file system"),
    "writes too much": (tries("open('x', 'wb').write(b'0' * 2**27)"), "File too large"),
    "fills its folder": (
        tries("for n in range(9): open(f'{n}', 'wb').write(b'0' * 2**24)"),
        "No space left",
    ),
    "variables": (told("sorted(os.environ)"), "got ['GOMP_SPINCOUNT', 'HOME', 'LANG', "),
    "sees no processes": (told("len([n for n in os.listdir('/proc') if n.isdecimal()])"), "got 3"),
    "kills all": (tries("os.kill(1, 9)\n") + "    raise ValueError('alive')", "alive"),
    "mounts": (
        told("__import__('ctypes').CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0)"),
        "got -1",
    ),
    "right in the end": (RIGHT, replay.PASSED),
}


def job(name, answer, before=("import torch",)):
    return {
        "exercise": name,
        "name": "split",
        "answer": answer,
        "before": list(before),
        "checks": CHECKS,
    }


def run(*jobs, limits=LIMITS, kind="bubblewrap"):
    records = box.run_answers(kind, jobs, limits, threading.Event())
    return {
        name: found.problem or replay.judge(found.blob, "split", CHECKS)[1]
        for name, found in records.items()
    }


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A file of somebody else, which nobody may read or change."""
    path = tmp_path_factory.mktemp("others") / "victim.txt"
    path.write_text(SECRET)
    yield path
    assert path.read_text() == SECRET


@pytest.fixture(scope="module")
def messages(victim):
    """What the authors of all these answers are told; nothing is left of their box."""
    jobs = [job(name, text.replace("VICTIM", str(victim))) for name, (text, _) in ANSWERS.items()]
    places = (box.ROOT, box.ROOT / "helpers", box.ROOT / "tools", victim.parent)
    before = {place: sorted(os.listdir(place)) for place in places}
    found = run(*jobs)
    assert {place: sorted(os.listdir(place)) for place in places} == before
    assert not psutil.Process().children(recursive=True)
    return found


@boxed
@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_gets_its_due(name, messages):
    assert ANSWERS[name][1] in messages[name]
    assert SECRET not in messages[name]
    assert (messages[name] == replay.PASSED) == (ANSWERS[name][1] in replay.PASSED)


ENDS_ITS_BOX = {
    "forks": ("while True: os.fork()", "your code "),
    "many take memory": (
        "import torch\nfor _ in range(5): os.fork() or torch.ones(2**27)\ntime.sleep(60)",
        "memory",  # "more than 1 GB of", or where torch has CUDA's libraries "can't allocate"
    ),
    "ends its box": ("os.kill(os.getppid(), 9)\ntime.sleep(60)", "ended the box"),
    "stops its box": (
        "import signal\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)",
        "stopped its box",
    ),
}


@boxed
def test_who_ends_the_box_loses_and_the_others_do_not():
    start, limits = time.monotonic(), box.Limits(seconds=4, memory_bytes=2**31)
    hostile = [job(name, tries(body)) for name, (body, _) in ENDS_ITS_BOX.items()]
    found = run(job("before", RIGHT), *hostile, job("after", RIGHT), limits=limits)
    assert [name for name, (_, why) in ENDS_ITS_BOX.items() if why not in found[name]] == []
    assert found["before"] == found["after"] == replay.PASSED
    assert time.monotonic() - start < 300
    assert not psutil.Process().children(recursive=True)


def ordinary_user_can_run(python):
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    code = "import torch, tools.classroom.record"
    return not box.fails([*user, "env", f"PYTHONPATH={box.ROOT}", python, "-c", code])


@boxed
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_has_the_same_box():
    if not ordinary_user_can_run(sys.executable):
        pytest.skip("an ordinary user may not run this Python")
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    code = "import os; print(os.getuid(), os.listdir('/'))"
    done = subprocess.run(
        [*user, *box._bubblewrap(LIMITS), "-c", code], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.startswith("65534 ") and "root" not in done.stdout


@pytest.fixture
def no_box(monkeypatch):
    """A machine without bubblewrap and Docker."""
    monkeypatch.setattr(box.shutil, "which", lambda _: None)


def test_without_a_box_nothing_runs_and_it_says_what_to_install(no_box):
    with pytest.raises(ClassroomError, match="apt-get install bubblewrap") as refused:
        box.find_box()
    assert "TRUST=1" in str(refused.value) and "Docker" in str(refused.value)


def test_a_box_that_does_not_work_is_no_box(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no permission to make namespaces >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(box, "fails", lambda c, real=box.fails: c[0] == "docker" or real(c))
    with pytest.raises(ClassroomError, match="no permission to make namespaces"):
        box.find_box()


def test_cells_before_that_do_not_end_are_left_out(no_box):
    before = ["import torch", "raise SystemExit", "while True: pass", "two = 2"]
    answer = RIGHT.replace("    row", "    assert 'two' not in globals()\n    row", 1)
    found = run(job("late", answer, before), limits=box.Limits(seconds=4), kind="none")
    assert found == {"late": replay.PASSED}


def test_who_trusts_goes_on_without_a_box(no_box):
    assert box.find_box(trust=True) == "none"
    loop = job("loop", tries("while True: pass"))
    wrong = RIGHT.replace("row, d", "0 * row, d")
    limits = box.Limits(seconds=2)
    found = run(job("right", RIGHT), loop, job("wrong", wrong), limits=limits, kind="none")
    assert found["right"] == replay.PASSED and "no answer in 2 seconds" in found["loop"]
    assert "row part" in found["wrong"]


DOCKER = """#!/bin/sh
echo "$@" >> {log}
[ "$1" = run ] || exit 0
while [ "$1" != {image} ]; do shift; done
shift 2
PYTHONPATH={path} exec {python} "$@"
"""


def test_docker_is_used_where_only_docker_is_there(monkeypatch, tmp_path):
    """A stand-in for Docker, which notes how it was called and runs the answers itself."""
    fields = {"log": tmp_path / "log", "image": box.IMAGE, "path": box.PYTHONPATH}
    fake = tmp_path / "docker"
    fake.write_text(DOCKER.format(python=sys.executable, **fields))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(box.shutil, "which", lambda name: name == "docker" or None)
    assert box.find_box() == "docker"
    assert run(job("right", RIGHT), kind="docker") == {"right": replay.PASSED}
    info, build, started, killed = (tmp_path / "log").read_text().splitlines()
    assert info == "info" and build.startswith("build ") and killed.startswith("kill grading-")
    for option in ("--network none", "--read-only", "--cap-drop ALL", "no-new-privileges"):
        assert option in started
    assert "notebooks" not in started and started.count(":ro") == 3


# What comes out of the box is data, whatever it was meant to be


def packed(content, **settings):
    file = io.BytesIO()
    torch.save(content, file, **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(10**30),
        0.1,
        float("inf"),
        "ü",
        (1, [2, (3,)], {"a": (), 4: None}),
        torch.tensor(3.5),
        torch.arange(6).reshape(2, 3).T,
        torch.zeros(0, 3),
        torch.tensor([1 + 2j]).conj(),
        torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
        torch.nn.Parameter(torch.ones(2)),
    ],
)
def test_values_come_over_as_they_are(value):
    back = replay.load(packed({"value": record.plain(value)}))["value"]
    if isinstance(value, torch.Tensor):
        assert type(back) is torch.Tensor and not back.requires_grad
        assert back.dtype == value.dtype and torch.equal(back, value)
    else:
        assert back == value and type(back) is type(value)


class Owner:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def bomb():
    """A small file that would be a large one."""
    old, new = zipfile.ZipFile(io.BytesIO(packed({"x": torch.zeros(2**20)}))), io.BytesIO()
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as file:
        for name in old.namelist():
            file.writestr(name, old.read(name))
    return new.getvalue()


def test_nothing_else_comes_over(tmp_path):
    nested = [0]
    for _ in range(30):
        nested = [nested, nested]
    for blob in (
        b"",
        b"no record",
        packed({"value": Owner(tmp_path / "owned")}),
        packed({"value": Owner(tmp_path / "owned")}, _use_new_zipfile_serialization=False),
        packed({"value": torch.ones(1).expand(2**40)}),
        packed({"value": torch.ones(2, 2).to_sparse()}),
        packed({"value": nested}),
        packed({"value": {1, 2}}),
        packed([1]),
        bomb(),
        packed({"value": torch.zeros(5 * 2**20)}),
    ):
        with pytest.raises(replay.StudentError, match="cannot be checked"):
            replay.load(blob)
    assert not (tmp_path / "owned").exists()


def test_forged_records_pass_nothing():
    """Whoever writes a record without the right values gets no point, whatever else is in it."""
    for content in (
        {},
        {"passed": True},
        {"calls": []},
        {"calls": [{"value": None, "changed": {}}] * 9},
        {"calls": [{"value": (torch.ones(5), torch.ones(5)), "changed": {7: torch.ones(1)}}]},
        {"calls": {"error": ""}},
        {"value": "checks.check_split"},
        {"error": ""},
    ):
        assert not replay.judge(packed(content), "split", CHECKS)[0]


def test_the_check_outside_is_the_one_that_counts():
    """A right record passes; the same one fails a check that wants something else."""
    calls = []
    answer = record.watched(lambda v, w: ((v @ w) * w / (w @ w), v - (v @ w) * w / (w @ w)), calls)
    record.run_checks(CHECKS, "split", answer)
    blob = packed({"calls": calls})
    assert replay.judge(blob, "split", CHECKS)[0]
    assert not replay.judge(blob, "split", [*CHECKS, CHECKS[0]])[0]  # one call more than recorded
    passed, message = replay.judge(blob, "split", [f"{CHECKS[0]} or 1 / 0"])
    assert not passed and "in the check" in message


def test_an_edit_in_place_is_replayed():
    def answer(x, more):
        x.unsqueeze_(0)
        more[0].zero_()

    calls = []
    record.watched(answer, calls)(torch.ones(2), more=[torch.ones(3)])
    x, y = torch.ones(2), torch.ones(3)
    replay._replayed(replay.load(packed({"calls": calls}))["calls"])(x, more=[y])
    assert x.shape == (1, 2) and not y.any()


def test_what_a_box_sends_is_taken_line_by_line():
    good = b'{"exercise": "a", "problem": "late"}\n'
    data = b"ready\n" + good + b'junk\n{"exercise": 3}\n[1]\n{"record": "!"}\n{"exercise": "b"'
    assert box._parsed(data) == {"a": box.Record(problem="late"), "3": box.Record()}


def test_what_steers_a_terminal_and_names_the_machine_is_taken_out():
    text = replay.readable(f"\x1b[2Ja\ud800 {sys.prefix}/x " + "y" * 9000)
    assert text.startswith("\ufffd[2Ja\ufffd ...") and len(text) < 2100
