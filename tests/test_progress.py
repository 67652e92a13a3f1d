"""What a terminal shows of lessons that run at the same time."""

import io
import os
import threading
import time
from contextlib import redirect_stdout

import pytest

from tools import progress
from tools.progress import CLEAR, Board, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def write(self, text):
        time.sleep(0.002)  # time for another thread to write as well
        return super().write(text)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.01)
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((60, 24)))
    return Terminal()


def wait_for(terminal, text):
    deadline = time.monotonic() + 20
    while text not in terminal.getvalue():
        assert time.monotonic() < deadline, terminal.getvalue()
        time.sleep(0.01)


def test_one_line_for_all_that_run_and_whole_lines_for_what_has_ended(terminal):
    board, first, second = Board(), Progress("03_catch", 40), Progress("05_patch", 9, done=2)
    with redirect_stdout(terminal), board.watch(first, os.getpid()):
        wait_for(terminal, "03_catch ")
        assert first.peak > 10_000_000
        with board.watch(second, os.getpid()):
            wait_for(terminal, f"{CLEAR}03 0/40   05 2/9")
            second.done = 3
            wait_for(terminal, f"{CLEAR}03 0/40   05 3/9")
        board.say(second)
        wait_for(terminal, f"{CLEAR}{second}\n")
    shown = terminal.getvalue().split(CLEAR)
    assert all(len(line) < 60 for line in shown if "\n" not in line), "a line must not wrap"


def test_nothing_is_torn_apart(terminal):
    board = Board()
    texts = [str(number) * 50 + "\n" + str(number) * 50 for number in range(8)]
    with redirect_stdout(terminal), board.watch(Progress("03", 1), os.getpid()):
        threads = [threading.Thread(target=board.say, args=[text]) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(f"{CLEAR}{text}\n" in terminal.getvalue() for text in texts)


def test_a_file_gets_no_redrawn_lines():
    shown, board = io.StringIO(), Board()
    with redirect_stdout(shown), board.watch(Progress("03", 1), os.getpid()):
        board.say("done")
    assert shown.getvalue() == "done\n"


def test_a_kernel_that_is_gone_is_no_error(terminal):
    with redirect_stdout(terminal), Board().watch(Progress("03", 1), 2**22 + 7):
        wait_for(terminal, "0/1 cells")
