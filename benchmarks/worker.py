"""Does the work of one peer, in the peer's own environment, when asked through a pipe.

    python worker.py PEER FOLDER PROBLEM

answers each request, a line of JSON `{"work": ...}` on standard input, by doing that work once and
printing a line of JSON. Started with `--once WORK` it does only that and reports its peak memory.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the model is a folder
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

PROBE = 1024  # side of the matrices whose product measures how busy the machine is


def probe() -> float:
    """Floating-point operations per second of a large matrix product: the best of a few."""
    a = torch.ones(PROBE, PROBE)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * PROBE**3 / min(times)


def peak_memory() -> int:
    """The most memory this process has ever had, in bytes; 0 where Linux's files are missing."""
    # Not getrusage: there, a child begins with the peak of the process that started it.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("folder")
    parser.add_argument("problem", type=Path)
    parser.add_argument("--once", metavar="WORK")
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    problem = load_file(options.problem)
    works = importlib.import_module(f"peers.{options.peer}").Peer(options.folder, problem).works()
    if options.once:
        works[options.once]()
        return answer(peak=peak_memory())
    answer(threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        serve(works, Path(folder), answer)


def serve(works: dict, results: Path, answer: Callable[..., None]) -> None:
    """Do what is asked until standard input ends; the results lie in the folder."""
    for line in sys.stdin:
        work = json.loads(line)["work"]
        before, start = probe(), time.perf_counter()
        result = works[work]()
        seconds = time.perf_counter() - start
        save_file({"result": result.detach().contiguous()}, results / "result")
        direction = getattr(works[work], "direction", None)
        if direction is not None:
            save_file({"direction": direction.detach().contiguous()}, results / "direction")
        answer(seconds=seconds, rate=min(before, probe()), folder=str(results))


if __name__ == "__main__":
    main()
