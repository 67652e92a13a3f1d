"""Students' answers, honest and hostile, and what the judge makes of them."""

import builtins
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch
from tools.classroom import guard, launch, wire
from tools.classroom.sandbox import Limits, free_names, judge

from helpers.lessons import checks
from helpers.output import files

SPLIT = """
def split(direction, w_out):
    row = (direction @ w_out) * w_out / (w_out @ w_out)
    return row, direction - row
"""
CHECK_SPLIT = "from helpers import checks\nchecks.check_split(split)"
SHORT = Limits(seconds=2)
kernel_only = pytest.mark.skipif(guard.strength() != "kernel", reason="needs Linux with Landlock")


def attack(body, *, returns="'done'", limits=SHORT):
    """Judge a function that tries something; it answers with what it is asked for."""
    cell = f"def f():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n    return {returns}"
    return judge((), cell, "assert f() == 'done', f()", limits)


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """After all attacks no process is left below us."""
    yield
    launch.nursery().close()
    assert not psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Temporary folders go where we can see that each is removed again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    left = list(tmp_path.glob("exercise-*"))
    subprocess.run(["rm", "-rf", *left], check=True)  # pytest cannot remove the deep one
    assert not left
    idle = launch.nursery().process  # the one that forks workers; no worker is left below it
    children = psutil.Process().children(recursive=True)
    assert {child.pid for child in children} <= {idle.pid if idle else None}


@pytest.fixture
def victim(tmp_path):
    """A file outside that nobody may change."""
    path = tmp_path / "victim.txt"
    path.write_text("mine")
    path.chmod(0o644)
    yield path
    assert path.read_text() == "mine"
    assert path.stat().st_mode & 0o777 == 0o644


# Honest answers


def test_a_right_function_passes():
    judgement = judge((), SPLIT, CHECK_SPLIT)
    assert judgement.passed and judgement.error is None and judgement.printed == ""


def test_a_right_value_passes_and_a_wrong_one_gets_the_check_s_message():
    test = "from helpers import checks\nchecks.check_my_illusion(my_illusion)"
    value = "import torch\na = torch.tensor({}).deg2rad()\n"
    value += "my_illusion = torch.stack([a.cos(), a.sin(), 0 * a])"
    assert judge((), value.format(15.0), test).passed
    wrong = judge((), value.format(45.0), test)
    assert not wrong.passed and "45° overshoots here" in wrong.error


def test_a_wrong_function_gets_the_check_s_message():
    judgement = judge(
        (), SPLIT.replace("row, direction - row", "direction - row, row"), CHECK_SPLIT
    )
    assert not judgement.passed and judgement.error == "row part: row and null are swapped"


def test_the_cells_before_are_there_and_their_errors_and_output_are_not():
    prelude = ["print('no')", "1 / 0", "import sys; sys.exit(1)", "import torch", "two = 2"]
    judgement = judge(prelude, "def f():\n    print('yes')\n    return two", "assert f() == 2")
    assert judgement.passed and judgement.printed == "yes\n"


def test_the_setup_cell_of_the_lessons_runs():
    prelude = ["from helpers import notebook\nnotebook.start(seed=0)\nran = True"]
    assert judge(prelude, "", "assert ran").passed


def test_an_edit_in_place_is_seen():
    cell = "def patch_direction(base, source, v):\n"
    cell += "    base += ((source - base) @ v)[:, None] * v / (v @ v)\n    return base"
    test = "from helpers import checks\nchecks.check_patch_direction(patch_direction)"
    assert "changes one of its inputs in place" in judge((), cell, test).error


def test_an_edit_in_place_of_shape_and_in_a_list_is_seen():
    cell = "def f(x, more):\n    x.unsqueeze_(0)\n    more[0].zero_()"
    test = "import torch\nx, y = torch.ones(2), torch.ones(3)\nf(x, more=[y])\n"
    test += "assert x.shape == (1, 2) and not y.any()"
    judgement = judge((), cell, test)
    assert judgement.passed, judgement.error


def test_named_tuples_arrive_as_themselves():
    cell = """
def is_illusion(one, whole, random, row, null_share):
    works = one.value >= 0.20 and one.low > max(whole.high, random.high, 0)
    needs_null = row.value <= 0.5 * one.value and null_share.low > 0.5
    return abs(whole.value) <= 0.10 and works and needs_null
"""
    test = "from helpers import checks\nchecks.check_is_illusion(is_illusion)"
    judgement = judge((), cell, test)
    assert judgement.passed, judgement.error


def test_an_exception_is_told_with_the_line():
    raised = judge((), "def split(a, b):\n    x = 1\n    return x + 'a'", CHECK_SPLIT)
    assert raised.error.startswith("TypeError: unsupported operand")
    assert raised.error.endswith("(line 3 of your cell)")
    assert (
        judge((), "x = 1\n1 / 0", "").error
        == "ZeroDivisionError: division by zero (line 2 of your cell)"
    )
    assert judge((), "x = 1\ny = (", "").error.endswith("(line 2 of your cell)")


def test_what_is_missing_or_not_answered_is_told():
    assert "name 'split' is not defined" in judge((), "pass", CHECK_SPLIT).error
    cell = "def split(a, b):\n    raise NotImplementedError"
    assert judge((), cell, CHECK_SPLIT).error.startswith("not answered yet")


def test_an_exception_in_the_test_fails_the_answer_only():
    assert "KeyError" in judge((), "d = {}", "d['a']").error
    assert "SyntaxError" in judge((), "d = {}", "d[").error
    assert judge((), "", "raise SystemExit(0)").passed is False


def test_free_names_are_those_read_but_not_defined():
    source = """
from helpers import checks as c
import torch.nn
def g(a, *b, k=default):
    global made
    made = a + outside
    return [i + deep for i in b]
for seed in range(n):
    c.check(split, seed=seed, made=made)
class K:
    field = attribute
    def m(self): return K
"""
    names = ["attribute", "deep", "default", "n", "outside", "split"]
    assert free_names(source) == names


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(10**30),
        0.1,
        float("inf"),
        "ü\ud800",
        (1, [2, (3,)], {"a": (), 4: None}),
        torch.tensor(3.5),
        torch.arange(6).reshape(2, 3).T,
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_values_come_over_as_they_are(value):
    back = wire.unpack(*wire.pack(value))
    assert type(back) is type(value)
    if isinstance(value, torch.Tensor):
        assert back.dtype == value.dtype and not back.requires_grad
        assert torch.equal(back, value)
    else:
        assert back == value


# Hostile answers


@pytest.mark.parametrize("cell", ["while True: pass", "def f():\n    while True: pass"])
def test_an_endless_loop_ends(cell):
    launch.start().stop()  # so that the first start does not count
    start = time.monotonic()
    judgement = judge((), cell, "f()", SHORT)
    assert "no answer in 2 seconds" in judgement.error
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("before", ["while True: pass", "import os; os._exit(0)"])
def test_cells_before_that_do_not_end_are_left_out(before):
    judgement = judge([before], SPLIT, CHECK_SPLIT, SHORT)
    assert judgement.passed and "were left out" in judgement.printed


def test_a_loop_that_answers_drop_by_drop_ends():
    body = """
    import gc, socket, time
    end = next(x for x in gc.get_objects() if isinstance(x, socket.socket) and x.fileno() > 2)
    while True:
        end.send(b"\\0")
        time.sleep(0.3)
    """
    start = time.monotonic()
    assert not attack(body).passed
    assert time.monotonic() - start < 10


def test_much_output_is_cut():
    judgement = attack("for _ in range(50): print('x' * 10**6)")
    assert judgement.passed
    kept, note = judgement.printed.split("\n... and ")
    assert set(kept) == {"x"} and len(kept) == 10_000
    assert note == f"{50 * (10**6 + 1) - 10_000:,} characters more"


def test_what_steers_a_terminal_is_taken_out():
    cell = "print('\\x1b[2Ja\\ud800')\nraise ValueError('\\x1b]0;b\\x07')"
    judgement = judge((), cell, "")
    assert judgement.printed == "\ufffd[2Ja\ufffd\n"
    assert judgement.error == "ValueError: \ufffd]0;b\ufffd (line 2 of your cell)"


def test_what_was_printed_names_no_folder_of_the_machine(monkeypatch):
    monkeypatch.setenv("HOME", "/")  # as for a container's user: not every slash is its name
    cell = "import sys, torch\nprint(torch.__file__, sys.base_prefix, 1 / 2, 'a/b')\n1 / 0"
    judgement = judge((), cell, "")
    assert judgement.printed.startswith("...") and judgement.printed.endswith("0.5 a/b\n")
    for place in (sys.prefix, sys.base_prefix, str(guard.ROOT)):
        assert place not in judgement.printed
    raised = judge((), f"raise ValueError({sys.prefix + ' a/b'!r})", "").error
    assert raised == f"ValueError: {files.without_places(sys.prefix)} a/b (line 1 of your cell)"


def test_ending_the_process_loses_the_point():
    assert "exit status 0" in attack("import os; os._exit(0)").error
    assert "ends the program" in attack("import sys; sys.exit()").error
    assert "ends the program" in judge((), "import sys; sys.exit()", "").error
    assert "SIGSEGV" in attack("import ctypes; ctypes.string_at(0)").error


def test_signals_reach_nobody_else():
    for target in ("os.getppid()", "-1", "0", "1", str(os.getpid())):
        judgement = attack(f"import os; os.kill({target}, 9)")
        assert "PermissionError" in judgement.error, target


@kernel_only
@pytest.mark.parametrize(
    "call",
    [
        "libc.kill(PARENT, 9)",
        "libc.syscall(234, PARENT, PARENT, 9)",
        "libc.fork()",
        "libc.syscall(57)",
        "libc.syscall(56, 17, 0, 0, 0, 0)",
        "libc.execv(b'/bin/true', None)",
        "libc.system(b'true')",
        "libc.socket(2, 2, 0)",
        "libc.socket(1, 1, 0)",
        "libc.syscall(302, PARENT, 0, b'0' * 16, None)",
        "libc.chmod(VICTIM, 0)",
        "libc.open(VICTIM, 1)",
        "libc.open(VICTIM, 0)",
        "libc.unlink(VICTIM)",
        "libc.rename(VICTIM, b'here')",
        "libc.link(VICTIM, b'here')",
        "libc.truncate(VICTIM, 0)",
        "libc.symlink(VICTIM, b'here') or libc.open(b'here', 1)",
        "libc.ptrace(16, PARENT, 0, 0)",
        "libc.shmget(0, 4096, 0o1600)",
        "libc.fcntl(1, 8, PARENT)",  # whom signals of this file go to
        "libc.ioctl(1, 0x8901, ctypes.byref(ctypes.c_int(PARENT)))",
        "libc.setuid(65534)",
        "libc.linkat(-100, VICTIM, -100, b'here', 0x400)",
        "libc.open(VICTIM.rsplit(b'/', 1)[0], 0o20200002, 0o600)",  # a file without a name there
        "libc.open(SITE + b'/owned.pth', 0o102, 0o600)",
        "libc.open(SOLUTIONS, 0)",
        "libc.chroot(b'.')",
        "libc.syscall(321, 0, 0, 0)",
        "libc.open(b'/proc/PARENT/mem', 2)",
        "libc.open(b'/dev/shm/owned', 0o102, 0o600)",
        "libc.open(b'/proc/self/root/tmp/owned', 0o102, 0o600)",
        "libc.mount(b'none', b'.', b'tmpfs', 0, None)",
    ],
)
def test_the_kernel_refuses_what_goes_round_python(call, victim):
    call = call.replace("PARENT", str(os.getpid())).replace("VICTIM", repr(bytes(victim)))
    call = call.replace("SITE", repr(os.fsencode(sysconfig.get_path("purelib"))))
    call = call.replace("SOLUTIONS", repr(bytes(next((guard.ROOT / "notebooks").glob("01*")))))
    body = f"import ctypes\nlibc = ctypes.CDLL(None)\nresult = {call}"
    judgement = attack(body, returns="'done' if result in (-1, 32512) else f'it got {result}'")
    assert judgement.passed, judgement.error


@kernel_only
def test_threads_still_work():
    body = """
    import threading
    import torch
    found = []
    threads = [threading.Thread(target=found.append, args=(i,)) for i in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    torch.set_num_threads(2)
    x = torch.randn(300, 300) @ torch.randn(300, 300)
    """
    judgement = attack(body, returns="'done' if len(found) == 3 else len(found)")
    assert judgement.passed, judgement.error


@pytest.mark.parametrize(
    "body",
    [
        "import os\nfor _ in range(20): os.fork()",
        "import subprocess; subprocess.run(['touch', VICTIM])",
        "import os; os.system('touch x')",
        "import os; os.execv('/bin/true', ['true'])",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT', timeout=1)",
        "open(VICTIM, 'w')",
        "open(VICTIM, 'a')",
        "import pathlib; pathlib.Path(VICTIM).write_text('yours')",
        "import pathlib; pathlib.Path(VICTIM).unlink()",
        "import os; os.open(VICTIM, os.O_RDWR)",
        "import os; os.truncate(VICTIM, 0)",
        "import os; os.chmod(VICTIM, 0)",
        "import os; os.rename(VICTIM, 'here')",
        "import os; os.rename('/proc/self/cwd', VICTIM)",
        "import shutil; open('x', 'w').close(); shutil.copy('x', VICTIM)",
        "import shutil; shutil.move(VICTIM, 'here')",
        "import os; os.symlink(VICTIM, 'here'); open('here', 'w')",
        "import os; os.link(VICTIM, 'here'); open('here', 'w')",
        "import os; os.mkdir(VICTIM + '-folder')",
        "import sqlite3; sqlite3.connect(VICTIM + '.db').execute('create table t (x)')",
    ],
)
def test_python_refuses_with_a_clear_error(body, victim):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        body = body.replace("VICTIM", repr(str(victim)))
        judgement = attack(body.replace("PORT", str(server.getsockname()[1])))
        with pytest.raises(TimeoutError):
            server.accept()
    assert not judgement.passed
    assert "may not" in judgement.error or "PermissionError" in judgement.error


def test_its_own_folder_is_free_and_removed():
    body = """
    import os, pathlib, tempfile
    pathlib.Path("a/b").mkdir(parents=True)
    pathlib.Path("a/b/c.txt").write_text("x")
    os.replace("a/b/c.txt", "a/c.txt")
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    same = os.getcwd() == os.environ["HOME"] == tempfile.gettempdir()
    """
    judgement = attack(body, returns="'done' if same else 'not the same'")
    assert judgement.passed, judgement.error


@kernel_only
def test_a_very_deep_folder_is_removed():
    body = """
    import ctypes
    libc = ctypes.CDLL(None)
    for _ in range(1200):
        libc.mkdir(b"d", 0o700)
        libc.chdir(b"d")
    """
    assert attack(body).passed


@kernel_only
def test_memory_and_files_are_limited():
    small = Limits(seconds=5, memory_bytes=2**28, file_bytes=2**16)
    for body in ("x = bytearray(2**30)", "import torch; x = torch.ones(2**28)"):
        error = attack(body, limits=small).error
        assert "memory" in error.lower(), error
    error = attack("open('x', 'wb').write(b'0' * 2**20)", limits=small).error
    assert error.startswith("OSError"), error


def test_overwriting_the_checks_changes_nothing():
    cell = """
import builtins, sys, torch
from helpers import checks
from helpers.checks import compare
for name in checks.__all__:
    setattr(checks, name, lambda *a, **k: None)
compare.require = compare.name_mistake = lambda *a: None
torch.allclose = torch.equal = lambda *a, **k: True
builtins.AssertionError = ValueError
class Same(torch.Tensor):
    __eq__ = lambda *a: True
def split(direction, w_out):
    return direction, direction
"""
    before = checks.check_split, torch.allclose, builtins.AssertionError
    judgement = judge((), cell, CHECK_SPLIT)
    assert not judgement.passed and judgement.error.startswith("row part")
    assert before == (checks.check_split, torch.allclose, builtins.AssertionError)
    assert judge((), SPLIT, CHECK_SPLIT).passed  # and the next worker is a clean one


def test_objects_never_come_over(tmp_path):
    cell = """
import os
class Bomb:
    def __reduce__(self):
        return os.system, ("touch boom",)
    def __eq__(self, other):
        return True
def f():
    return Bomb()
"""
    judgement = judge((), cell, "assert f() == 'done'")
    assert "a value of type Bomb cannot be checked" in judgement.error
    assert "Bomb" in judge((), cell + "x = [Bomb()]", "x").error
    assert "contains itself" in judge((), "a = []\na.append(a)", "a").error
    assert not Path("boom").exists() and not (tmp_path / "boom").exists()


@kernel_only
@pytest.mark.parametrize("abi", [1, 2])
def test_an_old_landlock_is_used_but_not_trusted(abi, monkeypatch, fresh, victim):
    program = "from tools.classroom import landlock, worker\n"
    program += f"landlock.version = lambda: {abi}\nworker.main()"
    monkeypatch.setattr(launch, "COMMAND", [sys.executable, "-c", program])
    monkeypatch.setattr("tools.classroom.landlock.version", lambda: abi)
    assert guard.strength() == "python"
    assert judge((), SPLIT, CHECK_SPLIT).passed
    for body in (f"open({str(victim)!r}).read()", "import ctypes; ctypes.CDLL(None)"):
        assert not attack(body).passed, body
    launch.nursery().close()


def test_a_tensor_subclass_comes_over_as_numbers():
    cell = """
import torch
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        if f is torch.allclose or f is torch.equal:
            return True
        return super().__torch_function__(f, types, args, kwargs)
def split(direction, w_out):
    return torch.zeros(5).as_subclass(Liar), torch.zeros(5).as_subclass(Liar)
"""
    judgement = judge((), cell, CHECK_SPLIT)
    assert not judgement.passed and judgement.error.startswith("row part")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("torch.ones(1).expand(10 * 2**28)", "too large"),
        ("torch.ones(3, device='meta')", "ordinary dense tensor"),
        ("torch.eye(3).to_sparse()", "ordinary dense tensor"),
        ("'x' * 2**21", "too large"),
        ("{1, 2}", "type set"),
        ("torch", "type module"),
    ],
)
def test_strange_values_are_refused(value, reason):
    judgement = judge((), f"import torch\nx = {value}", "x")
    assert not judgement.passed and reason in judgement.error


@pytest.mark.parametrize(
    "message",
    [
        b"\\xff" * 8,
        b"\\0" * 7 + b"\\2" + b"{}" + b"\\0" * 8,
        b"\\0" * 7 + b"\\4" + b"true" + b"\\0" * 8,
        b"\\0" * 6 + b"\\x9c\\x40" + b"[" * 40000 + b"\\0" * 8,
    ],
)
def test_forged_messages_fail(message):
    body = f"""
    import gc, os, socket
    end = next(x for x in gc.get_objects() if isinstance(x, socket.socket) and x.fileno() > 2)
    end.sendall({message.decode("unicode_escape").encode("latin1")!r})
    """
    judgement = attack(body)
    assert "cannot be read" in judgement.error


@pytest.mark.parametrize(
    "text",
    [
        '{"tensor": ["float32", [4]]}',
        '{"tensor": ["float32", [-1]]}',
        '{"tensor": ["float32", [4611686018427387904, 4]]}',
        '{"tensor": ["object", [1]]}',
        '{"tensor": ["float32", "ab"]}',
        '{"array": ["bfloat16", [1]]}',
        '{"code": 1}',
        '{"dict": [[[], 1]]}',
        '{"tuple": 1}',
        "{}",
        "nonsense",
    ],
)
def test_malformed_values_are_refused(text):
    with pytest.raises(wire.Malformed):
        wire.unpack(text.encode(), b"\0" * 8)


def test_truth_values_have_one_of_two_bytes():
    truth = wire.unpack(b'{"tensor": ["bool", [3]]}', b"\0\1\7")
    assert truth.tolist() == [False, True, True]
    assert truth.view(torch.uint8).tolist() == [0, 1, 1]


def test_a_check_cannot_outlive_its_worker():
    test = "for _ in range(3):\n    try:\n        f()\n    except Exception:\n        pass"
    assert not judge((), "import os\ndef f():\n    os._exit(0)", test).passed


# These start the process that forks anew, with less to import; they come last.


@pytest.fixture
def fresh(monkeypatch):
    launch.nursery().close()
    monkeypatch.setattr(launch, "PRELOADED", ())


@kernel_only
def test_other_submissions_and_secrets_cannot_be_read(tmp_path, monkeypatch, fresh):
    (tmp_path / "other.ipynb").write_text("the answer is 4 h2 + h3")
    monkeypatch.setenv("TEACHERS_TOKEN", "hunter2")
    other = str(tmp_path / "other.ipynb")
    places = ["/etc/shadow", f"/proc/{os.getpid()}/environ", other, str(guard.ROOT / "README.md")]
    for path in places:
        assert Path(path).exists()
        assert "PermissionError" in attack(f"open({path!r}).read()").error
    assert "PermissionError" in attack(f"import os; os.listdir({str(tmp_path)!r})").error
    body = "import os\nfound = str(os.environ) + open('/proc/self/environ').read()"
    assert attack(body, returns="'done' if 'hunter2' not in found else found").passed


def test_the_worker_s_parent_may_die(fresh):
    judge((), "", "")
    launch.nursery().process.kill()
    launch.nursery().process.wait()
    assert judge((), SPLIT, CHECK_SPLIT).passed


def test_a_worker_of_its_own_where_forking_is_not_safe(monkeypatch, fresh):
    monkeypatch.setattr(launch, "start", launch.Single)
    cell = SPLIT + "def loop():\n    while True: pass"
    judgement = judge((), cell, CHECK_SPLIT + "\nloop()", SHORT)
    assert "no answer in 2 seconds" in judgement.error  # so the check passed


def test_without_the_kernel_s_help_the_hook_refuses(monkeypatch, fresh, victim):
    program = "from tools.classroom import landlock, worker\n"
    program += "landlock.version = lambda: 0\nworker.main()"
    monkeypatch.setattr(launch, "COMMAND", [sys.executable, "-c", program])
    assert judge((), SPLIT, CHECK_SPLIT).passed
    for body in (
        f"open({str(victim)!r}, 'a')",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.kill({os.getpid()}, 9)",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import socket; socket.socket()",
        "import ctypes; ctypes.CDLL(None)",
        "import ctypes; ctypes.pythonapi.PyLong_FromLong",
    ):
        assert "an exercise may not" in attack(body).error, body
    launch.nursery().close()
