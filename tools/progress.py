"""The progress of lessons, or of jobs, on the terminal, also of several at the same time."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

CLEAR = "\r\x1b[K"  # back to the start of the line, and nothing on it
PAUSE = 0.5  # seconds between two looks at a kernel's memory


@dataclass
class Progress:
    """The progress line of one lesson: cells done, time, peak memory of its kernel if watched."""

    lesson: str
    total: int
    done: int = 0
    peak: int = 0  # bytes
    start: float = field(default_factory=time.monotonic)
    note: str = ""  # why the lesson ended early, if it did
    unit: str = "cells"

    def __str__(self) -> str:
        seconds = time.monotonic() - self.start
        done = f"{self.done:3d}/{self.total} {self.unit}"
        peak = f"   peak {self.peak / 1e9:.1f} GB" if self.peak else ""
        return f"{self.lesson:34} {done} {seconds:6.0f} s{peak}{self.note}"


class Board:
    """Shows the lessons that run now in one line of a terminal, and what they end with above it."""

    def __init__(self) -> None:
        self._running: list[Progress] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watch(self, progress: Progress, kernel: int | None = None) -> Iterator[None]:
        """On a terminal, redraw the line while the block runs; measure the memory of a kernel."""
        finished = threading.Event()

        def look() -> None:
            while True:
                if kernel is not None:
                    with contextlib.suppress(psutil.Error):
                        memory = psutil.Process(kernel).memory_info().rss
                        progress.peak = max(progress.peak, memory)
                self._draw()
                if finished.wait(timeout=PAUSE):
                    return

        watcher = threading.Thread(target=look, daemon=True)
        with self._lock:
            self._running.append(progress)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            with self._lock:
                self._running.remove(progress)

    def say(self, text: object) -> None:
        """Print what stays, in one piece."""
        with self._lock:
            print(f"{CLEAR}{text}" if sys.stdout.isatty() else text, flush=True)

    def _draw(self) -> None:
        with self._lock:
            if sys.stdout.isatty() and self._running:
                width = shutil.get_terminal_size().columns - 1
                print(f"{CLEAR}{self._line()[:width]}", end="", flush=True)

    def _line(self) -> str:
        """All about the lesson that runs; of several, how far each is."""
        if len(self._running) == 1:
            return str(self._running[0])
        return "   ".join(f"{one.lesson[:2]} {one.done}/{one.total}" for one in self._running)
